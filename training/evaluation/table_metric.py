"""What the metrics of ``hub_cards/metrics`` share: modules of the `evaluate` library that judge whole tables."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import evaluate
import pandas as pd

from difflm.training.evaluation.tables import EvaluationError, TableSpec, as_table


@dataclass(frozen=True)
class Tables:
    """What a metric is given.

    Parameters
    ----------
    real, synthetic
        Training rows of the generator, and the rows to judge.
    unseen, validation
        Real rows that the generator has not seen, and real rows to choose settings on; None if not given.
    spec
        What the columns are.
    seed, seeds
        Of the draws, and the number of repetitions where there are any.
    own
        The metric's own settings, see `TableMetric.own_settings`.
    """

    real: pd.DataFrame
    synthetic: pd.DataFrame
    unseen: pd.DataFrame | None
    validation: pd.DataFrame | None
    spec: TableSpec
    seed: int
    seeds: int
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def holdout(self) -> pd.DataFrame:
        """The unseen rows, of a metric that cannot do without.

        Raises
        ------
        EvaluationError
            There are none.
        """
        if self.unseen is None:
            raise EvaluationError("this metric needs holdout, real rows that the generator has not seen")
        return self.unseen


class TableMetric(evaluate.Metric, ABC):
    """A metric that is loaded with `evaluate.load` and judges a synthetic table beside the real one.

    A subclass has a docstring, a method ``measure``, and settings of its own with their defaults, if any. This class
    is abstract, so that `evaluate` passes it over.
    """

    own_settings: ClassVar[dict[str, Any]] = {}

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
        for table, name in ((real, "real"), (synthetic, "synthetic")):
            if table is None:
                raise EvaluationError(f"{name} must be a DataFrame, a datasets.Dataset or a list of dict, not None")
        if seeds < 1:
            raise EvaluationError(f"seeds must be at least 1, not {seeds}")
        if unknown := [name for name in own if name not in self.own_settings]:
            raise EvaluationError(f"this metric has no setting {unknown[0]!r}; its README.md names them")
        rows = as_table(real)
        spec = TableSpec.infer(
            rows, target=target, categorical=categorical, dates=dates, task=task, log_target=log_target
        )
        return self.measure(
            Tables(
                real=rows,
                synthetic=as_table(synthetic),
                unseen=as_table(holdout),
                validation=as_table(validation),
                spec=spec,
                seed=seed,
                seeds=seeds,
                own={**self.own_settings, **own},
            )
        )

    @abstractmethod
    def measure(self, tables: Tables) -> dict[str, Any]:
        """Return the figures by name."""
