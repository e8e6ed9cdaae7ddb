"""Column shape error, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate
import numpy as np

from difflm.training.evaluation import distributions
from difflm.training.evaluation.tables import TableSpec, as_table


class ShapeError(evaluate.Metric):
    """Column shape error; see README.md beside this file."""

    def _info(self) -> evaluate.MetricInfo:
        # Tables go in whole, as arguments of compute(); `evaluate` only wants its two columns named.
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description="Column shape error. See README.md.",
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
        errors = distributions.shape_errors(real, synthetic, spec)
        return {"shape_error": float(np.mean(list(errors.values()))), "columns": errors}
