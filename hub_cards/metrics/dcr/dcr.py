"""Distance to the closest record, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate
import numpy as np

from difflm.training.evaluation import distributions
from difflm.training.evaluation.tables import EvaluationError, TableSpec, as_table


class Dcr(evaluate.Metric):
    """Distance to the closest record; see README.md beside this file."""

    def _info(self) -> evaluate.MetricInfo:
        # Tables go in whole, as arguments of compute(); `evaluate` only wants its two columns named.
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description="Distance to the closest record. See README.md.",
            citation="",
            inputs_description="real, synthetic, holdout: DataFrame, datasets.Dataset or list of dict",
            features=features,
        )

    def compute(self, *, real: Any, synthetic: Any, **settings: Any) -> dict[str, Any]:
        """Measure ``synthetic`` beside ``real``; see README.md for the settings and figures."""
        return self._compute(real=real, synthetic=synthetic, **settings)

    def _compute(
        self,
        *,
        real: Any,
        synthetic: Any,
        holdout: Any = None,
        validation: Any = None,
        target: str | None = None,
        categorical: tuple[str, ...] = (),
        seed: int = 0,
        seeds: int = 5,
    ) -> dict[str, Any]:
        real, synthetic, holdout = as_table(real), as_table(synthetic), as_table(holdout)
        spec = TableSpec.infer(real, target=target, categorical=categorical)
        if holdout is None:
            raise EvaluationError("dcr needs holdout")
        found = distributions.distance_to_closest_record(real, holdout, synthetic, spec, seed=seed)
        quantiles = {f"p{q:02d}": float(np.percentile(found.to_train, q)) for q in (0, 5, 25, 50, 75, 95)}
        return {"dcr_share": found.share_percent, **quantiles}
