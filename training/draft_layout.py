"""What a draft has to know of a table before it is trained: its columns, their quantile functions and bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from difflm.modeling_draft import ColumnDraft
from difflm.pipelines.cell_codes import MISSING, CodedColumn
from difflm.training.policy import Policy


@dataclass(frozen=True)
class _Quantiles:
    """A number's quantile function: knots, and which of them begin or end a bin."""

    values: np.ndarray
    ranks: np.ndarray
    bins: np.ndarray


def new_draft(
    columns: Sequence[CodedColumn], codes: np.ndarray, policy: Policy | None = None, **options: Any
) -> ColumnDraft:
    """An untrained draft of a table, whose weights are drawn from torch's global generator.

    Parameters
    ----------
    columns : sequence of CodedColumn
    codes : int64 array
        Those of the training rows, ``[rows, columns]``.
    policy : Policy, optional
        Its ``column_bins``, ``column_knots`` and ``column_rows_per_knot``.
    **options
        Further arguments of [`ColumnDraft`].
    """
    policy = policy or Policy()
    described: list[dict[str, Any]] = []
    counts: list[np.ndarray] = []
    numbers: list[_Quantiles] = []
    for column, cells in zip(columns, codes.T, strict=True):
        known = cells[cells != MISSING]
        nullable = column.nullable or len(known) < len(cells)
        entry = {"name": column.name, "kind": column.kind, "nullable": nullable, "ordered": column.ordered}
        if column.kind == "number":
            found = _quantiles(np.sort(known), policy)
            numbers.append(found)
            own = np.diff(found.ranks[found.bins])
            entry["num_knots"] = len(found.values)
        else:
            own = np.bincount(known, minlength=column.size)
        counts.append(np.append(own, len(cells) - len(known)) if nullable else own)
        described.append(entry | {"num_tokens": len(counts[-1])})
    draft = ColumnDraft(described, **options)
    draft.set_statistics(
        knot_values=_joined([number.values for number in numbers]),
        knot_ranks=_joined([number.ranks for number in numbers]),
        bin_knots=_joined([number.bins for number in numbers]),
        token_counts=_joined(counts),
    )
    return draft


def _joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64))


def _quantiles(known: np.ndarray, policy: Policy) -> _Quantiles:
    """The quantile function of ascending codes.

    A value that occurs often stands in it exactly. Of the others only every so many rows' are kept, and the rows
    between are taken to lie evenly: so few rows as can be told from a checkpoint belong to no single record.
    """
    if not len(known):
        return _Quantiles(np.zeros(2, np.int64), np.array([0, 1]), np.array([0, 1]))
    distinct, starts, counts = np.unique(known, return_index=True, return_counts=True)
    often = counts >= policy.column_rows_per_knot
    if len(distinct) > policy.column_knots:  # only the most frequent of very many
        often &= counts >= np.sort(counts)[-policy.column_knots]
    values: list[int] = []
    ranks: list[int] = []
    place = 0
    while place < len(distinct):
        if often[place]:
            values += [int(distinct[place])] * 2
            ranks += [int(starts[place]), int(starts[place] + counts[place])]
            place += 1
            continue
        end = place
        while end < len(distinct) and not often[end]:
            end += 1
        first, last = int(starts[place]), int(starts[end - 1] + counts[end - 1])
        own_values, own_ranks = _thinned(known, first, last, policy)
        values += own_values
        ranks += own_ranks
        place = end
    return _Quantiles(np.array(values), np.array(ranks), _bins(np.array(values), np.array(ranks), policy.column_bins))


def _thinned(known: np.ndarray, first: int, last: int, policy: Policy) -> tuple[list[int], list[int]]:
    """Knots of rows ``first`` to ``last`` (excluded), whose values are rare."""
    step = max(policy.column_rows_per_knot, len(known) // policy.column_knots)
    if last - first < policy.column_rows_per_knot and first > 0 and last < len(known):
        # Too few to be told: anything between their neighbours.
        low, high = int(known[first - 1]), int(known[last])
        return ([low + 1, high - 1] if high - low > 1 else [low, high]), [first, last]
    inner = list(range(first + step, last - step + 1, step))
    middles = [int(known[rank - 1] + (known[rank] - known[rank - 1]) // 2) for rank in inner]
    return [int(known[first]), *middles, int(known[last - 1])], [first, *inner, last]


def _bins(values: np.ndarray, ranks: np.ndarray, most: int) -> np.ndarray:
    """Which knots the bins end at: each value that makes up a bin's share is one, the others lie together."""
    pieces = [knot for knot in range(1, len(ranks)) if ranks[knot] > ranks[knot - 1]]
    share = ranks[-1] / most
    few = len(pieces) <= most
    edges = [0]
    for knot in pieces:
        heavy = values[knot] == values[knot - 1] and ranks[knot] - ranks[knot - 1] >= share
        if heavy and edges[-1] != knot - 1 and ranks[knot - 1] > ranks[edges[-1]]:
            edges.append(knot - 1)  # what lies before it is a bin of its own
        if few or heavy or ranks[knot] - ranks[edges[-1]] >= share:
            edges.append(knot)
    if ranks[edges[-1]] < ranks[-1]:
        edges.append(len(ranks) - 1)
    return np.array(edges, dtype=np.int64)
