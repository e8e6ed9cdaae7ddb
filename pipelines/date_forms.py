"""Dates and times as text of one fixed form: digits where the form has digits, a constant offset at the end.

Texts of an ISO form sort as the times they stand for: a range of times is a range of texts.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


# Width, least and most of what a directive stands for.
_FIELDS = {"Y": (4, 1, 9999), "m": (2, 1, 12), "d": (2, 1, 31), "H": (2, 0, 23), "M": (2, 0, 59), "S": (2, 0, 59)}
_DIRECTIVE = re.compile("%([YmdHMSf])|(.)")
_SECONDS = re.compile(r"[0-9]{2}(?:\.[0-9]+)?")
_ZEROS = str.maketrans("123456789", "000000000")


@dataclass(frozen=True)
class DateForm:
    """A form of dates, times, or both.

    Parameters
    ----------
    layout : str
        As strftime's: "%Y-%m-%d", "%d.%m.%Y %H:%M", "%Y-%m-%dT%H:%M:%S.%f+02:00". Each directive occurs once.
    digits : int, default 0
        Of the fraction of a second that ``%f`` stands for.
    """

    layout: str
    digits: int = 0

    @cached_property
    def _cells(self) -> tuple[Any, ...]:
        """Characters, and fields as (letter, width, least, most), in order."""
        fields = _FIELDS | {"f": (self.digits, 0, 10**self.digits - 1)}
        found = _DIRECTIVE.finditer(self.layout)
        return tuple(match[2] if match[2] else (match[1], *fields[match[1]]) for match in found)

    @cached_property
    def shape(self) -> str:
        """A text of the form with zeros for digits."""
        return self.write({})

    @cached_property
    def described(self) -> str:
        """YYYY-MM-DDThh:mm:ss, for messages."""
        letters = {"Y": "Y", "m": "M", "d": "D", "H": "h", "M": "m", "S": "s", "f": "f"}
        return "".join(cell if isinstance(cell, str) else letters[cell[0]] * cell[1] for cell in self._cells)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Texts with digits in the right places; not each of them is a date."""
        pieces = (re.escape(c) if isinstance(c, str) else f"(?P<{c[0]}>[0-9]{{{c[1]}}})" for c in self._cells)
        return re.compile("".join(pieces))

    def fields(self, text: str) -> dict[str, str] | None:
        """The digits of a date by their directives' letters; None if the text is no date of this form."""
        found = self.pattern.fullmatch(text)
        if found is None:
            return None
        fields = found.groupdict()
        for letter, _, least, most in (cell for cell in self._cells if not isinstance(cell, str)):
            if not least <= int(fields[letter]) <= most:
                return None
        if "d" in fields and int(fields["d"]) > _month_length(int(fields["Y"]), int(fields["m"])):
            return None
        return fields

    def write(self, fields: Mapping[str, str]) -> str:
        """The text of fields as :meth:`fields` gives them; zeros for those that are absent."""
        return "".join(c if isinstance(c, str) else fields.get(c[0], "0" * c[1]) for c in self._cells)

    def end(self, prefix: str, last: bool) -> str | None:
        """The first or the last date that begins with ``prefix``, None if there is none; ISO layouts only."""
        text, known = "", {"Y": 2000, "m": 1}
        for cell in self._cells:
            given = prefix[len(text) :]
            if isinstance(cell, str):
                if given and given[0] != cell:
                    return None
                text += cell
                continue
            letter, width, least, most = cell
            most = _month_length(known["Y"], known["m"]) if letter == "d" else most
            given = given[:width]
            if given and not (given.isascii() and given.isdigit()):
                return None
            value = min(most, int(given.ljust(width, "9"))) if last else max(least, int(given.ljust(width, "0")))
            digits = f"{value:0{width}d}"
            if not least <= value <= most or not digits.startswith(given):
                return None
            known[letter] = value
            text += digits
        return text if len(prefix) <= len(text) else None

    def follower(self, text: str) -> str | None:
        """The date after ``text`` in this form's finest step; None after the last one."""
        for position in range(len(text) - 1, -1, -1):
            if text[position].isdigit():
                for digit in range(int(text[position]) + 1, 10):
                    if (found := self.end(f"{text[:position]}{digit}", last=False)) is not None:
                        return found
        return None


def _month_length(year: int, month: int) -> int:
    return 29 if month == 2 and calendar.isleap(year) else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]


class DateLanguage:
    """The dates of an ISO form within a range, as the prefixes by which a token automaton writes them.

    Parameters
    ----------
    form : DateForm
    low, high : str
        First and last text allowed, both dates of the form.
    quote : str
        What stands before and after a date: ``"`` in JSON.
    """

    def __init__(self, form: DateForm, low: str, high: str, quote: str = "") -> None:
        self.form, self.low, self.high, self.quote = form, low, high, quote
        self.shape = f"{quote}{form.shape}{quote}"
        self._zeros = self.shape.translate(_ZEROS)

    def is_complete(self, prefix: str) -> bool:
        return len(prefix) == len(self.shape) and self.state(prefix) is not None

    def state(self, prefix: str) -> Any:
        """A name for what may follow ``prefix``, equal for prefixes with the same future; None if nothing may."""
        if not self._zeros.startswith(prefix.translate(_ZEROS)):
            return None
        written = prefix[len(self.quote) :][: len(self.form.shape)]
        first, last = self.form.end(written, last=False), self.form.end(written, last=True)
        if first is None or last is None or last < self.low or first > self.high:
            return None
        if first < self.low or last > self.high:
            return prefix
        return len(prefix), self._context(written)

    def _context(self, written: str) -> Any:
        """What follows depends on, beside the length of what is written, where no bound cuts through it."""
        if not self.form.layout.startswith("%Y") or len(written) >= 10:
            return written[-1:]  # a time of day: the first digit of an hour says which second ones there are
        if len(written) < 4:
            return written
        return calendar.isleap(int(written[:4])), written[4:]


def instant(text: str) -> float:
    """Seconds since the first day (a time of day: since midnight) of a text of an ISO form, its offset apart."""
    day, clock = 0, text
    if text[2] != ":":
        day, clock = datetime.date.fromisoformat(text[:10]).toordinal(), text[11:]
    seconds = float(_SECONDS.match(clock, 6)[0]) if clock[5:6] == ":" else 0.0  # type: ignore[index]
    return 86400.0 * day + (3600.0 * int(clock[:2]) + 60.0 * int(clock[3:5]) if clock else 0.0) + seconds
