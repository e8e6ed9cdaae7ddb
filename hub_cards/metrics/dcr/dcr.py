"""Distance to the closest record, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class Dcr(TableMetric):
    """Distance to the closest record; see README.md beside this file."""

    metric = "dcr"
