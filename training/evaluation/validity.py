"""Whether rows and texts are such as the real table allows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import EvaluationError, TableSpec, prepare


def fitting_rows(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> float:
    """Share of rows whose categories all occur in the real table and that miss values only where it does."""
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    fits = np.ones(len(synthetic), dtype=bool)
    for name in spec.columns:
        if not real[name].isna().any():
            fits &= synthetic[name].notna().to_numpy()
        if name in spec.categorical:
            fits &= (synthetic[name].isna() | synthetic[name].isin(set(real[name].dropna()))).to_numpy()
    return float(fits.mean())


def validity_rate(texts: Sequence[str], schema: Any) -> float:
    """Share of raw generations that parse as records of a schema, before any filter.

    Parameters
    ----------
    texts
        As generated; None (nothing was) is no record.
    schema
        A ``RecordSchema``: all columns required, each of the right type, categories of the training table.

    Raises
    ------
    EvaluationError
        There are no texts.
    """
    from difflm.pipelines.errors import RecordParseError

    if isinstance(texts, str):
        raise EvaluationError("texts must be a list of texts, not one text")
    texts = list(texts)
    if not texts:
        raise EvaluationError("there are no texts to validate")
    valid = 0
    for text in texts:
        if text is None:
            continue
        try:
            schema.parse(text)
        except RecordParseError:
            continue
        valid += 1
    return valid / len(texts)


def _measure_rows(tables: Tables, result: Evaluation) -> None:
    result.add("fitting_rate", fitting_rows(tables.real, tables.synthetic, tables.spec))


def _measure_texts(tables: Tables, result: Evaluation) -> None:
    result.add("validity_rate", validity_rate(tables.texts or (), tables.schema))


METRICS = (
    Metric(
        "fitting_rate",
        _measure_rows,
        (
            Figure(
                "fitting_rate",
                "Rows of known categories, no value missing where none may",
                "share, 1 is best",
                "fitting rows",
                3,
            ),
        ),
    ),
    Metric(
        "validity_rate",
        _measure_texts,
        (Figure("validity_rate", "Valid before any filter", "share of texts, 1 is best", "valid texts", 3),),
        needs=("texts",),
    ),
)
