"""What a metric is: a function on tables, the figures it gives, and what these are called wherever they are shown."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.tables import EvaluationError, TableSpec, subsample


if TYPE_CHECKING:
    from difflm.training.evaluation.closest_records import ClosestRecords
    from difflm.training.evaluation.detection import Detection

# What a metric may need beside the real and the synthetic table, in an error's words.
NEEDS = {
    "holdout": "holdout, real rows that the generator has not seen",
    "target": "target, a column to predict",
    "attacks": "attacks, the names of those to make",
    "texts": "texts, as they were generated",
}


@dataclass(frozen=True)
class Tables:
    """What a metric is given.

    Parameters
    ----------
    real, synthetic
        Training rows of the generator, and the rows to judge.
    spec
        What the columns are.
    holdout, validation
        Real rows that the generator has not seen, and real rows to choose settings on; None if not given.
    seed, seeds
        Of the draws, and the number of repetitions where there are any.
    upper_bound
        Measure what real rows reach, too, where this takes long.
    attacks, secret
        Privacy attacks to make, and the column that one of them infers (default: the target, else the last).
    texts, schema
        Raw generations, and the ``RecordSchema`` that they should follow.
    """

    real: pd.DataFrame
    synthetic: pd.DataFrame
    spec: TableSpec
    holdout: pd.DataFrame | None = None
    validation: pd.DataFrame | None = None
    seed: int = 0
    seeds: int = 5
    upper_bound: bool = False
    attacks: Sequence[str] = ()
    secret: str | None = None
    texts: Sequence[str] | None = None
    schema: Any = None

    @property
    def unseen(self) -> pd.DataFrame:
        """The holdout, of a metric that cannot do without.

        Raises
        ------
        EvaluationError
            There is none.
        """
        if self.holdout is None:
            raise EvaluationError(f"this metric needs {NEEDS['holdout']}")
        return self.holdout

    @cached_property
    def floor(self) -> pd.DataFrame:
        """As many unseen rows as there are synthetic ones (all at most): their errors are chance alone."""
        return subsample(self.unseen, len(self.synthetic), self.seed)

    def lacks(self, needs: Sequence[str]) -> list[str]:
        """Those of ``needs`` that were not given."""
        given = {
            "holdout": self.holdout is not None,
            "target": self.spec.target is not None,
            "attacks": bool(self.attacks),
            "texts": self.texts is not None,
        }
        return [name for name in needs if not given[name]]


@dataclass
class Evaluation:
    """What was measured.

    Parameters
    ----------
    figures
        Name to ``mean``, ``std`` (over seeds, where there are several) and ``values``; of a risk ``low`` and ``high``
        (95 % interval).
    columns, pairs
        Shape error of each column, and trend error of each pair (``"a | b"``), in percent.
    skipped
        What could not be measured, and why.
    warnings
        What a reader of the figures should know of the tables.
    details
        Rows, settings and seconds, and what a metric has to add.
    closest, detectors
        The distances and the detectors' scores, for plots; not part of the JSON.
    """

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    closest: "ClosestRecords | None" = None
    detectors: "dict[str, Detection]" = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """Add a figure; several values are one per seed."""
        numbers = [float(value) for value in values]
        self.figures[name] = {"mean": float(np.mean(numbers))}
        if len(numbers) > 1:
            self.figures[name] |= {"std": float(np.std(numbers)), "values": numbers}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; what is not finite becomes null."""

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: clean(entry) for key, entry in value.items()}
            if isinstance(value, list):
                return [clean(entry) for entry in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        names = ("figures", "columns", "pairs", "skipped", "warnings", "details")
        return {name: clean(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class Figure:
    """One number that a metric gives.

    Parameters
    ----------
    name
        In ``evaluation.json``.
    title, unit
        In reports and on cards; the unit says what is best.
    heading, digits
        Its column in the results table of the benchmarks, and the decimals there; no heading, no column.
    private
        Whether a card that shows it has to say what such figures do not prove about privacy.
    """

    name: str
    title: str
    unit: str
    heading: str | None = None
    digits: int = 3
    private: bool = False


@dataclass(frozen=True)
class Metric:
    """An entry of the registry; see ``difflm.training.evaluation.registry``.

    Parameters
    ----------
    name
        Also that of its module for the `evaluate` library, in ``hub_cards/metrics``.
    measure
        Adds the figures to an `Evaluation`.
    figures
        All that ``measure`` may add, in the order in which they are shown.
    needs
        Keys of `NEEDS`: without them there is nothing to measure.
    settings
        Fields of `Tables` that are this metric's own, and their defaults in its module.
    """

    name: str
    measure: Callable[[Tables, Evaluation], None]
    figures: tuple[Figure, ...]
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
