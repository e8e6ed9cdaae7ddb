"""The columns of a user's JSON Schema of records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .column_kinds import Column
from .errors import SchemaError
from .json_schemas import FORMATS, KEYWORDS, NestedSchema, check_schema, resolved, rewritten


_KINDS = {"integer": "integer", "number": "decimal", "string": "text", "boolean": "boolean"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# What a scalar column holds beside its type; with other keywords the property is a nested column.
_ALLOWED = {"integer": set(_BOUNDS), "decimal": {*_BOUNDS, "multipleOf"}, "text": {"maxLength"}}
# What a record's own schema may say: the keys of a record are its columns, all of them.
_RECORD = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_DEFINITIONS = ("$defs", "definitions")


def schema_columns(schema: Mapping[str, Any]) -> tuple[Column, ...]:
    """The properties of a JSON Schema as columns; the work of :meth:`RecordSchema.from_json_schema`.

    Raises
    ------
    SchemaError
        Naming the keyword that cannot hold, and its place.
    """
    if isinstance(schema.get("$ref"), str):  # a model that refers to itself, as pydantic writes it
        check_schema(schema)
        target = resolved(schema["$ref"], schema)
        schema = {**target, **{key: item for key, item in schema.items() if key != "$ref"}}
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping) or not properties:
        raise SchemaError('a JSON Schema of records must have "type": "object" and at least one of "properties"')
    if unread := [key for key in schema if key in KEYWORDS - _RECORD]:
        raise SchemaError(
            f"the JSON Schema of a record has {unread[0]!r}, which would hold between its columns and is not "
            "supported: check it with accept="
        )
    check_schema(schema)
    required = set(schema.get("required", ()))
    if absent := sorted(required - set(properties)):
        raise SchemaError(f"the JSON Schema requires {absent[0]!r}, which is not one of its properties: add it")
    properties, shared = _self_contained(schema)
    return tuple(_column(name, item, name in required, shared) for name, item in properties.items())


def _self_contained(schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The properties, and definitions that all their references point into."""
    shared = {key: dict(schema[key]) for key in _DEFINITIONS if key in schema}
    record = {key: item for key, item in schema.items() if key not in _DEFINITIONS}
    name = "record"
    while name in shared.get("$defs", {}):
        name += "_"
    used = False

    def change(part: dict[str, Any]) -> dict[str, Any]:
        nonlocal used
        reference = part.get("$ref")
        if reference is None or reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS)):
            return part
        used = True
        return part if reference.strip("#/") and not reference.startswith("#/") else part | {
            "$ref": f"#/$defs/{name}{reference[1:].rstrip('/')}"
        }

    record = rewritten(record, change)
    shared = {key: {inner: rewritten(item, change) for inner, item in each.items()} for key, each in shared.items()}
    if used:
        shared["$defs"] = {**shared.get("$defs", {}), name: record}
    return record["properties"], shared


def _column(name: str, schema: Any, required: bool, shared: Mapping[str, Any]) -> Column:
    """One property of a user's JSON Schema as a column."""
    if schema is False:
        if required:
            raise SchemaError(f"column {name!r} is required, but its JSON Schema is false: no value fits it")
        return Column(name, "null", True)
    nested = dict(schema) if isinstance(schema, Mapping) else {}
    plain = {key: item for key, item in nested.items() if key in KEYWORDS}
    if set(plain) == {"anyOf"}:
        branches = [item for item in nested["anyOf"] if item != {"type": "null"}]
        if len(branches) == 1:  # an optional field, as pydantic writes it
            return _column(name, branches[0], required and len(nested["anyOf"]) == 1, shared)
    types = plain.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    kind = _KINDS.get("".join(item for item in types if item != "null"))
    if kind != "text" or plain.get("format") not in FORMATS:
        plain.pop("format", None)  # an annotation
    nullable = not required or "null" in types or None in plain.get("enum", ())
    if kind == "text" and set(plain) == {"type", "format"} and plain["format"] == "date":
        # Not so "date-time" and "time": a column of these has one offset and one number of digits, a format any.
        return Column(name, "date", nullable, date_format="%Y-%m-%d")
    if "enum" in plain and set(plain) <= {"enum", "type"}:
        fitting = NestedSchema({"type": types} if types else {})
        choices = [item for item in plain["enum"] if item is not None and fitting.violation(item) is None]
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in choices)
        if choices and (numbers or all(isinstance(item, str) for item in choices)):
            return Column(name, "category", nullable, categories=tuple(dict.fromkeys(choices)))
    if types == ["null"] and set(plain) == {"type"}:
        return Column(name, "null", True)
    decimals = _decimals(plain.get("multipleOf")) if kind == "decimal" else None
    if kind and set(plain) <= {"type"} | _ALLOWED.get(kind, set()) and (decimals or "multipleOf" not in plain):
        bounds = _integer_bounds(plain) if kind == "integer" else _bounds(plain)
        limits = {**bounds, "decimals": decimals, "trimmed": bool(decimals), "max_length": plain.get("maxLength")}
        dtype = {"decimal": "float64", "boolean": "boolean" if nullable else "bool"}.get(kind, "object")
        bounded = bool(set(plain) - {"type", "multipleOf"})
        return Column(name, kind, nullable, dtype=dtype, bounded=bounded, **limits)
    whole = {**nested, **shared}
    nullable = not required or NestedSchema(whole).violation(None) is None
    return Column(name, "json", nullable, json_schema=whole)


def _decimals(step: Any) -> int | None:
    """The digits after the point that a step of 0.1, 0.01, ... stands for; None for other steps."""
    sign, digits, exponent = Decimal(str(step or 1)).normalize().as_tuple()
    return -int(exponent) if digits == (1,) and int(exponent) < 0 else None


def _bounds(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The tighter of the bounds on each side, and whether it is out of the range itself."""
    bounds: dict[str, Any] = {}
    for side, tighter in (("minimum", max), ("maximum", min)):
        exclusive = f"exclusive{side.capitalize()}"
        found = [plain[key] for key in (exclusive, side) if key in plain]
        if found:
            bounds[side] = tighter(found)
            bounds[f"exclusive_{side}"] = exclusive in plain and plain[exclusive] == bounds[side]
    return bounds


def _integer_bounds(plain: Mapping[str, Any]) -> dict[str, Any]:
    bounds = _bounds(plain)
    low, high = bounds.get("minimum"), bounds.get("maximum")
    if low is not None:
        low = math.floor(low) + 1 if bounds["exclusive_minimum"] else math.ceil(low)
    if high is not None:
        high = math.ceil(high) - 1 if bounds["exclusive_maximum"] else math.floor(high)
    return {"minimum": low, "maximum": high}
