"""Privacy attacks by anonymeter: singling out, linkability and inference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from difflm.errors import DiffLMError
from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import MISSING, EvaluationError, TableSpec, prepare, subsample


ATTACKS = ("singling_out", "linkability", "inference")
MIN_GUESSES = 10
# Few columns have few queries that single a row out: do not look for more for hours.
MAX_ATTEMPTS = 20_000
# A number is inferred if the guess is in the same of so many classes, equally full in the real table.
SECRET_CLASSES = 10


class AttackUnavailableError(DiffLMError, ImportError):
    """anonymeter is not installed or does not work with the installed libraries."""


def attack_library() -> Any:
    """Anonymeter's evaluators.

    Raises
    ------
    AttackUnavailableError
        They cannot be imported; the message says what to install.
    """
    try:
        from anonymeter import evaluators
    except ImportError as error:
        raise AttackUnavailableError(
            f"privacy attacks need anonymeter ({error}): pip install difflm[attacks]; pip install --no-deps "
            "anonymeter (its own requirements exclude NumPy 2)"
        ) from error
    return evaluators


def _singling_out_guesses(synthetic: pd.DataFrame, wanted: int, columns: int, seed: int) -> int:
    """How many queries anonymeter finds: it would count those that it did not find as failed."""
    import polars
    from anonymeter.evaluators.singling_out_evaluator import multivariate_singling_out_queries

    made = len(
        multivariate_singling_out_queries(
            df=polars.DataFrame(synthetic).unique(maintain_order=True),
            n_queries=wanted,
            n_cols=columns,
            max_attempts=MAX_ATTEMPTS,
            rng=np.random.default_rng(seed),
        )
    )
    if made < MIN_GUESSES:
        raise EvaluationError(f"the singling_out attack found only {made} queries that single a row out")
    return made


def _as_many(tables: dict[str, pd.DataFrame], seed: int) -> dict[str, pd.DataFrame]:
    """As many different rows under attack as in the control.

    How often a query singles out by chance depends on how many rows there are. For unequal numbers anonymeter
    extrapolates the control's successes, which is off by as much as the numbers differ.
    """
    different = {key: tables[key].drop_duplicates() for key in ("ori", "control")}
    count = min(map(len, different.values()))
    if count < MIN_GUESSES:
        raise EvaluationError(f"the singling_out attack needs at least {MIN_GUESSES} different rows of each table")
    return tables | {
        key: subsample(rows, count, seed, stream=stream) for stream, (key, rows) in enumerate(different.items(), 4)
    }


def _in_classes(tables: dict[str, pd.DataFrame], secret: str) -> dict[str, pd.DataFrame]:
    """Cut a column of numbers into classes that are equally full in the real table.

    anonymeter's tolerance is a share of the guess: it takes every negative guess for a right one.
    """
    bounds = np.quantile(tables["ori"][secret], np.arange(1, SECRET_CLASSES) / SECRET_CLASSES)
    return {
        key: rows.assign(**{secret: np.searchsorted(np.unique(bounds), rows[secret], side="right")})
        for key, rows in tables.items()
    }


def privacy_risks(
    real: pd.DataFrame,
    holdout: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    attacks: str | Sequence[str] = ATTACKS,
    num_attacks: int = 300,
    max_rows: int = 50_000,
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
        One or several of ``"singling_out"``, ``"linkability"``, ``"inference"``.
    num_attacks
        Guesses per attack; at most as many as the smallest of the tables has rows.
    max_rows
        Of each table. Fewer than are published would hide what the others give away.
    secret
        Column to infer from all others; default: the target, else the last column.
    seed
        Of the draws, anonymeter's as well (but for the baseline of linkability, which it does not let us seed).

    Returns
    -------
    dict
        Attack to ``risk`` (0 to 1, what the synthetic rows give away beyond the control), ``low`` and ``high`` (95 %
        interval), ``attack_rate``, ``control_rate`` and ``baseline_rate`` (random guesses: an attack that does no
        better shows nothing).

    Singling out attacks as many real rows as the holdout has, drawn at random, since a query singles out by chance
    among few rows and among many at other rates. A leak of all rows then shows as the share of those drawn: give it a
    holdout as large as the real table if there is one. Of a number, or a point in time, its tenth of the real column
    is inferred.

    Raises
    ------
    AttackUnavailableError
        anonymeter cannot be imported.
    EvaluationError
        An unknown attack or ``secret``, too few rows or columns, or an attack that found no guess to make.
    """
    attacks = (attacks,) if isinstance(attacks, str) else attacks
    if unknown := [name for name in attacks if name not in ATTACKS]:
        raise EvaluationError(f"no attack {unknown[0]!r}: choose from {', '.join(ATTACKS)}")
    if len(spec.columns) < 2:
        raise EvaluationError("privacy attacks need at least two columns")
    if secret is not None and secret not in spec.columns:
        raise EvaluationError(f"no column {secret!r} to infer; the columns are {', '.join(map(str, spec.columns))}")
    evaluators = attack_library()
    named = {
        "ori": (real, "the real table"),
        "syn": (synthetic, "the synthetic table"),
        "control": (holdout, "the holdout"),
    }
    tables = {}
    for stream, (key, (table, name)) in enumerate(named.items(), start=1):
        rows = subsample(prepare(table, spec, name), max_rows, seed, stream=stream)
        rows[list(spec.categorical)] = rows[list(spec.categorical)].fillna(MISSING)
        tables[key] = rows
    for name in spec.numerical:
        middle = tables["ori"][name].median()
        for rows in tables.values():
            rows[name] = rows[name].fillna(middle if np.isfinite(middle) else 0.0)
    guesses = min(num_attacks, *map(len, tables.values()))
    if guesses < MIN_GUESSES:
        raise EvaluationError(f"privacy attacks need at least {MIN_GUESSES} rows of each table")
    if secret is None:
        secret = spec.target if spec.target is not None else spec.columns[-1]
    others = [name for name in spec.columns if name != secret]
    risks: dict[str, dict[str, float]] = {}
    for attack in attacks:
        baseline: float | None = None
        # anonymeter draws from NumPy's global state.
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            if attack == "singling_out":
                columns = min(4, len(spec.columns))
                made = _singling_out_guesses(tables["syn"], guesses, columns, seed)
                attacker = evaluators.SinglingOutEvaluator(
                    n_attacks=made, n_cols=columns, max_attempts=MAX_ATTEMPTS, seed=seed, **_as_many(tables, seed)
                )
                attacker.evaluate(mode="multivariate")
            elif attack == "linkability":
                halves = (spec.columns[::2], spec.columns[1::2])
                attacker = evaluators.LinkabilityEvaluator(
                    n_attacks=guesses, aux_cols=halves, n_neighbors=10, **tables
                )
                attacker.evaluate(n_jobs=1)
            else:
                classes = _in_classes(tables, secret) if secret in spec.numerical else tables
                # anonymeter looks random guesses up by the index of other rows, and finds none.
                shares = [classes[key][secret].value_counts(normalize=True) for key in ("ori", "syn")]
                baseline = float(shares[0].mul(shares[1], fill_value=0).sum())
                attacker = evaluators.InferenceEvaluator(
                    n_attacks=guesses, secret=secret, aux_cols=others, regression=False, **classes
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
            "baseline_rate": float(result.baseline_rate.value) if baseline is None else baseline,
        }
    return risks


def possible_risks(
    *tables: Any, attacks: str | Sequence[str] = ATTACKS, **settings: Any
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Make each attack by itself, with `privacy_risks`' arguments; return the risks, and why others have none."""
    risks: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    for attack in (attacks,) if isinstance(attacks, str) else attacks:
        try:
            risks |= privacy_risks(*tables, attacks=[attack], **settings)
        except (EvaluationError, AttackUnavailableError) as error:
            refused[attack] = str(error)
    return risks, refused


def _measure(tables: Tables, result: Evaluation) -> None:
    risks, refused = possible_risks(
        tables.real,
        tables.unseen,
        tables.synthetic,
        tables.spec,
        attacks=tables.attacks,
        secret=tables.secret,
        seed=tables.seed,
    )
    result.skipped |= refused
    for name, risk in risks.items():
        result.add(f"{name}_risk", risk["risk"])
        result.figures[f"{name}_risk"] |= {"low": risk["low"], "high": risk["high"]}
        result.details.setdefault("attacks", {})[name] = risk


METRICS = (
    Metric(
        "privacy_attacks",
        _measure,
        (
            Figure("singling_out_risk", "Singling-out risk", "0 is best", "singling-out risk", 3, private=True),
            Figure("linkability_risk", "Linkability risk", "0 is best", "linkability risk", 3, private=True),
            Figure("inference_risk", "Inference risk", "0 is best", "inference risk", 3, private=True),
        ),
        needs=("holdout", "attacks"),
        settings={"attacks": ATTACKS, "secret": None},
    ),
)
