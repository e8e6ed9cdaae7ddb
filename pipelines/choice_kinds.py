"""Columns whose values are a short list: categories, booleans, and columns without any value."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .cell_codes import CodedColumn
from .errors import ConditionError, SchemaError
from .json_values import read_json
from .kind_base import ChoiceKind, ColumnKind, condition_bound, never_seen, place_between
from .number_kinds import NUMBER
from .values import clean_text, is_plain, listed, number_text, shown, unexpected


if TYPE_CHECKING:
    from .column_kinds import Column


class CategoryKind(ChoiceKind):
    """Strings or numbers of a list, most frequent first."""

    name = "category"
    expected = "a category"

    def __init__(self, column: Column) -> None:
        super().__init__(column)
        if not column.categories:
            raise SchemaError(f"column {column.name!r}: a category column needs at least one category")

    @cached_property
    def is_bare(self) -> bool:
        return all(not isinstance(choice, str) or is_plain(choice) for choice in self.choices)

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {choice: choice for choice in self.choices}

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        return {number_text(choice): choice for choice in self.choices if not isinstance(choice, str)}

    @property
    def _unknown(self) -> str:
        return f"is not one of its {len(self._known)} categories"

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        if isinstance(value, str):
            value = clean_text(value)
        if not number and not isinstance(value, str) or value not in self._known:
            raise self.error(f"{original!r} {self._unknown}: {listed(self.choices, 5)}")
        return self._known[value]

    def text(self, value: Any, record_format: str) -> str:
        if not isinstance(value, str):
            return number_text(value)
        return value if record_format == "values" and self.is_bare else json.dumps(value, ensure_ascii=False)

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        if record_format == "values" and self.is_bare:
            end = text.find(",", start)
            end = len(text) if end < 0 else end
            word = text[start:end]
            if word not in self._known and word not in self._numbers:
                raise self.parse_error(f"{shown(word)} {self._unknown}")
            return word if word in self._known else self._numbers[word], end
        if text.startswith('"', start):
            value, end = read_json(text, start, self.column.name)
            if value not in self._known:
                raise self.parse_error(f"{value!r} {self._unknown}")
            return value, end
        match = NUMBER.match(text, start)
        if match is None:
            raise self.parse_error(unexpected(text, start, self.expected))
        if match[0] not in self._numbers:
            raise self.parse_error(f"{match[0]} {self._unknown}")
        return self._numbers[match[0]], match.end()

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        return {"enum": [*self.choices, *([None] if self.column.nullable else [])]}

    # ---- features and conditions

    @cached_property
    def number_range(self) -> tuple[float, float] | None:
        """Smallest and largest number; None where categories are no numbers, or too large for a float."""
        if not self.takes_ranges or max(map(abs, self.choices)) >= 1e300:
            return None
        return float(min(self.choices)), float(max(self.choices))

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.column.name,)

    def feature_places(self, value: Any) -> list[float]:
        if self.number_range is not None:
            return [place_between(value, *self.number_range)]
        return [place_between(self._places[value], 0, len(self.choices) - 1)]

    @cached_property
    def takes_ranges(self) -> bool:  # type: ignore[override]
        return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in self.choices)

    def condition_value(self, value: Any) -> Any:
        if value not in self._known:
            raise never_seen(self.column.name, value, self.choices)
        return value

    def condition_range(self, low: Any, high: Any) -> dict[str, Any]:
        name = self.column.name
        low, high = condition_bound(name, low), condition_bound(name, high)
        within = [
            choice
            for choice in self.choices
            if (low is None or low <= choice) and (high is None or choice <= high)
        ]
        if not within:
            raise ConditionError(
                f"No value of {name!r} lies in the range {low} to {high}; it was: {listed(self.choices, 10)}. Values "
                "to choose from are a list."
            )
        return {"values": tuple(within)}


class BooleanKind(ChoiceKind):
    name = "boolean"
    expected = "true or false"
    json_type = "boolean"

    @property
    def choices(self) -> tuple[Any, ...]:
        return False, True

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        if not isinstance(value, bool):
            raise self.error(f"{original!r} is not a boolean")
        return value

    def text(self, value: Any, record_format: str) -> str:
        return "true" if value else "false"

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        for word, value in (("true", True), ("false", False)):
            if text.startswith(word, start):
                return value, start + len(word)
        raise self.parse_error(unexpected(text, start, self.expected))

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.column.name,)

    def feature_places(self, value: Any) -> list[float]:
        return [float(value)]

    def condition_value(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise ConditionError(
                f"{self.column.name!r} is a boolean: the condition must be True or False, not {value!r}."
            )
        return value


class NullKind(ColumnKind):
    """Nothing but missing values."""

    name = "null"
    expected = "null"
    json_type = "null"

    def coded_parts(self) -> tuple[CodedColumn, ...]:
        return (CodedColumn(self.column.name, "choice", 0, True),)

    def normalize(self, value: Any) -> Any:
        raise SchemaError(
            f"column {self.column.name!r} has no values in the data of the schema: it cannot hold {value!r}"
        )

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        raise self.parse_error(unexpected(text, start, self.expected))

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        return {"type": "null"}

    def condition_value(self, value: Any) -> Any:
        raise ConditionError(f"{self.column.name!r} has no values in the training data: it can only be None.")
