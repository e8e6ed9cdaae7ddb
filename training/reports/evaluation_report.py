"""The self-contained HTML page of ``difflm evaluate``."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.metric import Evaluation
from difflm.training.evaluation.registry import FIGURES, titled
from difflm.training.evaluation.shapes import correlations
from difflm.training.evaluation.tables import EvaluationError, TableSpec, prepare, subsample
from difflm.training.reports.pages import render_page, write_page
from difflm.training.reports.plots import REAL, STYLE, SYNTHETIC, THIRD, inline, new_figure, plot_column, shorten


MAX_LATENTS = 500


def plot_correlation_difference(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> str:
    """Draw the difference of the two tables' correlations as a heat map, as a data URI."""
    difference = correlations(synthetic, spec, ranked_by=real) - correlations(real, spec)
    size = min(9.0, 3.0 + 0.28 * len(difference))
    figure, axes = new_figure(size + 1.2, size)
    image = axes.imshow(difference, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    names = [shorten(str(name)) for name in difference.columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="synthetic − real", shrink=0.8)
    return inline(figure)


def plot_distances(result: Evaluation) -> str:
    """Draw the histogram of distances to the closest record, as a data URI."""
    if result.closest is None:
        raise EvaluationError("no distances were measured")
    figure, axes = new_figure(5.6, 3.4)
    pooled = np.concatenate([result.closest.to_train, result.closest.to_holdout])
    bins = np.histogram_bin_edges(pooled, bins=40).tolist()
    for values, colour, label in (
        (result.closest.to_train, REAL, "to training rows"),
        (result.closest.to_holdout, THIRD, "to unseen rows"),
    ):
        axes.hist(values, bins=bins, histtype="step", lw=2, color=colour, label=label)
    axes.set_xlabel("L1 distance to the closest record")
    axes.set_ylabel("synthetic rows")
    axes.legend(fontsize=9)
    return inline(figure)


def plot_roc(result: Evaluation) -> str:
    """Draw the detectors' ROC curves, as a data URI."""
    from sklearn.metrics import roc_curve

    figure, axes = new_figure(4.6, 4.0)
    axes.plot([0, 1], [0, 1], color="#9aa7b1", lw=1, ls="--")
    for (name, found), colour in zip(result.detectors.items(), (SYNTHETIC, REAL), strict=False):
        false, true, _ = roc_curve(found.truth, found.scores)
        # A few hundred points draw the same curve, in a page a tenth of the size.
        keep = np.unique(np.linspace(0, len(false) - 1, 300).astype(int))
        axes.plot(false[keep], true[keep], lw=2, color=colour, label=f"{name}: AUC {found.auc:.3f}")
    axes.set_xlabel("synthetic rows taken for real")
    axes.set_ylabel("real rows taken for real")
    axes.legend(fontsize=9)
    return inline(figure)


def _mapped(rows: Any) -> Any:
    """The rows, of a table or a column of it, whose latents are drawn: first rows of a sorted table would mislead."""
    return subsample(rows, MAX_LATENTS, seed=0)


def latent_pair(
    pipeline: Any, real: pd.DataFrame, synthetic: pd.DataFrame
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Encode rows of both tables with a fitted pipeline; each array has the shape (rows, latent size)."""
    tables = (_mapped(table) for table in (real, synthetic))
    first, second = (pipeline.encode(pipeline.schema.to_records(table)).cpu().float().numpy() for table in tables)
    return first, second


def plot_latent_map(
    latents: tuple[npt.NDArray[Any], npt.NDArray[Any]], targets: tuple[pd.Series, pd.Series], target: str, number: bool
) -> str:
    """Draw t-SNE of both tables' latents, coloured by the target, as a data URI."""
    from sklearn.manifold import TSNE

    pooled = np.concatenate(latents)
    points = TSNE(2, perplexity=min(30.0, max(1.0, (len(pooled) - 1) / 3)), random_state=0, init="pca").fit_transform(
        pooled
    )
    figure, axes = new_figure(6.4, 4.6)
    parts = (points[: len(latents[0])], points[len(latents[0]) :])
    names = list(targets[0].value_counts().index[:8]) if not number else []
    for part, values, marker, label in zip(parts, targets, ("o", "x"), ("real", "synthetic"), strict=True):
        if number:
            low, high = targets[0].quantile([0.02, 0.98])
            axes.scatter(
                part[:, 0], part[:, 1], c=values, cmap="viridis", vmin=low, vmax=high, marker=marker, s=16, label=label
            )
            continue
        for place, name in enumerate(names):
            rows = (values == name).to_numpy()
            axes.scatter(
                part[rows, 0],
                part[rows, 1],
                color=f"C{place}",
                marker=marker,
                s=16,
                label=f"{label}, {shorten(name)}",
            )
    axes.set_title(f"coloured by {shorten(target)}", fontsize=10)
    axes.legend(fontsize=8)
    return inline(figure)


def _value(figure: dict[str, Any]) -> str:
    spread = f" ± {figure['std']:.2g}" if "std" in figure else ""
    spread += f" ({figure['low']:.2g} to {figure['high']:.2g})" if "low" in figure else ""
    return f"{figure['mean']:.4g}{spread}"


def _predicted(details: dict[str, Any]) -> str:
    return f"log(max({details['target']}, 1))" if details["log_target"] else str(details["target"])


def _title(name: str, result: Evaluation) -> tuple[str, str]:
    title, unit = titled(name)
    if name == "mle" and "mle" in result.details:
        auc = result.details["mle"]["metric"] == "auc"
        measure = "ROC AUC" if auc else f"RMSE of {_predicted(result.details)}"
        unit = f"{measure} on real test rows, {'1' if auc else '0'} is best"
    return title, unit


def render_evaluation(
    result: Evaluation,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    spec: TableSpec,
    *,
    latents: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> str:
    """Render the page; it refers to nothing outside itself."""
    from matplotlib import rc_context

    left, right = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    worst = sorted(result.columns, key=lambda name: -result.columns[name])
    with rc_context(STYLE):
        columns = [
            {"name": name, "error": result.columns[name], "source": plot_column(left[name], right[name])}
            for name in worst
        ]
        plots = [("Correlations: synthetic minus real", plot_correlation_difference(real, synthetic, spec))]
        if result.closest is not None:
            plots.append(("Distance to the closest record", plot_distances(result)))
        if result.detectors:
            plots.append(("Can a classifier tell them apart?", plot_roc(result)))
        if latents is not None:
            name = spec.target or spec.columns[0]
            targets = (_mapped(left[name]), _mapped(right[name]))
            plots.append(("Latents (t-SNE)", plot_latent_map(latents, targets, name, name in spec.numerical)))
    shown = [
        (*_title(name, result), _value(result.figures[name]))
        for name in [*FIGURES, *(other for other in result.figures if other not in FIGURES)]
        if name in result.figures
    ]
    pairs = sorted(result.pairs.items(), key=lambda item: -item[1])[:12]
    return render_page(
        "evaluation.html.j2",
        rows=result.details["rows"],
        shown=shown,
        columns=columns,
        plots=plots,
        pairs=pairs,
        result=result,
    )


def write_evaluation_report(path: str | Path, *arguments: Any, **keywords: Any) -> Path:
    """Write `render_evaluation`'s page into ``path``, whole or not at all, and return the path."""
    return write_page(path, render_evaluation(*arguments, **keywords))
