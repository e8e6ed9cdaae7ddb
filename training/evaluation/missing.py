"""Whether values are missing as often as in the real table."""

import numpy as np
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import TableSpec, prepare


def missing_rate_errors(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> dict[str, float]:
    """Absolute difference of each column's share of missing values, in percentage points."""
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    return {
        name: 100.0 * abs(float(real[name].isna().mean() - synthetic[name].isna().mean())) for name in spec.columns
    }


def _measure(tables: Tables, result: Evaluation) -> None:
    errors = missing_rate_errors(tables.real, tables.synthetic, tables.spec)
    result.add("missing_rate_error", float(np.mean(list(errors.values()))))
    result.details["missing_rate_errors"] = errors


METRICS = (
    Metric(
        "missing_rate_error",
        _measure,
        (Figure("missing_rate_error", "Missing-rate error", "percentage points, 0 is best", "missing-rate error", 2),),
    ),
)
