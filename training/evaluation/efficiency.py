"""Machine-learning efficiency: what a learner makes of synthetic rows, scored on real ones."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import (
    TableSpec,
    TargetError,
    prepare,
    with_categories,
    with_plain_names,
)


# The same grid for every table and method; the number of trees is set by early stopping on the same real rows.
GRID: tuple[dict[str, Any], ...] = tuple(
    {"max_depth": depth, "min_child_weight": weight} for depth, weight in itertools.product((4, 8, 12), (1, 10))
)
SETTINGS: dict[str, Any] = {
    "tree_method": "hist",
    "learning_rate": 0.1,
    "n_estimators": 400,
    "early_stopping_rounds": 20,
    "subsample": 0.9,
    "colsample_bytree": 0.9,
    "enable_categorical": True,
    "n_jobs": 1,
}


@dataclass(frozen=True)
class Efficiency:
    """Machine-learning efficiency: a model fitted on synthetic rows, scored on real test rows.

    Parameters
    ----------
    metric
        ``"auc"`` or ``"rmse"`` (of log(max(y, 1)) if the spec says so).
    scores
        On the test rows, one per seed.
    settings
        Chosen of the grid on the real validation rows.
    validation
        Its score there.
    """

    metric: str
    scores: tuple[float, ...]
    settings: dict[str, Any]
    validation: float


def _auc(truth: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """ROC AUC; one against the rest, averaged by frequency, with more than two classes."""
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(truth == 1, probabilities[:, 1]))
    present = [label for label in range(probabilities.shape[1]) if 0 < (truth == label).sum() < len(truth)]
    weights = [float((truth == label).mean()) for label in present]
    scores = [roc_auc_score(truth == label, probabilities[:, label]) for label in present]
    return float(np.average(scores, weights=weights))


def machine_learning_efficiency(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    test: pd.DataFrame,
    spec: TableSpec,
    *,
    validation: pd.DataFrame | None = None,
    seeds: int = 5,
    seed: int = 0,
    grid: tuple[dict[str, Any], ...] = GRID,
) -> Efficiency:
    """Fit XGBoost on synthetic rows and score it on real ones.

    Hyperparameters and the number of trees are chosen on real validation rows; the test rows are scored once per seed.

    Parameters
    ----------
    real
        Training rows of the generator: they name the classes.
    synthetic
        Rows to learn from. ``real`` itself, or an equal table, gives the upper bound.
    test
        Real rows to score.
    spec
        Columns, target and task.
    validation
        Real rows; default: a tenth of ``real`` (of each class), set aside from it, and from ``synthetic`` if that is
        the same table. The generator has seen this tenth: rows of its own, which it has not, choose better where it
        copies.
    seeds
        Number of fits with the chosen settings.
    seed
        Of the first fit (the next ones count up), and of the validation rows set aside.
    grid
        XGBoost settings to choose from.

    Returns
    -------
    Efficiency
        If the synthetic rows hold a single class, every AUC is 0.5: a constant is all that can be learnt from them.

    Raises
    ------
    TargetError
        No target, no other column, synthetic rows without any of its values, or test or validation rows that hold
        fewer than two of them.
    """
    if spec.target is None or spec.task is None:
        raise TargetError("machine-learning efficiency needs a target")
    if len(spec.columns) < 2:
        raise TargetError(f"machine-learning efficiency needs another column than {spec.target!r} to predict it from")
    if validation is None:
        same = synthetic is real or synthetic.equals(real)
        validation, real = _set_aside(real, spec, seed)
        synthetic = real if same else synthetic
    tables = {"real": real, "synthetic": synthetic, "test": test, "validation": validation}
    prepared = {name: prepare(table, spec, f"the {name} table") for name, table in tables.items()}
    prepared = {name: table.dropna(subset=[spec.target]) for name, table in prepared.items()}
    features = [name for name in spec.columns if name != spec.target]
    targets, what = {name: table[spec.target] for name, table in prepared.items()}, repr(spec.target)
    if spec.log_target and spec.task == "regression":
        targets = {name: np.log(values.clip(lower=1)) for name, values in targets.items()}
        what = f"log(max({spec.target}, 1))"
    for name in ("test", "validation"):
        if targets[name].nunique() < 2:
            raise TargetError(f"the {name} table needs at least two values of {what}")
    parts = TableSpec(
        tuple(name for name in spec.numerical if name != spec.target),
        tuple(name for name in spec.categorical if name != spec.target),
    )
    plain, parts = with_plain_names(*(table[features] for table in prepared.values()), spec=parts)
    encoded = dict(zip(prepared, with_categories(*plain, spec=parts), strict=True))
    if spec.task == "regression":
        return _regression(encoded, targets, spec, range(seed, seed + seeds), grid)
    return _classification(encoded, targets, spec, range(seed, seed + seeds), grid)


def _set_aside(real: pd.DataFrame, spec: TableSpec, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a tenth of the rows, and the others; of each class a tenth, and one at least if it has two."""
    real = real.reset_index(drop=True)
    if spec.task == "regression":
        chosen = real.sample(frac=0.1, random_state=seed).index
    else:
        labels = prepare(real, spec, "the real table")[spec.target]
        parts = [
            part.sample(max(1, round(0.1 * len(part))), random_state=seed).index.to_series()
            for _, part in labels.groupby(labels)
            if len(part) > 1
        ]
        chosen = pd.Index(pd.concat(parts)) if parts else real.index[:0]
    return real.loc[chosen], real.drop(chosen)


def _regression(
    rows: dict[str, pd.DataFrame], targets: dict[str, pd.Series], spec: TableSpec, seeds: Sequence[int], grid: Any
) -> Efficiency:
    from xgboost import XGBRegressor

    if len(rows["synthetic"]) < 2:
        raise TargetError(f"fewer than two synthetic rows have a value of {spec.target!r}")

    def fit(settings: dict[str, Any], seed: int) -> tuple[Any, float]:
        model = XGBRegressor(**SETTINGS, **settings, random_state=seed)
        held_out = [(rows["validation"], targets["validation"])]
        model.fit(rows["synthetic"], targets["synthetic"], eval_set=held_out, verbose=False)
        return model, float(model.best_score)

    best = min(grid, key=lambda settings: fit(settings, seeds[0])[1])
    scores, validation = [], []
    for seed in seeds:
        model, score = fit(best, seed)
        errors = model.predict(rows["test"]) - targets["test"].to_numpy()
        scores.append(float(np.sqrt(np.mean(errors**2))))
        validation.append(score)
    return Efficiency("rmse", tuple(scores), best, float(np.mean(validation)))


def _classification(
    rows: dict[str, pd.DataFrame], targets: dict[str, pd.Series], spec: TableSpec, seeds: Sequence[int], grid: Any
) -> Efficiency:
    from xgboost import XGBClassifier

    counts = targets["real"].value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], name))
    # A class that is not in the real training rows cannot be scored.
    keep = {name: values.isin(names).to_numpy() for name, values in targets.items()}
    rows = {name: table[keep[name]] for name, table in rows.items()}
    codes = {name: np.array([names.index(v) for v in values[keep[name]]]) for name, values in targets.items()}
    for name in ("test", "validation"):
        if len(np.unique(codes[name])) < 2:
            raise TargetError(f"the {name} table needs at least two of the real table's values of {spec.target!r}")
    learnt = np.unique(codes["synthetic"])
    if not len(learnt):
        raise TargetError(
            f"no synthetic value of {spec.target!r} is in the real table "
            f"({targets['synthetic'].head(1).tolist() or 'all are missing'}, not {names})"
        )
    if len(learnt) < 2:
        return Efficiency("auc", (0.5,) * len(seeds), {}, 0.5)

    def predict(model: Any, table: pd.DataFrame) -> npt.NDArray[Any]:
        probabilities = np.zeros((len(table), len(names)))
        probabilities[:, learnt] = model.predict_proba(table)
        return probabilities

    # XGBoost numbers the classes it sees; early stopping can only watch rows of these.
    position = {label: place for place, label in enumerate(learnt)}
    watched = np.isin(codes["validation"], learnt)

    def fit(settings: dict[str, Any], seed: int) -> tuple[Any, float]:
        model = XGBClassifier(
            **SETTINGS, **settings, random_state=seed, eval_metric="mlogloss" if len(learnt) > 2 else "auc"
        )
        held_out = [(rows["validation"][watched], [position[v] for v in codes["validation"][watched]])]
        model.fit(rows["synthetic"], [position[v] for v in codes["synthetic"]], eval_set=held_out, verbose=False)
        return model, _auc(codes["validation"], predict(model, rows["validation"]))

    best = max(grid, key=lambda settings: fit(settings, seeds[0])[1])
    scores, validation = [], []
    for seed in seeds:
        model, score = fit(best, seed)
        scores.append(_auc(codes["test"], predict(model, rows["test"])))
        validation.append(score)
    return Efficiency("auc", tuple(scores), best, float(np.mean(validation)))


def _measure(tables: Tables, result: Evaluation) -> None:
    settings: dict[str, Any] = {"validation": tables.validation, "seeds": tables.seeds, "seed": tables.seed}
    found = machine_learning_efficiency(tables.real, tables.synthetic, tables.unseen, tables.spec, **settings)
    result.add("mle", *found.scores)
    result.details["mle"] = {"metric": found.metric, "settings": found.settings, "validation": found.validation}
    if tables.upper_bound:
        best = machine_learning_efficiency(tables.real, tables.real, tables.unseen, tables.spec, **settings)
        result.add("mle_of_real", *best.scores)


METRICS = (
    Metric(
        "machine_learning_efficiency",
        _measure,
        (
            Figure("mle", "Machine-learning efficiency", "ROC AUC or RMSE on real test rows", "MLE", 3),
            Figure("mle_of_real", "The same of the training rows", "for comparison"),
        ),
        needs=("target", "holdout"),
        settings={"upper_bound": False},
    ),
)
