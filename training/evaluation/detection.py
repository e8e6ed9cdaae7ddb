"""Detection: can a classifier tell synthetic rows from real ones (the two-sample test)?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation, Figure, Metric, Tables
from difflm.training.evaluation.tables import (
    MISSING,
    EvaluationError,
    TableSpec,
    prepare,
    with_categories,
    with_plain_names,
)


FOLDS = 5
# More draws of rows and folds hardly move the mean.
MAX_SEEDS = 3


@dataclass(frozen=True)
class Detection:
    """How well a classifier tells synthetic rows from real ones, out of fold.

    Parameters
    ----------
    auc
        Area under the ROC curve; 0.5 is perfect, less a sign of copies (see ``score``).
    truth
        1 for real, shape (rows,).
    scores
        The classifier's, of the same shape.
    """

    auc: float
    truth: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    @property
    def score(self) -> float:
        """1 - 2 * abs(auc - 0.5): 1 is perfect, 0 means that every row is recognised.

        An AUC well below 0.5 is the sign of copies: each has its twin under the other label. Copies beside rows that
        are easily recognised can so add up to a good score; beside unseen real rows they do not.
        """
        return 1.0 - 2.0 * abs(self.auc - 0.5)


def _detector(name: str, spec: TableSpec, seed: int) -> Any:
    if name == "xgboost":
        from xgboost import XGBClassifier

        return XGBClassifier(
            tree_method="hist", n_estimators=100, max_depth=6, enable_categorical=True, n_jobs=1, random_state=seed
        )
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    encoder = make_column_transformer(
        (numbers, list(spec.numerical)), (OneHotEncoder(handle_unknown="ignore"), list(spec.categorical))
    )
    return make_pipeline(encoder, LogisticRegression(max_iter=500))


def detection(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    classifier: str = "xgboost",
    seed: int = 0,
    max_rows: int = 20_000,
) -> Detection:
    """Classifier two-sample test, 5-fold, with equal numbers of real and synthetic rows.

    Parameters
    ----------
    real, synthetic
        The tables.
    spec
        What the columns are. Categories are read natively by XGBoost, one-hot by the logistic regression.
    classifier
        ``"xgboost"`` or ``"logistic"``.
    seed
        Of subsampling, folds and the classifier.
    max_rows
        Of each table.

    Raises
    ------
    EvaluationError
        Fewer rows than folds in one of the tables, or another classifier.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if classifier not in ("xgboost", "logistic"):
        raise EvaluationError(f"no detector {classifier!r}: choose xgboost or logistic")
    tables, spec = with_plain_names(prepare(real, spec, "the real table"), prepare(synthetic, spec), spec=spec)
    rows = min(max_rows, *map(len, tables))
    if rows < FOLDS:
        raise EvaluationError(f"detection needs at least {FOLDS} rows of each table, got {rows}")
    # Not the folds' seed: shuffled twice by the same permutation, a sorted table would be cut into blocks again.
    generators = [np.random.RandomState([seed, place]) for place in range(2)]
    chosen = [table.sample(rows, random_state=rng) for table, rng in zip(tables, generators, strict=True)]
    pooled = pd.concat(chosen, ignore_index=True)
    truth = np.repeat([1, 0], rows)
    if classifier == "xgboost":
        (pooled,) = with_categories(pooled, spec=spec)
    else:
        pooled[list(spec.categorical)] = pooled[list(spec.categorical)].fillna(MISSING)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = _detector(classifier, spec, seed)
    scores = cross_val_predict(model, pooled, truth, cv=folds, method="predict_proba")[:, 1]
    return Detection(float(roc_auc_score(truth, scores)), truth, scores)


def _measure(tables: Tables, result: Evaluation) -> None:
    real, synthetic, spec = tables.real, tables.synthetic, tables.spec
    seeds = range(tables.seed, tables.seed + min(tables.seeds, MAX_SEEDS))
    for name, suffix in (("xgboost", ""), ("logistic", "_logistic")):
        found = [detection(real, synthetic, spec, classifier=name, seed=seed) for seed in seeds]
        result.add(f"detection_auc{suffix}", *(one.auc for one in found))
        result.add(f"detection_score{suffix}", *(one.score for one in found))
        result.detectors[name] = found[0]
    if tables.holdout is not None:
        # Beside rows that cannot have been copied; fewer of them, so that it sees a little less.
        found = [detection(tables.holdout, synthetic, spec, seed=seed) for seed in seeds]
        result.add("detection_auc_holdout", *(one.auc for one in found))


METRICS = (
    Metric(
        "detection",
        _measure,
        (
            Figure("detection_auc", "Detection, XGBoost", "ROC AUC, 0.5 is best", "detection AUC, XGBoost", 3),
            Figure(
                "detection_auc_holdout",
                "Detection beside unseen rows, XGBoost",
                "ROC AUC, 0.5 is best",
                "detection AUC beside unseen rows",
                3,
            ),
            Figure("detection_score", "Detection score, XGBoost", "1 is best", "detection score, XGBoost", 3),
            Figure(
                "detection_auc_logistic", "Detection, logistic", "ROC AUC, 0.5 is best", "detection AUC, logistic", 3
            ),
            Figure("detection_score_logistic", "Detection score, logistic", "1 is best"),
        ),
    ),
)
