"""A self-contained HTML report on a fitted DiffLM: one file, plots inside, readable on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from difflm.training.reports.pages import render_page, write_page
from difflm.training.reports.plots import STYLE, plot_column, plot_history, plot_latents, series
from difflm.training.reports.table_comparison import ColumnComparison, mean_shape_error_percent


# What of a training history is drawn, plot by plot: title, unit, entry to its label. Without any entry, no plot.
AUTOENCODER_PLOTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Autoencoder: reconstruction",
        "nats per record",
        {
            "reconstruction": "training",
            "eval_reconstruction": "held out, own latent",
            "eval_reconstruction_shuffled": "held out, another's latent",
        },
    ),
    ("Autoencoder: KL to the prior", "nats per record", {"kl": "training", "eval_kl": "held out"}),
    ("Autoencoder: weight of the KL", "beta", {"beta": "beta"}),
)
DENOISER_PLOTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Denoiser: diffusion loss", "EDM loss", {"train_loss": "training", "validation_loss": "held out"}),
)


@dataclass(frozen=True)
class Check:
    """Something the report promises, and whether it holds."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class ReportContents:
    """What goes into a report. Parts that are empty are left out of the page.

    Parameters
    ----------
    title, subtitle
        Heading of the page and the line below it.
    real, synthetic
        The two tables, with the same columns.
    comparison
        Their columns side by side (``compare_columns(real, synthetic)``).
    real_latents, synthetic_latents
        Arrays of shape (records, latent size): encodings of real records and sampled latents.
    autoencoder_history, denoiser_history
        One mapping per log entry: ``step`` and any losses; see ``training_log.json``.
    figures
        Name to value: the numbers at the top of the page.
    checks
        What was promised.
    records
        A few synthetic records, as sampled.
    """

    title: str
    subtitle: str
    real: pd.DataFrame
    synthetic: pd.DataFrame
    comparison: Sequence[ColumnComparison]
    real_latents: npt.NDArray[Any] | None = None
    synthetic_latents: npt.NDArray[Any] | None = None
    autoencoder_history: Sequence[Mapping[str, Any]] = ()
    denoiser_history: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    records: Sequence[Mapping[str, Any]] = ()


def _training_plots(contents: ReportContents) -> list[dict[str, str]]:
    plots = []
    for history, wanted in (
        (contents.autoencoder_history, AUTOENCODER_PLOTS),
        (contents.denoiser_history, DENOISER_PLOTS),
    ):
        for title, unit, labels in wanted:
            present = {key: label for key, label in labels.items() if series(history, key)[0]}
            if present:
                plots.append({"title": title, "source": plot_history(history, present, unit)})
    return plots


def _format_figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def render_report(contents: ReportContents) -> str:
    """Render a report as one HTML page that refers to nothing outside itself."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        columns = [
            {
                "comparison": row,
                "source": plot_column(contents.real[row.name], contents.synthetic[row.name]),
            }
            for row in contents.comparison
        ]
        has_latents = contents.real_latents is not None and contents.synthetic_latents is not None
        latents = plot_latents(contents.real_latents, contents.synthetic_latents) if has_latents else None  # type: ignore[arg-type]
        training = _training_plots(contents)
    return render_page(
        "fit.html.j2",
        contents=contents,
        columns=columns,
        latents=latents,
        training=training,
        figures={name: _format_figure(value) for name, value in contents.figures.items()},
        mean_shape_error=mean_shape_error_percent(contents.comparison),
    )


def write_report(contents: ReportContents, path: str | Path) -> Path:
    """Render a report into ``path``, whole or not at all, and return the path."""
    return write_page(path, render_report(contents))
