"""Whether synthetic rows are near real ones (precision), and near all kinds of them (recall)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import (
    MISSING,
    EvaluationError,
    TableSpec,
    prepare,
    subsample,
    with_plain_names,
)


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


def _measure(tables: Tables, result: Evaluation) -> None:
    precision, recall = precision_recall(tables.real, tables.synthetic, tables.spec, seed=tables.seed)
    result.add("alpha_precision", precision)
    result.add("beta_recall", recall)


METRICS = (
    Metric(
        "alpha_precision",
        _measure,
        (
            Figure("alpha_precision", "Alpha-precision", "1 is best", "alpha-precision", 3),
            Figure("beta_recall", "Beta-recall", "1 is best", "beta-recall", 3),
        ),
    ),
)
