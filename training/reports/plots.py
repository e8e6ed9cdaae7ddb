"""The plots of every report: one look, and each a ``data:`` URI, so that a page holds its own."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.training.evaluation.shapes import bin_edges
from difflm.training.evaluation.tables import is_number


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


def inline(figure: "Figure") -> str:
    """Return a figure as an SVG data URI: sharp at any size, and nothing to fetch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def shorten(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def plot_column(real: pd.Series, synthetic: pd.Series) -> str:
    """Overlay a real and a synthetic column: histograms of a number, bars of a category's shares.

    Returns
    -------
    str
        A ``data:image/svg+xml`` URI.
    """
    figure, axes = new_figure(4.2, 2.7)
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
        axes.set_yticks(place, [shorten(name) for name, _ in groups])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of records")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return inline(figure)


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
    figure, axes = new_figure(6.2, 4.4)
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
    return inline(figure)


def series(history: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
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
    figure, axes = new_figure(5.2, 3.0)
    for colour, (key, label) in zip((REAL, SYNTHETIC, THIRD), labels.items(), strict=False):
        steps, values = series(history, key)
        marker = "o" if label.startswith("held out") and len(steps) < MAX_MARKERS else None
        if steps:
            axes.plot(steps, values, lw=1.8, color=colour, marker=marker, ms=4, label=label)
    if unit == "beta":
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    if len(labels) > 1:
        axes.legend(fontsize=9)
    return inline(figure)
