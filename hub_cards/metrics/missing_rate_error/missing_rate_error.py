"""Missing-rate error, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class MissingRateError(TableMetric):
    """Missing-rate error; see README.md beside this file."""

    metric = "missing_rate_error"
