"""Single values as text and back: what every kind of column shares."""

from __future__ import annotations

import datetime
import decimal
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np


# ---- text


def clean_text(text: str) -> str:
    """Replace lone surrogates, which no tokenizer and no file format can write."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_text(value: Any) -> str:
    """A value of a text column as a string: nested values as JSON, dates in ISO 8601."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def is_plain(text: str) -> bool:
    """Whether a category needs no quotes in the values form."""
    if not text or text != text.strip() or text in ("null", "true", "false"):
        return False
    if any(char in ',"' or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") for char in text):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def number_text(value: Any) -> str:
    """A number without exponent, in the digits that identify it."""
    return format(decimal.Decimal(str(value)), "f") if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[Any], limit: int = 12) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def unexpected(text: str, position: int, expected: str) -> str:
    found = shown(text[position : position + 20]) if position < len(text) else "the end"
    return f"expected {expected} at character {position}, found {found}"


# ---- single values


def is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    kinds = (float, complex, np.inexact, decimal.Decimal, np.datetime64, np.timedelta64)
    return isinstance(value, kinds) and bool(value != value)


def date_text(value: Any, timespec: str | None) -> str:
    """ISO 8601 text of a date or timestamp; in UTC if it has a time zone and the column's form is given."""
    import pandas as pd

    if timespec is None and not isinstance(value, np.datetime64):
        return str(value.isoformat())
    stamp = pd.Timestamp(value)
    if timespec is None:
        return stamp.isoformat()
    if stamp.tz is not None:
        stamp = stamp.tz_convert("UTC")
    return stamp.strftime("%Y-%m-%d") if timespec == "day" else stamp.isoformat(timespec=timespec)


def is_date(text: str, dtype: str) -> bool:
    import pandas as pd

    try:
        pd.Timestamp(text).as_unit(dtype.partition("[")[2].rstrip("]").partition(",")[0] or "ns")
    except ValueError:
        return False
    return True


def in_utc(values: Iterable[Any]) -> list[Any]:
    """Moments by UTC's clock, missing ones None: of other clocks ``pyarrow.array`` at times adds the offset twice."""
    return [None if is_missing(value) else value.astimezone(datetime.UTC) for value in values]
