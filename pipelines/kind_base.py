"""What every kind of column has to say: the base class of the kinds."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Sequence, Set
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .cell_codes import CodedColumn
from .errors import ConditionError, RecordParseError, SchemaError
from .values import as_text, date_text, is_missing, listed, shown


if TYPE_CHECKING:
    import pandas as pd

    from .column_kinds import Column

#: Turns a column's normalised value into the text that a record holds for it.
Writer = Callable[[Any], str]


class ColumnKind:
    """How one kind of column normalises, writes, reads, describes and restricts its values.

    Made by :class:`Column`, one per column. A value that reaches a method is present: missing ones are the column's
    own affair.
    """

    #: As in ``Column.kind``, and what a message says is expected.
    name: ClassVar[str]
    expected: ClassVar[str]
    json_type: ClassVar[str]
    #: Whether values lie in a range: bounds in conditions, bins as classes of the denoiser.
    ordered: ClassVar[bool] = False

    def __init__(self, column: Column) -> None:
        self.column = column

    #: Whether the values form writes the strings without quotes.
    is_bare: Any = False

    # ---- values and their text

    def normalize(self, value: Any) -> Any:
        """The value as it comes back from a round trip; SchemaError when it does not fit."""
        original = value
        column = self.column
        if column.dtype == "category" and type(value).__module__.startswith("pandas"):  # an interval or a date
            value = as_text(value)
        value = self.plain(value)
        number = isinstance(value, (int, float, np.floating, decimal.Decimal)) and not isinstance(value, bool)
        if number and not math.isfinite(value):
            raise self.error(f"{original!r} is not finite: replace infinities by missing values or finite numbers")
        value = self.convert(value, original, number)
        if problem := self.problem(value):
            raise self.error(problem)
        return value

    def plain(self, value: Any) -> Any:
        """A scalar in Python's types: dates as text, numpy's scalars as Python's (floats keep their width)."""
        if isinstance(value, (datetime.date, np.datetime64)):
            return date_text(value, self.column.timespec)
        return value.item() if isinstance(value, np.generic) and not isinstance(value, np.floating) else value

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        """The value of the right type; SchemaError (with the ``original``) if it is none.

        ``number``: whether the plain value is a number, and finite.
        """
        raise NotImplementedError

    def problem(self, value: Any) -> str | None:
        """What keeps a value of the right type out of this column, or None."""
        return None

    def text(self, value: Any, record_format: str) -> str:
        """Write a normalised value."""
        raise NotImplementedError

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        """Read a value that is not ``null`` at ``start``; return it and the position after it, or RecordParseError."""
        raise NotImplementedError

    def error(self, problem: str) -> SchemaError:
        return SchemaError(f"column {self.column.name!r}: {problem}")

    def parse_error(self, problem: str) -> RecordParseError:
        return RecordParseError(self.column.name, problem)

    # ---- what it looks like

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        """JSON Schema of the value, null included where it may be missing."""
        schema: dict[str, Any] = {"type": [self.json_type, "null"] if self.column.nullable else self.json_type}
        column = self.column
        if bounded or column.bounded:
            bounds = {"minimum": column.minimum, "maximum": column.maximum, "maxLength": column.max_length}
            schema.update({key: bound for key, bound in bounds.items() if bound is not None})
        return schema

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        """Fields of the :class:`ValueSpec` that constrains the value in decoding, to a condition if there is one."""
        column = self.column
        spec: dict[str, Any] = {
            "name": column.name,
            "kind": self.name,
            "decimals": column.decimals,
            "trimmed": column.trimmed,
            "minimum": column.minimum,
            "maximum": column.maximum,
            "bounded": column.bounded or (within_range and self.ordered),
            "nullable": column.nullable,
            "max_length": column.max_length,
            "json_schema": column.json_schema,
        }
        if condition is None:
            return spec
        if condition.values is not None:
            return spec | {"kind": "category", "texts": tuple(map(write, condition.values)), "nullable": False}
        low, high = condition.minimum, condition.maximum
        if spec["bounded"]:  # an open end reaches as far as the data did, if that is beyond the other end
            seen_low, seen_high = column.minimum, column.maximum
            low = seen_low if low is None and seen_low is not None and seen_low <= high else low
            high = seen_high if high is None and seen_high is not None and low <= seen_high else high
        return spec | {"minimum": low, "maximum": high, "bounded": True, "nullable": False}

    def typical(self) -> Any:
        """A normalised value to encode in place of a gap."""
        return None

    def restored(self, values: Sequence[Any]) -> pd.Series | None:
        """A table's column of normalised values, where the dtype alone does not say how; missing ones are None."""
        return None

    def arrow_type(self) -> Any:
        """The Arrow type of the table's column, where its pandas dtype does not say; None if it does."""
        return None

    def in_data(self, value: Any) -> Any:
        """A normalised value as files like the data's hold it, in JSON's types."""
        return value

    # ---- features for the latent

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the places that :meth:`feature_places` gives; none for values without a place."""
        return ()

    def feature_places(self, value: Any) -> list[float]:
        """Places between 0 and 1 of a normalised value in its range or list."""
        return []

    # ---- codes for the draft

    def coded_parts(self) -> tuple[CodedColumn, ...]:
        """The columns of codes that stand for this one; none where its values have no codes (texts, nested ones)."""
        return ()

    def code(self, value: Any) -> tuple[int, ...]:
        """The codes of a normalised value, one for each part."""
        raise NotImplementedError

    def coded_value(self, *codes: int) -> Any:
        """The normalised value of codes."""
        raise NotImplementedError

    def coded_range(self, low: Any, high: Any, within_range: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A closed range of normalised values as codes.

        None is an open end: it reaches as far as the data did with ``within_range``, if that is beyond the other end.
        """
        raise NotImplementedError

    def _closed(self, low: Any, high: Any, within_range: bool) -> tuple[Any, Any]:
        seen_low, seen_high = self.column.minimum, self.column.maximum
        if within_range and low is None and seen_low is not None and (high is None or seen_low <= high):
            low = seen_low
        if within_range and high is None and seen_high is not None and (low is None or low <= seen_high):
            high = seen_high
        return low, high

    # ---- conditions

    def condition_value(self, value: Any) -> Any:
        """An allowed value of a condition, normalised; ConditionError if no record can hold it."""
        raise NotImplementedError

    def condition_range(self, low: Any, high: Any) -> dict[str, Any]:
        """A closed range of a condition as fields of :class:`ColumnCondition`; None is an open end."""
        raise NotImplementedError

    @property
    def takes_ranges(self) -> bool:
        """Whether a tuple of two in a condition is a range, not two values."""
        return self.ordered

    def classes(self, values: Sequence[Any], num_bins: int) -> dict[str, Any] | None:
        """Classes of the denoiser from the values of training (missing ones left out); None if it takes none."""
        return None

    def is_condition_column(self, max_categories: int) -> bool:
        """Whether the denoiser is conditioned on it by default."""
        return False


class ChoiceKind(ColumnKind):
    """A kind whose values are a list."""

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values, the typical one first."""
        return self.column.categories or ()

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        return {"texts": tuple(map(write, self.choices))} | super().grammar(write, within_range, condition)

    def coded_parts(self) -> tuple[CodedColumn, ...]:
        return (CodedColumn(self.column.name, "choice", len(self.choices), self.column.nullable),)

    @cached_property
    def _places(self) -> dict[Any, int]:
        return {choice: place for place, choice in enumerate(self.choices)}

    def code(self, value: Any) -> tuple[int, ...]:
        return (self._places[value],)

    def coded_value(self, *codes: int) -> Any:
        return self.choices[codes[0]]

    def typical(self) -> Any:
        return self.choices[0]

    def classes(self, values: Sequence[Any], num_bins: int) -> dict[str, Any] | None:
        return {"values": list(self.choices)}

    def is_condition_column(self, max_categories: int) -> bool:
        return len(self.choices) <= max_categories


def number_classes(numbers: Sequence[int | float], ends: Sequence[Any], num_bins: int) -> dict[str, Any]:
    """Bins of equal shares of a column's numbers: inner ``edges``, the bins' ``shares``, and the ``range``.

    The range is the one that the column tells, between the two ``ends``, which may be wider than the numbers'.
    """
    found = np.array(numbers, dtype=float)
    edges = found  # no bins where there are no numbers
    if len(found):
        edges = np.unique(np.quantile(found, np.linspace(0, 1, num_bins + 1)[1:-1]))
    shares = np.bincount(np.searchsorted(edges, found, side="right"), minlength=len(edges) + 1)
    if None in ends:
        ends = (found.min(), found.max()) if len(found) else (0.0, 0.0)
    return {
        "edges": [float(edge) for edge in edges],
        "shares": [float(share) for share in shares / max(1, len(found))],
        "range": [float(end) for end in ends],
    }


def place_between(value: float, low: float, high: float) -> float:
    """Place of a number in a range, 0 to 1; a number outside gets the nearer end."""
    return (min(max(value, low), high) - low) / (high - low) if high > low else 0.0


def condition_bound(name: str, bound: Any) -> Any:
    """An end of a condition's range: a finite number of Python's, or None for an open end."""
    if bound is None:
        return None
    if isinstance(bound, (np.generic, decimal.Decimal)) and not isinstance(bound, np.datetime64):
        bound = bound.item() if isinstance(bound, np.generic) else exact_number(bound)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        raise ConditionError(
            f"The range of {name!r} must be two finite numbers (None leaves an end open), not {shown(bound)}."
        )
    return bound


def exact_number(value: decimal.Decimal) -> int | float:
    """A Decimal as an integer if it is whole, else as the nearest float; NaN and infinities stay."""
    return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)


def listed_values(wanted: Any) -> tuple[Any, ...]:
    """The alternatives of a condition: of a list, a set, an array, a Series; anything else is the only one."""
    if isinstance(wanted, Set) and not isinstance(wanted, Sequence):
        return tuple(sorted(wanted, key=repr))  # in an order that is the same in every process
    if getattr(wanted, "ndim", 0) == 1 and hasattr(wanted, "tolist"):
        wanted = wanted.tolist()
    return tuple(wanted) if isinstance(wanted, list | tuple | range) else (wanted,)


def condition_scalar(value: Any) -> Any:
    """A condition's value in Python's types: missing ones are None."""
    if is_missing(value):
        return None
    if isinstance(value, decimal.Decimal):
        return exact_number(value)
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def never_seen(name: str, value: Any, seen: Sequence[Any]) -> ConditionError:
    return ConditionError(f"{name!r} was never {value!r} in the training data; it was: {listed(seen, 10)}.")
