"""Real and synthetic tables side by side, column by column."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from difflm.training.evaluation.shapes import shape_error_percent
from difflm.training.evaluation.tables import is_number


@dataclass(frozen=True)
class ColumnComparison:
    """One column of a real table beside the same column of a synthetic one.

    Parameters
    ----------
    name
        The column.
    kind
        ``"number"`` or ``"category"``; numbers are compared by the Kolmogorov-Smirnov distance, all else by the
        total variation distance.
    real, synthetic
        What a reader wants to see: mean and standard deviation of a number, the commonest values of a category.
    real_null_percent, synthetic_null_percent
        Share of missing values, in percent.
    shape_error_percent
        100 * (1 - SDMetrics' ``KSComplement`` or ``TVComplement``); 0 is perfect. 100 if the synthetic column holds
        nothing but missing values.
    """

    name: str
    kind: str
    real: str
    synthetic: str
    real_null_percent: float
    synthetic_null_percent: float
    shape_error_percent: float


def _summarize(values: pd.Series, number: bool) -> str:
    present = values.dropna()
    if present.empty:
        return "all missing"
    if number:
        numbers = present.astype(float)
        spread = numbers.std(ddof=0)
        return f"{numbers.mean():.4g} ± {spread:.3g}"
    shares = present.astype(str).value_counts(normalize=True)
    words = [
        f"{value if len(value) <= 24 else value[:23] + '…'} {100 * share:.0f} %" for value, share in shares.items()
    ]
    return ", ".join(words[:3]) + (", …" if len(words) > 3 else "")


def compare_columns(real: pd.DataFrame, synthetic: pd.DataFrame) -> list[ColumnComparison]:
    """Compare every column of ``real`` with its synthetic counterpart.

    Raises
    ------
    ValueError
        If ``synthetic`` lacks a column of ``real``, or one of the tables has no rows.
    """
    missing = [str(name) for name in real.columns if name not in synthetic.columns]
    if missing:
        raise ValueError(f"the synthetic table lacks the columns {', '.join(missing)}")
    if real.empty or synthetic.empty:
        raise ValueError("both tables need at least one row")
    rows = []
    for name in real.columns:
        number = is_number(real[name])
        rows.append(
            ColumnComparison(
                name=str(name),
                kind="number" if number else "category",
                real=_summarize(real[name], number),
                synthetic=_summarize(synthetic[name], number),
                real_null_percent=100.0 * float(real[name].isna().mean()),
                synthetic_null_percent=100.0 * float(synthetic[name].isna().mean()),
                shape_error_percent=shape_error_percent(real[name], synthetic[name]),
            )
        )
    return rows


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Lay rows out for a terminal.

    Parameters
    ----------
    rows
        One mapping per row.
    columns
        Key in a row to the heading of its column, in order. Numbers are right-aligned with one decimal.
    """

    def cell(value: Any) -> str:
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    cells = [[cell(row[key]) for key in columns] for row in rows]
    headings = list(columns.values())
    widths = [max(len(line[i]) for line in [headings, *cells]) for i in range(len(headings))]
    right = [bool(rows) and isinstance(rows[0][key], int | float) for key in columns]

    def line(words: Sequence[str]) -> str:
        padded = (w.rjust(n) if r else w.ljust(n) for w, n, r in zip(words, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, cells)])


def format_comparison(comparison: Sequence[ColumnComparison]) -> str:
    """Lay a comparison out for a terminal, with the mean shape error below."""
    table = format_table(
        [asdict(row) for row in comparison],
        {
            "name": "column",
            "real": "real",
            "synthetic": "synthetic",
            "real_null_percent": "null % real",
            "synthetic_null_percent": "null % synth.",
            "shape_error_percent": "shape error %",
        },
    )
    return f"{table}\nmean shape error: {mean_shape_error_percent(comparison):.1f} %"


def mean_shape_error_percent(comparison: Sequence[ColumnComparison]) -> float:
    """Mean of the columns' shape errors, in percent."""
    return sum(row.shape_error_percent for row in comparison) / len(comparison)
