"""The shape of a record's draft: how many tokens each column's values have, and which tokens they are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment
from difflm.training.policy import Policy


def draft_options(
    records: Sequence[dict[str, Any]],
    schema: RecordSchema,
    tokenizer: PreTrainedTokenizerBase,
    separators: Sequence[int],
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Fields of [`DiffLMConfig`] for the draft of such records.

    Each column gets as many places as the tokens of nearly all its values, with what ends them; longer values get
    fewer where that is more than ``draft_places`` together. Columns from the first one on whose values hold
    separators, which move all that follows to other places, get none. The draft's vocabulary are the most frequent
    tokens of the columns that have places.
    """
    policy = policy or Policy()
    lengths: list[Counter[int]] = [Counter() for _ in schema.columns[: policy.max_embedded_columns]]
    ambiguous = [0] * len(lengths)
    counts: list[Counter[int]] = [Counter() for _ in lengths]
    records = records[:: math.ceil(len(records) / policy.draft_records)]
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
    while sure < len(lengths) and ambiguous[sure] <= policy.draft_ambiguous_share * len(records):
        sure += 1
    widths = _within([_quantile(found, policy.draft_width_share) for found in lengths[:sure]], policy.draft_places)
    if not widths:
        return {}
    frequent = sum(counts[:sure], Counter()).most_common(policy.draft_tokens)
    return {"draft_places": widths, "draft_token_ids": sorted(token for token, _ in frequent)}


def _within(widths: list[int], places: int) -> list[int]:
    """Cut the widest until all have no more than so many places together (and at least one each)."""
    most = max(widths, default=1)
    while most > 1 and sum(min(width, most) for width in widths) > places:
        most -= 1
    return [min(width, most) for width in widths]


def _quantile(counts: Counter[int], share: float) -> int:
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)
