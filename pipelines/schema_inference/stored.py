"""What a series stores beyond its plain values: found when a schema is inferred."""

from __future__ import annotations

import datetime
import decimal
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from difflm.pipelines.column_kinds import Column
from difflm.pipelines.stored_types import ARROW, arrow_type_of, parsed, plain_scalar


_FLOAT_DIGITS = 15
_TEXTS = ("string", "large_string", "binary", "large_binary")


def plain_series(series: pd.Series) -> tuple[pd.Series, str | None]:
    """The plain values of a series, and what they stand for (``Column.stored``); None where they are themselves."""
    dtype = series.dtype
    if isinstance(dtype, pd.ArrowDtype):
        return _plain_arrow(series, dtype)
    if isinstance(dtype, pd.CategoricalDtype):
        return series, _stored_categories(str(series.name), dtype)
    if dtype.kind == "m":
        return _plain_durations(series, str(dtype))
    if isinstance(dtype, (pd.IntervalDtype, pd.PeriodDtype)) or dtype.kind == "c":
        name = "complex128" if dtype.kind == "c" else str(dtype)
        return series.astype("object").map(lambda value: plain_scalar(value, name), na_action="ignore"), name
    if dtype != "object":
        return series, None
    present = series.dropna()
    if len(present) and all(isinstance(value, bytes) for value in present):
        return _plain_bytes(series, "bytes")
    if len(present) and all(isinstance(value, decimal.Decimal) and value.is_finite() for value in present):
        scale = max(0, *(-int(value.as_tuple().exponent) for value in present))
        return series, f"decimal({scale})"
    if len(present) and all(isinstance(value, datetime.timedelta) for value in present):
        return _plain_durations(pd.to_timedelta(series), "timedelta64[ns]")
    return series, None


def with_stored(column: Column, stored: str | None, values: pd.Series, forced: bool = False) -> Column:
    """The inferred column with what it stores; a warning names it where that cannot come back.

    Parameters
    ----------
    column : Column
        Inferred from the plain values.
    stored : str, optional
        As [`plain_series`] returned it.
    values : pandas.Series
        The plain values that are present.
    forced : bool, default False
        Whether the user asked for this kind of column.
    """
    if stored is None:
        return column
    named = f"column {column.name!r} ({stored.partition(' in ')[0]})"
    if column.kind == "decimal" and "decimal" in stored:
        digits = max(len("".join(map(str, value.as_tuple().digits)).strip("0")) for value in values)
        if digits > _FLOAT_DIGITS:
            warnings.warn(
                f"{named} has numbers of {digits} digits, of which {_FLOAT_DIGITS} are kept: keep all as text with "
                f"--text-columns {column.name} (text_columns=[{column.name!r}])",
                stacklevel=5,
            )
    texts = column.dtype_categories if column.dtype == "category" else column.categories
    if column.kind == "text" and not (stored == "bytes" or stored.removesuffix(ARROW) in _TEXTS):
        if not forced:
            warnings.warn(f"{named} has too many values for a list: it comes back as text", stacklevel=5)
        return column
    if column.kind == "category" and not _comes_back(texts or (), stored):
        warnings.warn(f"{named} comes back as text", stacklevel=5)
        return column
    return replace(column, stored=stored)


def _comes_back(texts: tuple[Any, ...], stored: str) -> bool:
    if stored == "bytes" or stored.endswith(ARROW) or " in " in stored or stored.startswith("decimal("):
        return True
    try:
        parsed([str(text) for text in texts], stored)
    except ValueError:
        return False
    return True


def _stored_categories(name: str, dtype: pd.CategoricalDtype) -> str | None:
    categories = dtype.categories
    if categories.dtype == "object":
        for kind, stored in ((datetime.datetime, None), (datetime.date, "date"), (decimal.Decimal, "decimal")):
            if len(categories) and all(isinstance(value, kind) for value in categories):
                return stored
        return None
    special = isinstance(categories.dtype, (pd.IntervalDtype, pd.PeriodDtype, pd.DatetimeTZDtype))
    return str(categories.dtype) if special or categories.dtype.kind in "mMc" else None


def _plain_durations(series: pd.Series, name: str) -> tuple[pd.Series, str]:
    """Integers in the coarsest unit that keeps every duration."""
    numbers = series.astype("timedelta64[ns]").astype("int64").where(series.notna())
    present = [pd.Timedelta(value).as_unit("ns").value for value in series.dropna()]
    sizes = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    unit = next(unit for unit, size in sizes.items() if all(value % size == 0 for value in present))
    cells = iter(present)
    plain = [None if missing else next(cells) // sizes[unit] for missing in numbers.isna()]
    return pd.Series(pd.array(plain, dtype="Int64"), index=series.index, name=series.name), f"{name} in {unit}"


def _plain_bytes(series: pd.Series, name: str) -> tuple[pd.Series, str | None]:
    try:
        return series.map(bytes.decode, na_action="ignore"), name
    except UnicodeDecodeError:
        return series, None  # refused by name, like all that is no text


def _plain_arrow(series: pd.Series, dtype: pd.ArrowDtype) -> tuple[pd.Series, str | None]:
    import pyarrow as pa
    from pyarrow import types

    kind, stored = dtype.pyarrow_dtype, str(dtype)
    try:
        known = arrow_type_of(stored) == kind
    except (ValueError, pa.ArrowException):
        known = False
    if not known:
        warnings.warn(f"column {series.name!r} ({stored}) comes back with the dtype of plain values", stacklevel=5)
    inner = kind.value_type if types.is_dictionary(kind) else kind
    cells = series.tolist()
    values = pd.Series([None if value is pd.NA else value for value in cells], index=series.index, dtype="object")
    values.name = series.name
    if types.is_binary(inner) or types.is_large_binary(inner):
        values, found = _plain_bytes(values, stored)
        return values, found if known else None
    if types.is_duration(inner):
        values, found = _plain_durations(pd.to_timedelta(values), stored)
        return values, found if known else None
    if types.is_boolean(inner):
        values = values.astype("boolean")
    elif types.is_integer(inner):
        values = values.astype(str(np.dtype(inner.to_pandas_dtype())).capitalize().replace("Uint", "UInt"))
    elif types.is_floating(inner):
        values = values.astype(np.dtype(inner.to_pandas_dtype()))
    elif types.is_timestamp(inner):
        zone = f", {inner.tz}" if inner.tz else ""
        values = pd.to_datetime(values, utc=bool(zone)).astype(f"datetime64[{inner.unit}{zone}]")
    return values, stored if known else None
