"""What the metrics of ``hub_cards/metrics`` share: modules of the `evaluate` library that judge whole tables."""

from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate

from difflm.training.evaluation.metric import NEEDS, Evaluation, Tables
from difflm.training.evaluation.registry import METRICS
from difflm.training.evaluation.tables import EvaluationError, TableSpec, as_table


def flat(result: Evaluation) -> dict[str, Any]:
    """The figures by name, each with ``<name>_std`` or another spread if it has one, and what else was found."""
    found: dict[str, Any] = {}
    for name, figure in result.figures.items():
        found[name] = figure["mean"]
        found |= {f"{name}_{key}": figure[key] for key in ("std", "low", "high") if key in figure}
    rest = {name: getattr(result, name) for name in ("columns", "pairs", "skipped", "warnings", "details")}
    return found | {name: value for name, value in rest.items() if value}


class TableMetric(evaluate.Metric, ABC):
    """A metric that is loaded with `evaluate.load` and judges a synthetic table beside the real one.

    A subclass has a docstring and the name of its entry in the registry. This class is abstract, so that `evaluate`
    passes it over.
    """

    @property
    @abstractmethod
    def metric(self) -> str:
        """The name of the entry."""

    def _info(self) -> evaluate.MetricInfo:
        # Tables go in whole, as arguments of compute(); `evaluate` only wants its two columns named.
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="real, synthetic, holdout: DataFrame, datasets.Dataset or list of dict",
            features=features,
        )

    def compute(self, *, real: Any, synthetic: Any, **settings: Any) -> dict[str, Any]:
        """Measure ``synthetic`` beside ``real``; the module's README.md names the settings and figures."""
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
        dates: tuple[str, ...] = (),
        task: str | None = None,
        log_target: bool = False,
        seed: int = 0,
        seeds: int = 5,
        **own: Any,
    ) -> dict[str, Any]:
        entry = METRICS[self.metric]
        for table, name in ((real, "real"), (synthetic, "synthetic")):
            if table is None:
                raise EvaluationError(f"{name} must be a DataFrame, a datasets.Dataset or a list of dict, not None")
        if seeds < 1:
            raise EvaluationError(f"seeds must be at least 1, not {seeds}")
        if unknown := [name for name in own if name not in entry.settings]:
            raise EvaluationError(f"this metric has no setting {unknown[0]!r}; its README.md names them")
        rows, rows_to_judge = as_table(real), as_table(synthetic)
        spec = TableSpec.infer(
            rows, target=target, categorical=categorical, dates=dates, task=task, log_target=log_target
        )
        tables = Tables(
            real=rows,
            synthetic=rows_to_judge,
            spec=spec,
            holdout=as_table(holdout),
            validation=as_table(validation),
            seed=seed,
            seeds=seeds,
            **{**entry.settings, **own},
        )
        if missing := tables.lacks(entry.needs):
            raise EvaluationError(f"this metric needs {NEEDS[missing[0]]}")
        result = Evaluation()
        entry.measure(tables, result)
        if not result.figures:
            raise EvaluationError("; ".join(dict.fromkeys(result.skipped.values())) or "these tables give no figure")
        return flat(result)
