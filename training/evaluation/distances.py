"""Distances between rows of prepared tables."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.tables import TableSpec


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
