"""JSON Schemas of nested values: what the grammar holds, what is checked afterwards, what is refused.

A schema has two readers. The decoder's grammar is made of it (:func:`grammar_schema`), so that what is written fits;
and every value that is read or given is checked by the `jsonschema` library (:class:`NestedSchema`). Keywords that the
grammar cannot hold are left to the check, and a record that fails it is drawn again; the few that neither reads are
refused by name. Keywords of no standard are annotations, as the standard has it.

An inferred schema also says what was observed: lengths, ranges, frequent strings. They bound the grammar, but a value
beyond them is still of the column's type (:func:`structure`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

import jsonschema
import jsonschema.exceptions
import jsonschema.validators
import referencing
import referencing.exceptions

from .errors import SchemaError
from .patterns import PatternError, compiled, matches
from .values import listed, shown


#: Keywords that the grammar holds, the check, too.
HELD = frozenset((
    "type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "minProperties",
    "maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "oneOf", "allOf", "$ref",
    "$defs", "definitions", "$anchor",
))
#: Keywords that the grammar does not see: a record that breaks them is drawn again.
CHECKED = frozenset((
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "dependentRequired",
    "dependentSchemas", "propertyNames",
))
#: Keywords that change what is valid and that nothing here reads, with what to write instead.
REFUSED = {
    "$dynamicRef": "write $ref",
    "$dynamicAnchor": "write $anchor and $ref",
    "$recursiveRef": "write $ref",
    "$recursiveAnchor": "write $ref",
    "unevaluatedProperties": "write additionalProperties",
    "unevaluatedItems": "write items",
    "dependencies": "write dependentRequired or dependentSchemas",
    "additionalItems": "write prefixItems and items",
}
KEYWORDS = HELD | CHECKED | set(REFUSED)
#: Annotations of an inferred schema: that it is one, the decimals of a number, that strings hold control characters.
OBSERVED, DECIMALS, CONTROLS = "x-observed", "x-decimals", "x-controls"

_OBSERVED = frozenset((
    "minimum", "maximum", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "propertyNames",
    OBSERVED, DECIMALS, CONTROLS,
))
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SINGLE = ("additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
#: Formats that the grammar knows; others are annotations.
FORMATS = frozenset((
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
))
#: Bounds beyond these are left to the check: the grammar's are floats, and its ranges of floats expressions.
LARGEST_INTEGER, LARGEST_NUMBER = 1 << 53, 1e15
_FINEST_DECIMALS = 8
# Patterns are not Python's.
_NO_FORMATS = jsonschema.FormatChecker(formats=())


# ---------------------------------------------------------------------------------------------------------- structure


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly below a schema, each with its place."""
    for keyword in _MAPS:
        if isinstance(found := schema.get(keyword), Mapping):
            yield from ((f"{keyword}/{name}", item) for name, item in found.items())
    yield from ((keyword, schema[keyword]) for keyword in _SINGLE if keyword in schema)
    for keyword in _LISTS:
        if isinstance(found := schema.get(keyword), list):
            yield from ((f"{keyword}/{index}", item) for index, item in enumerate(found))


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a schema in which `change` was applied to every schema within it and to itself, innermost first."""
    if not isinstance(schema, Mapping):
        return schema
    copy = dict(schema)
    for keyword, item in schema.items():
        if keyword in _MAPS and isinstance(item, Mapping):
            copy[keyword] = {name: rewritten(inner, change) for name, inner in item.items()}
        elif keyword in _SINGLE:
            copy[keyword] = rewritten(item, change)
        elif keyword in _LISTS and isinstance(item, list):
            copy[keyword] = [rewritten(inner, change) for inner in item]
    return change(copy)


def structure(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what was merely observed, if it was inferred: its types, keys and items."""
    if OBSERVED not in schema:
        return dict(schema)

    def change(part: dict[str, Any]) -> dict[str, Any]:
        observed = _OBSERVED | ({"enum"} if part.get("type") == "string" else set())
        empty = part.get("type") == "array" and "items" not in part and "prefixItems" not in part
        return {key: item for key, item in part.items() if key not in observed or empty and key == "maxItems"}

    return rewritten(schema, change)


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference within a schema points to: a JSON pointer (`#/$defs/x`) or an anchor (`#x`).

    Raises
    ------
    SchemaError
        Naming the reference, if it points elsewhere or to nothing.
    """
    if not reference.startswith("#"):
        raise SchemaError(f"$ref {reference!r} points out of the schema: copy what it names into $defs")
    path = unquote(reference[1:])
    if path and not path.startswith("/"):
        anchored = [part for part in _walk(root) if part.get("$anchor") == path]
        if not anchored:
            raise SchemaError(f"$ref {reference!r} names no $anchor of the schema")
        return anchored[0]
    target: Any = root
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            target = target[int(part)] if isinstance(target, list) else target[part]
        except (LookupError, TypeError, ValueError):
            raise SchemaError(f"$ref {reference!r} points to nothing in the schema") from None
    return target


def _walk(schema: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            waiting += [item for _, item in subschemas(part)]


# -------------------------------------------------------------------------------------------------------------- checks


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that is not valid, or that nothing here can hold.

    Raises
    ------
    SchemaError
        Naming the keyword, its place and the remedy.
    """
    try:
        jsonschema.validators.Draft202012Validator.check_schema(schema, format_checker=_NO_FORMATS)
    except jsonschema.exceptions.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "the top"
        reason = f"{shown(error.instance)} at {place}: {error.message[:200]}"
        raise SchemaError(f"no JSON Schema of draft 2020-12: {reason}") from None
    except RecursionError:
        raise SchemaError("the JSON Schema is nested too deeply") from None
    waiting: list[tuple[str, Any]] = [("", schema)]
    references = {}
    while waiting:
        place, part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        for keyword, remedy in REFUSED.items():
            if keyword in part:
                raise SchemaError(f"the JSON Schema has {place}/{keyword}, which is not supported: {remedy}")
        if "$id" in part and place and any("$ref" in inner for inner in _walk(part)):
            raise SchemaError(f"the JSON Schema has {place}/$id above a $ref, which is not supported: leave $id out")
        patterns = [part["pattern"]] if "pattern" in part else []
        for pattern in (*patterns, *part.get("patternProperties", ())):
            compiled(pattern)
        if "$ref" in part:
            references[part["$ref"]] = resolved(part["$ref"], schema)
        waiting += [(f"{place}/{name}", item) for name, item in subschemas(part)]
    finite = dict.fromkeys(references, False)
    while found := [name for name in finite if not finite[name] and _is_finite(references[name], finite)]:
        finite.update(dict.fromkeys(found, True))
    if endless := [name for name, known in finite.items() if not known]:
        raise SchemaError(f"the JSON Schema's $ref {endless[0]!r} requires itself: no finite value fits it")


def _is_finite(schema: Any, finite: Mapping[str, bool]) -> bool:
    """Whether a finite value fits, as far as the references known to be `finite` tell."""
    if not isinstance(schema, Mapping):
        return True
    if "enum" in schema or "const" in schema:
        return True
    parts = [finite[schema["$ref"]]] if "$ref" in schema else []
    parts += [_is_finite(item, finite) for item in schema.get("allOf", ())]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            parts.append(any(_is_finite(item, finite) for item in schema[keyword]))
    if schema.get("type") == "object":
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        parts += [_is_finite(known.get(key, other), finite) for key in schema.get("required", ())]
    if schema.get("type") == "array":
        first = schema.get("prefixItems", [])
        needed = [*first, schema.get("items", True)][: schema.get("minItems", 0)]
        parts += [_is_finite(item, finite) for item in needed]
    return all(parts)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not matches(pattern, instance):
        yield jsonschema.exceptions.ValidationError("")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    for pattern, item in patterns.items() if isinstance(instance, dict) else ():
        for key, value in instance.items():
            if matches(pattern, key):
                yield from validator.descend(value, item, path=key, schema_path=pattern)


def _additional_properties(validator: Any, other: Any, instance: Any, schema: Any) -> Iterator[Any]:
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items() if isinstance(instance, dict) else ():
        if key not in known and not any(matches(pattern, key) for pattern in patterns):
            if other is False:
                yield jsonschema.exceptions.ValidationError(f"the key {shown(key)} is not allowed")
            else:
                yield from validator.descend(value, other, path=key)


def _multiple_of(validator: Any, step: Any, instance: Any, schema: Any) -> Iterator[Any]:
    number = isinstance(instance, (int, float)) and not isinstance(instance, bool)
    # In decimal digits, as they are written: 0.3 is a multiple of 0.1.
    if number and (Fraction(str(instance)) / Fraction(str(step))).denominator != 1:
        yield jsonschema.exceptions.ValidationError("")


_Validator = jsonschema.validators.extend(
    jsonschema.validators.Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "multipleOf": _multiple_of,
    },
)


class NestedSchema:
    """Checks values against a JSON Schema.

    Nothing is fetched, and patterns take linear time, whoever wrote the schema.

    Parameters
    ----------
    schema : mapping
        JSON Schema, draft 2020-12.

    Raises
    ------
    SchemaError
        See :func:`check_schema`.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        check_schema(schema)
        # A registry of its own: the library's default one fetches references from the network.
        self._validator = _Validator(schema, registry=referencing.Registry())

    def violation(self, value: Any) -> str | None:
        """Why a value is not valid, or None."""
        try:
            if self._validator.is_valid(value):
                return None
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except RecursionError:
            return "nested too deeply"
        except PatternError as refused:
            return str(refused)
        return f"{shown(value)} is not valid" if error is None else _described(error)


def _described(error: Any) -> str:
    found, wanted = shown(error.instance), error.validator_value
    place = "" if error.json_path == "$" else f" at {error.json_path}"
    if error.validator == "type":
        return f"{found} is not of type {' or '.join([wanted] if isinstance(wanted, str) else wanted)}{place}"
    if error.validator == "enum":
        return f"{found} is not one of {listed(wanted, 5)}{place}"
    if error.validator == "const":
        return f"{found} is not {shown(wanted)}{place}"
    if error.validator == "required":
        return f"{found} lacks the required key {next(key for key in wanted if key not in error.instance)!r}{place}"
    if error.validator == "additionalProperties" and wanted is False:
        return f"{error.message}{place}"
    if error.validator is None:
        return f"{found} is not allowed{place}"
    return f"{found} breaks {error.validator} {shown(wanted)}{place}"


# ------------------------------------------------------------------------------------------------------------- grammar


def grammar_schema(schema: Mapping[str, Any], *, within_range: bool = True) -> dict[str, Any]:
    """What the grammar library gets: all it can hold, and nothing that narrows what is valid.

    Parameters
    ----------
    schema : mapping
        A column's JSON Schema.
    within_range : bool, defaults to True
        Whether numbers keep to a range that was observed; if not, it only bounds their digits.
    """
    observed = OBSERVED in schema

    def change(part: dict[str, Any]) -> dict[str, Any]:
        names = _name_pattern(part.get("propertyNames"))
        kept = {key: item for key, item in part.items() if key not in CHECKED | {OBSERVED, DECIMALS, CONTROLS}}
        if names and "properties" not in part and "patternProperties" not in part:
            kept["patternProperties"] = {names: part.get("additionalProperties", True)}
            kept["additionalProperties"] = False
        if not set(part.get("properties", ())) <= set(part.get("required", ())):
            kept = {key: item for key, item in kept.items() if key not in ("minProperties", "maxProperties")}
        if part.get("format") not in FORMATS:
            kept.pop("format", None)
        if observed and not within_range:
            kept |= _widened(part)
        if (decimals := part.get(DECIMALS)) and decimals <= _FINEST_DECIMALS:
            kept["multipleOf"] = float(f"1e-{decimals}")
        largest = LARGEST_INTEGER if part.get("type") == "integer" else LARGEST_NUMBER
        for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if bound in kept and not -largest <= kept[bound] <= largest:
                del kept[bound]
        return kept

    return rewritten(schema, change)


def _name_pattern(names: Any) -> str | None:
    """The pattern of an object's keys, where it says all that is asked of them."""
    if isinstance(names, Mapping) and set(names) == {"pattern"}:
        return str(names["pattern"])
    return None


def _widened(part: Mapping[str, Any]) -> dict[str, Any]:
    """Observed bounds that still bound the number of digits, and whether there is a minus."""
    if "minimum" not in part or "maximum" not in part:
        return {}
    low, high = part["minimum"], part["maximum"]
    largest = 10 ** len(str(math.ceil(max(abs(low), abs(high))))) - 1
    return {"minimum": 0 if low >= 0 else -largest, "maximum": largest}
