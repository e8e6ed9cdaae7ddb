"""Real and synthetic tables made comparable: which columns are numbers, and one spelling for every category."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from difflm.errors import DiffLMError
from difflm.pipelines.tables import as_dataframe


def as_table(rows: Any) -> pd.DataFrame | None:
    """Turn a datasets.Dataset (class labels become their names) or a list of dict into a DataFrame."""
    return rows if rows is None or isinstance(rows, pd.DataFrame) else as_dataframe(rows)


class EvaluationError(DiffLMError, ValueError):
    """Tables cannot be compared; the message says what is wrong and what to do."""


class ColumnMismatchError(EvaluationError):
    """The synthetic table has not the columns of the real one, or a number column holds something else."""


class TargetError(EvaluationError):
    """The target column is missing, constant or of the wrong type for the task."""


# Stands for a missing category where a library cannot take one; no table holds it.
MISSING = "\0missing"


@dataclass(frozen=True)
class TableSpec:
    """What a metric must know of a table.

    Parameters
    ----------
    numerical, categorical
        The columns, in the table's order; together all of them, the target included.
    target
        Column to predict, or None.
    task
        ``"classification"`` or ``"regression"``; None without a target.
    log_target
        Regression on log(max(y, 1)) instead of y.
    dates
        Numerical columns that are points in time: seconds since 1970.
    """

    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    target: str | None = None
    task: str | None = None
    log_target: bool = False
    dates: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Numerical columns, then categorical ones."""
        return [*self.numerical, *self.categorical]

    @classmethod
    def infer(
        cls,
        real: pd.DataFrame,
        *,
        target: str | None = None,
        categorical: Sequence[str] = (),
        dates: Sequence[str] = (),
        task: str | None = None,
        log_target: bool = False,
        max_classes: int = 20,
    ) -> "TableSpec":
        """Derive a spec from the real table.

        Parameters
        ----------
        real
            The training rows.
        target
            Column to predict.
        categorical
            Number columns that are codes, not quantities.
        dates
            Text columns that hold points in time, as those of a CSV file do. Those of a datetime type are found.
        task
            Default: regression if the target is a number with more than ``max_classes`` values.
        log_target
            See the class.
        max_classes
            See ``task``.

        Raises
        ------
        TargetError
            No such target, a target with fewer than two values, or a regression on something that is no number.
        ColumnMismatchError
            ``categorical`` or ``dates`` names a column that is not there, or a column's name occurs twice.
        """
        if real.empty:
            raise EvaluationError("the real table has no rows")
        _refuse_repeated(real, "the real table")
        categorical = (categorical,) if isinstance(categorical, str) else categorical
        dates = (dates,) if isinstance(dates, str) else dates
        for setting, names in (("categorical", categorical), ("dates", dates)):
            if unknown := [name for name in names if name not in real.columns]:
                raise ColumnMismatchError(f"{setting}: no column {unknown[0]!r} in the real table")
        if wrong := [name for name in dates if is_number(real[name])]:
            raise ColumnMismatchError(f"dates: the column {wrong[0]!r} holds numbers, and is compared as they are")
        moments = {name for name in real.columns if name in dates or _is_date(real[name])}
        numbers = moments | {name for name in real.columns if _is_number(real[name])}
        if target is not None:
            if target not in real.columns:
                raise TargetError(
                    f"no column {target!r} to predict; the columns are {', '.join(map(str, real.columns))}"
                )
            values = real[target].dropna()
            if values.nunique() < 2:
                raise TargetError(f"the target {target!r} is constant in the real table: choose another")
            number = target in numbers and target not in categorical
            if task is None:
                task = "regression" if number and values.nunique() > max_classes else "classification"
            if task == "regression" and not number:
                raise TargetError(f"the target {target!r} holds no numbers: its task is classification")
        codes = set(categorical) | ({target} if target is not None and task == "classification" else set())
        numerical = tuple(name for name in real.columns if name in numbers and name not in codes)
        rest = tuple(name for name in real.columns if name not in numerical)
        dates = tuple(name for name in numerical if name in moments)
        return cls(numerical, rest, target, task if target is not None else None, log_target, dates)


def is_number(values: pd.Series) -> bool:
    """Tell whether a column holds numbers; booleans are categories."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def canonical_text(value: Any) -> str:
    """Spell a category so that 1, 1.0 and "1", or True and "True", are the same one."""
    if isinstance(value, str):
        # "1.0" is a code that pandas has read as a float; "007", "1_0" and "1e3" are texts.
        if whole := re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?", value):
            return whole[1]
        return {"TRUE": "True", "true": "True", "FALSE": "False", "false": "False"}.get(value, value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Decimal):  # 1.50 is 1.5
        value = float(value)
    if isinstance(value, float | np.floating) and np.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def category_text(values: pd.Series) -> pd.Series:
    """Spell a column's categories as text; missing ones stay missing."""
    known = {value: canonical_text(value) for value in values.dropna().unique()}
    return pd.Series([known.get(value) if value in known else None for value in values], values.index, dtype=object)


def prepare(table: pd.DataFrame, spec: TableSpec, name: str = "the synthetic table") -> pd.DataFrame:
    """Bring a table into the form that every metric takes.

    Parameters
    ----------
    table
        Rows in any column order.
    spec
        What the columns are.
    name
        What an error calls the table.

    Returns
    -------
    pandas.DataFrame
        The columns ``spec.columns``: numbers as float64 (infinite ones missing; of dates the seconds since 1970; those
        of fewer bits as the decimals that they print as), categories as text, index 0..n-1.

    Raises
    ------
    ColumnMismatchError
        Columns are missing, unexpected or repeated, a number column holds text, or a cell holds a list or a dict.
    EvaluationError
        The table has no rows.
    """
    _refuse_repeated(table, name)
    missing = [column for column in spec.columns if column not in table.columns]
    extra = [str(column) for column in table.columns if column not in spec.columns]
    if missing or extra:
        parts = [f"lacks {', '.join(map(str, missing))}"] if missing else []
        parts += [f"has unexpected {', '.join(extra)}"] if extra else []
        raise ColumnMismatchError(f"{name} {' and '.join(parts)}: give it the columns of the real table")
    if table.empty:
        raise EvaluationError(f"{name} has no rows")
    columns: dict[str, pd.Series] = {}
    for column in spec.numerical:
        kind = "dates" if column in spec.dates else "numbers"
        try:
            numbers = _seconds(table[column]) if column in spec.dates else pd.to_numeric(table[column])
            numbers = _widened(numbers)
        except (ValueError, TypeError):
            raise ColumnMismatchError(
                f"{name}: column {column!r} must hold {kind}, as in the real table{_example(table[column], kind)}"
            ) from None
        columns[column] = numbers.replace([np.inf, -np.inf], np.nan)
    for column in spec.categorical:
        try:
            columns[column] = category_text(table[column])
        except TypeError:  # not hashable
            raise ColumnMismatchError(
                f"{name}: column {column!r} holds lists or dicts: make columns of them, or text, or leave it out"
            ) from None
    return pd.DataFrame(columns).reset_index(drop=True)


def _widened(numbers: pd.Series) -> pd.Series:
    """As float64; a float32 of 0.1 becomes 0.1, not 0.10000000149, so that a copy of a row remains one."""
    name = numbers.dtype.name.lower()  # "Float32" holds missing values of its own
    if name in ("float16", "float32"):
        numbers = pd.Series(numbers.to_numpy(name, na_value=np.nan).astype(str), numbers.index)
    return numbers.astype("float64")


def _refuse_repeated(table: pd.DataFrame, name: str) -> None:
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()][0]
        raise ColumnMismatchError(f"{name}: the column {repeated!r} occurs more than once: rename or drop one of them")


def _example(values: pd.Series, kind: str) -> str:
    """The first value that is none of its kind."""
    texts = values.astype(str)
    if kind == "dates":
        read = pd.to_datetime(texts, errors="coerce", format="mixed", utc=True)
    else:
        read = pd.to_numeric(texts, errors="coerce")
    wrong = values[values.notna() & read.isna()]
    return f", not {wrong.iloc[0]!r}" if len(wrong) else ""


def _is_number(values: pd.Series) -> bool:
    """Numbers, also those of a database's DECIMAL column, which pandas holds as objects."""
    return is_number(values) or (values.dtype == object and pd.api.types.infer_dtype(values) == "decimal")


def _is_date(values: pd.Series) -> bool:
    """Points in time of any type: NumPy's, Arrow's, or Python's dates as objects."""
    held = pd.api.types.infer_dtype(values) if values.dtype == object else ""
    return values.dtype.kind == "M" or held in ("date", "datetime")


def _seconds(values: pd.Series) -> pd.Series:
    """Seconds since 1970 of dates or of their texts; missing ones are NaN."""
    if isinstance(values.dtype, pd.ArrowDtype):  # which pandas cannot divide by a second
        values = values.astype(object)
    try:
        moments = pd.to_datetime(values, utc=True)
    except ValueError:  # the first value's format is not that of all: some have no time, or no fraction of a second
        moments = pd.to_datetime(values, utc=True, format="ISO8601")
    return (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def foreign_values(real: pd.DataFrame, synthetic: pd.DataFrame, spec: TableSpec) -> dict[str, str]:
    """Name the categorical columns in which no synthetic value is one of the real ones, with an example of each.

    Often only the spelling differs (``"0134"`` and ``134``, ``">50K."`` and ``">50K"``).
    """
    real, synthetic = prepare(real, spec, "the real table"), prepare(synthetic, spec)
    found = {}
    for name in spec.categorical:
        known, given = real[name].dropna(), synthetic[name].dropna()
        if len(known) and len(given) and not given.isin(set(known)).any():
            found[name] = (
                f"no synthetic value of {name!r} is in the real table: {given[0:1].item()!r}, not {known.iloc[0]!r}"
            )
    return found


def with_plain_names(*tables: pd.DataFrame, spec: TableSpec) -> tuple[list[pd.DataFrame], TableSpec]:
    """Call the columns of prepared tables f0, f1, ...; the spec that comes back names them so, and no target.

    XGBoost refuses names with brackets, and scikit-learn takes whole numbers for places.
    """
    names = {column: f"f{place}" for place, column in enumerate(spec.columns)}
    plain = TableSpec(tuple(names[name] for name in spec.numerical), tuple(names[name] for name in spec.categorical))
    return [table[spec.columns].set_axis(plain.columns, axis=1) for table in tables], plain


def with_categories(*tables: pd.DataFrame, spec: TableSpec) -> list[pd.DataFrame]:
    """Give prepared tables the same pandas categories, which XGBoost reads natively; missing values stay."""
    result = [table.copy() for table in tables]
    for column in spec.categorical:
        # XGBoost does not take a column without any category.
        names = sorted(set().union(*(table[column].dropna() for table in tables))) or ["-"]
        for table in result:
            table[column] = pd.Categorical(table[column], categories=names)
    return result


def subsample(table: pd.DataFrame, rows: int, seed: int, *, stream: int = 0) -> pd.DataFrame:
    """Draw at most ``rows`` rows without replacement.

    Tables that are compared need streams of their own: with one seed for all, the same places are drawn of tables of
    equal length, so that a copy in the same order would meet its very twins.
    """
    if len(table) <= rows:
        return table.reset_index(drop=True)
    return table.sample(rows, random_state=np.random.RandomState([seed, stream])).reset_index(drop=True)
