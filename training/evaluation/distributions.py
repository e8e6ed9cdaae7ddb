"""Figures on distributions: column shapes, column pairs, missing values, validity, copies, distances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.distances import Distances
from difflm.training.evaluation.tables import (
    MISSING,
    EvaluationError,
    TableSpec,
    is_number,
    prepare,
    subsample,
    with_plain_names,
)


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


def missing_rate_errors(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> dict[str, float]:
    """Absolute difference of each column's share of missing values, in percentage points."""
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    return {
        name: 100.0 * abs(float(real[name].isna().mean() - synthetic[name].isna().mean())) for name in spec.columns
    }


def validity_rate(texts: Sequence[str], schema: Any) -> float:
    """Share of raw generations that parse as records of a schema, before any filter.

    Parameters
    ----------
    texts
        As generated; None (nothing was) is no record.
    schema
        A ``RecordSchema``: all columns required, each of the right type, categories of the training table.

    Raises
    ------
    EvaluationError
        There are no texts.
    """
    from difflm.pipelines.errors import RecordParseError

    if isinstance(texts, str):
        raise EvaluationError("texts must be a list of texts, not one text")
    texts = list(texts)
    if not texts:
        raise EvaluationError("there are no texts to validate")
    valid = 0
    for text in texts:
        if text is None:
            continue
        try:
            schema.parse(text)
        except RecordParseError:
            continue
        valid += 1
    return valid / len(texts)


def fitting_rows(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> float:
    """Share of rows whose categories all occur in the real table and that miss values only where it does."""
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    fits = np.ones(len(synthetic), dtype=bool)
    for name in spec.columns:
        if not real[name].isna().any():
            fits &= synthetic[name].notna().to_numpy()
        if name in spec.categorical:
            fits &= (synthetic[name].isna() | synthetic[name].isin(set(real[name].dropna()))).to_numpy()
    return float(fits.mean())


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


@dataclass(frozen=True)
class ClosestRecords:
    """Distances of synthetic rows to their closest real ones.

    Parameters
    ----------
    to_train, to_holdout
        Of each synthetic row, to as many training rows as the holdout has, and to the holdout; shape (rows,).
    to_all_train
        To all training rows.
    share_percent
        Rows nearer to train than to the holdout; ties count half. 50 is ideal.
    share_of_copies_percent
        The same of training rows: what a generator that only copies would have. It is below 100 where the holdout
        is smaller than the training table, as most copies are then of rows that were not drawn.
    """

    to_train: npt.NDArray[np.float64]
    to_holdout: npt.NDArray[np.float64]
    to_all_train: npt.NDArray[np.float64]
    share_percent: float
    share_of_copies_percent: float


def distance_to_closest_record(
    real: pd.DataFrame,
    holdout: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    seed: int = 0,
    max_rows: int = 5_000,
    max_references: int = 10_000,
) -> ClosestRecords:
    """Measure whether synthetic rows lie nearer to the training rows than to unseen ones.

    Parameters
    ----------
    real
        Training rows; as many of them are drawn as the holdout has.
    holdout
        Real rows that the generator has not seen.
    synthetic
        The rows to judge.
    spec
        What the columns are. L1 distance, numbers scaled to the range of the real rows, categories one-hot.
    seed
        Of the draws.
    max_rows, max_references
        Most synthetic rows, and most rows of each of the two references of equal size.
    """
    real, holdout = prepare(real, spec, "the real table"), prepare(holdout, spec, "the holdout")
    rows = subsample(prepare(synthetic, spec), max_rows, seed, stream=1)
    size = min(len(real), len(holdout), max_references)
    distances = Distances(pd.concat([real, holdout]), spec)
    train, unseen = subsample(real, size, seed, stream=2), subsample(holdout, size, seed, stream=3)
    to_train, to_holdout = distances.to_nearest(rows, train), distances.to_nearest(rows, unseen)
    copied = subsample(real, len(rows), seed, stream=4)
    ceiling = _share_percent(distances.to_nearest(copied, train), distances.to_nearest(copied, unseen))
    share = _share_percent(to_train, to_holdout)
    return ClosestRecords(to_train, to_holdout, distances.to_nearest(rows, real), share, ceiling)


def _share_percent(to_train: npt.NDArray[np.float64], to_holdout: npt.NDArray[np.float64]) -> float:
    tied = np.isclose(to_train, to_holdout, rtol=0.0, atol=1e-12)
    return 100.0 * float(np.where(tied, 0.5, to_train < to_holdout).mean())


def _join_rare(tables: list[pd.DataFrame], name: str, most: int) -> None:
    """Keep the commonest categories of a column apart: one-hot rows of thousands of them would fill the memory."""
    counts = tables[0][name].value_counts()
    invented = set(tables[1][name]) - set(counts.index)
    if len(counts) + len(invented) <= most:
        return
    known, common = set(counts.index), set(counts.index[:most])
    for table in tables:
        table[name] = [v if v in common else ("\0rare" if v in known else "\0invented") for v in table[name]]


def precision_recall(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    seed: int = 0,
    max_rows: int = 5_000,
    max_categories: int = 500,
    steps: int = 30,
) -> tuple[float, float]:
    """Integrated alpha-precision and beta-recall (Alaa et al. 2022, arXiv 2102.08921), each 1 at best.

    Precision: do the synthetic rows fill the balls around the real rows' centre in the right shares? Recall: are the
    real rows that have a near synthetic row spread as they should be? Rows are standardised numbers and one-hot
    categories, not an embedding.

    Parameters
    ----------
    real, synthetic
        The tables.
    spec
        What the columns are.
    seed, max_rows
        Draw of the same number of rows of each.
    max_categories
        Of a column; rarer ones count as one, and those that only the synthetic rows have as another.
    steps
        Number of radii.

    Raises
    ------
    EvaluationError
        Fewer than two rows in one of the tables: there is no neighbour.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.neighbors import NearestNeighbors
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    tables = [prepare(real, spec, "the real table"), prepare(synthetic, spec)]
    size = min(max_rows, *map(len, tables))
    if size < 2:
        raise EvaluationError("alpha-precision needs at least two rows of each table")
    drawn = [subsample(table, size, seed, stream=place) for place, table in enumerate(tables, start=1)]
    tables, spec = with_plain_names(*drawn, spec=spec)
    for table in tables:
        table[list(spec.categorical)] = table[list(spec.categorical)].fillna(MISSING)
    for name in spec.categorical:
        _join_rare(tables, name, max_categories)
    fill = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    # Both tables' categories: one that was invented is as far from every real row as a wrong one.
    known = [np.unique(np.concatenate([table[name] for table in tables]).astype(str)) for name in spec.categorical]
    encoder = make_column_transformer(
        (make_pipeline(fill, StandardScaler()), list(spec.numerical)),
        (OneHotEncoder(categories=known), list(spec.categorical)),
        sparse_threshold=0.0,
    ).fit(tables[0])
    points, sampled = (encoder.transform(table) for table in tables)
    alphas = np.linspace(0, 1, steps)

    def radii(rows: npt.NDArray[Any], centre: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.linalg.norm(rows - centre, axis=1)

    centre, sampled_centre = points.mean(axis=0), sampled.mean(axis=0)
    # A hair wider, so that a row on the rim counts on every machine.
    borders = np.quantile(radii(points, centre), alphas) * (1 + 1e-9)
    precision = (radii(sampled, centre)[:, None] <= borders).mean(axis=0)
    own = NearestNeighbors(n_neighbors=2, n_jobs=1).fit(points).kneighbors(points)[0][:, 1]
    gaps, nearest = (
        array[:, 0] for array in NearestNeighbors(n_neighbors=1, n_jobs=1).fit(sampled).kneighbors(points)
    )
    depth = radii(sampled, sampled_centre)
    sampled_borders = np.quantile(depth, alphas) * (1 + 1e-9)
    covered = (gaps <= own)[:, None] & (depth[nearest][:, None] <= sampled_borders)
    recall = covered.mean(axis=0)

    def integrated(curve: npt.NDArray[Any]) -> float:
        return float(1 - 2 * np.abs(alphas - curve).mean())

    return integrated(precision), integrated(recall)
