"""Alpha-precision and beta-recall, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class AlphaPrecision(TableMetric):
    """Alpha-precision and beta-recall; see README.md beside this file."""

    metric = "alpha_precision"
