"""Every figure of one synthetic table, in one call."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.distributions import (
    ClosestRecords,
    copies,
    distance_to_closest_record,
    fitting_rows,
    missing_rate_errors,
    precision_recall,
    shape_errors,
    trend_errors,
)
from difflm.training.evaluation.learning import Detection, detection, machine_learning_efficiency
from difflm.training.evaluation.privacy import possible_risks
from difflm.training.evaluation.tables import EvaluationError, TableSpec, foreign_values, prepare, subsample
from difflm.training.versions import installed_versions


FEW_ROWS = 100
# Share of the holdout's rows that chance does not explain to be training rows.
SEEN_HOLDOUT = 0.2
PACKAGES = ("difflm", "numpy", "pandas", "scikit-learn", "sdmetrics", "xgboost-cpu", "xgboost", "anonymeter")


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
        Rows, settings and seconds.
    closest, detectors
        The distances and the detectors' scores, for plots; not part of the JSON.
    """

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    closest: ClosestRecords | None = None
    detectors: dict[str, Detection] = field(default_factory=dict)

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


def evaluate_tables(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    holdout: pd.DataFrame | None = None,
    validation: pd.DataFrame | None = None,
    seeds: int = 5,
    seed: int = 0,
    attacks: Sequence[str] = (),
    upper_bound: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measure everything that the given tables allow.

    Parameters
    ----------
    real
        Training rows of the generator.
    synthetic
        Rows to judge, with the same columns.
    spec
        What the columns are.
    holdout
        Real rows that the generator has not seen. Without them no efficiency, DCR or attack is measured.
    validation
        Real rows to choose the efficiency's settings on; default: a tenth of ``real``, which the generator has seen.
    seeds
        Repetitions of efficiency, and of detection (at most 3).
    seed
        Of every draw.
    attacks
        Privacy attacks to make.
    upper_bound
        Also measure the efficiency of the real rows.
    progress
        Is told each step.

    Raises
    ------
    difflm.training.evaluation.tables.ColumnMismatchError
        The tables have not the same columns.
    difflm.training.evaluation.tables.EvaluationError
        A table has no rows.
    """
    prepare(real, spec, "the real table")
    prepare(synthetic, spec)
    for table, name in ((holdout, "the holdout"), (validation, "the validation table")):
        if table is not None:
            prepare(table, spec, name)
    result = Evaluation(details={"rows": {"real": len(real), "synthetic": len(synthetic)}, "seconds": {}})
    result.details["rows"]["holdout"] = None if holdout is None else len(holdout)

    result.warnings += foreign_values(real, synthetic, spec).values()
    for table, name in ((synthetic, "synthetic table"), (holdout, "holdout")):
        if table is not None and len(table) < FEW_ROWS:
            result.warnings.append(f"the {name} has {len(table)} rows: chance moves its figures")
    result.details |= {
        "seed": seed,
        "seeds": seeds,
        "target": spec.target,
        "task": spec.task,
        "log_target": spec.log_target,
        "numerical": list(map(str, spec.numerical)),
        "categorical": list(map(str, spec.categorical)),
        "dates": list(map(str, spec.dates)),
        "versions": installed_versions(PACKAGES),
    }

    def distributions() -> None:
        result.columns = shape_errors(real, synthetic, spec)
        pairs = trend_errors(real, synthetic, spec)
        result.pairs = {f"{first} | {second}": error for (first, second), error in pairs.items()}
        result.add("shape_error", float(np.mean(list(result.columns.values()))))
        if pairs:
            result.add("trend_error", float(np.mean(list(pairs.values()))))
        result.add("missing_rate_error", float(np.mean(list(missing_rate_errors(real, synthetic, spec).values()))))
        result.add("fitting_rate", fitting_rows(real, synthetic, spec))
        counts = copies(real, synthetic, spec)
        result.add("copy_rate", counts.copy_rate)
        result.add("duplicate_rate", counts.duplicate_rate)
        if holdout is not None:
            reference = copies(real, holdout, spec)
            result.add("copy_rate_of_holdout", reference.copy_rate)
            result.add("duplicate_rate_of_holdout", reference.duplicate_rate)
            seen = reference.copy_rate
            # Where training rows repeat each other, unseen ones repeat them as well: counted only if it can matter.
            if seen > SEEN_HOLDOUT and seen > SEEN_HOLDOUT + 2 * copies(real, real, spec).duplicate_rate:
                result.warnings.append(
                    f"{seen:.0%} of the holdout's rows are training rows: distances, risks, efficiency "
                    "and floors need rows that the generator has not seen"
                )
            # What chance alone does to so many rows (of the holdout at most).
            unseen = subsample(holdout, len(synthetic), seed)
            result.details["rows"]["floor"] = len(unseen)
            result.add("shape_error_of_holdout", float(np.mean(list(shape_errors(real, unseen, spec).values()))))
            if pairs:
                errors = trend_errors(real, unseen, spec).values()
                result.add("trend_error_of_holdout", float(np.mean(list(errors))))

    def detectors() -> None:
        for name in ("xgboost", "logistic"):
            found = [detection(real, synthetic, spec, classifier=name, seed=seed + i) for i in range(min(seeds, 3))]
            suffix = "" if name == "xgboost" else "_logistic"
            result.add(f"detection_auc{suffix}", *(one.auc for one in found))
            result.add(f"detection_score{suffix}", *(one.score for one in found))
            result.detectors[name] = found[0]
        if holdout is not None:
            # Beside rows that cannot have been copied; fewer of them, so that it sees a little less.
            found = [detection(holdout, synthetic, spec, seed=seed + i) for i in range(min(seeds, 3))]
            result.add("detection_auc_holdout", *(one.auc for one in found))

    def coverage() -> None:
        precision, recall = precision_recall(real, synthetic, spec, seed=seed)
        result.add("alpha_precision", precision)
        result.add("beta_recall", recall)

    def efficiency() -> None:
        if holdout is None:
            raise EvaluationError("machine-learning efficiency needs a holdout")
        settings: dict[str, Any] = {"validation": validation, "seeds": seeds, "seed": seed}
        found = machine_learning_efficiency(real, synthetic, holdout, spec, **settings)
        result.add("mle", *found.scores)
        result.details["mle"] = {"metric": found.metric, "settings": found.settings, "validation": found.validation}
        if upper_bound:
            result.add("mle_of_real", *machine_learning_efficiency(real, real, holdout, spec, **settings).scores)

    def closest() -> None:
        if holdout is None:
            raise EvaluationError("DCR needs a holdout")
        result.closest = distance_to_closest_record(real, holdout, synthetic, spec, seed=seed)
        result.add("dcr_share", result.closest.share_percent)
        result.add("dcr_share_of_copies", result.closest.share_of_copies_percent)
        for quantile in (5, 50):
            result.add(f"dcr_p{quantile:02d}", float(np.percentile(result.closest.to_all_train, quantile)))

    def attack() -> None:
        if holdout is None:
            raise EvaluationError("privacy attacks need a holdout")
        risks, refused = possible_risks(real, holdout, synthetic, spec, attacks=attacks, seed=seed)
        result.skipped |= refused
        for name, risk in risks.items():
            result.add(f"{name}_risk", risk["risk"])
            result.figures[f"{name}_risk"] |= {"low": risk["low"], "high": risk["high"]}
            result.details.setdefault("attacks", {})[name] = risk

    steps: list[tuple[str, Callable[[], None]]] = [("distributions", distributions), ("dcr", closest)]
    steps += [("precision and recall", coverage), ("detection", detectors)]
    steps += [("mle", efficiency)] if spec.target is not None else []
    steps += [("privacy attacks", attack)] if attacks else []
    for name, step in steps:
        progress(name)
        started = time.monotonic()
        try:
            step()
        except EvaluationError as error:
            result.skipped[name] = str(error)
        except Exception as error:  # of a library, on a table that nobody thought of: the other figures remain
            result.skipped[name] = f"{type(error).__name__}: {error}"
        result.details["seconds"][name] = round(time.monotonic() - started, 1)
    return result
