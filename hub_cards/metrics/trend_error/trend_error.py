"""Column-pair trend error, as a module of the `evaluate` library."""

from typing import Any

import numpy as np

from difflm.training.evaluation import distributions
from difflm.training.evaluation.table_metric import TableMetric, Tables


class TrendError(TableMetric):
    """Column-pair trend error; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        errors = distributions.trend_errors(tables.real, tables.synthetic, tables.spec)
        mean = float(np.mean(list(errors.values()))) if errors else float("nan")
        return {"trend_error": mean, "pairs": {f"{a} | {b}": error for (a, b), error in errors.items()}}
