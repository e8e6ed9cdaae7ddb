"""Columns of free text."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from .errors import ConditionError
from .json_values import read_json
from .kind_base import ColumnKind
from .values import as_text, clean_text, is_date, unexpected


class TextKind(ColumnKind):
    name = "text"
    expected = "a JSON string"
    json_type = "string"

    def convert(self, value: Any, original: Any, number: bool) -> Any:
        return clean_text(as_text(value))

    @cached_property
    def pattern(self) -> str | None:
        """Regular expression (anchored) of ISO dates kept as text; None for other columns."""
        if self.column.timespec is None:
            return None
        pattern = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        if self.column.timespec != "day":
            pattern += r"T[0-9]{2}:[0-9]{2}:[0-9]{2}"
            pattern += {"microseconds": r"\.[0-9]{6}", "nanoseconds": r"\.[0-9]{9}"}.get(self.column.timespec, "")
            pattern += r"\+00:00" if "," in self.column.dtype else ""
        return f"^{pattern}$"

    def problem(self, value: Any) -> str | None:
        column = self.column
        if self.pattern is not None and not (re.fullmatch(self.pattern, value) and is_date(value, column.dtype)):
            return f"{value!r} is not a date of the form {column.timespec}"
        if column.bounded and len(value) > (column.max_length or 0):
            return f"its {len(value)} characters are more than {column.max_length}"
        return None

    def text(self, value: Any, record_format: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    def read(self, text: str, start: int, record_format: str) -> tuple[Any, int]:
        if not text.startswith('"', start):
            raise self.parse_error(unexpected(text, start, self.expected))
        value, end = read_json(text, start, self.column.name)
        if problem := self.problem(value):
            raise self.parse_error(problem)
        return value, end

    def json_schema(self, bounded: bool) -> dict[str, Any]:
        return super().json_schema(bounded) | ({} if self.pattern is None else {"pattern": self.pattern})

    def typical(self) -> Any:
        return ""

    def condition_value(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ConditionError(f"{self.column.name!r} is text: the condition must be a string, not {value!r}.")
        return value
