"""The shape of a record's draft: how many tokens each column's values have, and which tokens they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from difflm.pipelines.records import RecordSchema
from difflm.training.record_dataset import RecordDataset


MAX_PLACES = 256
MAX_TOKENS = 512
MAX_RECORDS = 10_000


def draft_options(
    records: Sequence[dict[str, Any]],
    schema: RecordSchema,
    tokenizers: tuple[Any, Any],
    num_columns: int,
    separators: Sequence[int],
) -> dict[str, Any]:
    """Fields of [`DiffLMConfig`] for the draft of such records, from the first 10,000 of them.

    Each of the first ``num_columns`` columns (the last of them for all that follow) gets as many places as the tokens of nearly all its values, with the separator after them, and an equal
    share of 256 at most; the draft's vocabulary are the 512 most frequent tokens at most.
    """
    dataset = RecordDataset(records[:MAX_RECORDS], schema, *tokenizers, -1, max_length=10**9)
    counts: Counter[int] = Counter()
    lengths: list[Counter[int]] = [Counter() for _ in range(num_columns)]
    for record in dataset.records:
        tokens = dataset.token_ids(record)[:-1]
        counts.update(tokens)
        begins = [0] + [at + 1 for at, token in enumerate(tokens) if token in separators] + [len(tokens) + 1]
        for column, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
            lengths[min(column, len(lengths) - 1)][end - begin] += 1
    share = max(1, MAX_PLACES // num_columns)
    return {
        "draft_places": [min(share, _quantile(found, 0.999)) for found in lengths],
        "draft_token_ids": sorted(token for token, _ in counts.most_common(MAX_TOKENS)),
    }


def _quantile(counts: Counter[int], share: float) -> int:
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts, default=1)
