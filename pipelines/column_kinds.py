"""The columns of a table: a column is a plain value, and its kind says how its values are written and read."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .choice_kinds import BooleanKind, CategoryKind, NullKind
from .date_kinds import DateKind, DatetimeKind, TimeKind, ZonedKind
from .errors import ConditionError, RecordParseError, SchemaError
from .kind_base import ColumnKind, condition_scalar, listed_values
from .nested_kind import JsonKind
from .number_kinds import DecimalKind, IntegerKind
from .stored_types import plain_scalar
from .text_kinds import TextKind
from .values import clean_text, is_missing, shown


#: The kinds of columns by name. A new one is a class in a file of its own, entered here.
KINDS: dict[str, type[ColumnKind]] = {
    kind.name: kind
    for kind in (
        IntegerKind,
        DecimalKind,
        CategoryKind,
        BooleanKind,
        TextKind,
        NullKind,
        JsonKind,
        DateKind,
        DatetimeKind,
        ZonedKind,
        TimeKind,
    )
}

_TIMESPECS = ("day", "minutes", "seconds", "microseconds", "nanoseconds")


@dataclass(frozen=True)
class Column:
    """One column of a schema.

    Parameters
    ----------
    name : str
        The key in the record.
    kind : {"integer", "decimal", "category", "boolean", "text", "null", "json", "date", "datetime", "zoned", "time"}
        "null" is a column without any value; "json" holds nested objects or arrays; "zoned" are dates with a time and
        an offset from UTC, "time" are times of day. Dates and times are texts in ISO 8601.
    nullable : bool, default False
        Whether a value may be missing (null).
    decimals : int, optional
        Decimal columns: every value is written with exactly so many digits after the point (at most 12 when inferred:
        values with more are rounded to 12). None: each value is written with the digits it has. Never an exponent.
        Columns with a time: digits of the fraction of a second (further ones are cut off); None for none.
    trimmed : bool, default False
        Decimal columns with ``decimals``: that is the most; zeros at the end are left out but for one digit (16.0).
    categories : tuple, optional
        The values of a category column (strings or numbers), most frequent first, ties in order of value. A column of
        few dates may have them, too.
    minimum, maximum : int, float or str, optional
        Range of a column of numbers, dates or times seen in training.
    exclusive_minimum, exclusive_maximum : bool, default False
        Decimal columns: whether the bound itself is out of the range.
    max_length : int, optional
        Longest text seen in training, in characters.
    json_schema : dict, optional
        JSON Schema of a nested column.
    dtype : str, default "object"
        The pandas dtype that :meth:`RecordSchema.to_pandas` restores.
    dtype_categories : tuple, optional
        For dtype "category": the dtype's own list of categories, in its order.
    dtype_ordered : bool, default False
        For dtype "category": whether the categories are ordered.
    timespec : {"minutes", "seconds"}, optional
        Columns with a time: its finest unit. ("day", "seconds", "microseconds" and "nanoseconds" are the forms of
        dates in category and text columns of earlier versions.)
    offset : str, optional
        "zoned" columns: the offset from UTC that all values are written with, such as "+02:00".
    date_format : str, optional
        Columns of dates or times that are text in the data: how, in strftime's directives.
    bounded : bool, default False
        Whether minimum, maximum and max_length are part of the type (a user's JSON Schema) rather than an observation.
    stored : str, optional
        What the values, of the pandas dtype ``dtype``, stand for where tables store another type: an Arrow type,
        Decimals, durations, intervals, periods or bytes; see ``stored_types.py``.
    """

    name: str
    kind: str
    nullable: bool = False
    decimals: int | None = None
    trimmed: bool = False
    categories: tuple[Any, ...] | None = None
    minimum: Any = None
    maximum: Any = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    max_length: int | None = None
    json_schema: dict[str, Any] | None = None
    dtype: str = "object"
    dtype_categories: tuple[Any, ...] | None = None
    dtype_ordered: bool = False
    timespec: str | None = None
    offset: str | None = None
    date_format: str | None = None
    bounded: bool = False
    stored: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SchemaError(f"column name {self.name!r} is {type(self.name).__name__}, not a string: rename it")
        if self.name != clean_text(self.name):
            raise SchemaError(f"column name {self.name!r} holds a lone surrogate (broken unicode): rename it")
        if self.kind not in KINDS:
            raise SchemaError(f"column {self.name!r}: unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.timespec is not None and self.timespec not in _TIMESPECS:
            raise SchemaError(f"column {self.name!r}: unknown timespec {self.timespec!r}")
        self.rules  # noqa: B018 -- a kind refuses columns that it cannot serve

    @cached_property
    def rules(self) -> ColumnKind:
        """What the column's kind says about its values."""
        return KINDS[self.kind](self)

    def normalize(self, value: Any) -> Any:
        """Return ``value`` as it comes back from a round trip: None, bool, int, float, str, or nested JSON.

        Missing is None, NaN, NaT or pandas.NA; a text column takes any scalar as its string. Raises SchemaError when
        the value does not fit the column.
        """
        if not is_missing(value):
            return self.rules.normalize(value if self.stored is None else plain_scalar(value, self.stored))
        if self.nullable:
            return None
        raise SchemaError(f"column {self.name!r}: a value is missing, but none was in the data of the schema")

    def text(self, value: Any, *, record_format: str = "json") -> str:
        """Write a normalised ``value`` (the result of :meth:`normalize`)."""
        return "null" if value is None else self.rules.text(value, record_format)

    def read(self, text: str, start: int, *, record_format: str = "json") -> tuple[Any, int]:
        """Read one value of this column from ``text`` at ``start``; return it and the position after it.

        Raises RecordParseError when no value of this column stands there.
        """
        bare = record_format == "values" and self.is_bare  # a category may begin with the word
        if text.startswith("null", start) and (not bare or text[start + 4 : start + 5] in ("", ",")):
            if not self.nullable:
                raise RecordParseError(self.name, "null, but no value is missing in the data of the schema")
            return None, start + 4
        return self.rules.read(text, start, record_format)

    @property
    def is_bare(self) -> bool:
        """Whether the values form writes this column's strings without quotes."""
        return self.rules.is_bare

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of what :meth:`feature_places` gives; none for values without a place."""
        return self.rules.feature_names

    def feature_places(self, value: Any) -> list[float]:
        """Places of a normalised value in its range or list, 0 to 1; NaN for a missing one."""
        if value is None:
            return [math.nan] * len(self.feature_names)
        return self.rules.feature_places(value)

    def typical(self) -> Any:
        """A normalised value to encode in place of a gap; None where values may be missing."""
        return None if self.nullable else self.rules.typical()

    def check_condition(self, wanted: Any) -> dict[str, Any]:
        """What a user asks of this column, as fields of :class:`ColumnCondition`; ConditionError if it cannot hold."""
        if isinstance(wanted, tuple) and len(wanted) == 2 and self.rules.takes_ranges:
            return self.rules.condition_range(*wanted)
        values = listed_values(wanted)
        if not values and self.kind != "json":  # of which an empty list is a value
            raise ConditionError(f"The condition on {self.name!r} allows no value at all.")
        return {"values": tuple(self._condition_value(value) for value in values or (wanted,))}

    def _condition_value(self, value: Any) -> Any:
        if not isinstance(value, Hashable) and self.kind != "json":
            raise ConditionError(
                f"The condition on {self.name!r} must be a value, a list of values or a tuple of two bounds, not "
                f"{shown(value)}."
            )
        if not is_missing(value):
            return self.rules.condition_value(condition_scalar(self.rules.plain(value)))
        if not self.nullable and self.kind != "null":
            raise ConditionError(f"{self.name!r} was never missing in the training data.")
        return None

    def to_json_schema(self, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema of the value; ``bounded`` adds the minimum, maximum and maxLength seen in training."""
        return self.rules.json_schema(bounded)
