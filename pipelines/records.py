"""Records as text and back: the schema of a table, inferred from data and saved beside the weights.

A :class:`RecordSchema` says how one record (a row, a tool definition, a piece of code) is written for the language
model and how what the model writes is read back. It is a plain value: JSON-able, comparable, without weights.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np


if TYPE_CHECKING:
    import pandas as pd

KINDS = ("integer", "decimal", "category", "boolean", "text", "null", "json")
RECORD_FORMATS = ("json", "values", "text")

_VERSION = 1
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_INTEGER_DTYPE = re.compile(r"(u?)int(8|16|32|64)")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "readOnly", "writeOnly"}
_TIMESPECS = ("day", "seconds", "microseconds", "nanoseconds")


class SchemaError(ValueError):
    """The data, a value or a schema does not fit; the message names the column and the remedy."""


class RecordParseError(ValueError):
    """A text is not a record of the schema.

    Attributes
    ----------
    column : str or None
        The column at fault; None when the fault lies in no column (text after the end of the record).
    reason : str
        What is wrong, without the column's name.
    """

    def __init__(self, column: str | None, reason: str) -> None:
        self.column = column
        self.reason = reason
        super().__init__(reason if column is None else f"column {column!r}: {reason}")


class Segment(NamedTuple):
    """A piece of a serialised record: fixed text (``column`` is None) or one column's value."""

    text: str
    column: str | None


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
            not isinstance(category, str) or _is_plain(category) for category in self.categories or ()
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
        return {_number_text(value): value for value in self.categories or () if not isinstance(value, str)}

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
                return _violation(value, self.json_schema or {}, self.json_schema or {})
            except RecursionError:
                return "nested too deeply"
        if self.kind in ("integer", "decimal"):
            low, high = self._dtype_range
            if not low <= value <= high:
                return f"{shown(value)} is out of the range of {self.dtype}"
        elif self.pattern is not None and not (re.fullmatch(self.pattern, value) and _is_date(value, self.dtype)):
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
        return _number_text(value)

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
            raise RecordParseError(self.name, _unexpected(text, start, _EXPECTED[self.kind]))
        if self.kind in ("text", "category") and text.startswith('"', start) or self.kind == "json":
            value, end = _read_json(text, start, self.name)
            if self.kind == "category" and value not in self._category_of:
                raise RecordParseError(self.name, f"{value!r} is not one of its {len(self._category_of)} categories")
            return value, end
        match = None if self.kind == "text" else (_INTEGER if self.kind == "integer" else _NUMBER).match(text, start)
        if match is None:
            raise RecordParseError(self.name, _unexpected(text, start, _EXPECTED[self.kind]))
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


@dataclass(frozen=True)
class RecordSchema:
    """The columns of a table in order, and how a record is written.

    Parameters
    ----------
    columns : sequence of Column
    record_format : {"json", "values", "text"}, default "json"
        "json": ``{"a": 1, "b": "x"}``, the paper's form. "values": ``1,x``, the values alone with commas between, 2.4
        times fewer tokens on wide tables. "text": one column of raw text (code), see :meth:`for_text`.
    """

    columns: tuple[Column, ...]
    record_format: str = "json"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if self.record_format not in RECORD_FORMATS:
            raise SchemaError(f"record_format {self.record_format!r} is not one of {', '.join(RECORD_FORMATS)}")
        if not self.columns:
            raise SchemaError("a schema needs at least one column")
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise SchemaError(f"column name {repeated[0]!r} occurs more than once: rename the columns")
        if self.record_format == "text" and (len(self.columns) != 1 or self.columns[0].kind != "text"):
            raise SchemaError("the text format holds exactly one column of kind text")

    # ---- making a schema

    @classmethod
    def infer(
        cls,
        data: Any,
        *,
        record_format: str = "json",
        max_categories: int = 512,
        max_decimals: int = 12,
        text_columns: Sequence[str] = (),
        category_columns: Sequence[str] = (),
    ) -> RecordSchema:
        """Infer the schema of a table. Needs the difflm package (code loaded from the Hub can only use schemas).

        Parameters
        ----------
        data : pandas.DataFrame, datasets.Dataset or list of dict
        record_format : {"json", "values"}, default "json"
        max_categories : int, default 512
            A string column with more distinct values is text. So is one where more than half of the values (and more
            than 20) are distinct.
        max_decimals : int, default 12
            Decimals are rounded to so many digits after the point.
        text_columns, category_columns : sequence of str
            Columns to take as text (values are cast to strings) or as categories, whatever they hold.

        Raises
        ------
        SchemaError
            No rows, repeated or non-string names, an infinite number, mixed or unsupported types.

        Notes
        -----
        Float columns whose values are all whole are integers (pandas reads an integer column with missing values so);
        :meth:`to_pandas` restores the float dtype. Strings stay strings even if they look like numbers or booleans.
        """
        try:  # by name: the file must load where difflm is not installed
            inference = importlib.import_module("difflm.pipelines.record_inference")
        except ImportError as error:
            raise SchemaError("inferring a schema needs the difflm package: pip install difflm") from error
        schema = inference.infer_schema(
            as_dataframe(data),
            record_format=record_format,
            max_categories=max_categories,
            max_decimals=max_decimals,
            text_columns=text_columns,
            category_columns=category_columns,
        )
        return schema if isinstance(schema, cls) else cls.from_dict(schema.to_dict())

    @classmethod
    def for_text(cls, max_length: int | None = None) -> RecordSchema:
        """Schema of raw texts (code): one column "text", written as it is. ``max_length`` is in characters."""
        return cls((Column("text", "text", max_length=max_length),), "text")

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any], *, record_format: str = "json") -> RecordSchema:
        """Wrap a JSON Schema of type object: its properties become the columns, in order.

        Scalars become columns of their kind with their bounds enforced, ``enum`` a category, and whatever else
        (nested objects, arrays, patterns, references) a column of kind "json". A number's decimals are left free. A
        property that is not required may be null, which stands for its absence.
        """
        properties = schema.get("properties")
        if schema.get("type", "object") != "object" or not isinstance(properties, Mapping) or not properties:
            raise SchemaError('a JSON Schema of records must have "type": "object" and at least one of "properties"')
        required = set(schema.get("required", ()))
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        return cls(
            tuple(_wrapped_column(name, item, name in required, shared) for name, item in properties.items()),
            record_format,
        )

    def with_format(self, record_format: str) -> RecordSchema:
        """The same columns, written in another form."""
        return replace(self, record_format=record_format)

    # ---- looking at it

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def column(self, name: str) -> Column:
        """The column called ``name``; SchemaError if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(f"no column {name!r}; the columns are {listed(self.names)}") from None

    def column_json_schema(self, name: str, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema of one column's value; ``bounded`` adds the range or length seen in training."""
        return self.column(name).to_json_schema(bounded=bounded)

    def json_schema(self, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of a record: every column required, no other key allowed."""
        properties = {column.name: column.to_json_schema(bounded=bounded) for column in self.columns}
        shared: dict[str, Any] = {}
        for item in properties.values():  # references are resolved from the root
            for key in ("$defs", "definitions"):
                shared.setdefault(key, {}).update(item.pop(key, {}))
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": list(self.names),
            "additionalProperties": False,
            **{key: definitions for key, definitions in shared.items() if definitions},
        }

    # ---- writing and reading

    @cached_property
    def _fixed(self) -> tuple[str, ...]:
        if self.record_format == "text":
            return ("", "")
        if self.record_format == "values":
            return ("", *[","] * (len(self.columns) - 1), "")
        keys = [f"{json.dumps(name, ensure_ascii=False)}: " for name in self.names]
        return ("{" + keys[0], *(f", {key}" for key in keys[1:]), "}")

    def fixed_segments(self) -> list[str]:
        """The texts around the values: one before each column's value and one after the last (some may be "")."""
        return list(self._fixed)

    def normalize(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record as parsing its text returns it: every column, in order, in plain Python types.

        A key that is absent counts as missing. Raises SchemaError for an unknown key or a value that does not fit.
        """
        if unknown := [name for name in record if name not in self._by_name]:
            raise SchemaError(f"no column {unknown[0]!r}; the columns are {listed(self.names)}")
        return {column.name: column.normalize(record.get(column.name)) for column in self.columns}

    @cached_property
    def feature_columns(self) -> dict[str, tuple[float, float] | dict[Any, int]]:
        """The columns of numbers with their ranges, and those of other categories and booleans with their codes."""
        found = {}
        for column in self.columns:
            values = [False, True] if column.kind == "boolean" else column.categories or []
            codes = {value: code for code, value in enumerate(values)}
            if column.number_range is not None or codes:
                found[column.name] = column.number_range or codes
        return found

    def feature_values(self, record: Mapping[str, Any]) -> list[float]:
        """Place of a normalised record's values in their columns' ranges or lists, 0 to 1; NaN for a missing one."""
        places = []
        for name, known in self.feature_columns.items():
            value, place = record[name], 0.0
            low, high = (0, len(known) - 1) if isinstance(known, dict) else known
            if value is not None and high > low:
                # A number outside the range gets the nearer end.
                code = known[value] if isinstance(known, dict) else min(max(value, low), high)
                place = (code - low) / (high - low)
            places.append(math.nan if value is None else place)
        return places

    def value_text(self, column: str, value: Any) -> str:
        """What a record holds for ``value`` in ``column``: the text of its segment."""
        found = self.column(column)
        value = found.normalize(value)
        return value if self.record_format == "text" else found.text(value, record_format=self.record_format)

    def segments(self, record: Mapping[str, Any]) -> list[Segment]:
        """Split the serialised record into fixed texts and values: fixed, value, fixed, ..., value, fixed.

        The text format has a single segment, the text. The concatenation is :meth:`serialize`.
        """
        record = self.normalize(record)
        if self.record_format == "text":
            return [Segment(record[self.names[0]], self.names[0])]
        segments = []
        for fixed, column in zip(self._fixed, self.columns, strict=False):
            segments.append(Segment(fixed, None))
            segments.append(Segment(column.text(record[column.name], record_format=self.record_format), column.name))
        segments.append(Segment(self._fixed[-1], None))
        return segments

    def serialize(self, record: Mapping[str, Any]) -> str:
        """Write one record; ``parse(serialize(record)) == normalize(record)``."""
        return "".join(segment.text for segment in self.segments(record))

    def parse(self, text: str) -> dict[str, Any]:
        """Read one record back.

        The text must be in this schema's form exactly: every column in order, values of the right type (categories
        known, numbers with the right number of decimals, null only where values may be missing), nothing before or
        after. Raises RecordParseError, which names the column and the reason.
        """
        if self.record_format == "text":
            column = self.columns[0]
            text = clean_text(text)
            if problem := column._problem(text):
                raise RecordParseError(column.name, problem)
            return {column.name: text}
        record: dict[str, Any] = {}
        position = 0
        for fixed, column in zip(self._fixed, self.columns, strict=False):
            if not text.startswith(fixed, position):
                raise RecordParseError(column.name, _unexpected(text, position, repr(fixed)))
            record[column.name], position = column.read(text, position + len(fixed), record_format=self.record_format)
        if text[position:] != self._fixed[-1]:
            raise RecordParseError(None, _unexpected(text, position, repr(self._fixed[-1] or "the end")))
        return record

    # ---- tables

    def to_records(self, data: Any) -> list[dict[str, Any]]:
        """Normalised records of a DataFrame, Dataset or list of dict; SchemaError names a row that does not fit."""
        if isinstance(data, Sequence) and not isinstance(data, str):
            return [self._normalize_row(row, record) for row, record in enumerate(data)]
        frame = as_dataframe(data)
        lists = [frame[name].tolist() for name in frame.columns]
        rows: Iterator[tuple[Any, ...]] = zip(*lists, strict=True)
        return [
            self._normalize_row(row, dict(zip(frame.columns, values, strict=True))) for row, values in enumerate(rows)
        ]

    def _normalize_row(self, row: int, record: Any) -> dict[str, Any]:
        try:
            if not isinstance(record, Mapping):
                raise SchemaError(f"{type(record).__name__}, not a dict of column and value")
            return self.normalize(record)
        except SchemaError as error:
            raise SchemaError(f"row {row} (the first is 0): {error}") from None

    def to_pandas(self, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Build a DataFrame of parsed or normalised records, with the dtypes of the data of the schema."""
        import pandas as pd

        records = list(records)
        index = pd.RangeIndex(len(records))
        return pd.DataFrame(
            {column.name: _restore([record[column.name] for record in records], column) for column in self.columns},
            index=index,
        )

    # ---- saving

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, for a checkpoint."""
        defaults = {field.name: field.default for field in fields(Column)}
        columns = [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(column).items()
                if value != defaults[key]
            }
            for column in self.columns
        ]
        return {"version": _VERSION, "record_format": self.record_format, "columns": columns}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecordSchema:
        """Read what :meth:`to_dict` wrote; SchemaError if it was written by a later version or is damaged."""
        if data.get("version") != _VERSION:
            raise SchemaError(f"record schema of version {data.get('version')!r}, expected {_VERSION}: update difflm")
        try:
            columns = []
            for item in data["columns"]:
                known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in item.items()}
                columns.append(Column(**known))
            return cls(tuple(columns), data["record_format"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"the record schema is damaged: {error}") from error


# ---- data to columns


def as_dataframe(data: Any) -> pd.DataFrame:
    """Turn a DataFrame, a datasets.Dataset or a list of dict into a DataFrame with checked column names.

    Class labels of a Dataset become their names. The index is dropped.
    """
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        frame = data
    elif hasattr(data, "to_pandas") and hasattr(data, "features"):
        frame = data.to_pandas()
        for name, feature in data.features.items():
            if (labels := getattr(feature, "names", None)) and hasattr(feature, "int2str"):
                frame[name] = frame[name].map(dict(enumerate(labels)))
    elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        for row, record in enumerate(data):
            if not isinstance(record, Mapping):
                raise SchemaError(f"row {row} (the first is 0) is {type(record).__name__}, not a dict")
        names = dict.fromkeys(name for record in data for name in record)
        frame = pd.DataFrame({name: _series([record.get(name) for record in data]) for name in names})
    else:
        raise SchemaError(
            f"cannot read records from {type(data).__name__}: give a pandas.DataFrame, a datasets.Dataset or a list "
            "of dict (read files with difflm.training.data.read_table)"
        )
    for name in frame.columns:
        if not isinstance(name, str):
            raise SchemaError(
                f"column name {name!r} is {type(name).__name__}, not a string: rename it, e.g. "
                "data.columns = data.columns.map(str)"
            )
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise SchemaError(f"column name {name!r} occurs more than once: rename or drop one of the columns")
    return frame.reset_index(drop=True)


def _series(values: list[Any]) -> pd.Series:
    """A column of Python values; pandas would round large integers beside a missing value to floats."""
    import pandas as pd

    present = [value for value in values if not is_missing(value)]
    whole = len(present) < len(values) and all(type(value) is int for value in present)
    if whole and max(map(abs, present), default=0) > 1 << 53:
        fits = all(-(1 << 63) <= value < 1 << 63 for value in present)
        return pd.Series(values, dtype="Int64" if fits else "object")
    return pd.Series(values) if present else pd.Series(values, dtype="object")


def _restore(values: list[Any], column: Column) -> pd.Series:
    import pandas as pd

    if column.dtype == "category":
        dtype = pd.CategoricalDtype(list(column.dtype_categories or ()), column.dtype_ordered)
        return pd.Series(pd.Categorical(values, dtype=dtype))
    if column.dtype.startswith("datetime64"):
        return pd.to_datetime(pd.Series(values, dtype="object"), utc="," in column.dtype).astype(column.dtype)
    if column.dtype == "object" and column.kind != "json":  # as pandas reads missing strings
        values = [math.nan if value is None else value for value in values]
    return pd.Series(values, dtype=column.dtype)


# ---- text


def clean_text(text: str) -> str:
    """Replace lone surrogates, which no tokenizer and no file format can write."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_text(value: Any) -> str:
    """A value of a text column as a string: nested values as JSON, dates in ISO 8601."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _is_plain(text: str) -> bool:
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


def _number_text(value: Any) -> str:
    """A number without exponent, in the digits that identify it."""
    return format(decimal.Decimal(str(value)), "f") if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[Any], limit: int = 12) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _unexpected(text: str, position: int, expected: str) -> str:
    found = shown(text[position : position + 20]) if position < len(text) else "the end"
    return f"expected {expected} at character {position}, found {found}"


_EXPECTED = {
    "integer": "an integer",
    "decimal": "a number",
    "category": "a category",
    "boolean": "true or false",
    "text": "a JSON string",
    "null": "null",
}


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_pairs)


def _read_json(text: str, start: int, column: str) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
        return plain_json(value, None, column), end
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise RecordParseError(column, f"not JSON at character {start}: {reason}") from None


# ---- single values


def is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating, decimal.Decimal, np.datetime64)) and bool(value != value)


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


def _is_date(text: str, dtype: str) -> bool:
    import pandas as pd

    try:
        pd.Timestamp(text).as_unit(dtype.partition("[")[2].rstrip("]").partition(",")[0] or "ns")
    except ValueError:
        return False
    return True


# ---- nested values


def plain_json(value: Any, schema: Mapping[str, Any] | None, column: str) -> Any:
    """Nested value in plain Python types; the keys of objects in the order of the schema's properties."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if is_missing(value):
        return None
    if isinstance(value, Mapping):
        properties = (schema or {}).get("properties") or {}
        if bad := [key for key in value if not isinstance(key, str)]:
            raise SchemaError(f"column {column!r}: an object has the key {bad[0]!r}, which is not a string")
        keys = [*(key for key in properties if key in value), *(key for key in value if key not in properties)]
        return {clean_text(key): plain_json(value[key], properties.get(key), column) for key in keys}
    if isinstance(value, (list, tuple)):
        items = (schema or {}).get("items")
        return [plain_json(item, items if isinstance(items, Mapping) else None, column) for item in value]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and math.isinf(value):
        raise SchemaError(f"column {column!r} holds {value}: replace infinities by missing values or finite numbers")
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, datetime.date):
        return date_text(value, None)
    raise SchemaError(f"column {column!r} holds {type(value).__name__} ({shown(value)}), which is not JSON: cast it")


_TYPE_TESTS: dict[str, Any] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value),
}
_BOUNDS: dict[str, Any] = {
    "minimum": (float, lambda value, bound: value >= bound),
    "maximum": (float, lambda value, bound: value <= bound),
    "exclusiveMinimum": (float, lambda value, bound: value > bound),
    "exclusiveMaximum": (float, lambda value, bound: value < bound),
    "minLength": (str, lambda value, bound: len(value) >= bound),
    "maxLength": (str, lambda value, bound: len(value) <= bound),
    "pattern": (str, lambda value, bound: _matches(value, bound)),
    "minItems": (list, lambda value, bound: len(value) >= bound),
    "maxItems": (list, lambda value, bound: len(value) <= bound),
    "required": (dict, lambda value, bound: all(key in value for key in bound)),
}


def _matches(value: str, pattern: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:  # JSON Schema takes JavaScript's regular expressions, a few of which Python does not know
        return True


def _same(first: Any, second: Any) -> bool:
    """JSON equality: 1.0 is 1, true is not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return bool(first == second)


def _violation(value: Any, schema: Any, root: Mapping[str, Any]) -> str | None:
    """Why a nested value is not valid, or None.

    Covers what describes data in practice: types, enum, const, bounds, pattern, properties, items, anyOf, oneOf, allOf
    and local references. Other keywords are not checked here.
    """
    if not isinstance(schema, Mapping):
        return f"{shown(value)} is not allowed" if schema is False else None
    if reference := schema.get("$ref"):
        target: Any = root
        for part in str(reference).lstrip("#").strip("/").split("/") if reference != "#" else []:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part, True) if isinstance(target, Mapping) else True
        if problem := _violation(value, target, root):
            return problem
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(name in _TYPE_TESTS and _TYPE_TESTS[name](value) for name in types):
        return f"{shown(value)} is not of type {' or '.join(types)}"
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return f"{shown(value)} is not one of {shown(schema['enum'])}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{shown(value)} is not {shown(schema['const'])}"
    for keyword, (kind, holds) in _BOUNDS.items():
        applies = _TYPE_TESTS["number"](value) if kind is float else isinstance(value, kind)
        if keyword in schema and applies and not holds(value, schema[keyword]):
            return f"{shown(value)} breaks {keyword} {shown(schema[keyword])}"
    for keyword, wanted in (("anyOf", None), ("oneOf", 1), ("allOf", len(schema.get("allOf", ())))):
        if keyword in schema:
            valid = sum(_violation(value, item, root) is None for item in schema[keyword])
            if not valid if wanted is None else valid != wanted:
                return f"{shown(value)} breaks {keyword}"
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        parts = [(item, properties.get(key, other)) for key, item in value.items()]
    elif isinstance(value, list):
        first = schema.get("prefixItems", [])
        parts = [(item, first[i] if i < len(first) else schema.get("items", True)) for i, item in enumerate(value)]
    return next((problem for item, part in parts if (problem := _violation(item, part, root))), None)


def _wrapped_column(name: str, schema: Any, required: bool, shared: Mapping[str, Any]) -> Column:
    """One property of a user's JSON Schema as a column."""
    nested = dict(schema) if isinstance(schema, Mapping) else {}
    branches = nested.get("anyOf", ()) if set(nested) - _ANNOTATIONS == {"anyOf"} else ()
    branches = [item for item in branches if item != {"type": "null"}]
    if len(branches) == 1:  # an optional field, as pydantic writes it
        return _wrapped_column(name, branches[0], required and len(nested["anyOf"]) == 1, shared)
    plain = {key: item for key, item in nested.items() if key not in _ANNOTATIONS}
    types = plain.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    nullable = not required or "null" in types or None in plain.get("enum", ())
    names = [item for item in types if item != "null"]
    if "enum" in plain and set(plain) <= {"enum", "type"}:
        choices = [item for item in plain["enum"] if item is not None]
        numbers = all(_TYPE_TESTS["number"](item) for item in choices)
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
    nullable = not required or _violation(None, nested, shared) is None
    return Column(name, "json", nullable, json_schema={**nested, **shared})
