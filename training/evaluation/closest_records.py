"""Whether synthetic rows lie nearer to the training rows than unseen ones do."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import TableSpec, prepare, subsample


QUANTILES = (0, 5, 25, 50, 75, 95)


class Distances:
    """L1 distances: numbers scaled to the reference's range, categories one-hot (a difference counts 2).

    A missing number is at distance 1 of every present one and at distance 0 of another missing one.

    Parameters
    ----------
    reference
        Prepared table that sets minimum and maximum of the numbers.
    spec
        What the columns are.
    """

    def __init__(self, reference: pd.DataFrame, spec: TableSpec) -> None:
        self.spec = spec
        numbers = reference[list(spec.numerical)]
        self.low = numbers.min().fillna(0.0)
        self.range = (numbers.max() - numbers.min()).replace(0.0, 1.0).fillna(1.0)
        self.codes: dict[str, dict[str, int]] = {name: {} for name in spec.categorical}

    def _numbers(self, table: pd.DataFrame) -> npt.NDArray[np.float64]:
        scaled = (table[list(self.spec.numerical)] - self.low) / self.range
        return scaled.to_numpy(np.float64)

    def _categories(self, table: pd.DataFrame) -> npt.NDArray[np.int32]:
        columns = []
        for name in self.spec.categorical:
            known = self.codes[name]
            columns.append(
                [known.setdefault(value if value is not None else "\0", len(known)) for value in table[name]]
            )
        return np.array(columns, dtype=np.int32).T.reshape(len(table), len(columns))

    def to_nearest(self, table: pd.DataFrame, others: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Distance of each row of ``table`` to its nearest row of ``others``; shape (rows of ``table``,)."""
        from scipy.spatial.distance import cdist

        left, right = self._numbers(table), self._numbers(others)
        # Missing numbers differ from every present one by a whole range, and each other by nothing.
        gaps_left, gaps_right = np.isnan(left).astype(float), np.isnan(right).astype(float)
        gaps = bool(gaps_left.any() or gaps_right.any())
        left_codes, right_codes = self._categories(table), self._categories(others)
        nearest = np.empty(len(table))
        # As many rows at a time as keep their distances in 40 MB: ``others`` may be a whole training table.
        chunk = max(1, 5_000_000 // max(1, len(others)))
        for start in range(0, len(table), chunk):
            rows = slice(start, start + chunk)
            distances = np.zeros((len(nearest[rows]), len(others)))
            if not gaps and left.shape[1]:
                distances += cdist(left[rows], right, "cityblock")
            elif gaps:
                for column in range(left.shape[1]):
                    apart = np.abs(left[rows, column, None] - right[None, :, column])
                    differs = gaps_left[rows, column, None] != gaps_right[None, :, column]
                    distances += np.where(np.isnan(apart), differs.astype(float), apart)
            if left_codes.shape[1]:
                distances += 2 * left_codes.shape[1] * cdist(left_codes[rows], right_codes, "hamming")
            nearest[rows] = distances.min(axis=1)
        return nearest


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


def _measure(tables: Tables, result: Evaluation) -> None:
    found = distance_to_closest_record(tables.real, tables.unseen, tables.synthetic, tables.spec, seed=tables.seed)
    result.closest = found
    result.add("dcr_share", found.share_percent)
    result.add("dcr_share_of_copies", found.share_of_copies_percent)
    quantiles = {f"p{q:02d}": float(np.percentile(found.to_all_train, q)) for q in QUANTILES}
    for name in ("p05", "p50"):
        result.add(f"dcr_{name}", quantiles[name])
    result.details["dcr"] = quantiles


METRICS = (
    Metric(
        "dcr",
        _measure,
        (
            Figure(
                "dcr_share", "Nearer to training rows than to others", "%, 50 is best", "DCR share %", 1, private=True
            ),
            Figure(
                "dcr_share_of_copies",
                "The same of copies of training rows",
                "%, for comparison",
                "of copies",
                1,
                private=True,
            ),
            Figure("dcr_p05", "Distance to the closest training row, 5 % quantile", "L1", private=True),
            Figure("dcr_p50", "Distance to the closest training row, median", "L1", private=True),
        ),
        needs=("holdout",),
    ),
)
