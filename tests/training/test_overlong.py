"""Records of too many tokens are never cut: refused with what to do, or left out and counted, in words that exist."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from transformers import AutoConfig, AutoTokenizer

from difflm.cli.command import build_parser
from difflm.pipelines.vocabulary import tokenize_segment
from difflm.training.decoder_context import record_room
from difflm.training.fitting import fit
from difflm.training.overlong import RecordTooLongError
from difflm.training.preparation import TooFewRecordsError, prepare
from tests.conftest import tiny_preset


@pytest.fixture
def preset(model_folders):
    return tiny_preset(model_folders)


@pytest.fixture
def notes():
    """12 rows: two long notes, of 301 and 401 characters, the longer with a number beyond the others'."""
    texts = [f"note {row}" for row in range(12)]
    texts[4], texts[9] = "x" * 301, "y" * 401
    return pd.DataFrame({"n": [*range(9), 1_000_000, 9, 10], "note": texts})


def test_the_error_names_the_row_its_longest_column_and_what_to_do(preset, notes):
    with pytest.raises(RecordTooLongError) as caught:
        prepare(notes, preset, max_length=100)
    message = str(caught.value)
    assert "Row 4 (the first is 0) has 304 tokens, more than max_length=100, and so have 1 more of 12" in message
    assert "301 of them are its column 'note'" in message
    assert "the longest row has 410" in message
    assert "overlong='drop'" in message


def test_what_the_error_advises_the_command_takes(preset, notes):
    with pytest.raises(RecordTooLongError) as caught:
        prepare(notes, preset, max_length=100)
    options = re.findall(r"--[a-z-]+(?: [a-z]+)?", str(caught.value))
    assert len(options) == 2
    for option in options:
        name, *value = option.split()
        build_parser().parse_args(["fit", "table.csv", "-o", "out", name, *(value or ["7"])])


def test_long_records_are_left_out_and_counted(preset, notes, tmp_path):
    with pytest.warns(UserWarning, match=r"Left out: 2 of more than 100 tokens\. 9 records are learned from"):
        pipeline = fit(
            notes, tmp_path / "out", preset=preset, max_length=100, overlong="drop", show_progress=False, epochs=1
        )
    log = json.loads((tmp_path / "out" / "training_log.json").read_text(encoding="utf-8"))
    assert (log["rows"], log["validation_rows"]) == (9, 1)
    assert log["left_out"] == {"of more than 100 tokens": 2}
    # Nothing of what they alone held stays in the checkpoint.
    assert pipeline.schema.columns[0].maximum == 10


def test_the_validation_data_has_the_same_limit(preset, notes):
    short, text = notes.drop([4, 9]), {"text_columns": ["note"]}
    with pytest.raises(RecordTooLongError, match="Row 4 of the validation data"):
        prepare(short, preset, validation=notes.assign(n=1), read_options=text, max_length=100)
    options = {"read_options": text, "max_length": 100, "overlong": "drop"}
    with pytest.warns(UserWarning, match="2 validation records of more than 100 tokens"):
        prepared = prepare(short, preset, validation=notes.assign(n=1), **options)
    assert (len(prepared.train), len(prepared.held_out)) == (10, 10)
    with pytest.raises(TooFewRecordsError, match="No record of the validation data is short enough"):
        prepare(short, preset, validation=notes.loc[[4]], **options)


def test_too_few_are_left(preset, notes):
    with pytest.raises(TooFewRecordsError, match="1 of 3 records can be learned from"):
        prepare(notes.loc[[3, 4, 9]], preset, max_length=100, overlong="drop")


def test_records_longer_than_the_decoders_context_are_refused_before_training(preset, notes, tmp_path, monkeypatch):
    monkeypatch.setattr("difflm.training.fit_parts.fit_columns", lambda *args, **kwargs: pytest.fail("trained"))
    notes.loc[9, "note"] = "y" * 600
    with pytest.raises(RecordTooLongError, match=r"has 6\d\d tokens \(60\d of them its column 'note'\)") as caught:
        fit(notes, tmp_path / "out", preset=preset, show_progress=False)
    # 512 positions, 3 of them the latent's.
    assert "room for 509 beside the latent's, and 1 of" in str(caught.value)
    assert "--max-length 509 --overlong drop" in str(caught.value)


def test_no_record_is_written_longer_than_the_decoders_context(preset, notes, tmp_path, model_folders):
    pipeline = fit(notes, tmp_path / "out", preset=preset, show_progress=False, epochs=1)
    assert pipeline.config.max_new_tokens == 509
    config = AutoConfig.from_pretrained(model_folders["decoder"])
    assert record_room(config, {"injection": "embedding"}) == 512
    assert record_room(config, {"injection": "soft_prompt"}) == 504
    config.max_position_embeddings = -1  # as some say that there is none
    assert record_room(config, {}) is None


def test_long_texts_are_tokenised_without_a_warning_of_the_tokenizers(notes, model_folders, capfd):
    tokenizer = AutoTokenizer.from_pretrained(model_folders["decoder"])
    tokenizer.model_max_length = 16
    assert len(tokenize_segment(tokenizer, "x" * 300)) == 300
    assert "longer than the specified maximum" not in capfd.readouterr().err
    assert not tokenizer.deprecation_warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [({"overlong": "cut"}, "neither 'refuse' nor 'drop'"), ({"max_length": 1}, "max_length=1 has no room")],
)
def test_choices_that_are_none(preset, notes, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(notes, preset, **options)
