"""Alpha-precision and beta-recall, as a module of the `evaluate` library."""

from typing import Any

from difflm.training.evaluation import distributions
from difflm.training.evaluation.table_metric import TableMetric, Tables


class AlphaPrecision(TableMetric):
    """Alpha-precision and beta-recall; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        precision, recall = distributions.precision_recall(
            tables.real, tables.synthetic, tables.spec, seed=tables.seed
        )
        return {"alpha_precision": precision, "beta_recall": recall}
