"""What figures are called in reports and on cards."""

# Name of a figure to title and unit, in the order of a report.
TITLES: dict[str, tuple[str, str]] = {
    "validity_rate": ("Valid before any filter", "share of texts, 1 is best"),
    "shape_error": ("Column shape error", "%, 0 is best"),
    "trend_error": ("Column pair trend error", "%, 0 is best"),
    "mle": ("Machine-learning efficiency", "ROC AUC or RMSE on real test rows"),
    "mle_of_real": ("The same of the training rows", "for comparison"),
    "detection_auc_holdout": ("Detection beside unseen rows, XGBoost", "ROC AUC, 0.5 is best"),
    "detection_auc": ("Detection, XGBoost", "ROC AUC, 0.5 is best"),
    "detection_auc_logistic": ("Detection, logistic", "ROC AUC, 0.5 is best"),
    "detection_score": ("Detection score, XGBoost", "1 is best"),
    "detection_score_logistic": ("Detection score, logistic", "1 is best"),
    "dcr_share": ("Nearer to training rows than to others", "%, 50 is best"),
    "dcr_share_of_copies": ("The same of copies of training rows", "%, for comparison"),
    "dcr_p05": ("Distance to the closest training row, 5 % quantile", "L1"),
    "dcr_p50": ("Distance to the closest training row, median", "L1"),
    "copy_rate_of_holdout": ("Copies among the unseen rows", "share, for comparison"),
    "duplicate_rate_of_holdout": ("Duplicates among the unseen rows", "share, for comparison"),
    "shape_error_of_holdout": ("Column shape error of unseen rows", "%, for comparison"),
    "trend_error_of_holdout": ("Column pair trend error of unseen rows", "%, for comparison"),
    "copy_rate": ("Copies of training rows", "share"),
    "duplicate_rate": ("Duplicates", "share"),
    "fitting_rate": ("Rows of known categories, no value missing where none may", "share, 1 is best"),
    "missing_rate_error": ("Missing-rate error", "percentage points, 0 is best"),
    "alpha_precision": ("Alpha-precision", "1 is best"),
    "beta_recall": ("Beta-recall", "1 is best"),
    "singling_out_risk": ("Singling-out risk", "0 is best"),
    "linkability_risk": ("Linkability risk", "0 is best"),
    "inference_risk": ("Inference risk", "0 is best"),
}


def titled(name: str) -> tuple[str, str]:
    """Return the title and the unit of a figure; one that is not listed is called by its own name."""
    return TITLES.get(name, (name.replace("_", " "), ""))
