"""Privacy attacks, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class PrivacyAttacks(TableMetric):
    """Privacy attacks; see README.md beside this file."""

    metric = "privacy_attacks"
