"""Copies and duplicates, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class CopyRate(TableMetric):
    """Copies and duplicates; see README.md beside this file."""

    metric = "copy_rate"
