"""A self-contained HTML report on a fitted DiffLM: one file, plots inside, readable on a phone."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.cli_files import write_atomically
from difflm.training.table_comparison import ColumnComparison, bin_edges, is_number, mean_shape_error_percent


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange stay apart for every kind of colour vision and in print.
REAL, SYNTHETIC, THIRD, INK, FAINT = "#3b6ea5", "#e07b39", "#5b9279", "#22303c", "#d9e0e6"
MAX_CATEGORIES = 8
MAX_MARKERS = 40
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name with a dollar sign is no formula
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf1f4",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    # The same report, byte for byte, from the same figures.
    "svg.hashsalt": "difflm",
}
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


def _inline(figure: "Figure") -> str:
    """Return a figure as an SVG data URI: sharp at any size, and nothing to fetch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _shorten(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def plot_column(real: pd.Series, synthetic: pd.Series) -> str:
    """Overlay a real and a synthetic column: histograms of a number, bars of a category's shares.

    Returns
    -------
    str
        A ``data:image/svg+xml`` URI.
    """
    figure, axes = _new_figure(4.2, 2.7)
    real_present, synthetic_present = real.dropna(), synthetic.dropna()
    if is_number(real):
        numbers = [column.astype(float).to_numpy() for column in (real_present, synthetic_present)]
        pooled = np.concatenate(numbers)
        bins = bin_edges(pooled, 24)
        for values, colour, label in zip(numbers, (REAL, SYNTHETIC), ("real", "synthetic"), strict=True):
            if not values.size:
                continue
            weights = np.full(len(values), 100 / len(values))
            if label == "real":
                axes.hist(values, bins=bins.tolist(), weights=weights, color=colour, alpha=0.45, label=label)
            else:
                axes.hist(
                    values, bins=bins.tolist(), weights=weights, color=colour, histtype="step", lw=2, label=label
                )
        axes.set_ylabel("% of records")
    else:
        real_text, synthetic_text = real_present.astype(str), synthetic_present.astype(str)
        names = list(real_text.value_counts().index[:MAX_CATEGORIES])
        # What the real column never holds must not hide: it gets a bar of its own.
        others = [
            ("(rarer values)", set(real_text) - set(names)),
            ("(not in the real table)", set(synthetic_text) - set(real_text)),
        ]
        groups = [(name, {name}) for name in names] + [(name, members) for name, members in others if members]
        place = np.arange(len(groups))
        for values, offset, colour, label in (
            (real_text, -0.19, REAL, "real"),
            (synthetic_text, 0.19, SYNTHETIC, "synthetic"),
        ):
            shares = [100 * float(values.isin(list(members)).mean()) if len(values) else 0.0 for _, members in groups]
            axes.barh(place + offset, shares, height=0.36, color=colour, alpha=0.8, label=label)
        axes.set_yticks(place, [_shorten(name) for name, _ in groups])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of records")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return _inline(figure)


def project(real: npt.NDArray[Any], *others: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Project latents onto the first two principal axes of the real ones.

    Parameters
    ----------
    real
        Array of shape (records, latent size) that sets the axes.
    others
        Arrays of the same latent size.

    Returns
    -------
    tuple
        One array of shape (records, 2) per input, and the two axes' shares of the real latents' variance.
    """
    centre = real.mean(axis=0)
    _, lengths, axes = np.linalg.svd(real - centre, full_matrices=False)
    # The sign of a principal axis is arbitrary: fix it, so that the same latents give the same map.
    axes = axes[:2] * np.sign(axes[:2][np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    total = float((lengths**2).sum())
    shares = lengths[:2] ** 2 / total if total > 0 else np.zeros(2)
    points = [(latents - centre) @ axes.T for latents in (real, *others)]
    # One-dimensional latents have no second axis.
    points = [np.pad(array, ((0, 0), (0, 2 - array.shape[1]))) for array in points]
    return points, np.pad(shares, (0, 2 - len(shares)))


def plot_latents(real: npt.NDArray[Any], synthetic: npt.NDArray[Any]) -> str:
    """Draw real and synthetic latents on one map, as a ``data:image/svg+xml`` URI."""
    (real_points, synthetic_points), shares = project(np.asarray(real, float), np.asarray(synthetic, float))
    figure, axes = _new_figure(6.2, 4.4)
    axes.scatter(
        real_points[:, 0], real_points[:, 1], s=22, color=REAL, alpha=0.5, lw=0, label=f"{len(real_points)} real"
    )
    axes.scatter(
        synthetic_points[:, 0],
        synthetic_points[:, 1],
        s=22,
        color=SYNTHETIC,
        marker="x",
        alpha=0.8,
        lw=1.2,
        label=f"{len(synthetic_points)} synthetic",
    )
    axes.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of variance)")
    axes.set_ylabel(f"second ({100 * shares[1]:.0f} %)")
    axes.legend()
    return _inline(figure)


def _series(history: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None and "step" in entry]
    return [float(step) for step, _ in points], [float(value) for _, value in points]


def plot_history(history: Sequence[Mapping[str, Any]], labels: Mapping[str, str], unit: str) -> str:
    """Draw entries of a training history over steps, as a ``data:image/svg+xml`` URI.

    Parameters
    ----------
    history
        One mapping per log entry, each with its ``step``.
    labels
        Entry to its name in the legend. Entries measured on held-out records get markers: they are few.
    unit
        Of the vertical axis, which is logarithmic for ``beta``.
    """
    figure, axes = _new_figure(5.2, 3.0)
    for colour, (key, label) in zip((REAL, SYNTHETIC, THIRD), labels.items(), strict=False):
        steps, values = _series(history, key)
        marker = "o" if label.startswith("held out") and len(steps) < MAX_MARKERS else None
        if steps:
            axes.plot(steps, values, lw=1.8, color=colour, marker=marker, ms=4, label=label)
    if unit == "beta":
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    if len(labels) > 1:
        axes.legend(fontsize=9)
    return _inline(figure)


def _training_plots(contents: ReportContents) -> list[dict[str, str]]:
    plots = []
    for history, wanted in (
        (contents.autoencoder_history, AUTOENCODER_PLOTS),
        (contents.denoiser_history, DENOISER_PLOTS),
    ):
        for title, unit, labels in wanted:
            present = {key: label for key, label in labels.items() if _series(history, key)[0]}
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
    from jinja2 import Environment
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
    source = files("difflm.training").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        contents=contents,
        columns=columns,
        latents=latents,
        training=training,
        figures={name: _format_figure(value) for name, value in contents.figures.items()},
        mean_shape_error=mean_shape_error_percent(contents.comparison),
        colours={"real": REAL, "synthetic": SYNTHETIC},
    )


def write_report(contents: ReportContents, path: str | Path) -> Path:
    """Render a report into ``path``, whole or not at all, and return the path."""
    target = Path(path)
    page = render_report(contents)
    write_atomically(target, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return target
