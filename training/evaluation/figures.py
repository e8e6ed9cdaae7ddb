"""Every figure of one synthetic table, in one call."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from difflm.training.evaluation.metric import NEEDS, Evaluation, Tables
from difflm.training.evaluation.registry import METRICS
from difflm.training.evaluation.tables import EvaluationError, TableSpec, foreign_values, prepare
from difflm.training.versions import installed_versions


FEW_ROWS = 100
# A metric that needs one of these was not asked for where there is none; without a holdout it is said to be missing.
ASKED_FOR = {"target", "attacks", "texts"}
PACKAGES = ("difflm", "numpy", "pandas", "scikit-learn", "sdmetrics", "xgboost-cpu", "xgboost", "anonymeter")


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
    tables = Tables(
        real,
        synthetic,
        spec,
        holdout=holdout,
        validation=validation,
        seed=seed,
        seeds=seeds,
        upper_bound=upper_bound,
        attacks=attacks,
    )
    result = Evaluation(details=_details(tables))
    result.warnings += foreign_values(real, synthetic, spec).values()
    for table, name in ((synthetic, "synthetic table"), (holdout, "holdout")):
        if table is not None and len(table) < FEW_ROWS:
            result.warnings.append(f"the {name} has {len(table)} rows: chance moves its figures")
    for metric in METRICS.values():
        lacking = tables.lacks(metric.needs)
        if set(lacking) & ASKED_FOR:
            continue
        if lacking:
            result.skipped[metric.name] = f"it needs {NEEDS[lacking[0]]}"
            continue
        progress(metric.name.replace("_", " "))
        started = time.monotonic()
        try:
            metric.measure(tables, result)
        except EvaluationError as error:
            result.skipped[metric.name] = str(error)
        except Exception as error:  # of a library, on a table that nobody thought of: the other figures remain
            result.skipped[metric.name] = f"{type(error).__name__}: {error}"
        result.details["seconds"][metric.name] = round(time.monotonic() - started, 1)
    return result


def _details(tables: Tables) -> dict[str, Any]:
    spec, holdout = tables.spec, tables.holdout
    rows = {"real": len(tables.real), "synthetic": len(tables.synthetic), "holdout": None}
    if holdout is not None:
        rows |= {"holdout": len(holdout), "floor": len(tables.floor)}
    return {
        "rows": rows,
        "seconds": {},
        "seed": tables.seed,
        "seeds": tables.seeds,
        "target": spec.target,
        "task": spec.task,
        "log_target": spec.log_target,
        "numerical": list(map(str, spec.numerical)),
        "categorical": list(map(str, spec.categorical)),
        "dates": list(map(str, spec.dates)),
        "versions": installed_versions(PACKAGES),
    }
