"""Missing-rate error, as a module of the `evaluate` library."""

from typing import Any

import numpy as np

from difflm.training.evaluation import distributions
from difflm.training.evaluation.table_metric import TableMetric, Tables


class MissingRateError(TableMetric):
    """Missing-rate error; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        errors = distributions.missing_rate_errors(tables.real, tables.synthetic, tables.spec)
        return {"missing_rate_error": float(np.mean(list(errors.values()))), "columns": errors}
