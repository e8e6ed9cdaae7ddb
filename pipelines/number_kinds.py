"""Columns of numbers: integers, and decimals that are never written with an exponent."""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .cell_codes import MOST_CODE, CodedColumn
from .errors import ConditionError
from .kind_base import ColumnKind, Writer, condition_bound, number_classes, place_between
from .values import number_text, shown, unexpected


_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_INTEGER_DTYPE = re.compile(r"(u?)int(8|16|32|64)")


# Digits after the point where none are asked for: at least so many, and so many more than tell a range's ends apart.
_FREE_DECIMALS, _FREE_DIGITS, _MOST_DECIMALS = 6, 3, 30


def _free_decimals(low: int | float | None, high: int | float | None) -> int:
    """Digits after the point of numbers in a range, for which none are asked."""
    ends = [decimal.Decimal(str(end)) for end in (low, high) if end is not None]
    needed = [_FREE_DECIMALS, *(-int(end.normalize().as_tuple().exponent) for end in ends)]
    if len(ends) == 2 and ends[0] < ends[1]:
        needed.append(_FREE_DIGITS - (ends[1] - ends[0]).adjusted())
    return min(max(needed), _MOST_DECIMALS)


class _NumberKind(ColumnKind):
    """What integers and decimals share."""

    ordered = True
    described = "integers"

    @cached_property
    def dtype_range(self) -> tuple[int | float, int | float]:
        """What the pandas dtype can hold."""
        dtype = self.column.dtype.lower()
        if match := _INTEGER_DTYPE.match(dtype):
            bits = int(match[2])
            return (0, (1 << bits) - 1) if match[1] else (-(1 << bits - 1), (1 << bits - 1) - 1)
        if dtype == "object" and self.name == "integer":
            return -math.inf, math.inf
        largest = float(np.finfo(dtype if dtype in ("float16", "float32") else "float64").max)
        return -largest, largest

    def problem(self, value: Any) -> str | None:
        column = self.column
        low, high = self.dtype_range
        if not low <= value <= high:
            return f"{shown(value)} is out of the range of {column.dtype}"
        return self._out_of_type(value) if column.bounded else None

    def _out_of_type(self, value: Any) -> str | None:
        """How a number breaks the bounds of its type, or None."""
        column = self.column
        if column.minimum is not None and value <= column.minimum:
            if value < column.minimum:
                return f"{shown(value)} is less than {column.minimum}"
            if column.exclusive_minimum:
                return f"{shown(value)} is not more than {column.minimum}"
        if column.maximum is not None and value >= column.maximum:
            if value > column.maximum:
                return f"{shown(value)} is more than {column.maximum}"
            if column.exclusive_maximum:
                return f"{shown(value)} is not less than {column.maximum}"
        return None

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        spec = super().grammar(write, within_range, condition)
        column = self.column
        if not column.bounded or spec["kind"] != self.name:
            return spec
        # Within the type's bounds, which a condition can only narrow.
        spec["minimum"], spec["maximum"] = self._narrowed(spec["minimum"], spec["maximum"])
        spec["exclusive_minimum"] = column.exclusive_minimum and spec["minimum"] == column.minimum
        spec["exclusive_maximum"] = column.exclusive_maximum and spec["maximum"] == column.maximum
        return spec

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        match = self.form.match(text, start)
        if match is None:
            raise self.parse_error(unexpected(text, start, self.expected))
        value = self.number(match[0])
        if problem := self.problem(value):
            raise self.parse_error(problem)
        return value, match.end()

    form: re.Pattern[str]

    def number(self, word: str) -> Any:
        """The number that a word of the right form stands for; RecordParseError if it is none of the column's."""
        raise NotImplementedError

    def typical(self) -> Any:
        """The middle of the range; the nearest number to 0 where one of its ends is open."""
        low, high = self.column.minimum, self.column.maximum
        if low is not None and high is not None:
            middle = (low + high) / 2
            return self.normalize(self._written(middle))
        return self.normalize(max(0, low) if low is not None else min(0, high) if high is not None else 0)

    def _written(self, value: float) -> int | float:
        """A number that the column can write, near another."""
        return round(value, self.column.decimals or 0)

    # ---- features and conditions

    @cached_property
    def number_range(self) -> tuple[float, float] | None:
        """Smallest and largest number; None where unknown, or too large for a float."""
        low, high = self.column.minimum, self.column.maximum
        if low is None or high is None or max(abs(low), abs(high)) >= 1e300:
            return None
        return float(low), float(high)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return () if self.number_range is None else (self.column.name,)

    def feature_places(self, value: Any) -> list[float]:
        return [] if self.number_range is None else [place_between(value, *self.number_range)]

    def condition_value(self, value: Any) -> Any:
        name = self.column.name
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConditionError(f"{name!r} is a number: {value!r} is none. A range is a tuple: (low, high).")
        if self.column.bounded and (problem := self._out_of_type(value)):
            raise ConditionError(f"{name!r}: {problem}.")
        return self.condition_number(value)

    def condition_number(self, value: int | float) -> Any:
        """A finite number as the column's type."""
        raise NotImplementedError

    def condition_range(self, low: Any, high: Any) -> dict[str, Any]:
        name = self.column.name
        low, high = condition_bound(name, low), condition_bound(name, high)
        if low is None and high is None:
            raise ConditionError(f"The range of {name!r} is open at both ends: leave the condition out.")
        inner_low, inner_high = (low, high) if not self.column.bounded else self._narrowed(low, high)
        if inner_low is None or inner_high is None:
            return {"minimum": low, "maximum": high}
        if inner_low > inner_high or not self._holds_number(inner_low, inner_high):
            raise ConditionError(f"No value of {name!r} ({self.described}) lies in the range {low} to {high}.")
        return {"minimum": low, "maximum": high}

    def _narrowed(self, low: Any, high: Any) -> tuple[Any, Any]:
        """A range within the bounds of the type; None is an open end."""
        column = self.column
        return (
            max((end for end in (low, column.minimum) if end is not None), default=None),
            min((end for end in (high, column.maximum) if end is not None), default=None),
        )

    def _holds_number(self, low: int | float, high: int | float) -> bool:
        """Whether a number with the column's decimals lies in a range."""
        step = 10 ** -(self.column.decimals or 0)
        return math.floor(high / step + 1e-9) >= math.ceil(low / step - 1e-9)

    # ---- codes for the draft

    @cached_property
    def _scale(self) -> int | None:
        """Digits after the point that a code counts; fewer than the values have, and below 0, where those are too
        many for it. None: the range is unknown."""
        if self.number_range is None:
            return None
        digits = self._most_decimals
        largest = int(max(map(abs, self.number_range))) + 1
        while largest * decimal.Decimal(10) ** digits >= MOST_CODE:
            digits -= 1
        return digits

    @property
    def _most_decimals(self) -> int:
        return self.column.decimals or 0

    def coded_parts(self) -> tuple[CodedColumn, ...]:
        if self._scale is None:
            return ()
        return (CodedColumn(self.column.name, "number", nullable=self.column.nullable),)

    def code(self, value: Any) -> tuple[int, ...]:
        return (self._scaled(value, decimal.ROUND_HALF_EVEN),)

    def _scaled(self, value: Any, rounding: str) -> int:
        scaled = decimal.Decimal(str(value)).scaleb(self._scale or 0)
        return max(-MOST_CODE, min(MOST_CODE, int(scaled.to_integral_value(rounding))))

    def coded_value(self, *codes: int) -> Any:
        scale = self._scale or 0
        value = codes[0] / 10**scale if scale > 0 else codes[0] * 10**-scale
        if scale < self._most_decimals:  # rounded beyond the data's ends, perhaps
            value = min(max(value, self.column.minimum), self.column.maximum)
        return self._coded_number(value)

    def _coded_number(self, value: int | float) -> Any:
        return int(value)

    def coded_range(self, low: Any, high: Any, within_range: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        low, high = self._closed(low, high, within_range)
        first = -MOST_CODE if low is None else self._scaled(low, decimal.ROUND_CEILING)
        last = MOST_CODE if high is None else self._scaled(high, decimal.ROUND_FLOOR)
        return (first,), (max(first, last),)

    def classes(self, values: Sequence[Any], num_bins: int) -> dict[str, Any] | None:
        return number_classes(values, (self.column.minimum, self.column.maximum), num_bins)

    def is_condition_column(self, max_categories: int) -> bool:
        return True


class IntegerKind(_NumberKind):
    name = "integer"
    expected = "an integer"
    json_type = "integer"
    form = _INTEGER

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        if not number or value != int(value):
            raise self.error(f"{original!r} is not an integer")
        return int(value)

    def text(self, value: Any, record_format: str) -> str:
        return number_text(value)

    def number(self, word: str) -> Any:
        if len(word) > 400:  # above every float, and above what Python's int() takes
            raise self.parse_error(f"an integer of {len(word)} characters")
        return int(word)

    def condition_number(self, value: int | float) -> Any:
        if value != int(value):
            raise ConditionError(f"{self.column.name!r} holds integers: {value!r} is none.")
        return int(value)


class DecimalKind(_NumberKind):
    name = "decimal"
    expected = "a number"
    json_type = "number"
    form = NUMBER

    @property
    def described(self) -> str:  # type: ignore[override]
        return "numbers" if self.column.decimals is None else f"numbers with {self.column.decimals} decimals"

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        spec = super().grammar(write, within_range, condition)
        if spec["kind"] == self.name and spec["decimals"] is None:
            spec |= {"decimals": _free_decimals(spec["minimum"], spec["maximum"]), "trimmed": True}
        return spec

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        schema = super().json_schema(bounded)
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if bound in schema and getattr(self.column, f"exclusive_{bound}"):
                schema[exclusive] = schema.pop(bound)
        return schema

    def _written(self, value: float) -> int | float:
        return value if self.column.decimals is None else super()._written(value)

    @property
    def _most_decimals(self) -> int:
        column = self.column
        return _free_decimals(column.minimum, column.maximum) if column.decimals is None else column.decimals

    def _coded_number(self, value: int | float) -> Any:
        return float(value) + 0.0

    def _holds_number(self, low: int | float, high: int | float) -> bool:
        column = self.column
        if column.decimals is not None:
            return super()._holds_number(low, high)
        return low < high or not (
            column.exclusive_minimum and low == column.minimum or column.exclusive_maximum and high == column.maximum
        )

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        if not number:
            raise self.error(f"{original!r} is not a number")
        if not self.problem(value):
            value = float(self.text(value, "json"))  # never -0.0, which is written without its sign
        return value

    def text(self, value: Any, record_format: str) -> str:
        column = self.column
        if column.dtype.lower() in ("float32", "float16"):  # their shortest digits, not those of the widened double
            value = np.dtype(column.dtype.lower()).type(value)
        text = format(decimal.Decimal(str(value)), "f" if column.decimals is None else f".{column.decimals}f")
        if column.trimmed:
            text = text.rstrip("0")
        if text.endswith(".") or "." not in text and column.decimals is None:
            text = text.rstrip(".") + ".0"
        return text[1:] if text.startswith("-") and not text.strip("-0.") else text

    def number(self, word: str) -> Any:
        column = self.column
        digits = len(word.partition(".")[2])
        if column.trimmed and not 1 <= digits <= (column.decimals or 0):
            raise self.parse_error(f"{shown(word)} has {digits} decimals, expected 1 to {column.decimals}")
        if column.decimals is not None and digits != column.decimals and not column.trimmed:
            raise self.parse_error(f"{shown(word)} has {digits} decimals, expected {column.decimals}")
        value = float(word) + 0.0
        if not math.isfinite(value):
            raise self.parse_error(f"{shown(word)} is too large")
        return value

    def condition_number(self, value: int | float) -> Any:
        column = self.column
        short = column.dtype.lower() in ("float32", "float16")  # such a value, widened, is no longer what is written
        tolerance = float(np.finfo(column.dtype.lower()).eps) if short else 1e-9
        if (
            column.decimals is not None
            and abs(round(value, column.decimals) - value) > max(1.0, abs(value)) * tolerance
        ):
            raise ConditionError(
                f"{column.name!r} has {column.decimals} decimals: {value!r} cannot be written with them."
            )
        return self.convert(float(value), value, True)
