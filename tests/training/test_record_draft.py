"""The shape of a record's draft."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from difflm.modeling_difflm import DiffLMConfig, RecordDraft, locate
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.policy import Policy
from difflm.training.record_draft import draft_options


@pytest.fixture
def options(decoder_tokenizer):
    def find(table: pd.DataFrame, record_format: str = "values", **policy: float) -> dict:
        schema = RecordSchema.infer(table, record_format=record_format, text_columns=[*{"note"} & {*table}])
        comma = decoder_tokenizer.encode(",", add_special_tokens=False)
        return draft_options(schema.to_records(table), schema, decoder_tokenizer, comma, Policy(**policy))

    return find


def test_each_column_has_places_for_its_values_and_what_ends_them(options, decoder_tokenizer):
    table = pd.DataFrame({"a": range(100), "b": [7, 8] * 50, "c": range(1000, 1100)})
    found = options(table)
    # The test's tokens are bytes: two digits and a comma, one and a comma, four and the record's end.
    assert found["draft_places"] == [3, 2, 5]
    assert found["draft_token_ids"] == sorted(decoder_tokenizer.encode("0123456789,", add_special_tokens=False))
    # Keys are written too: `{"a": 10,`, then ` "b": 7,` and ` "c": 1000}`.
    assert options(table, record_format="json")["draft_places"] == [9, 8, 12]


def test_places_are_where_the_tokens_are(options, decoder_tokenizer):
    table = pd.DataFrame({"a": range(100, 200), "b": [7, 8] * 50, "c": range(1000, 1100)})
    schema = RecordSchema.infer(table, record_format="json")
    comma = torch.tensor(decoder_tokenizer.encode(",", add_special_tokens=False))
    config = DiffLMConfig(
        decoder_hidden_size=8, separator_token_ids=comma.tolist(), **options(table, record_format="json")
    )
    text = schema.serialize(schema.to_records(table)[0])
    fed = torch.tensor([[0, *decoder_tokenizer.encode(text, add_special_tokens=False)]])
    columns, since, _ = locate(fed, comma)
    assert RecordDraft(config).places(columns, since).tolist() == [list(range(fed.shape[1]))]


def test_columns_behind_one_with_separators_in_its_values_have_no_places(options, decoder_tokenizer):
    notes = ["a, b", "c", "d, e, f", "g"] * 25
    found = options(pd.DataFrame({"a": [10, 20] * 50, "note": notes, "b": [7, 8] * 50}))
    assert found["draft_places"] == [3]
    # Nor are their tokens the draft's.
    assert found["draft_token_ids"] == sorted(decoder_tokenizer.encode("012,", add_special_tokens=False))
    assert options(pd.DataFrame({"note": notes, "b": [7, 8] * 50})) == {}
    notes = ["a, b", *["c"] * 999]  # one in a thousand moves its own record's alone
    found = options(pd.DataFrame({"note": notes, "b": [7, 8] * 500}))
    assert found["draft_places"] == [4, 2]


def test_a_rare_long_value_has_no_places_of_its_own(options):
    values = [1] * 1999 + [123456]
    assert options(pd.DataFrame({"a": values, "b": values}))["draft_places"] == [2, 2]


def test_a_share_of_long_values_can_have_places(options):
    values = [1] * 1999 + [123456]
    table = pd.DataFrame({"a": values, "b": values})
    assert options(table, draft_width_share=1.0)["draft_places"] == [7, 7]


def test_places_and_tokens_are_bounded(options):
    table = pd.DataFrame({"a": range(1000, 1100), "b": range(100), "c": [5] * 100})
    assert options(table, draft_places=8)["draft_places"] == [3, 3, 2]  # the widest are cut
    assert len(options(table, draft_tokens=2)["draft_token_ids"]) == 2
    assert options(table, draft_places=8, max_embedded_columns=2)["draft_places"] == [5, 3]
    assert options(table, draft_places=2)["draft_places"] == [1, 1, 1]


def test_rows_are_taken_from_the_whole_table(options):
    table = pd.DataFrame({"a": range(1000), "b": range(1000)})
    assert options(table, draft_records=10)["draft_places"] == [4, 4]
