"""Column-pair trend error, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class TrendError(TableMetric):
    """Column-pair trend error; see README.md beside this file."""

    metric = "trend_error"
