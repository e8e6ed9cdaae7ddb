"""The JSON Schema of nested values, inferred in one pass: types, keys, items, and what was observed of them.

An object is closed (a list of keys, some of them optional) or open (a map, from names to values of one schema, beside
the keys that most objects have). It is open where new objects are expected to bring keys that no other has: the share
of objects that hold a key of theirs alone is, by leave-one-out, the chance that a further object does. So the schema
grows with the structure of the values, not with their number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from difflm.pipelines.errors import SchemaError
from difflm.pipelines.json_schemas import CONTROLS, DECIMALS, LARGEST_INTEGER, LARGEST_NUMBER, OBSERVED


#: Fewer objects than this say nothing about the keys of others.
_MIN_OBJECTS = 30
#: The chance of an unseen key, surely exceeded, that makes an object open: where its rare values share a type, or not.
_OPEN_CHANCE, _OPEN_CHANCE_MIXED = 0.05, 0.3
_SHARED_TYPE = 0.9
#: Keys held apart before an object's rare ones are taken together: each optional key costs time at every token.
_MAX_FIELDS = 256
#: A nested string is one of a list if there are few and each was seen so often: a rare one is nobody's business.
_MAX_CHOICES, _MIN_CHOICE_COUNT, _MIN_STRINGS = 32, 5, 30
_MAX_CHOICE_LENGTH = 64
#: Arrays of one length up to this whose places differ in type are tuples.
_MAX_TUPLE = 8
_MAX_DEPTH = 64
_MAX_PLACES = 100_000
_MAX_DECIMALS = 15
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_Z = 1.645  # one-sided, 95 %


def infer_json_schema(values: Iterable[Any], column: str) -> dict[str, Any]:
    """The JSON Schema of plain nested values (see :func:`plain_json`).

    Raises
    ------
    SchemaError
        If the values nest too deeply, or have too many different places, for a grammar.
    """
    shape = _Shape(_Places(column))
    for value in values:
        shape.add(value, 0)
    return shape.schema() | {OBSERVED: True} | ({CONTROLS: True} if shape.has_controls() else {})


class _Places:
    """Counts the places that are told apart, which bounds memory."""

    def __init__(self, column: str) -> None:
        self.column, self.count = column, 0

    def more(self, depth: int) -> None:
        self.count += 1
        reason = None
        if depth > _MAX_DEPTH:
            reason = f"nests more than {_MAX_DEPTH} levels deep"
        elif self.count > _MAX_PLACES:
            reason = f"has more than {_MAX_PLACES} different places"
        if reason:
            raise SchemaError(
                f"column {self.column!r} {reason}: take it as text (text_columns=[{self.column!r}], --text-columns "
                f"{self.column})"
            )


class _Numbers:
    """Range and digits of numbers."""

    def __init__(self) -> None:
        self.count, self.low, self.high = 0, math.inf, -math.inf
        self.whole, self.decimals, self.exponent = True, 0, False

    def add(self, value: int | float) -> None:
        self.count += 1
        self.low, self.high = min(self.low, value), max(self.high, value)
        if isinstance(value, float):
            self.whole = False
            text = repr(value)
            self.exponent |= "e" in text
            self.decimals = max(self.decimals, len(text.partition(".")[2].rstrip("0")), 1)

    def merge(self, other: _Numbers) -> None:
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.whole &= other.whole
        self.decimals, self.exponent = max(self.decimals, other.decimals), self.exponent or other.exponent

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer" if self.whole else "number"}
        if self.exponent:  # neither a range's grammar nor one of digits has exponents
            return schema
        low, high = self.low, self.high
        if not self.whole:
            # In the grammar library's ranges, the one number of a range of one and a zero at the end have no point.
            if low == high:
                low, high = min(low, 0), max(high, 0)
            if high == 0:
                high = float(f"1e-{self.decimals}")
        largest = LARGEST_INTEGER if self.whole else LARGEST_NUMBER
        schema |= {name: end for name, end in (("minimum", low), ("maximum", high)) if abs(end) <= largest}
        return schema if self.whole or self.decimals > _MAX_DECIMALS else schema | {DECIMALS: self.decimals}


class _Strings:
    """Lengths of strings, and the strings themselves while they are few."""

    def __init__(self) -> None:
        self.count, self.longest, self.controls = 0, 0, False
        self.choices: Counter[str] | None = Counter()

    def add(self, value: str) -> None:
        self.count += 1
        self.longest = max(self.longest, len(value))
        self.controls = self.controls or _CONTROL.search(value) is not None
        if self.choices is not None:
            self.choices[value] += 1
            self._forget()

    def merge(self, other: _Strings) -> None:
        self.count += other.count
        self.longest, self.controls = max(self.longest, other.longest), self.controls or other.controls
        if self.choices is None or other.choices is None:
            self.choices = None
        else:
            self.choices.update(other.choices)
            self._forget()

    def _forget(self) -> None:
        if len(self.choices or ()) > _MAX_CHOICES or self.longest > _MAX_CHOICE_LENGTH or self.controls:
            self.choices = None

    def schema(self) -> dict[str, Any]:
        choices = self.choices or Counter()
        if choices and self.count >= _MIN_STRINGS and min(choices.values()) >= _MIN_CHOICE_COUNT:
            return {"type": "string", "enum": sorted(choices, key=lambda text: (-choices[text], text))}
        return {"type": "string", "maxLength": self.longest}


class _Names:
    """The alphabet and lengths of an object's keys."""

    _CLASSES = ("a-z", "A-Z", "0-9", "_")

    def __init__(self) -> None:
        self.first: set[str] = set()
        self.rest: set[str] = set()
        self.shortest, self.longest = math.inf, 0

    def add(self, name: str) -> None:
        self.first.update(name[:1])
        self.rest.update(name[1:])
        self.shortest, self.longest = min(self.shortest, len(name)), max(self.longest, len(name))

    def merge(self, other: _Names) -> None:
        self.first |= other.first
        self.rest |= other.rest
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)

    def pattern(self) -> str:
        if self.shortest == 0:
            return f"^{self._alphabet(self.first | self.rest)}{{0,{self.longest}}}$"
        first, rest = self._alphabet(self.first), self._alphabet(self.rest | self.first)
        if self.longest == 1:
            return f"^{first}$"
        return f"^{first}{rest}{{{int(self.shortest) - 1},{self.longest - 1}}}$"

    def _alphabet(self, characters: set[str]) -> str:
        """A class of characters: whole ranges of letters and digits, and the other characters one by one."""
        if not all(character.isascii() and character.isprintable() for character in characters):
            return r"[\s\S]"
        ranges = [name for name in self._CLASSES if any(re.match(f"[{name}]", each) for each in characters)]
        others = sorted(each for each in characters if not each.isalnum() and each != "_")
        return "[" + "".join(ranges) + "".join("\\" + each if each in r"\]^-[/" else each for each in others) + "]"


class _Field:
    """One key of an object: its values, how many objects have it, and which was the first."""

    __slots__ = ("count", "first", "shape")

    def __init__(self, shape: _Shape, first: int) -> None:
        self.shape, self.first, self.count = shape, first, 0


class _Shape:
    """What was seen at one place of nested values; the shapes of several places merge."""

    def __init__(self, places: _Places, depth: int = 0) -> None:
        places.more(depth)
        self._places = places
        self.nulls, self.booleans = 0, 0
        self.numbers: _Numbers | None = None
        self.strings: _Strings | None = None
        # arrays
        self.arrays, self.fewest, self.most = 0, math.inf, 0
        self.items: _Shape | None = None
        self.positions: list[_Shape] | None = None
        # objects
        self.objects, self.fewest_keys, self.most_keys = 0, math.inf, 0
        self.fields: dict[str, _Field] = {}
        self.names = _Names()
        self.tail: _Shape | None = None
        self._next_check = _MAX_FIELDS

    # ---- observing

    def add(self, value: Any, depth: int) -> None:
        if value is None:
            self.nulls += 1
        elif isinstance(value, bool):
            self.booleans += 1
        elif isinstance(value, int | float):
            self.numbers = self.numbers or _Numbers()
            self.numbers.add(value)
        elif isinstance(value, str):
            self.strings = self.strings or _Strings()
            self.strings.add(value)
        elif isinstance(value, list):
            self._add_array(value, depth + 1)
        else:
            self._add_object(value, depth + 1)

    def _add_array(self, value: list[Any], depth: int) -> None:
        if not self.arrays and 2 <= len(value) <= _MAX_TUPLE:
            self.positions = [_Shape(self._places, depth) for _ in value]
        elif self.positions is not None and len(self.positions) != len(value):
            self._merge_positions()
        self.arrays += 1
        self.fewest, self.most = min(self.fewest, len(value)), max(self.most, len(value))
        if self.positions is not None:
            for position, item in zip(self.positions, value, strict=True):
                position.add(item, depth)
        elif value:
            self.items = self.items or _Shape(self._places, depth)
            for item in value:
                self.items.add(item, depth)

    def _merge_positions(self) -> None:
        """Take the places of a tuple together: it is none."""
        for position in self.positions or ():
            self.items = position if self.items is None else self.items.merge(position)
        self.positions = None

    def _add_object(self, value: dict[str, Any], depth: int) -> None:
        self.objects += 1
        self.fewest_keys, self.most_keys = min(self.fewest_keys, len(value)), max(self.most_keys, len(value))
        for key, item in value.items():
            self.names.add(key)
            field = self.fields.get(key)
            if field is None and self.tail is not None:
                self.tail.add(item, depth)
                continue
            if field is None:
                field = self.fields[key] = _Field(_Shape(self._places, depth), self.objects)
            field.count += 1
            field.shape.add(item, depth)
        if len(self.fields) > self._next_check:
            self._gather_rare()
            self._next_check = max(_MAX_FIELDS, 2 * len(self.fields))

    def _gather_rare(self) -> None:
        """Take the rare keys' values together."""
        for key in self._rare():
            self._gather(self.fields.pop(key).shape)

    def _gather(self, shape: _Shape) -> None:
        self.tail = shape if self.tail is None else self.tail.merge(shape)

    def _rare(self) -> list[str]:
        return [key for key, field in self.fields.items() if 2 * field.count < self.objects]

    def merge(self, other: _Shape) -> _Shape:
        """Take another place's values into this one."""
        self.nulls += other.nulls
        self.booleans += other.booleans
        for name in ("numbers", "strings"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None:
                setattr(self, name, theirs)
            elif theirs is not None:
                mine.merge(theirs)
        if self.arrays and other.arrays and (self.positions is None) != (other.positions is None):
            self._merge_positions()
            other._merge_positions()
        if self.positions and other.positions and len(self.positions) != len(other.positions):
            self._merge_positions()
            other._merge_positions()
        if self.positions and other.positions:
            self.positions = [one.merge(two) for one, two in zip(self.positions, other.positions, strict=True)]
        else:
            self.positions = self.positions or other.positions
        if other.items is not None:
            self.items = other.items if self.items is None else self.items.merge(other.items)
        self.arrays += other.arrays
        self.fewest, self.most = min(self.fewest, other.fewest), max(self.most, other.most)
        self._merge_objects(other)
        return self

    def _merge_objects(self, other: _Shape) -> None:
        for key, theirs in other.fields.items():
            mine = self.fields.get(key)
            if mine is None:
                theirs.first += self.objects
                self.fields[key] = theirs
            else:
                mine.count += theirs.count
                mine.shape.merge(theirs.shape)
        if other.tail is not None:
            self._gather(other.tail)
        self.objects += other.objects
        self.names.merge(other.names)
        self.fewest_keys = min(self.fewest_keys, other.fewest_keys)
        self.most_keys = max(self.most_keys, other.most_keys)
        if self.tail is not None or len(self.fields) > self._next_check:
            self._gather_rare()
            self._next_check = max(_MAX_FIELDS, 2 * len(self.fields))

    # ---- describing

    def _parts(self) -> Iterator[_Shape]:
        yield from (field.shape for field in self.fields.values())
        yield from (part for part in (self.items, self.tail, *(self.positions or ())) if part is not None)

    def has_controls(self) -> bool:
        """Whether a string holds a control character."""
        return bool(self.strings and self.strings.controls) or any(part.has_controls() for part in self._parts())

    def _types(self) -> dict[str, int]:
        """How many values of each type there are."""
        counts = {
            "array": self.arrays,
            "boolean": self.booleans,
            "number": self.numbers.count if self.numbers else 0,
            "object": self.objects,
            "string": self.strings.count if self.strings else 0,
        }
        return {name: count for name, count in counts.items() if count}

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the values."""
        schemas: list[dict[str, Any]] = []
        if self.arrays:
            schemas.append(self._array_schema())
        if self.booleans:
            schemas.append({"type": "boolean"})
        if self.numbers:
            schemas.append(self.numbers.schema())
        if self.objects:
            schemas.append(self._object_schema())
        if self.strings:
            schemas.append(self.strings.schema())
        if self.nulls:
            schemas.append({"type": "null"})
        if len(schemas) == 1:
            return schemas[0]
        return {"anyOf": schemas} if schemas else {"type": "null"}

    def _array_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        if self.positions is not None and len({tuple(each._types()) for each in self.positions}) > 1:
            return schema | {
                "prefixItems": [position.schema() for position in self.positions],
                "items": False,
                "minItems": len(self.positions),
            }
        self._merge_positions()
        if self.items is None:
            return schema | {"maxItems": 0}
        schema |= {"items": self.items.schema()}
        if self.fewest:
            schema["minItems"] = self.fewest
        return schema | {"maxItems": self.most}

    def _object_schema(self) -> dict[str, Any]:
        if self.tail is None and self._is_open():
            self._gather_rare()
        schema: dict[str, Any] = {"type": "object"}
        properties = {key: field.shape.schema() for key, field in self.fields.items()}
        required = [key for key, field in self.fields.items() if field.count == self.objects]
        if self.tail is None:
            return schema | {"properties": properties, "required": required, "additionalProperties": False}
        if properties:
            schema |= {"properties": properties, "required": required}
        schema |= {"additionalProperties": self.tail.schema(), "propertyNames": {"pattern": self.names.pattern()}}
        if self.fewest_keys:
            schema["minProperties"] = self.fewest_keys
        return schema | {"maxProperties": self.most_keys}

    def _is_open(self) -> bool:
        """Whether new objects are expected to bring unseen keys, surely and often enough."""
        if self.objects < _MIN_OBJECTS:
            return False
        alone = len({field.first for field in self.fields.values() if field.count == 1})
        types: Counter[str] = Counter()
        for key in self._rare():
            types.update(self.fields[key].shape._types())
        shared = max(types.values(), default=0) >= _SHARED_TYPE * sum(types.values())
        return _surely(alone, self.objects) >= (_OPEN_CHANCE if shared else _OPEN_CHANCE_MIXED)


def _surely(count: int, total: int) -> float:
    """The lower end of Wilson's interval of a share."""
    share, square = count / total, _Z * _Z / total
    return (share + square / 2 - _Z * math.sqrt(share * (1 - share) / total + square / (4 * total))) / (1 + square)
