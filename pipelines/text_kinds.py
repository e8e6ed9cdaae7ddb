"""Columns of free text."""

from __future__ import annotations

import json
import re
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

    def problem(self, value: Any) -> str | None:
        column = self.column
        if column.pattern is not None and not (re.fullmatch(column.pattern, value) and is_date(value, column.dtype)):
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

    def typical(self) -> Any:
        return ""

    def condition_value(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ConditionError(f"{self.column.name!r} is text: the condition must be a string, not {value!r}.")
        return value
