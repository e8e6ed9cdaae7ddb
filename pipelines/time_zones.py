"""Time zones by the names that pandas' dtypes give them."""

from __future__ import annotations

import datetime
import re
from typing import Any


def find_zone(dtype: str, offset: str) -> datetime.tzinfo:
    """The zone of ``datetime64[ns, ZONE]`` or ``timestamp[ns, tz=ZONE]``.

    Where its library is missing, or there is no zone in the dtype, the fixed ``offset`` ("+02:00") serves.
    """
    found = re.search(r"\[\w+, (?:tz=)?(.*?)\](?:\[pyarrow\])?$", dtype)
    fixed = datetime.datetime.fromisoformat(f"2000-01-01T00:00:00{offset}").tzinfo or datetime.UTC
    return (_by_name(found[1]) or fixed) if found else fixed


def _by_name(name: str) -> Any:
    import pandas as pd

    try:
        if match := re.fullmatch(r"pytz\.FixedOffset\((-?\d+)\)", name):
            import pytz

            return pytz.FixedOffset(int(match[1]))
        if match := re.fullmatch(r"tzoffset\((None|'[^']*'|\"[^\"]*\"), (-?\d+)\)", name):
            import dateutil.tz

            return dateutil.tz.tzoffset(None if match[1] == "None" else match[1][1:-1], int(match[2]))
        if name in ("tzutc()", "tzlocal()"):
            import dateutil.tz

            return dateutil.tz.tzutc() if name == "tzutc()" else dateutil.tz.tzlocal()
        if match := re.fullmatch(r"tzfile\('(.*)'\)", name):
            import dateutil.tz

            return dateutil.tz.gettz(match[1].partition("zoneinfo/")[2] or match[1])
        return pd.DatetimeTZDtype("ns", name).tz
    except (ImportError, TypeError, ValueError, LookupError):
        return None


def fixed_offset(zone: datetime.tzinfo) -> str | None:
    """ "+02:00" of a zone whose clock never changes; None for others."""
    delta = zone.utcoffset(None)
    if delta is None or delta % datetime.timedelta(minutes=1):
        return None
    minutes = round(delta.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
