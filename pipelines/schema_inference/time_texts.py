"""Texts that say a date, a time or a duration in a form that no kind of column writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from difflm.pipelines.values import shown


# A column is taken for one of times from this share of its texts; the others may be "unknown" or the like.
_SHARE = 0.9
_UNITS = r"weeks?|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|milliseconds?|ms"
_PIECES = re.compile(
    r"(?P<date>[0-9]{4}([-/.])[0-9]{1,2}\2[0-9]{1,2}|[0-9]{1,2}([-/.])[0-9]{1,2}\3[0-9]{4}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{2}"
    r"|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]))(?![0-9])"
    rf"|(?P<duration>[+-]?[0-9]+(?:[.,][0-9]+)?\s?(?:{_UNITS})\b|-?P(?=[0-9T])(?:[0-9.]+[YMWD])*(?:T(?:[0-9.]+[HMS])+)?$"
    r"|[0-9]+\s?(?:d\s?[0-9]+\s?h|h\s?[0-9]+\s?m|m\s?[0-9]+(?:[.,][0-9]+)?\s?s)\b|-?[0-9]{3,}(?::[0-5][0-9]){1,2})"
    r"|(?P<clock>[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?(?:\s?[ap]\.?m\b\.?)?|[0-9]{1,2}\s?[ap]\.?m\b\.?)"
    r"|(?P<month>(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|ust|ember|tember|ober)?\b)"
    r"|(?P<year>(?:19|20)[0-9]{2}\b)|(?P<day>[0-9]{1,2}(?:st|nd|rd|th)?\b)"
    r"|(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\b"
    r"|(?:(?:UTC|GMT)?[+-](?:0?[0-9]|1[0-4])(?::?[0-5][0-9])?|Z|UTC|GMT|[A-Z]{1,3}[SD]T|CET|EET|WET)\b"
    r"|\[[A-Za-z]+/[A-Za-z_/]+\]|T(?=[0-9])|[\s,.-]+",
    re.IGNORECASE,
)
_NOUNS = {"date": "dates", "clock": "times of day", "duration": "durations"}
_REMEDIES = {
    "date": (
        "Dates are read in one form such as 2024-01-31T09:30:00, times with a zone at one offset "
        "(pandas.to_datetime(..., utc=True) brings them there)"
    ),
    "clock": "Times of day are read as 09:30 or 09:30:00 (pandas.to_datetime(...).dt.time brings them there)",
    "duration": "Durations are best a number (pandas.to_timedelta(...).dt.total_seconds())",
}


def meaning(text: str) -> str | None:
    """What a text says from its first to its last character: "date" (with a time or not), "clock" or "duration"."""
    found: set[str] = set()
    position = 0
    while position < len(text):
        piece = _PIECES.match(text, position)
        if piece is None:
            return None
        found |= {name for name, part in piece.groupdict().items() if part}
        position = piece.end()
    if found & {"date"} or "month" in found and found & {"year", "clock"}:
        return "date"
    if found & {"month", "year", "day"}:
        return None
    return "duration" if "duration" in found else "clock" if found else None


def unread_times(name: str, texts: Sequence[str]) -> str | None:
    """A warning about a column of free text that nearly always holds times; None for another column."""
    meanings = [found for text in texts if (found := meaning(text.strip())) is not None]
    if len(meanings) < _SHARE * len(texts):
        return None
    most = max(_NOUNS, key=meanings.count)
    example = next(text for text in texts if meaning(text.strip()) == most)
    return (
        f"column {name!r} says {_NOUNS[most]} ({shown(example)}), not all in one form that is read: it is learned as "
        f"free text, and impossible ones may be written. {_REMEDIES[most]}. text_columns=[{name!r}] "
        f"(--text-columns {name}) says that it is text"
    )
