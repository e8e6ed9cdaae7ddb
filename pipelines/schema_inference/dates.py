"""Which columns are dates or times: by their pandas dtype, by the types of their values, or as text of one format."""

from __future__ import annotations

import datetime
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from difflm.pipelines.column_kinds import Column
from difflm.pipelines.date_forms import DateForm
from difflm.pipelines.errors import SchemaError
from difflm.pipelines.time_zones import fixed_offset


# Text is read as dates only in these forms: four digits of the year, two of all else. 03/04/2024 is read if other
# values of the column tell which of the two is the day.
_DATE_LAYOUTS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y")
_CLOCK = re.compile(
    r"[0-9]{2}:[0-9]{2}(?P<seconds>:[0-9]{2}(?:\.(?P<fraction>[0-9]{1,9}))?)?(?P<zone>Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)


def infer_dates(column: Column, values: pd.Series) -> tuple[Column, list[str]] | None:
    """The column as one of dates or times, with its values as text, or None if it is none.

    Parameters
    ----------
    column : Column
        Its name, dtype and whether values are missing.
    values : Series
        Those that are present.
    """
    dtype = values.dtype
    if dtype.kind == "M" and not str(dtype).startswith(("date32", "date64")):  # Arrow's dates are objects
        return _stamps(column, values)
    kinds = set(map(type, values))
    if kinds == {str}:
        return _texts(column, values.tolist())
    if kinds <= {datetime.time}:
        return _times(column, values.tolist())
    if kinds <= {datetime.date}:
        return _finished(replace(column, kind="date"), [value.isoformat() for value in values])
    if all(issubclass(kind, datetime.datetime) for kind in kinds):
        return _stamps(column, values)
    if all(issubclass(kind, datetime.date) for kind in kinds):  # dates among datetimes
        midnight = datetime.time()
        whole = [v if isinstance(v, datetime.datetime) else datetime.datetime.combine(v, midnight) for v in values]
        return _stamps(column, pd.Series(whole, dtype="object"))
    return None


def _finished(column: Column, texts: list[str]) -> tuple[Column, list[str]]:
    return replace(column, minimum=min(texts), maximum=max(texts)), texts


def _stamps(column: Column, values: pd.Series) -> tuple[Column, list[str]]:
    """A column of timestamps, of a datetime dtype or Python's own."""
    aware = [value.tzinfo is not None for value in values] if values.dtype == "object" else []
    if any(aware) and not all(aware):
        raise SchemaError(
            f"column {column.name!r} mixes times with and without a time zone: cast it with pandas.to_datetime, or "
            f"take it as text (text_columns=[{column.name!r}], --text-columns {column.name})"
        )
    offset, naive = _wall_clock(values, bool(aware) and all(aware))
    found = np.datetime_as_string(naive).tolist()
    if wrong := next((text for text in found if not re.match(r"(?!0000)\d{4}-", text)), None):
        raise SchemaError(
            f"column {column.name!r} holds {wrong}, out of the years 1 to 9999: take it as text "
            f"(text_columns=[{column.name!r}], --text-columns {column.name})"
        )
    clocks = {text[11:] or "00:00:00" for text in found}
    if offset is None and all(not clock.strip("0:.") for clock in clocks) and values.dtype != "object":
        return _finished(replace(column, kind="date"), [text[:10] for text in found])
    column = replace(column, kind="datetime" if offset is None else "zoned", offset=offset)
    column, length = _with_precision(column, clocks)
    texts = [f"{text[:10]}T{(text[11:] or '00:00:00')[:length]}{offset or ''}" for text in found]
    return _finished(column, texts)


def _wall_clock(values: pd.Series, aware: bool) -> tuple[str | None, np.ndarray]:
    """The offset that the values are written with (None: no zone), and what clocks show there."""
    if values.dtype == "object":
        if not aware:
            return None, np.array(values.tolist(), dtype="datetime64[us]")
        offsets = {value.utcoffset() for value in values}
        fixed = datetime.timezone(offsets.pop()) if len(offsets) == 1 else datetime.UTC
        shifted = [value.astimezone(fixed).replace(tzinfo=None) for value in values]
        return fixed_offset(fixed) or "+00:00", np.array(shifted, dtype="datetime64[us]")
    zone = getattr(values.dtype, "tz", None) or getattr(getattr(values.dtype, "pyarrow_dtype", None), "tz", None)
    unit = values.dtype.unit if hasattr(values.dtype, "unit") else np.datetime_data(_numpy_dtype(values))[0]
    if zone is None:
        return None, values.to_numpy(dtype=f"datetime64[{unit}]")
    values = values.astype(pd.DatetimeTZDtype(unit, zone))
    offset = fixed_offset(values.dtype.tz)
    clock = "UTC" if offset is None else values.dtype.tz
    return offset or "+00:00", values.dt.tz_convert(clock).dt.tz_localize(None).to_numpy()


def _numpy_dtype(values: pd.Series) -> np.dtype:
    arrow = getattr(values.dtype, "pyarrow_dtype", None)
    return np.dtype(f"datetime64[{arrow.unit}]") if arrow is not None else values.dtype


def _with_precision(column: Column, clocks: Sequence[str] | set[str]) -> tuple[Column, int]:
    """The column with its finest unit, and how many characters of HH:MM:SS.f are kept."""
    digits = max(len(clock[9:].rstrip("0")) for clock in clocks)
    minutes = not digits and all(clock[6:8] == "00" for clock in clocks)
    column = replace(column, timespec="minutes" if minutes else "seconds", decimals=digits or None)
    return column, 5 if minutes else 9 + digits if digits else 8


def _times(column: Column, values: list[datetime.time]) -> tuple[Column, list[str]] | None:
    if any(value.tzinfo is not None for value in values):
        return None
    clocks = [value.isoformat("microseconds") for value in values]
    column, length = _with_precision(replace(column, kind="time"), clocks)
    return _finished(column, [clock[:length] for clock in clocks])


# ---- dates as text


def _texts(column: Column, values: list[str]) -> tuple[Column, list[str]] | None:
    """A text column all of whose values are dates of one format that gives each of them back exactly."""
    found = []
    for candidate in _candidates(column, values[0]):
        source, form = candidate.rules.source, candidate.rules.form  # type: ignore[attr-defined]
        fields = [source.fields(value) for value in values]
        if None not in fields:
            found.append((candidate, [form.write(each) for each in fields]))
    if len(found) != 1:
        return None
    column, texts = found[0]
    warnings.warn(
        f"column {column.name!r} is read as dates or times ({values[0]!r} by the format {column.date_format!r}) and "
        f"written back the same way; text_columns=[{column.name!r}] (--text-columns {column.name}) keeps it as text",
        stacklevel=5,
    )
    return _finished(column, texts)


def _candidates(column: Column, value: str) -> list[Column]:
    """Columns of the formats that fit one value."""
    found = _CLOCK.fullmatch(value)
    if found and not found["zone"]:
        return [_timed(replace(column, kind="time", date_format=_clock_layout(found)), found)]
    candidates = []
    for layout in _DATE_LAYOUTS:
        day, between, clock = value[:10], value[10:11], _CLOCK.fullmatch(value[11:])
        if DateForm(layout).fields(day) is None:
            continue
        if len(value) == 10:
            candidates.append(replace(column, kind="date", date_format=layout))
        elif between in ("T", " ") and clock:
            zone = clock["zone"] or ""
            offset = None if not zone else "+00:00" if zone == "Z" else f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
            if offset is None or re.fullmatch(r"[+-](?:0\d|1[0-4]):[0-5]\d", offset) and offset != "-00:00":
                kind = "zoned" if offset else "datetime"
                layout = f"{layout}{between}{_clock_layout(clock)}{zone}"
                candidates.append(_timed(replace(column, kind=kind, date_format=layout, offset=offset), clock))
    return candidates


def _clock_layout(found: re.Match[str]) -> str:
    return "%H:%M" + ":%S" * bool(found["seconds"]) + ".%f" * bool(found["fraction"])


def _timed(column: Column, found: re.Match[str]) -> Column:
    return replace(
        column,
        timespec="seconds" if found["seconds"] else "minutes",
        decimals=len(found["fraction"]) if found["fraction"] else None,
    )


def by_frequency(counts: Counter[Any]) -> tuple[Any, ...]:
    """Values, the most frequent first, ties in order of value."""
    return tuple(value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
