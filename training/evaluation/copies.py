"""Rows that are copies: of training rows, and of each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import TableSpec, prepare


# Share of the holdout's rows that chance does not explain to be training rows.
SEEN_HOLDOUT = 0.2


def _keys(table: pd.DataFrame) -> pd.Index:
    return pd.Index(list(map(tuple, table.astype(object).where(table.notna(), None).to_numpy())), tupleize_cols=False)


@dataclass(frozen=True)
class Copies:
    """Shares of rows: equal to a training row, and equal to an earlier row of the same table."""

    copy_rate: float
    duplicate_rate: float


def _with_exact(prepared: pd.DataFrame, table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Give columns of integers the table's own again: beyond 2**53, different ones are the same float64."""
    for name in names:
        prepared[name] = table[name].astype(object).to_numpy()
    return prepared


def copies(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> Copies:
    """Count exact copies of real rows, and duplicates among the synthetic ones (missing equals missing)."""
    left, right = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    large = [
        name
        for name in spec.numerical
        if name not in spec.dates
        and left[name].abs().max() >= 2**53
        and all(pd.api.types.is_integer_dtype(table[name]) for table in (real, synthetic))
    ]
    train, rows = _keys(_with_exact(left, real, large)), _keys(_with_exact(right, synthetic, large))
    return Copies(float(rows.isin(train).mean()), float(rows.duplicated().mean()))


def _measure(tables: Tables, result: Evaluation) -> None:
    real, spec = tables.real, tables.spec
    counts = copies(real, tables.synthetic, spec)
    result.add("copy_rate", counts.copy_rate)
    result.add("duplicate_rate", counts.duplicate_rate)
    if tables.holdout is None:
        return
    reference = copies(real, tables.holdout, spec)
    result.add("copy_rate_of_holdout", reference.copy_rate)
    result.add("duplicate_rate_of_holdout", reference.duplicate_rate)
    seen = reference.copy_rate
    # Where training rows repeat each other, unseen ones repeat them as well: counted only if it can matter.
    if seen > SEEN_HOLDOUT and seen > SEEN_HOLDOUT + 2 * copies(real, real, spec).duplicate_rate:
        result.warnings.append(
            f"{seen:.0%} of the holdout's rows are training rows: distances, risks, efficiency "
            "and floors need rows that the generator has not seen"
        )


METRICS = (
    Metric(
        "copy_rate",
        _measure,
        (
            Figure("copy_rate", "Copies of training rows", "share", "copies", 4, private=True),
            Figure("copy_rate_of_holdout", "Copies among the unseen rows", "share, for comparison", private=True),
            Figure("duplicate_rate", "Duplicates", "share", "duplicates", 4),
            Figure("duplicate_rate_of_holdout", "Duplicates among the unseen rows", "share, for comparison"),
        ),
    ),
)
