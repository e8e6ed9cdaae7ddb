"""Columns of nested JSON: objects, arrays, and whatever else a JSON Schema describes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from .errors import ConditionError, SchemaError
from .json_schemas import CONTROLS, NestedSchema, grammar_schema, resolved, structure
from .json_values import plain_json, read_json
from .kind_base import ColumnKind, Writer
from .patterns import json_text


class JsonKind(ColumnKind):
    """Nested values, by a JSON Schema.

    A user's schema holds as it is. Of an inferred one, the lengths, ranges and frequent strings were merely observed:
    the grammar keeps to them, but a value beyond them is valid.
    """

    name = "json"
    expected = "JSON"

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema that values must fit."""
        return structure(self.column.json_schema or {})

    @cached_property
    def _checked(self) -> NestedSchema:
        try:
            return NestedSchema(self.schema)
        except SchemaError as error:
            raise self.error(str(error)) from None

    def normalize(self, value: Any) -> Any:
        value = plain_json(value, self.column.json_schema, self.column.name)
        if problem := self.problem(value):
            raise self.error(problem)
        return value

    def problem(self, value: Any) -> str | None:
        return self._checked.violation(value)

    def text(self, value: Any, record_format: str) -> str:
        return json_text(value)

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        value, end = read_json(text, start, self.column.name)
        if problem := self.problem(value):
            raise self.parse_error(problem)
        return value, end

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        schema = dict(self.column.json_schema or {} if bounded else self.schema)
        if not self.column.nullable:
            return schema
        definitions: dict[str, Any] = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}
        return {"anyOf": [schema, {"type": "null"}]} | definitions

    def grammar(self, write: Writer, within_range: bool, condition: Any = None) -> dict[str, Any]:
        schema = self.column.json_schema or {}
        spec = super().grammar(write, within_range, condition)
        made = grammar_schema(schema, within_range=within_range)
        return spec | {"json_schema": made, "controls": CONTROLS in schema}

    def typical(self) -> Any:
        """A smallest value that the schema allows: what must be there, and nothing else."""
        try:
            value = _smallest(self.schema, self.schema)
        except (RecursionError, SchemaError) as error:
            raise self.error(f"no example of its values can be made ({error}): give one in every record") from None
        if problem := self.problem(value):
            raise self.error(f"no example of its values can be made ({problem}): give one in every record")
        return value

    def condition_value(self, value: Any) -> Any:
        raise ConditionError(
            f"{self.column.name!r} holds nested JSON: conditions on it are not supported; use accept=."
        )


def _smallest(schema: Any, root: dict[str, Any]) -> Any:
    """A value with only what a JSON Schema requires; it need not fit where keywords depend on each other."""
    if not isinstance(schema, dict) or not schema:
        return None
    if reference := schema.get("$ref"):
        return _smallest(resolved(str(reference), root), root)
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else schema["enum"][0]
    for keyword in ("anyOf", "oneOf", "allOf"):
        if branches := [branch for branch in schema.get(keyword, ()) if isinstance(branch, dict)]:
            rest = {key: item for key, item in schema.items() if key != keyword}
            return _smallest(rest | branches[0], root)
    kind = schema.get("type", "object" if "required" in schema else "null")
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _smallest(properties.get(name), root) for name in schema.get("required", ())}
    if kind == "array":
        first = schema.get("prefixItems", [])[: schema.get("minItems", 0)]
        rest = schema.get("minItems", 0) - len(first)
        return [_smallest(item, root) for item in [*first, *[schema.get("items")] * rest]]
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return _nearest_to_zero(schema, 1 if kind == "integer" else 0.5)
    return False if kind == "boolean" else None


def _nearest_to_zero(schema: dict[str, Any], step: float) -> float:
    """The number nearest to 0 within a schema's bounds, ``step`` away from one that is excluded."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and low >= 0:
        return low + step if low == schema.get("exclusiveMinimum") else low
    if high is not None and high <= 0:
        return high - step if high == schema.get("exclusiveMaximum") else high
    return 0
