"""Detection, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class Detection(TableMetric):
    """Detection; see README.md beside this file."""

    metric = "detection"
