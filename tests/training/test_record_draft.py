"""The shape of a record's draft."""

from __future__ import annotations

import pandas as pd
import pytest

from difflm.pipelines.records import RecordSchema
from difflm.training import record_draft
from difflm.training.record_draft import draft_options


@pytest.fixture
def options(encoder_tokenizer, decoder_tokenizer):
    def find(table: pd.DataFrame, num_columns: int | None = None) -> dict:
        schema = RecordSchema.infer(table, record_format="values")
        tokenizers = (encoder_tokenizer, decoder_tokenizer)
        comma = decoder_tokenizer.encode(",", add_special_tokens=False)
        columns = num_columns or len(table.columns)
        return draft_options(schema.to_records(table), schema, tokenizers, columns, comma)

    return find


def test_each_column_has_places_for_its_values_and_what_ends_them(options, decoder_tokenizer):
    found = options(pd.DataFrame({"a": range(100), "b": [7, 8] * 50, "c": range(1000, 1100)}))
    # The test's tokens are bytes: two digits and a comma, one and a comma, four and the record's end.
    assert found["draft_places"] == [3, 2, 5]
    assert found["draft_token_ids"] == sorted(decoder_tokenizer.encode("0123456789,", add_special_tokens=False))


def test_a_rare_long_value_has_no_places_of_its_own(options):
    values = [1] * 1999 + [123456]
    assert options(pd.DataFrame({"a": values, "b": values}))["draft_places"] == [2, 2]


def test_places_and_tokens_are_bounded(options, monkeypatch):
    monkeypatch.setattr(record_draft, "MAX_PLACES", 7)
    monkeypatch.setattr(record_draft, "MAX_TOKENS", 2)
    found = options(pd.DataFrame({"a": range(1000, 1100), "b": range(100), "c": [5] * 100}))
    assert found["draft_places"] == [2, 2, 2]
    assert len(found["draft_token_ids"]) == 2


def test_further_columns_share_the_last_ones_places(options):
    table = pd.DataFrame({"a": [1, 2] * 50, "b": range(100, 200), "c": range(10000, 10100)})
    assert options(table, 2)["draft_places"] == [2, 6]
