"""How far single columns and pairs of columns are from the real ones."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import MISSING, TableSpec, is_number, prepare


def bin_edges(values: Any, bins: int) -> npt.NDArray[np.float64]:
    """Edges of equal bins over the range of numbers, as NumPy's histograms have them, but of numbers of any size.

    Of no numbers, from 0 to 1. Where the numbers are all the same, or too near each other for so many bins, the edges
    lie around them.
    """
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    if high / 2 - low / 2 <= bins * max(np.spacing(abs(low)), np.spacing(abs(high))):
        apart = max(0.5, bins * float(np.spacing(max(abs(low), abs(high)))))
        low, high = low - apart, high + apart
    # Halves, as the range of the largest numbers is none itself.
    return 2 * np.linspace(low / 2, high / 2, bins + 1)


def shape_error_percent(real: pd.Series, synthetic: pd.Series) -> float:
    """Distance between two columns' distributions by SDMetrics' definitions, 0 (equal) to 100 (disjoint).

    Missing values are left out, as SDMetrics does.
    """
    from sdmetrics.single_column import KSComplement, TVComplement

    real, synthetic = real.dropna(), synthetic.dropna()
    if real.empty and synthetic.empty:
        return 0.0
    if real.empty or synthetic.empty:
        return 100.0
    if is_number(real):
        similarity = KSComplement.compute(real.astype(float), synthetic.astype(float))
    else:
        similarity = TVComplement.compute(real.astype(str), synthetic.astype(str))
    return 100.0 * (1.0 - float(similarity))


def shape_errors(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> dict[str, float]:
    """Shape error of each column in percent: 100 * (1 - SDMetrics' KSComplement or TVComplement).

    Missing values are left out (see `missing_rate_errors`); a column that is all missing in one table only is at 100.

    Raises
    ------
    difflm.training.evaluation.tables.ColumnMismatchError
        The tables have not the same columns.
    """
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    return {name: shape_error_percent(real[name], synthetic[name]) for name in spec.columns}


def correlations(table: pd.DataFrame, spec: TableSpec, *, ranked_by: pd.DataFrame | None = None) -> pd.DataFrame:
    """Pearson correlations of the numbers and the categories' ranks; undefined ones are 0.

    A category's rank is that of its frequency in ``ranked_by`` (default: the table itself): two tables can only be
    compared with the same ranks. Categories that do not occur there are left out.
    """
    prepared = prepare(table, spec, "the table")
    ranking = prepared if ranked_by is None else prepare(ranked_by, spec, "the table of the ranks")
    for name in spec.categorical:
        ranks = {value: rank for rank, value in enumerate(ranking[name].value_counts().index)}
        prepared[name] = prepared[name].map(ranks).astype(float)
    return prepared.corr().fillna(0.0)


def trend_errors(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> dict[tuple[str, str], float]:
    """Error of each pair of columns in percent: 100 * (1 - score of SDMetrics' "Column Pair Trends").

    Numbers are compared by their correlation, categories by their contingency table, and a number beside a category
    in ten equal bins of the real column's range. SDMetrics' quality report bins each table over its own range,
    so that one outlier moves all bins. A pair that is undefined (constant numbers) in the real table is left out;
    undefined in the synthetic one only, its synthetic correlation counts as 0.

    Raises
    ------
    difflm.training.evaluation.tables.ColumnMismatchError
        The tables have not the same columns.
    """
    from scipy.stats import pearsonr
    from sdmetrics.column_pairs import ContingencySimilarity

    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    binned_real: dict[str, pd.Series] = {}
    binned_synthetic: dict[str, pd.Series] = {}
    for name in spec.numerical:
        edges = bin_edges(real[name].dropna(), 10)
        for table, target in ((real, binned_real), (synthetic, binned_synthetic)):
            bins = pd.Series(np.digitize(table[name], edges[1:-1]).astype(str))
            target[name] = bins.where(table[name].notna(), MISSING)
    for name in spec.categorical:
        binned_real[name], binned_synthetic[name] = (t[name].fillna(MISSING) for t in (real, synthetic))

    def correlation(table: pd.DataFrame, pair: list[str]) -> float:
        rows = table[pair].dropna()
        if len(rows) < 2 or (rows.nunique() < 2).any():
            return float("nan")
        return float(pearsonr(rows[pair[0]], rows[pair[1]]).statistic)

    errors: dict[tuple[str, str], float] = {}
    for place, first in enumerate(spec.columns):
        for second in spec.columns[place + 1 :]:
            if first in spec.numerical and second in spec.numerical:
                wanted, found = correlation(real, [first, second]), correlation(synthetic, [first, second])
                if np.isfinite(wanted):
                    errors[first, second] = 50.0 * abs(wanted - (found if np.isfinite(found) else 0.0))
                continue
            pairs = [pd.DataFrame({"a": t[first], "b": t[second]}) for t in (binned_real, binned_synthetic)]
            errors[first, second] = 100.0 * (1.0 - float(ContingencySimilarity.compute(*pairs)))
    return errors


def _mean(errors: dict[Any, float]) -> float:
    return float(np.mean(list(errors.values())))


def _measure_shapes(tables: Tables, result: Evaluation) -> None:
    result.columns = shape_errors(tables.real, tables.synthetic, tables.spec)
    result.add("shape_error", _mean(result.columns))
    if tables.holdout is not None:
        result.add("shape_error_of_holdout", _mean(shape_errors(tables.real, tables.floor, tables.spec)))


def _measure_trends(tables: Tables, result: Evaluation) -> None:
    errors = trend_errors(tables.real, tables.synthetic, tables.spec)
    result.pairs = {f"{first} | {second}": error for (first, second), error in errors.items()}
    if not errors:
        return
    result.add("trend_error", _mean(errors))
    if tables.holdout is not None:
        result.add("trend_error_of_holdout", _mean(trend_errors(tables.real, tables.floor, tables.spec)))


METRICS = (
    Metric(
        "shape_error",
        _measure_shapes,
        (
            Figure("shape_error", "Column shape error", "%, 0 is best", "shape error %", 2),
            Figure(
                "shape_error_of_holdout", "Column shape error of unseen rows", "%, for comparison", "shape floor %", 2
            ),
        ),
    ),
    Metric(
        "trend_error",
        _measure_trends,
        (
            Figure("trend_error", "Column pair trend error", "%, 0 is best", "trend error %", 2),
            Figure(
                "trend_error_of_holdout",
                "Column pair trend error of unseen rows",
                "%, for comparison",
                "trend floor %",
                2,
            ),
        ),
    ),
)
