"""Records of more tokens than a model shall write: found before training, refused or left out, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from difflm.errors import DiffLMError
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment
from difflm.training.record_dataset import RecordDataset


OVERLONG = ("refuse", "drop")


class RecordTooLongError(DiffLMError, ValueError):
    """A record has more tokens than the limit; cutting it would take its end-of-text token away."""


def overlong_records(dataset: RecordDataset, max_length: int) -> dict[int, int]:
    """Index of each record of more than ``max_length`` tokens (the end-of-text token included) to their number."""
    return {
        row: tokens
        for row, length in enumerate(dataset.lengths)
        if length + 1 > max_length and (tokens := len(dataset.token_ids(dataset.records[row]))) > max_length
    }


def too_long(
    found: dict[int, int],
    dataset: RecordDataset,
    places: Sequence[int],
    max_length: int,
    *,
    part: str = "",
) -> RecordTooLongError:
    """The error that names the first of these records, its longest column, and what can be done."""
    row, tokens = next(iter(found.items()))
    name, most = longest_column(dataset.records[row], dataset.schema, dataset.decoder_tokenizer)
    more = f", and so have {len(found) - 1:,} more of {len(dataset):,}" if len(found) > 1 else ""
    return RecordTooLongError(
        f"Row {places[row]} {part}(the first is 0) has {tokens:,} tokens, more than max_length={max_length:,}{more}; "
        f"{most:,} of them are its column {name!r}. Raise the limit (max_length, --max-length; the longest row has "
        f"{max(found.values()):,}), leave such rows out (overlong='drop', --overlong drop), or leave the column out."
    )


def longest_column(
    record: dict[str, Any], schema: RecordSchema, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, int]:
    """The column of most tokens in a record, and their number."""
    counts = {
        segment.column: len(tokenize_segment(tokenizer, segment.text))
        for segment in schema.segments(record)
        if segment.column is not None
    }
    name = max(counts, key=counts.__getitem__)
    return name, counts[name]
