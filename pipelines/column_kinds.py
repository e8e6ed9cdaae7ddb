"""The columns of a table: what each kind of column holds, and how its values are written and read."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .errors import RecordParseError, SchemaError
from .json_values import TYPE_TESTS, plain_json, read_json, violation
from .values import (
    as_text,
    clean_text,
    date_text,
    is_date,
    is_missing,
    is_plain,
    listed,
    number_text,
    shown,
    unexpected,
)


KINDS = ("integer", "decimal", "category", "boolean", "text", "null", "json")

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_INTEGER_DTYPE = re.compile(r"(u?)int(8|16|32|64)")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "readOnly", "writeOnly"}
_TIMESPECS = ("day", "seconds", "microseconds", "nanoseconds")
_EXPECTED = {
    "integer": "an integer",
    "decimal": "a number",
    "category": "a category",
    "boolean": "true or false",
    "text": "a JSON string",
    "null": "null",
}


@dataclass(frozen=True)
class Column:
    """One column of a schema.

    Parameters
    ----------
    name : str
        The key in the record.
    kind : {"integer", "decimal", "category", "boolean", "text", "null", "json"}
        "null" is a column without any value; "json" holds nested objects or arrays.
    nullable : bool, default False
        Whether a value may be missing (null).
    decimals : int, optional
        Decimal columns: every value is written with exactly so many digits after the point (at most 12 when inferred:
        values with more are rounded to 12). None: each value is written with the digits it has. Never an exponent.
    trimmed : bool, default False
        Decimal columns with ``decimals``: that is the most; zeros at the end are left out but for one digit (16.0).
    categories : tuple, optional
        The values of a category column (strings or numbers), most frequent first, ties in order of value.
    minimum, maximum : int or float, optional
        Range of a number column seen in training.
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
    timespec : {"day", "seconds", "microseconds", "nanoseconds"}, optional
        For datetime dtypes, whose values are written as ISO 8601 strings (in UTC if they have a time zone).
    bounded : bool, default False
        Whether minimum, maximum and max_length are part of the type (a user's JSON Schema) rather than an observation.
    """

    name: str
    kind: str
    nullable: bool = False
    decimals: int | None = None
    trimmed: bool = False
    categories: tuple[Any, ...] | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    max_length: int | None = None
    json_schema: dict[str, Any] | None = None
    dtype: str = "object"
    dtype_categories: tuple[Any, ...] | None = None
    dtype_ordered: bool = False
    timespec: str | None = None
    bounded: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SchemaError(f"column name {self.name!r} is {type(self.name).__name__}, not a string: rename it")
        if self.name != clean_text(self.name):
            raise SchemaError(f"column name {self.name!r} holds a lone surrogate (broken unicode): rename it")
        if self.kind not in KINDS:
            raise SchemaError(f"column {self.name!r}: unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.kind == "category" and not self.categories:
            raise SchemaError(f"column {self.name!r}: a category column needs at least one category")
        if self.timespec is not None and self.timespec not in _TIMESPECS:
            raise SchemaError(f"column {self.name!r}: unknown timespec {self.timespec!r}")

    @cached_property
    def number_range(self) -> tuple[float, float] | None:
        """Smallest and largest number; None where values are no numbers, or too large for a float."""
        values = self.categories or () if self.kind == "category" else (self.minimum, self.maximum)
        if not values or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            return None
        low, high = min(values), max(values)  # type: ignore[type-var]
        return (float(low), float(high)) if max(abs(low), abs(high)) < 1e300 else None  # type: ignore[arg-type]

    @cached_property
    def is_bare(self) -> bool:
        """Whether the values form writes this column's strings without quotes: every category is plain."""
        return self.kind == "category" and all(
            not isinstance(category, str) or is_plain(category) for category in self.categories or ()
        )

    @cached_property
    def pattern(self) -> str | None:
        """Regular expression (anchored) of a datetime column's ISO strings; None for other columns."""
        if self.timespec is None:
            return None
        pattern = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        if self.timespec != "day":
            pattern += r"T[0-9]{2}:[0-9]{2}:[0-9]{2}"
            pattern += {"microseconds": r"\.[0-9]{6}", "nanoseconds": r"\.[0-9]{9}"}.get(self.timespec, "")
            pattern += r"\+00:00" if "," in self.dtype else ""
        return f"^{pattern}$"

    @cached_property
    def _category_of(self) -> dict[Any, Any]:
        return {category: category for category in self.categories or ()}

    @cached_property
    def _number_categories(self) -> dict[str, Any]:
        return {number_text(value): value for value in self.categories or () if not isinstance(value, str)}

    def normalize(self, value: Any) -> Any:
        """Return ``value`` as it comes back from a round trip: None, bool, int, float, str, or nested JSON.

        Missing is None, NaN, NaT or pandas.NA; a text column takes any scalar as its string. Raises SchemaError when
        the value does not fit the column.
        """
        if is_missing(value):
            if self.nullable:
                return None
            raise SchemaError(f"column {self.name!r}: a value is missing, but none was in the data of the schema")
        if self.kind == "json":
            value = plain_json(value, self.json_schema, self.name)
            problem = self._problem(value)
        elif self.kind == "null":
            raise SchemaError(
                f"column {self.name!r} has no values in the data of the schema: it cannot hold {value!r}"
            )
        else:
            value, problem = self._normalize_scalar(value)
        if problem:
            raise SchemaError(f"column {self.name!r}: {problem}")
        return value

    def _normalize_scalar(self, value: Any) -> tuple[Any, str | None]:
        original = value
        if self.dtype == "category" and type(value).__module__.startswith("pandas"):  # an interval or a date
            value = as_text(value)
        if isinstance(value, (datetime.date, np.datetime64)):
            value = date_text(value, self.timespec)
        if isinstance(value, np.generic) and not isinstance(value, np.floating):
            value = value.item()
        is_number = isinstance(value, (int, float, np.floating, decimal.Decimal)) and not isinstance(value, bool)
        if is_number and not math.isfinite(value):
            return value, f"{original!r} is not finite: replace infinities by missing values or finite numbers"
        if self.kind == "integer":
            if not is_number or value != int(value):
                return value, f"{original!r} is not an integer"
            value = int(value)
        elif self.kind == "decimal":
            if not is_number:
                return value, f"{original!r} is not a number"
            if not self._problem(value):
                value = float(self._decimal_text(value)) + 0.0  # + 0.0 turns -0.0 into 0.0
        elif self.kind == "boolean":
            if not isinstance(value, bool):
                return value, f"{original!r} is not a boolean"
        elif self.kind == "category":
            if isinstance(value, str):
                value = clean_text(value)
            if not is_number and not isinstance(value, str) or value not in self._category_of:
                known = listed(self.categories or (), 5)
                return value, f"{original!r} is not one of its {len(self._category_of)} categories: {known}"
            value = self._category_of[value]
        elif self.kind == "text":
            value = clean_text(as_text(value))
        return value, self._problem(value)

    def _problem(self, value: Any) -> str | None:
        """What keeps a value of the right JSON type out of this column, or None."""
        if self.kind == "json":
            try:
                return violation(value, self.json_schema or {}, self.json_schema or {})
            except RecursionError:
                return "nested too deeply"
        if self.kind in ("integer", "decimal"):
            low, high = self._dtype_range
            if not low <= value <= high:
                return f"{shown(value)} is out of the range of {self.dtype}"
        elif self.pattern is not None and not (re.fullmatch(self.pattern, value) and is_date(value, self.dtype)):
            return f"{value!r} is not a date of the form {self.timespec}"
        if self.bounded and self.kind == "text" and len(value) > (self.max_length or 0):
            return f"its {len(value)} characters are more than {self.max_length}"
        if self.bounded and self.kind != "text":
            if self.minimum is not None and value < self.minimum:
                return f"{shown(value)} is less than {self.minimum}"
            if self.maximum is not None and value > self.maximum:
                return f"{shown(value)} is more than {self.maximum}"
        return None

    @cached_property
    def _dtype_range(self) -> tuple[int | float, int | float]:
        """What the pandas dtype can hold."""
        dtype = self.dtype.lower()
        if match := _INTEGER_DTYPE.match(dtype):
            bits = int(match[2])
            return (0, (1 << bits) - 1) if match[1] else (-(1 << bits - 1), (1 << bits - 1) - 1)
        if dtype == "object" and self.kind == "integer":
            return -math.inf, math.inf
        largest = float(np.finfo(dtype if dtype in ("float16", "float32") else "float64").max)
        return -largest, largest

    def _decimal_text(self, value: Any) -> str:
        if self.dtype.lower() in ("float32", "float16"):  # their shortest digits, not those of the widened double
            value = np.dtype(self.dtype.lower()).type(value)
        text = format(decimal.Decimal(str(value)), "f" if self.decimals is None else f".{self.decimals}f")
        if self.trimmed:
            text = text.rstrip("0")
        if text.endswith(".") or "." not in text and self.decimals is None:
            text = text.rstrip(".") + ".0"
        return text[1:] if text.startswith("-") and not text.strip("-0.") else text

    def text(self, value: Any, *, record_format: str = "json") -> str:
        """Write a normalised ``value`` (the result of :meth:`normalize`)."""
        if value is None:
            return "null"
        if self.kind == "decimal":
            return self._decimal_text(value)
        if self.kind in ("json", "boolean"):
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, str):
            return value if record_format == "values" and self.is_bare else json.dumps(value, ensure_ascii=False)
        return number_text(value)

    def read(self, text: str, start: int, *, record_format: str = "json") -> tuple[Any, int]:
        """Read one value of this column from ``text`` at ``start``; return it and the position after it.

        Raises RecordParseError when no value of this column stands there.
        """
        if record_format == "values" and self.is_bare:
            end = text.find(",", start)
            end = len(text) if end < 0 else end
            word = text[start:end]
            if word == "null":
                self._check_null()
                return None, end
            if word in self._category_of:
                return word, end
            if word in self._number_categories:
                return self._number_categories[word], end
            raise RecordParseError(self.name, f"{shown(word)} is not one of its {len(self._category_of)} categories")
        if text.startswith("null", start):
            self._check_null()
            return None, start + 4
        value, end = self._read_value(text, start)
        if problem := self._problem(value):
            raise RecordParseError(self.name, problem)
        return value, end

    def _check_null(self) -> None:
        if not self.nullable:
            raise RecordParseError(self.name, "null, but no value is missing in the data of the schema")

    def _read_value(self, text: str, start: int) -> tuple[Any, int]:
        if self.kind == "boolean":
            for word, value in (("true", True), ("false", False)):
                if text.startswith(word, start):
                    return value, start + len(word)
        if self.kind in ("boolean", "null"):
            raise RecordParseError(self.name, unexpected(text, start, _EXPECTED[self.kind]))
        if self.kind in ("text", "category") and text.startswith('"', start) or self.kind == "json":
            value, end = read_json(text, start, self.name)
            if self.kind == "category" and value not in self._category_of:
                raise RecordParseError(self.name, f"{value!r} is not one of its {len(self._category_of)} categories")
            return value, end
        match = None if self.kind == "text" else (_INTEGER if self.kind == "integer" else _NUMBER).match(text, start)
        if match is None:
            raise RecordParseError(self.name, unexpected(text, start, _EXPECTED[self.kind]))
        return self._read_number(match[0]), match.end()

    def _read_number(self, word: str) -> Any:
        if self.kind == "category":
            if word not in self._number_categories:
                raise RecordParseError(self.name, f"{word} is not one of its {len(self._category_of)} categories")
            return self._number_categories[word]
        if self.kind == "integer":
            if len(word) > 400:  # above every float, and above what Python's int() takes
                raise RecordParseError(self.name, f"an integer of {len(word)} characters")
            return int(word)
        digits = len(word.partition(".")[2])
        if self.trimmed and not 1 <= digits <= (self.decimals or 0):
            raise RecordParseError(self.name, f"{shown(word)} has {digits} decimals, expected 1 to {self.decimals}")
        if self.decimals is not None and digits != self.decimals and not self.trimmed:
            raise RecordParseError(self.name, f"{shown(word)} has {digits} decimals, expected {self.decimals}")
        value = float(word) + 0.0
        if not math.isfinite(value):
            raise RecordParseError(self.name, f"{shown(word)} is too large")
        return value

    def to_json_schema(self, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema of the value; ``bounded`` adds the minimum, maximum and maxLength seen in training."""
        if self.kind == "category":
            return {"enum": [*(self.categories or ()), *([None] if self.nullable else [])]}
        if self.kind == "json":
            schema = dict(self.json_schema or {})
            if not self.nullable:
                return schema
            definitions: dict[str, Any] = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}
            return {"anyOf": [schema, {"type": "null"}]} | definitions
        type_name = {"decimal": "number", "text": "string"}.get(self.kind, self.kind)
        nullable = self.nullable and self.kind != "null"
        schema = {"type": [type_name, "null"] if nullable else type_name}
        if self.pattern is not None:
            schema["pattern"] = self.pattern
        if bounded or self.bounded:
            bounds = {"minimum": self.minimum, "maximum": self.maximum, "maxLength": self.max_length}
            schema.update({key: bound for key, bound in bounds.items() if bound is not None})
        return schema


def wrapped_column(name: str, schema: Any, required: bool, shared: Mapping[str, Any]) -> Column:
    """One property of a user's JSON Schema as a column."""
    nested = dict(schema) if isinstance(schema, Mapping) else {}
    branches = nested.get("anyOf", ()) if set(nested) - _ANNOTATIONS == {"anyOf"} else ()
    branches = [item for item in branches if item != {"type": "null"}]
    if len(branches) == 1:  # an optional field, as pydantic writes it
        return wrapped_column(name, branches[0], required and len(nested["anyOf"]) == 1, shared)
    plain = {key: item for key, item in nested.items() if key not in _ANNOTATIONS}
    types = plain.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    nullable = not required or "null" in types or None in plain.get("enum", ())
    names = [item for item in types if item != "null"]
    if "enum" in plain and set(plain) <= {"enum", "type"}:
        choices = [item for item in plain["enum"] if item is not None]
        numbers = all(TYPE_TESTS["number"](item) for item in choices)
        if choices and (numbers or all(isinstance(item, str) for item in choices)):
            return Column(name, "category", nullable, categories=tuple(dict.fromkeys(choices)))
    kind = {"integer": "integer", "number": "decimal", "string": "text", "boolean": "boolean"}.get("".join(names))
    allowed = {"integer": {"minimum", "maximum"}, "decimal": {"minimum", "maximum"}, "text": {"maxLength"}}
    if types == ["null"] and set(plain) == {"type"}:
        return Column(name, "null", True)
    if kind and set(plain) <= {"type"} | allowed.get(kind, set()):
        low, high, length = (plain.get(key) for key in ("minimum", "maximum", "maxLength"))
        if kind == "integer":
            low, high = None if low is None else math.ceil(low), None if high is None else math.floor(high)
        bounded = not (low is None and high is None and length is None)
        dtype = {"decimal": "float64", "boolean": "boolean" if nullable else "bool"}.get(kind, "object")
        return Column(name, kind, nullable, minimum=low, maximum=high, max_length=length, dtype=dtype, bounded=bounded)
    nullable = not required or violation(None, nested, shared) is None
    return Column(name, "json", nullable, json_schema={**nested, **shared})
