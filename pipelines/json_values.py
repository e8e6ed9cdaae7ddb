"""Nested values: plain JSON of them, reading them from text, and whether they fit a JSON Schema."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import RecordParseError, SchemaError
from .patterns import PatternError, compiled, matches
from .values import clean_text, date_text, is_missing, shown


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


TYPE_TESTS: dict[str, Any] = {
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
        compiled(pattern)
    except PatternError:  # JSON Schema takes JavaScript's regular expressions, a few of which Python does not know
        return True
    return matches(pattern, value)


def _same(first: Any, second: Any) -> bool:
    """JSON equality: 1.0 is 1, true is not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return bool(first == second)


def violation(value: Any, schema: Any, root: Mapping[str, Any]) -> str | None:
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
        if problem := violation(value, target, root):
            return problem
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(name in TYPE_TESTS and TYPE_TESTS[name](value) for name in types):
        return f"{shown(value)} is not of type {' or '.join(types)}"
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return f"{shown(value)} is not one of {shown(schema['enum'])}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{shown(value)} is not {shown(schema['const'])}"
    for keyword, (kind, holds) in _BOUNDS.items():
        applies = TYPE_TESTS["number"](value) if kind is float else isinstance(value, kind)
        if keyword in schema and applies and not holds(value, schema[keyword]):
            return f"{shown(value)} breaks {keyword} {shown(schema[keyword])}"
    for keyword, wanted in (("anyOf", None), ("oneOf", 1), ("allOf", len(schema.get("allOf", ())))):
        if keyword in schema:
            valid = sum(violation(value, item, root) is None for item in schema[keyword])
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
    return next((problem for item, part in parts if (problem := violation(item, part, root))), None)
