"""Cells of a table as integers and back: what a draft writes instead of text.

A choice is its place in the column's list, a number the count of its last decimals, a date three numbers: its week,
its day of the week and its time of day, so that each cycle is a column of its own to the draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from .conditions import ColumnCondition
    from .record_schema import RecordSchema

#: Codes of a cell without a value, and of one that is to be written; as in modeling_draft.py.
MISSING = -(2**63)
UNKNOWN = -(2**63) + 1
#: Codes lie below it, so that floats hold them and what lies half-way between two.
MOST_CODE = 2**51


@dataclass(frozen=True)
class CodedColumn:
    """A column of codes.

    Attributes
    ----------
    name : str
        The schema's column, with the part's name in parentheses behind where it has several.
    kind : {"number", "choice"}
    size : int
        Number of choices; 0 for numbers.
    nullable : bool
    ordered : bool, default False
        Whether it is a finer part of the column before it.
    """

    name: str
    kind: str
    size: int = 0
    nullable: bool = False
    ordered: bool = False


class CellCodes:
    """The cells of a schema's columns as codes, as far as columns have them: texts and nested values do not.

    Parameters
    ----------
    schema : RecordSchema

    Attributes
    ----------
    names : tuple of str
        The schema's columns that have codes, in order.
    columns : tuple of CodedColumn
        Those of the codes: one or several for each name.
    complete : bool
        Whether these are all of the schema's columns.
    """

    def __init__(self, schema: RecordSchema) -> None:
        found = [(column, column.rules.coded_parts()) for column in schema.columns]
        self._columns = [column for column, parts in found if parts]
        self.names = tuple(column.name for column in self._columns)
        self.columns = tuple(part for _, parts in found for part in parts)
        self.complete = len(self.names) == len(schema.columns)
        self._starts, start = {}, 0
        for column, parts in found:
            self._starts[column.name] = slice(start, start + len(parts))
            start += len(parts)

    def place(self, name: str) -> slice:
        """Which of the codes stand for a schema's column."""
        return self._starts[name]

    def encode(self, records: Sequence[Mapping[str, Any]], *, absent: int = MISSING) -> np.ndarray:
        """Codes of normalised records, int64, ``[records, columns]``; ``absent`` stands for names they lack."""
        codes = np.full((len(records), len(self.columns)), MISSING, dtype=np.int64)
        for column in self._columns:
            where, code = self._starts[column.name], column.rules.code
            for row, record in enumerate(records):
                if column.name not in record:
                    codes[row, where] = absent
                elif (value := record[column.name]) is not None:
                    codes[row, where] = code(value)
        return codes

    def values(self, codes: np.ndarray) -> dict[str, list[Any]]:
        """Normalised values of codes, ``[records, columns]``, by the names of the schema's columns."""
        found = {}
        for column in self._columns:
            where, value = self._starts[column.name], column.rules.coded_value
            cells = codes[:, where]
            known: dict[bytes, Any] = {}  # cells repeat
            values = []
            for cell in cells:
                key = cell.tobytes()
                if key not in known:
                    known[key] = None if cell[0] == MISSING else value(*cell.tolist())
                values.append(known[key])
            found[column.name] = values
        return found

    def limits(
        self, conditions: Mapping[str, ColumnCondition] | None = None, *, within_range: bool = True
    ) -> dict[int, Any]:
        """What ``ColumnDraft.write`` may write, under conditions: its ``limits``.

        Dates on a list are none of these (see :meth:`listed_dates`): each of its parts depends on the others.
        """
        limits: dict[int, Any] = {}
        for column in self._columns:
            condition = (conditions or {}).get(column.name)
            where = self._starts[column.name]
            single = where.stop - where.start == 1
            if condition is not None and condition.values is not None:
                if single:
                    codes = [MISSING if value is None else column.rules.code(value)[0] for value in condition.values]
                    limits[where.start] = np.array(codes, dtype=np.int64)
                continue
            if condition is not None:
                ends = column.rules.coded_range(condition.minimum, condition.maximum, within_range)
                limits[where.start] = tuple(end[0] for end in ends) if single else ends
            elif not single and within_range:  # the parts of a date outside may each have been seen
                limits[where.start] = (*column.rules.coded_range(None, None, True), column.nullable)
        return limits

    def listed_dates(self, conditions: Mapping[str, ColumnCondition]) -> dict[str, list[Any]]:
        """The values that conditions list for columns of several parts, by column."""
        return {
            column.name: list(condition.values)
            for column in self._columns
            if (condition := conditions.get(column.name)) is not None
            and condition.values is not None
            and self._starts[column.name].stop - self._starts[column.name].start > 1
        }
