"""Privacy attacks, as a module of the `evaluate` library."""

from typing import Any, ClassVar

from difflm.training.evaluation import privacy
from difflm.training.evaluation.table_metric import TableMetric, Tables
from difflm.training.evaluation.tables import EvaluationError


class PrivacyAttacks(TableMetric):
    """Privacy attacks; see README.md beside this file."""

    own_settings: ClassVar[dict[str, Any]] = {"attacks": privacy.ATTACKS, "secret": None}

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        holdout = tables.holdout
        privacy.attack_library()
        risks, refused = privacy.possible_risks(
            tables.real, holdout, tables.synthetic, tables.spec, seed=tables.seed, **tables.own
        )
        figures: dict[str, Any] = {
            f"{attack}_{name}": value for attack, risk in risks.items() for name, value in risk.items()
        }
        if not figures:
            raise EvaluationError("; ".join(dict.fromkeys(refused.values())) or "attacks names none")
        return figures | ({"skipped": refused} if refused else {})
