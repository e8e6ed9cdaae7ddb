"""Distance to the closest record, as a module of the `evaluate` library."""

from typing import Any

import numpy as np

from difflm.training.evaluation import distributions
from difflm.training.evaluation.table_metric import TableMetric, Tables


class Dcr(TableMetric):
    """Distance to the closest record; see README.md beside this file."""

    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures that README.md names."""
        found = distributions.distance_to_closest_record(
            tables.real, tables.holdout, tables.synthetic, tables.spec, seed=tables.seed
        )
        quantiles = {f"p{q:02d}": float(np.percentile(found.to_all_train, q)) for q in (0, 5, 25, 50, 75, 95)}
        shares = {"dcr_share": found.share_percent, "dcr_share_of_copies": found.share_of_copies_percent}
        return {**shares, **quantiles}
