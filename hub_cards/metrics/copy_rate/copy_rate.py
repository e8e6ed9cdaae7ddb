"""Copies and duplicates, as a module of the `evaluate` library."""

from typing import Any

from difflm.training.evaluation import distributions
from difflm.training.evaluation.table_metric import TableMetric, Tables


class CopyRate(TableMetric):
    """Copies and duplicates; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        found = distributions.copies(tables.real, tables.synthetic, tables.spec)
        return {"copy_rate": found.copy_rate, "duplicate_rate": found.duplicate_rate}
