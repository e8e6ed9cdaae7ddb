"""Records as Arrow tables: each column has one type, whatever the rows of a file happen to hold."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .values import in_utc, is_missing


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from .column_kinds import Column
    from .record_schema import RecordSchema


#: How integers of more than 64 bits are written: as decimals without decimals, or as their digits.
BIG_INTEGERS = ("decimal", "string")
_INT64 = (-(1 << 63), (1 << 63) - 1)


def to_arrow(frame: pd.DataFrame, schema: RecordSchema, *, big_integers: str = "decimal") -> pa.Table:
    """Turn a frame of :meth:`RecordSchema.to_pandas` into a table.

    Parameters
    ----------
    frame : pandas.DataFrame
    schema : RecordSchema
    big_integers : {"decimal", "string"}, default "decimal"
        "decimal" is decimal128(38, 0), or decimal256(76, 0) where that is too short.

    Notes
    -----
    Nested values become lists and structs where all values of the column have one type; else JSON texts (mixed lists,
    objects without keys or with any keys). A value that does not fit its column's type after all makes the column
    text, with a warning: what was sampled is never lost.
    """
    import pyarrow as pa

    frame = frame.copy(deep=False)
    fields = []
    for column in schema.columns:
        series, wanted = frame[column.name], arrow_type(column, big_integers)
        if wanted is not None and pa.types.is_string(wanted):
            series = _as_texts(series)
        if wanted is not None and pa.types.is_timestamp(wanted) and wanted.tz and series.dtype == "object":
            series = type(series)(in_utc(series), index=series.index, dtype="object")
        try:
            if wanted is None:
                found = pa.Schema.from_pandas(series.to_frame(), preserve_index=False).field(0).type
                if isinstance(getattr(found, "value_type", None), pa.BaseExtensionType):
                    raise pa.ArrowInvalid("parquet holds no categories of this type")
            else:
                found = pa.array(series, type=wanted, from_pandas=True).type
        except (pa.ArrowException, OverflowError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"column {column.name!r} is written as text: {reason}", stacklevel=3)
            series, found = _as_texts(series), pa.string()
        frame[column.name] = series
        fields.append(pa.field(column.name, found))
    return pa.Table.from_pandas(frame, schema=pa.schema(fields), preserve_index=False)


def arrow_type(column: Column, big_integers: str = "decimal") -> pa.DataType | None:
    """The Arrow type of a column whose pandas dtype does not tell; None for the others."""
    import pyarrow as pa

    if big_integers not in BIG_INTEGERS:
        raise ArgumentError(f"big_integers={big_integers!r} is not one of {', '.join(BIG_INTEGERS)}")
    if column.stored is not None:
        # Decimals of one width in every file; the other types tell themselves.
        scale = re.fullmatch(r"decimal\((\d+)\)", column.stored)
        return pa.decimal128(38, int(scale[1])) if scale and column.dtype != "category" else None
    if (found := column.rules.arrow_type()) is not None:
        return found
    if column.kind == "json":
        return nested_type(column.json_schema or {}) or pa.string()
    if holds_big_integers(column):
        digits = max(len(str(abs(bound))) for bound in (column.minimum, column.maximum))
        if big_integers == "string" or digits > 76:
            return pa.string()
        return pa.decimal128(38, 0) if digits <= 38 else pa.decimal256(76, 0)
    if column.dtype == "object" and column.kind == "text":
        return pa.string()  # also in a file whose rows all lack it
    return None


def holds_big_integers(column: Column) -> bool:
    """Whether the column's integers need more bits than Arrow's integers have."""
    bounds = (column.minimum, column.maximum)
    if column.dtype.lower().startswith(("uint64", "float", "double")):  # Arrow has the type
        return False
    return column.kind == "integer" and any(
        bound is not None and not _INT64[0] <= bound <= _INT64[1] for bound in bounds
    )


def text_columns(schema: RecordSchema, big_integers: str = "decimal") -> dict[str, str]:
    """Columns that a parquet file holds as text, though their values are none, and what they hold."""
    import pyarrow as pa

    found = {}
    for column in schema.columns:
        wanted = arrow_type(column, big_integers) if column.kind in ("json", "integer") else None
        if wanted is not None and pa.types.is_string(wanted):
            found[column.name] = "JSON" if column.kind == "json" else "digits"
    return found


def output_notes(schema: RecordSchema, ending: str, big_integers: str = "decimal") -> list[str]:
    """What a file will hold in another form than the records, one line each; to be said before sampling.

    Parameters
    ----------
    schema : RecordSchema
    ending : {".parquet", ".csv", ".jsonl"}
    big_integers : {"decimal", "string"}, default "decimal"
    """
    if ending == ".csv":
        nested = (column.name for column in schema.columns if column.kind == "json")
        return [f"column {name!r} is written as JSON text" for name in nested]
    if ending != ".parquet":
        return []
    notes = [
        f"column {name!r} is written as text ({content}): its values have no one parquet type"
        for name, content in text_columns(schema, big_integers).items()
    ]
    for column in schema.columns:
        if holds_big_integers(column) and column.name not in text_columns(schema, big_integers):
            notes.append(
                f"column {column.name!r} holds integers of more than 64 bits, written as "
                f"{arrow_type(column, big_integers)} (--big-integers string for text)"
            )
    return notes


def nested_type(schema: Mapping[str, Any]) -> pa.DataType | None:
    """The Arrow type of what a JSON Schema describes; None where values are of several types or have any keys."""
    import pyarrow as pa

    kinds = schema.get("type")
    kinds = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds or ()) if kind != "null"]
    if not kinds and "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return nested_type(options[0]) if len(options) == 1 else None
    if len(kinds) != 1:
        return None
    if kinds[0] == "array":
        items = schema.get("items")
        inner = nested_type(items) if isinstance(items, Mapping) and "prefixItems" not in schema else None
        return None if inner is None else pa.list_(inner)
    if kinds[0] == "object":
        if not schema.get("properties") or schema.get("additionalProperties") is not False:
            return None
        inner = {name: nested_type(item) for name, item in schema["properties"].items()}
        return None if None in inner.values() else pa.struct(list(inner.items()))
    return {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}.get(kinds[0])


def plain_types(table: pa.Table) -> pa.Table:
    """The table without dictionaries and pandas' own types, which ``datasets`` does not take."""
    import pyarrow as pa

    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([[None if value is None else str(value) for value in column.to_pandas()]])
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def csv_frame(frame: pd.DataFrame, schema: RecordSchema) -> pd.DataFrame:
    """The frame with nested values as JSON texts, the one form that other readers of CSV files know."""
    frame = frame.copy(deep=False)
    for column in schema.columns:
        if column.kind == "json":
            frame[column.name] = _as_texts(frame[column.name])
    return frame


def _as_texts(series: pd.Series) -> pd.Series:
    """Values as texts, nested ones as JSON; missing ones stay missing."""
    import pandas as pd

    return pd.Series([_text(value) for value in series], index=series.index, dtype="object")


def _text(value: Any) -> str | None:
    if is_missing(value):
        return None
    return value if isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value)
