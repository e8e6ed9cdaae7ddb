"""Columns of dates, of times of day, and of both: written in ISO 8601, each of them a date that there is."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .cell_codes import CodedColumn
from .date_forms import DateForm, DateLanguage, instant
from .errors import ConditionError, SchemaError
from .kind_base import ColumnKind, Writer, never_seen, number_classes, place_between
from .time_zones import find_zone
from .values import is_missing, listed, shown


if TYPE_CHECKING:
    import pandas as pd

_NUMPY = re.compile(
    r"(?P<Y>\d{4})(?:-(?P<m>\d\d)(?:-(?P<d>\d\d)(?:T(?P<H>\d\d)(?::(?P<M>\d\d)(?::(?P<S>\d\d)(?:\.(?P<f>\d+))?)?)?)?)?)?"
)
_PLAIN_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY = 86400.0


class _DateKind(ColumnKind):
    """What dates and times share: values are texts of one ISO form, ordered, in a range or of a list."""

    json_type = "string"
    ordered = True
    is_bare = True
    has_date, has_time = True, True

    # ---- the form

    @cached_property
    def form(self) -> DateForm:
        """The form of normalised values."""
        column = self.column
        digits = column.decimals or 0
        clock = "%H:%M" if column.timespec == "minutes" else "%H:%M:%S.%f" if digits else "%H:%M:%S"
        layout = "T".join(["%Y-%m-%d"] * self.has_date + [clock] * self.has_time)
        return DateForm(layout + (column.offset or ""), digits)

    @cached_property
    def source(self) -> DateForm | None:
        """The form of a text column's values in the data; None where they are no text."""
        column = self.column
        return None if column.date_format is None else DateForm(column.date_format, column.decimals or 0)

    @cached_property
    def zone(self) -> datetime.tzinfo | None:
        """The zone whose clock a value without one is read by."""
        offset = self.column.offset
        return None if offset is None else find_zone(self.column.dtype, offset)

    @cached_property
    def _offset(self) -> datetime.tzinfo | None:
        offset = self.column.offset
        return None if offset is None else datetime.datetime.fromisoformat(f"2000-01-01T00:00:00{offset}").tzinfo

    @cached_property
    def limits(self) -> tuple[str, str]:
        """First and last text that the dtype can hold."""
        first, last = self.form.end("", last=False), self.form.end("", last=True)
        if self.has_date and "[ns" in self.column.dtype:
            first, last = self.form.end("1677-09-22", last=False), self.form.end("2262-04-10", last=True)
        elif self.column.offset is not None:  # another zone's clock is in the same years
            first, last = self.form.end("0001-01-02", last=False), self.form.end("9999-12-30", last=True)
        return str(first), str(last)

    # ---- values and their text

    def normalize(self, value: Any) -> Any:
        text, _ = self._read_any(value)
        if problem := self.problem(text):
            raise self.error(problem)
        return text

    def problem(self, value: Any) -> str | None:
        column = self.column
        if not self.limits[0] <= value <= self.limits[1]:
            return f"{value} is not {self.expected} that {column.dtype} can hold"
        if column.categories is not None and value not in self._known:
            return f"{value} is not one of its {len(column.categories)} values: {listed(column.categories, 5)}"
        if column.bounded and not (column.minimum or "") <= value <= (column.maximum or self.limits[1]):
            return f"{value} is not between {column.minimum} and {column.maximum}"
        return None

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.column.categories or ())

    def text(self, value: Any, record_format: str) -> str:
        return value if record_format == "values" else f'"{value}"'

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        quote = "" if record_format == "values" else '"'
        first, end = start + len(quote), start + len(quote) + len(self.form.shape)
        value = text[first:end]
        if self.form.fields(value) is None or not (text.startswith(quote, start) and text.startswith(quote, end)):
            found = shown(text[start:].partition(",")[0])
            raise self.parse_error(f"{found} is not {self.expected} of the form {quote}{self.form.described}{quote}")
        if problem := self.problem(value):
            raise self.parse_error(problem)
        return value, end + len(quote)

    def _read_any(self, value: Any, lenient: bool = False) -> tuple[str, bool]:
        """A value's text, and whether it says all of the value. ``lenient``: without a zone it is the column's."""
        fields = self._fields(value, lenient)
        text = self.form.write(fields | {"f": fields["f"][: self.form.digits]})
        exact = {"H": "00", "M": "00", "S": "00"} | {key: text for key, text in fields.items() if key in "HMS"}
        kept = self.form.fields(text) or {}
        rest = fields["f"][self.form.digits :].strip("0")
        return text, not rest and all(kept.get(key, "00") == digits for key, digits in exact.items())

    def _fields(self, value: Any, lenient: bool) -> dict[str, str]:
        if isinstance(value, str):
            for form in (self.source, self.form):
                if form is not None and (fields := form.fields(value)) is not None:
                    return {"f": ""} | fields
            value = self._parse(value)
        if isinstance(value, np.datetime64):
            fields = (_NUMPY.fullmatch(str(value)) or self._refuse(value)).groupdict()
            if self._offset is None:
                return {"f": ""} | {key: digits for key, digits in fields.items() if digits is not None}
            value = datetime.datetime.fromisoformat(str(value.astype("datetime64[us]")))
        if isinstance(value, datetime.time) and not self.has_date:
            return _clock(value)
        if not isinstance(value, datetime.date) or not self.has_date:
            self._refuse(value)
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime.combine(value, datetime.time())
        if not 1 <= value.year <= 9999:
            raise self.error(f"{value} is out of the years 1 to 9999: take the column as text")
        if (value.tzinfo is None) != (self._offset is None):
            if self._offset is None or not lenient:
                known = "no time zone, but the column's values have one" if value.tzinfo is None else "a time zone"
                raise self.error(f"{value} has {known}")
            value = self._localized(value)
        if self._offset is not None:
            try:
                value = value.astimezone(self._offset)
            except (OverflowError, ValueError):
                self._refuse(value)
        return {"Y": f"{value.year:04d}", "m": f"{value.month:02d}", "d": f"{value.day:02d}"} | _clock(value)

    def _localized(self, value: datetime.datetime) -> datetime.datetime:
        import pandas as pd

        return pd.Timestamp(value).tz_localize(self.zone, ambiguous=True, nonexistent="shift_forward")

    def _parse(self, text: str) -> Any:
        """A date or time from a text of another form: any of ISO 8601."""
        try:
            if not self.has_date:
                return datetime.time.fromisoformat(text)
            return datetime.datetime.fromisoformat(text)
        except ValueError:
            return self._refuse(text)

    def _refuse(self, value: Any) -> Any:
        form = (self.source or self.form).described
        raise self.error(f"{shown(value)} is not {self.expected}, such as {form}")

    # ---- what it looks like

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        column = self.column
        if column.categories is not None:
            return {"enum": [*column.categories, *([None] if column.nullable else [])]}
        schema: dict[str, Any] = {"type": [self.json_type, "null"] if column.nullable else self.json_type}
        offset = column.offset or ""
        digits = re.sub("0+", lambda run: f"[0-9]{{{len(run[0])}}}", self.form.shape.removesuffix(offset))
        schema["pattern"] = f"^{digits}{offset}$".replace(".", "[.]").replace("+", "[+]")
        if self.json_format is not None:
            schema["format"] = self.json_format
        return schema

    json_format: str | None = None

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        spec = super().grammar(write, within_range, condition)
        if spec["kind"] != self.name:
            return spec
        if self.column.categories is not None and condition is None:
            return spec | {"kind": "category", "texts": tuple(map(write, self.column.categories))}
        low, high = self.limits
        if spec["bounded"]:
            low, high = max(low, spec["minimum"] or low), min(high, spec["maximum"] or high)
        quote = '"' if write(low).startswith('"') else ""
        return spec | {"kind": "language", "language": DateLanguage(self.form, low, high, quote)}

    def typical(self) -> Any:
        column = self.column
        if column.categories:
            return column.categories[0]
        return column.minimum or self.form.end("2000" if self.has_date else "", last=False)

    # ---- features for the latent

    @cached_property
    def _span(self) -> tuple[float, float] | None:
        low, high = self.column.minimum, self.column.maximum
        return None if low is None or high is None else (instant(low), instant(high))

    @cached_property
    def _cycles(self) -> tuple[str, ...]:
        """The cycles that the range goes through at least twice."""
        span = self._span[1] - self._span[0] if self._span else 0.0
        lengths = {"minute": 3600.0, "hour": _DAY, "weekday": 7 * _DAY, "day": 31 * _DAY, "year": 366 * _DAY}
        return tuple(name for name, length in lengths.items() if span >= 2 * length and self._has_cycle(name))

    def _has_cycle(self, name: str) -> bool:
        return self.has_time if name in ("minute", "hour") else self.has_date

    @property
    def feature_names(self) -> tuple[str, ...]:
        if self._span is None:
            return ()
        return (self.column.name, *(f"{self.column.name} ({cycle})" for cycle in self._cycles))

    def feature_places(self, value: Any) -> list[float]:
        if self._span is None:
            return []
        seconds = instant(value)
        places = [place_between(seconds, *self._span)]
        day = datetime.date.fromisoformat(value[:10]) if self.has_date else None
        for cycle in self._cycles:
            if day is None or cycle in ("minute", "hour"):
                length = 3600.0 if cycle == "minute" else _DAY
                places.append(seconds % length / length)
            elif cycle == "weekday":
                places.append(day.weekday() / 7)
            elif cycle == "day":
                places.append((day.day - 1) / 31)
            else:
                places.append((day.timetuple().tm_yday - 1) / 366)
        return places

    # ---- codes for the draft

    def coded_parts(self) -> tuple[CodedColumn, ...]:
        column = self.column
        if column.categories is not None:
            return (CodedColumn(column.name, "choice", len(column.categories), column.nullable),)
        if self._span is None:
            return ()
        parts = []
        if self.has_date:
            parts += [("week", "number", 0), ("weekday", "choice", 7)]
        if self.has_time:
            parts.append(("clock", "number", 0))
        return tuple(
            CodedColumn(f"{column.name} ({part})", kind, size, column.nullable, ordered=place > 0)
            for place, (part, kind, size) in enumerate(parts)
        )

    @cached_property
    def _steps(self) -> int:
        """A code of a time counts so many parts of a second (0: minutes)."""
        return 0 if self.column.timespec == "minutes" else 10**self.form.digits

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: place for place, text in enumerate(self.column.categories or ())}

    def code(self, value: Any) -> tuple[int, ...]:
        if self.column.categories is not None:
            return (self._places[value],)
        codes: list[int] = []
        if self.has_date:
            codes += divmod(datetime.date.fromisoformat(value[:10]).toordinal() - 1, 7)
        if self.has_time:
            clock = value[11:] if self.has_date else value
            minutes = 60 * int(clock[:2]) + int(clock[3:5])
            if self._steps:
                digits = clock[9 : 9 + self.form.digits] if self.form.digits else ""
                minutes = (60 * minutes + int(clock[6:8])) * self._steps + int(digits or 0)
            codes.append(minutes)
        return tuple(codes)

    def coded_value(self, *codes: int) -> Any:
        if self.column.categories is not None:
            return self.column.categories[codes[0]]
        fields: dict[str, str] = {}
        if self.has_date:
            last = datetime.date.max.toordinal()
            day = datetime.date.fromordinal(min(max(7 * codes[0] + codes[1] + 1, 1), last))
            fields |= {"Y": f"{day.year:04d}", "m": f"{day.month:02d}", "d": f"{day.day:02d}"}
        if self.has_time:
            seconds, steps = divmod(codes[-1], self._steps) if self._steps else (60 * codes[-1], 0)
            fields |= {"H": f"{seconds // 3600:02d}", "M": f"{seconds // 60 % 60:02d}", "S": f"{seconds % 60:02d}"}
            fields["f"] = f"{steps:0{self.form.digits}d}" if self.form.digits else ""
        return self.form.write(fields)

    def coded_range(self, low: Any, high: Any, within_range: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        low, high = self._closed(low, high, within_range)
        least, most = self.limits
        return self.code(low or least), self.code(high or most)

    # ---- conditions

    takes_ranges = True

    def plain(self, value: Any) -> Any:
        return value  # dates are taken as they are

    def condition_value(self, value: Any) -> Any:
        try:
            text, exact = self._read_any(value, lenient=True)
            if not exact:
                raise self.error(f"{shown(value)} is finer than its values, {self.form.described}")
        except SchemaError as error:
            raise ConditionError(f"{error}. A range is a tuple: (low, high).") from None
        if self.column.categories is not None and text not in self._known:
            raise never_seen(self.column.name, value, self.column.categories)
        return text

    def condition_range(self, low: Any, high: Any) -> dict[str, Any]:
        name = self.column.name
        first, last = self._bound(low, last=False), self._bound(high, last=True)
        if first is None and last is None:
            raise ConditionError(f"The range of {name!r} is open at both ends: leave the condition out.")
        least, most = self.limits
        if (first or least) > (last or most):
            form = f"of the form {self.form.described}"
            raise ConditionError(f"No value of {name!r} ({form}) lies in the range {low} to {high}.")
        if self.column.categories is None:
            return {"minimum": first, "maximum": last}
        within = tuple(text for text in self.column.categories if (first or least) <= text <= (last or most))
        if not within:
            raise ConditionError(
                f"No value of {name!r} lies in the range {low} to {high}; it was: {listed(self.column.categories)}."
            )
        return {"values": within}

    def _bound(self, bound: Any, last: bool) -> str | None:
        """An end of a range as text; a bound finer than the column's values is rounded into the range."""
        if bound is None:
            return None
        if is_missing(bound):
            raise ConditionError(f"The range of {self.column.name!r} has no end {bound!r}: None leaves it open.")
        try:
            text, exact = self._read_any(bound, lenient=True)
        except SchemaError as error:
            raise ConditionError(f"The range of {self.column.name!r}: {error}") from None
        if isinstance(bound, str) and _PLAIN_DATE.fullmatch(bound):
            bound = datetime.date.fromisoformat(bound)
        if last and type(bound) is datetime.date and self.has_time:  # until the day's last moment
            return self._read_any(datetime.datetime.combine(bound, datetime.time.max), lenient=True)[0]
        if not last and not exact:
            return self.form.follower(text)
        return text

    def classes(self, values: Sequence[Any], num_bins: int) -> dict[str, Any] | None:
        return number_classes([instant(value) for value in values], self._span or (None, None), num_bins)

    def is_condition_column(self, max_categories: int) -> bool:
        return True

    # ---- back to a table and to files

    def in_data(self, value: Any) -> Any:
        return value if self.source is None else self.source.write(self.form.fields(value) or {})

    def arrow_type(self) -> Any:
        import pyarrow as pa

        if self.source is not None:
            return pa.string()
        if self.column.dtype != "object":
            fixed = self.column.offset not in (None, "+00:00") and self.column.dtype.startswith("datetime64")
            unit = re.search(r"\[(s|ms|us|ns)", self.column.dtype)
            return pa.timestamp(unit[1], tz=self.column.offset) if fixed and unit else None
        if not self.has_time:
            return pa.date32()
        return pa.timestamp("us", tz=self.column.offset) if self.has_date else pa.time64("us")

    def restored(self, values: Sequence[Any]) -> pd.Series | None:
        import pandas as pd

        if self.source is not None:
            texts = [None if value is None else self.in_data(value) for value in values]
            return pd.Series(texts, dtype=self.column.dtype)
        if "datetime64" in self.column.dtype or self.column.dtype.startswith("timestamp["):
            return self._stamps(values)
        objects = [None if value is None else self._object(value) for value in values]
        return pd.Series(objects, dtype=self.column.dtype)

    def _object(self, value: str) -> Any:
        if not self.has_date:
            return datetime.time.fromisoformat(value)
        return datetime.datetime.fromisoformat(value) if self.has_time else datetime.date.fromisoformat(value)

    def _stamps(self, values: Sequence[Any]) -> pd.Series:
        import pandas as pd

        offset = self.column.offset or ""
        unit = re.search(r"\[(s|ms|us|ns)", self.column.dtype)[1]  # type: ignore[index]
        naive = ["NaT" if value is None else value.removesuffix(offset) for value in values]
        index = pd.DatetimeIndex(np.array(naive, dtype=f"datetime64[{unit}]"))
        if offset:
            index = index.tz_localize(self._offset).tz_convert(self.zone)
        series = pd.Series(index)
        return series.astype(self.column.dtype) if self.column.dtype.endswith("[pyarrow]") else series


def _clock(value: Any) -> dict[str, str]:
    fraction = f"{value.microsecond:06d}{getattr(value, 'nanosecond', 0):03d}"
    return {"H": f"{value.hour:02d}", "M": f"{value.minute:02d}", "S": f"{value.second:02d}", "f": fraction}


class DateKind(_DateKind):
    name, expected, json_format = "date", "a date", "date"
    has_time = False


class DatetimeKind(_DateKind):
    """Dates with a time, without a zone."""

    name, expected = "datetime", "a date and time"


class ZonedKind(_DateKind):
    """Dates with a time at one offset from UTC: a fixed zone's own, or +00:00 where a zone has several."""

    name, expected, json_format = "zoned", "a date and time with its zone", "date-time"

    def __init__(self, column: Any) -> None:
        super().__init__(column)
        if not re.fullmatch(r"[+-][0-9]{2}:[0-9]{2}", column.offset or ""):
            raise SchemaError(f"column {column.name!r}: a zoned column needs an offset like +02:00")


class TimeKind(_DateKind):
    name, expected = "time", "a time of day"
    has_date = False
