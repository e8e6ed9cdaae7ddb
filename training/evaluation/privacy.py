"""Privacy attacks by anonymeter: singling out, linkability and inference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.tables import EvaluationError, TableSpec, prepare, subsample


ATTACKS = ("singling_out", "linkability", "inference")


class AttackUnavailableError(ImportError):
    """anonymeter is not installed or does not work with the installed libraries."""


def _evaluators() -> Any:
    try:
        from anonymeter import evaluators
    except ImportError as error:
        raise AttackUnavailableError(
            f"privacy attacks need anonymeter ({error}): pip install --no-deps anonymeter; pip install numba polars "
            "(its own requirements exclude NumPy 2)"
        ) from error
    return evaluators


def privacy_risks(
    real: pd.DataFrame,
    holdout: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    attacks: Sequence[str] = ATTACKS,
    num_attacks: int = 300,
    max_rows: int = 5_000,
    secret: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Attack real rows with the help of synthetic ones, and unseen rows as the control.

    Parameters
    ----------
    real, holdout, synthetic
        Training rows, rows that the generator has not seen, and the rows that are published.
    spec
        What the columns are.
    attacks
        Of ``"singling_out"``, ``"linkability"``, ``"inference"``.
    num_attacks
        Guesses per attack; at most as many as the holdout has rows.
    max_rows
        Of each table.
    secret
        Column to infer from all others; default: the target, else the last column.
    seed
        Of the draws; anonymeter's own random choices are seeded by it as well.

    Returns
    -------
    dict
        Attack to ``risk`` (0 to 1, what the synthetic rows give away beyond the control), ``low`` and ``high`` (95 %
        interval), ``attack_rate`` and ``control_rate``.

    Raises
    ------
    AttackUnavailableError
        anonymeter cannot be imported.
    EvaluationError
        An unknown attack, too few rows or columns, or an attack that found no guess to make.
    """
    if unknown := [name for name in attacks if name not in ATTACKS]:
        raise EvaluationError(f"no attack {unknown[0]!r}: choose from {', '.join(ATTACKS)}")
    if len(spec.columns) < 2:
        raise EvaluationError("privacy attacks need at least two columns")
    evaluators = _evaluators()
    named = {
        "ori": (real, "the real table"),
        "syn": (synthetic, "the synthetic table"),
        "control": (holdout, "the holdout"),
    }
    tables = {}
    for key, (table, name) in named.items():
        rows = subsample(prepare(table, spec, name), max_rows, seed)
        rows[list(spec.categorical)] = rows[list(spec.categorical)].fillna("missing")
        tables[key] = rows
    for name in spec.numerical:
        middle = tables["ori"][name].median()
        for rows in tables.values():
            rows[name] = rows[name].fillna(middle if np.isfinite(middle) else 0.0)
    guesses = min(num_attacks, *map(len, tables.values()))
    if guesses < 10:
        raise EvaluationError("privacy attacks need at least 10 rows of each table")
    secret = secret or spec.target or spec.columns[-1]
    others = [name for name in spec.columns if name != secret]
    risks: dict[str, dict[str, float]] = {}
    for attack in attacks:
        # anonymeter draws from NumPy's global state.
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            if attack == "singling_out":
                columns = min(4, len(spec.columns))
                # Few columns have few queries that single a row out: do not look for more for hours.
                attacker = evaluators.SinglingOutEvaluator(
                    n_attacks=guesses, n_cols=columns, max_attempts=20_000, **tables
                )
                attacker.evaluate(mode="multivariate")
            elif attack == "linkability":
                halves = (spec.columns[::2], spec.columns[1::2])
                attacker = evaluators.LinkabilityEvaluator(
                    n_attacks=guesses, aux_cols=halves, n_neighbors=10, **tables
                )
                attacker.evaluate(n_jobs=1)
            else:
                attacker = evaluators.InferenceEvaluator(
                    n_attacks=guesses, secret=secret, aux_cols=others, regression=secret in spec.numerical, **tables
                )
                attacker.evaluate(n_jobs=1)
            result = attacker.results()
        except RuntimeError as error:
            raise EvaluationError(f"the {attack} attack could not be made: {error}") from error
        finally:
            np.random.set_state(state)
        risk = result.risk()
        risks[attack] = {
            "risk": float(risk.value),
            "low": float(risk.ci[0]),
            "high": float(risk.ci[1]),
            "attack_rate": float(result.attack_rate.value),
            "control_rate": float(result.control_rate.value),
        }
    return risks
