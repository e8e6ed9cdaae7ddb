"""Nested values: plain JSON of them, and reading them from text."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import RecordParseError, SchemaError
from .values import clean_text, date_text, is_missing, shown


# What every reader of JSON in Python takes.
_MAX_DIGITS = 400
_LARGEST = 10**_MAX_DIGITS


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_pairs)


def read_json(text: str, start: int, column: str) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
        return plain_json(value, None, column), end
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise RecordParseError(column, f"not JSON at character {start}: {reason}") from None


def plain_json(value: Any, schema: Mapping[str, Any] | None, column: str) -> Any:
    """Nested value in plain Python types; the keys of objects in the order of the schema's properties.

    Raises
    ------
    SchemaError
        For what is not JSON: other types, keys that are no strings, infinities, nesting without end.
    """
    try:
        return _plain(value, schema, column)
    except RecursionError:
        raise SchemaError(f"column {column!r} holds a value nested too deeply (or within itself)") from None


def _plain(value: Any, schema: Any, column: str) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if is_missing(value):
        return None
    schema = _branch(schema, value)
    if isinstance(value, Mapping):
        properties, other = schema.get("properties") or {}, schema.get("additionalProperties")
        if bad := [key for key in value if not isinstance(key, str)]:
            raise SchemaError(
                f"column {column!r}: an object has the key {bad[0]!r}, which is not a string: make it one "
                "({str(key): value ...})"
            )
        cells = {clean_text(key): cell for key, cell in value.items()}  # the schema knows the keys as they are written
        keys = [*(key for key in properties if key in cells), *(key for key in cells if key not in properties)]
        plain = {key: _plain(cells[key], properties.get(key, other), column) for key in keys}
        if len(plain) < len(value):
            raise SchemaError(f"column {column!r}: keys of an object differ in broken unicode only: rename them")
        return plain
    if isinstance(value, (list, tuple)):
        first, rest = schema.get("prefixItems", ()), schema.get("items")
        return [_plain(item, first[i] if i < len(first) else rest, column) for i, item in enumerate(value)]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and math.isinf(value):
        raise SchemaError(f"column {column!r} holds {value}: replace infinities by missing values or finite numbers")
    if isinstance(value, float):
        whole = value.is_integer() and schema.get("type") == "integer"
        return int(value) if whole else value + 0.0  # + 0.0 turns -0.0 into 0.0
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LARGEST:
        raise SchemaError(f"column {column!r} holds an integer of more than {_MAX_DIGITS} digits: take it as text")
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, datetime.date):
        return date_text(value, None)
    raise SchemaError(f"column {column!r} holds {type(value).__name__} ({shown(value)}), which is not JSON: cast it")


def _branch(schema: Any, value: Any) -> Mapping[str, Any]:
    """The part of a schema that describes objects if the value is one, arrays if it is one, else numbers."""
    if not isinstance(schema, Mapping):
        return {}
    kind = "object" if isinstance(value, Mapping) else "array" if isinstance(value, list | tuple) else "integer"
    parts = [part for part in schema.get("anyOf", ()) if isinstance(part, Mapping) and part.get("type") == kind]
    return parts[0] if parts else schema


def without_absent(value: Any) -> Any:
    """A nested value of an Arrow table without the fields that are None: Arrow gives every struct all fields."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: without_absent(item) for key, item in value.items() if item is not None}
    return [without_absent(item) for item in value] if isinstance(value, list) else value
