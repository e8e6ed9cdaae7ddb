"""Machine-learning efficiency, as a module of the `evaluate` library."""

from typing import Any

import numpy as np

from difflm.training.evaluation import learning
from difflm.training.evaluation.table_metric import TableMetric, Tables


class MachineLearningEfficiency(TableMetric):
    """Machine-learning efficiency; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        found = learning.machine_learning_efficiency(
            tables.real,
            tables.synthetic,
            tables.holdout,
            tables.spec,
            validation=tables.validation,
            seeds=tables.seeds,
            seed=tables.seed,
        )
        return {
            "mle": float(np.mean(found.scores)),
            "std": float(np.std(found.scores)),
            "metric": found.metric,
            "scores": list(found.scores),
        }
