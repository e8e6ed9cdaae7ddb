"""Column shape error, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class ShapeError(TableMetric):
    """Column shape error; see README.md beside this file."""

    metric = "shape_error"
