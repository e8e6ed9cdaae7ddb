"""Machine-learning efficiency, as a module of the `evaluate` library."""

from difflm.training.evaluation.table_metric import TableMetric


class MachineLearningEfficiency(TableMetric):
    """Machine-learning efficiency; see README.md beside this file."""

    metric = "machine_learning_efficiency"
