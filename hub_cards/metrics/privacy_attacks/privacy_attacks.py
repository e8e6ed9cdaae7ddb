"""Privacy attacks, as a module of the `evaluate` library."""

from typing import Any

from difflm.training.evaluation import privacy
from difflm.training.evaluation.table_metric import TableMetric, Tables


class PrivacyAttacks(TableMetric):
    """Privacy attacks; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        risks = privacy.privacy_risks(tables.real, tables.holdout, tables.synthetic, tables.spec, seed=tables.seed)
        return {f"{attack}_{name}": value for attack, risk in risks.items() for name, value in risk.items()}
