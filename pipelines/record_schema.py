"""Records as text and back: the schema of a table, inferred from data and saved beside the weights.

A :class:`RecordSchema` says how one record (a row, a tool definition, a piece of code) is written for the language
model and how what the model writes is read back. It is a plain value: JSON-able, comparable, without weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .column_kinds import Column
from .errors import RecordParseError, SchemaError
from .schema_columns import schema_columns
from .tables import as_dataframe, restore_dtype
from .values import clean_text, listed, unexpected


if TYPE_CHECKING:
    import pandas as pd

RECORD_FORMATS = ("json", "values", "text")

_VERSION = 1


class Segment(NamedTuple):
    """A piece of a serialised record: fixed text (``column`` is None) or one column's value."""

    text: str
    column: str | None


@dataclass(frozen=True)
class RecordSchema:
    """The columns of a table in order, and how a record is written.

    Parameters
    ----------
    columns : sequence of Column
    record_format : {"json", "values", "text"}, default "json"
        "json": ``{"a": 1, "b": "x"}``, the paper's form. "values": ``1,x``, the values alone with commas between, far
        fewer tokens on wide tables. "text": one column of raw text (code), see :meth:`for_text`.
    """

    columns: tuple[Column, ...]
    record_format: str = "json"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if self.record_format not in RECORD_FORMATS:
            raise SchemaError(f"record_format {self.record_format!r} is not one of {', '.join(RECORD_FORMATS)}")
        if not self.columns:
            raise SchemaError("a schema needs at least one column")
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise SchemaError(f"column name {repeated[0]!r} occurs more than once: rename the columns")
        if self.record_format == "text" and (len(self.columns) != 1 or self.columns[0].kind != "text"):
            raise SchemaError("the text format holds exactly one column of kind text")

    # ---- making a schema

    @classmethod
    def infer(
        cls,
        data: Any,
        *,
        record_format: str = "json",
        max_categories: int = 512,
        max_decimals: int | None = None,
        text_columns: Sequence[str] = (),
        category_columns: Sequence[str] = (),
    ) -> RecordSchema:
        """Infer the schema of a table. Needs the difflm package (code loaded from the Hub can only use schemas).

        Parameters
        ----------
        data : pandas.DataFrame, datasets.Dataset or list of dict
        record_format : {"json", "values"}, default "json"
        max_categories : int, default 512
            A string column with more distinct values is text. So is one where more than half of the values (and more
            than 20) are distinct.
        max_decimals : int, optional
            Decimals are rounded to so many digits after the point. Default: 12, and more for columns of tiny numbers,
            so that the largest keeps 7 significant digits.
        text_columns, category_columns : sequence of str
            Columns to take as text (values are cast to strings) or as categories, whatever they hold.

        Raises
        ------
        SchemaError
            No rows, repeated or non-string names, an infinite number, mixed or unsupported types.

        Notes
        -----
        Float columns whose values are all whole are integers (pandas reads an integer column with missing values so);
        :meth:`to_pandas` restores the float dtype. Strings stay strings even if they look like numbers or booleans.
        """
        try:
            from difflm.pipelines.schema_inference.columns import infer_schema
        except ImportError as error:
            raise SchemaError("inferring a schema needs the difflm package: pip install difflm") from error
        schema = infer_schema(
            as_dataframe(data),
            record_format=record_format,
            max_categories=max_categories,
            max_decimals=max_decimals,
            text_columns=text_columns,
            category_columns=category_columns,
        )
        # A published copy of this class is another one than the installed package's.
        return schema if isinstance(schema, cls) else cls.from_dict(schema.to_dict())

    @classmethod
    def for_text(cls, max_length: int | None = None) -> RecordSchema:
        """Schema of raw texts (code): one column "text", written as it is. ``max_length`` is in characters."""
        return cls((Column("text", "text", max_length=max_length),), "text")

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any], *, record_format: str = "json") -> RecordSchema:
        """Wrap a JSON Schema of type object: its properties become the columns, in order.

        Scalars become columns of their kind with their bounds enforced, ``enum`` a category, strings of the format
        "date" dates, and whatever else (nested objects, arrays, patterns, references) a column of kind "json". A
        number's decimals are left free. A property that is not required may be null, which stands for its absence.

        What no grammar holds (``uniqueItems``, ``not``, ``if``, ``dependentRequired``, ...) is checked once a record
        is written, which is drawn again where it does not hold.

        Raises
        ------
        SchemaError
            Naming a keyword that cannot hold, and its place.
        """
        return cls(schema_columns(schema), record_format)

    def with_format(self, record_format: str) -> RecordSchema:
        """The same columns, written in another form."""
        return replace(self, record_format=record_format)

    # ---- looking at it

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def column(self, name: str) -> Column:
        """The column called ``name``; SchemaError if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(f"no column {name!r}; the columns are {listed(self.names)}") from None

    def column_json_schema(self, name: str, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema of one column's value; ``bounded`` adds the range or length seen in training."""
        return self.column(name).to_json_schema(bounded=bounded)

    def json_schema(self, *, bounded: bool = False) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of a record: every column required, no other key allowed."""
        properties = {column.name: column.to_json_schema(bounded=bounded) for column in self.columns}
        shared: dict[str, Any] = {}
        for item in properties.values():  # references are resolved from the root
            for key in ("$defs", "definitions"):
                shared.setdefault(key, {}).update(item.pop(key, {}))
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": list(self.names),
            "additionalProperties": False,
            **{key: definitions for key, definitions in shared.items() if definitions},
        }

    # ---- writing and reading

    @cached_property
    def _fixed(self) -> tuple[str, ...]:
        if self.record_format == "text":
            return ("", "")
        if self.record_format == "values":
            return ("", *[","] * (len(self.columns) - 1), "")
        keys = [f"{json.dumps(name, ensure_ascii=False)}: " for name in self.names]
        return ("{" + keys[0], *(f", {key}" for key in keys[1:]), "}")

    def fixed_segments(self) -> list[str]:
        """The texts around the values: one before each column's value and one after the last (some may be "")."""
        return list(self._fixed)

    def normalize(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record as parsing its text returns it: every column, in order, in plain Python types.

        A key that is absent counts as missing. Raises SchemaError for an unknown key or a value that does not fit.
        """
        if unknown := [name for name in record if name not in self._by_name]:
            raise SchemaError(f"no column {unknown[0]!r}; the columns are {listed(self.names)}")
        return {column.name: column.normalize(record.get(column.name)) for column in self.columns}

    @cached_property
    def feature_columns(self) -> tuple[str, ...]:
        """Names of a record's places: of numbers in their ranges, of categories and booleans in their lists."""
        return tuple(name for column in self.columns for name in column.feature_names)

    def feature_values(self, record: Mapping[str, Any]) -> list[float]:
        """Places of a normalised record's values in their columns' ranges or lists, 0 to 1; NaN for a missing one."""
        return [place for column in self.columns for place in column.feature_places(record[column.name])]

    def value_text(self, column: str, value: Any) -> str:
        """What a record holds for ``value`` in ``column``: the text of its segment."""
        found = self.column(column)
        value = found.normalize(value)
        return value if self.record_format == "text" else found.text(value, record_format=self.record_format)

    def segments(self, record: Mapping[str, Any]) -> list[Segment]:
        """Split the serialised record into fixed texts and values: fixed, value, fixed, ..., value, fixed.

        The text format has a single segment, the text. The concatenation is :meth:`serialize`.
        """
        record = self.normalize(record)
        if self.record_format == "text":
            return [Segment(record[self.names[0]], self.names[0])]
        segments = []
        for fixed, column in zip(self._fixed, self.columns, strict=False):
            segments.append(Segment(fixed, None))
            segments.append(Segment(column.text(record[column.name], record_format=self.record_format), column.name))
        segments.append(Segment(self._fixed[-1], None))
        return segments

    def serialize(self, record: Mapping[str, Any]) -> str:
        """Write one record; ``parse(serialize(record)) == normalize(record)``."""
        return "".join(segment.text for segment in self.segments(record))

    def parse(self, text: str) -> dict[str, Any]:
        """Read one record back.

        The text must be in this schema's form exactly: every column in order, values of the right type (categories
        known, numbers with the right number of decimals, null only where values may be missing), nothing before or
        after. Raises RecordParseError, which names the column and the reason.
        """
        if self.record_format == "text":
            column = self.columns[0]
            text = clean_text(text)
            if problem := column.rules.problem(text):
                raise RecordParseError(column.name, problem)
            return {column.name: text}
        record: dict[str, Any] = {}
        position = 0
        for fixed, column in zip(self._fixed, self.columns, strict=False):
            if not text.startswith(fixed, position):
                raise RecordParseError(column.name, unexpected(text, position, repr(fixed)))
            record[column.name], position = column.read(text, position + len(fixed), record_format=self.record_format)
        if text[position:] != self._fixed[-1]:
            raise RecordParseError(None, unexpected(text, position, repr(self._fixed[-1] or "the end")))
        return record

    # ---- tables

    def to_records(self, data: Any) -> list[dict[str, Any]]:
        """Normalised records of a DataFrame, Dataset or list of dict; SchemaError names a row that does not fit."""
        if isinstance(data, Sequence) and not isinstance(data, str):
            return [self._normalize_row(row, record) for row, record in enumerate(data)]
        frame = as_dataframe(data)
        lists = [frame[name].tolist() for name in frame.columns]
        rows: Iterator[tuple[Any, ...]] = zip(*lists, strict=True)
        return [
            self._normalize_row(row, dict(zip(frame.columns, values, strict=True))) for row, values in enumerate(rows)
        ]

    def _normalize_row(self, row: int, record: Any) -> dict[str, Any]:
        try:
            if not isinstance(record, Mapping):
                raise SchemaError(f"{type(record).__name__}, not a dict of column and value")
            return self.normalize(record)
        except SchemaError as error:
            raise SchemaError(f"row {row} (the first is 0): {error}") from None

    def to_pandas(self, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Build a DataFrame of parsed or normalised records, with the dtypes of the data of the schema."""
        import pandas as pd

        records = list(records)
        index = pd.RangeIndex(len(records))
        return pd.DataFrame(
            {
                column.name: restore_dtype([record[column.name] for record in records], column)
                for column in self.columns
            },
            index=index,
        )

    def in_data(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A normalised record in JSON's types with dates in the format of the data's texts."""
        return {
            column.name: None if record[column.name] is None else column.rules.in_data(record[column.name])
            for column in self.columns
        }

    # ---- saving

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, for a checkpoint."""
        defaults = {field.name: field.default for field in fields(Column)}
        columns = [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(column).items()
                if value != defaults[key]
            }
            for column in self.columns
        ]
        return {"version": _VERSION, "record_format": self.record_format, "columns": columns}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecordSchema:
        """Read what :meth:`to_dict` wrote; SchemaError if it was written by a later version or is damaged."""
        if data.get("version") != _VERSION:
            raise SchemaError(f"record schema of version {data.get('version')!r}, expected {_VERSION}: update difflm")
        try:
            columns = []
            for item in data["columns"]:
                known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in item.items()}
                columns.append(Column(**known))
            return cls(tuple(columns), data["record_format"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"the record schema is damaged: {error}") from error
