"""The shape of a record's draft: how many tokens each column's values have, and which tokens they are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment


MAX_PLACES = 256
MAX_TOKENS = 512
MAX_RECORDS = 10_000
# Of values that hold a separator themselves, which moves all that follows it to other places.
MAX_AMBIGUOUS_SHARE = 0.01


def draft_options(
    records: Sequence[dict[str, Any]],
    schema: RecordSchema,
    tokenizer: PreTrainedTokenizerBase,
    separators: Sequence[int],
    max_columns: int,
) -> dict[str, Any]:
    """Fields of [`DiffLMConfig`] for the draft of such records, of which it looks at 10,000.

    Each column gets as many places as the tokens of nearly all its values, with what ends them; longer values get
    fewer where that is more than 256 together. Columns from the first one on whose values hold separators get none:
    their places could not be told. The draft's vocabulary are the 512 most frequent tokens, at most, of the columns
    that have places.
    """
    lengths: list[Counter[int]] = [Counter() for _ in schema.columns[:max_columns]]
    ambiguous = [0] * len(lengths)
    counts: list[Counter[int]] = [Counter() for _ in lengths]
    records = records[:: math.ceil(len(records) / MAX_RECORDS)]
    for record in records:
        tokens = [tokenize_segment(tokenizer, segment.text) for segment in schema.segments(record)]
        # Fixed and value in turn, fixed at last. A column writes its own, without the token that it began with (BOS
        # for the first), and what ends it.
        for column, found in enumerate(lengths):
            begun = tokens[2 * column] if column == 0 else tokens[2 * column][1:]
            last = column == len(schema.columns) - 1
            written = [*begun, *tokens[2 * column + 1], *(tokens[-1] if last else [])]
            found[len(written) + 1] += 1
            # What ends it, too: the token that the next column begins with.
            counts[column].update(written if last else [*written, *tokens[2 * column + 2][:1]])
            ambiguous[column] += any(token in separators for token in written)
    sure = 0
    while sure < len(lengths) and ambiguous[sure] <= MAX_AMBIGUOUS_SHARE * len(records):
        sure += 1
    widths = _within([_quantile(found, 0.999) for found in lengths[:sure]])
    if not widths:
        return {}
    frequent = sum(counts[:sure], Counter()).most_common(MAX_TOKENS)
    return {"draft_places": widths, "draft_token_ids": sorted(token for token, _ in frequent)}


def _within(widths: list[int]) -> list[int]:
    """Cut the widest until all have no more than ``MAX_PLACES`` together (and at least one each)."""
    most = max(widths, default=1)
    while most > 1 and sum(min(width, most) for width in widths) > MAX_PLACES:
        most -= 1
    return [min(width, most) for width in widths]


def _quantile(counts: Counter[int], share: float) -> int:
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)
