"""Validity rate, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate

from difflm.pipelines.record_schema import RecordSchema
from difflm.training.evaluation.validity import validity_rate


class ValidityRate(evaluate.Metric):
    """Validity rate; see README.md beside this file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of generated texts that are records. See README.md.",
            citation="",
            inputs_description="texts: list of str; schema: RecordSchema, or real: the training table",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def compute(self, *, texts: list[str], **settings: Any) -> dict[str, Any]:
        """Parse ``texts``; see README.md for the settings."""
        return self._compute(texts=texts, **settings)

    def _compute(
        self, *, texts: list[str], schema: Any = None, real: Any = None, record_format: str = "json"
    ) -> dict[str, Any]:
        if schema is None:
            if real is None:
                raise ValueError("validity_rate needs a schema or the real table")
            schema = RecordSchema.infer(real, record_format=record_format)
        return {"validity_rate": validity_rate(texts, schema)}
