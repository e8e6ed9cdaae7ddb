"""Fitting rate, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class FittingRate(TableMetric):
    """Fitting rate; see README.md beside this file."""

    metric = "fitting_rate"
