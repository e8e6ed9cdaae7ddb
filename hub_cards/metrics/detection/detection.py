"""Detection, as a module of the `evaluate` library."""

from typing import Any

import numpy as np

from difflm.training.evaluation import learning
from difflm.training.evaluation.table_metric import TableMetric, Tables


class Detection(TableMetric):
    """Detection; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        result: dict[str, Any] = {}
        for name in ("xgboost", "logistic"):
            found = [
                learning.detection(tables.real, tables.synthetic, tables.spec, classifier=name, seed=tables.seed + i)
                for i in range(tables.seeds)
            ]
            result |= {
                f"{name}_{figure}": float(np.mean([getattr(one, figure) for one in found]))
                for figure in ("auc", "score")
            }
        return result
