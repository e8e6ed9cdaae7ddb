"""Tables: each row is a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from difflm.pipelines.errors import SchemaError
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.data import as_dataframe, read_table
from difflm.training.domains.domain import CardWords, Domain, Reading


class Tables(Domain):
    """Tables from files, DataFrames, Datasets or lists of dictionaries."""

    name = "tables"
    record_formats = ("values", "json")
    metrics = (
        "shape_error",
        "trend_error",
        "machine_learning_efficiency",
        "detection",
        "dcr",
        "copy_rate",
        "missing_rate_error",
    )
    words = CardWords(source="table", record="row", tags=("tabular",))

    def read(
        self, source: Any, *, record_format: str, text_columns: Sequence[str] = (), **options: Any
    ) -> Reading:
        """Read a table.

        Parameters
        ----------
        source : path, DataFrame, Dataset or list of dict
            At least 2 rows.
        record_format : {"values", "json"}
        text_columns : sequence of str
            Columns to take as text.
        options
            Of [`read_table`], for a path.
        """
        frame = _frame(source, text_columns, options)
        return _reading(frame, range(len(frame)), record_format, text_columns)

    def read_held_out(
        self, source: Any, schema: RecordSchema, text_columns: Sequence[str] = (), **options: Any
    ) -> list[dict[str, Any]]:
        try:
            return schema.to_records(_frame(source, text_columns, options, min_rows=1))
        except SchemaError as error:
            raise SchemaError(f"the validation data does not fit the training data: {error}") from error

    def select(self, reading: Reading, rows: Sequence[int]) -> Reading:
        # What only the other rows held (a category, the widest range) leaves the schema, too.
        frame, text_columns = reading.source
        places = [reading.places[row] for row in rows]
        return _reading(
            frame.iloc[list(rows)].reset_index(drop=True), places, reading.schema.record_format, text_columns
        )


def _frame(
    source: Any, text_columns: Sequence[str], options: Mapping[str, Any], min_rows: int = 2
) -> pd.DataFrame:
    if isinstance(source, str | Path):
        return read_table(source, text_columns=text_columns, min_rows=min_rows, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: only for reading a file, not for {type(source).__name__}.")
    return as_dataframe(source, min_rows=min_rows)


def _reading(frame: pd.DataFrame, places: Sequence[int], record_format: str, text_columns: Sequence[str]) -> Reading:
    schema = RecordSchema.infer(frame, record_format=record_format, text_columns=tuple(text_columns))
    return Reading(schema.to_records(frame), schema, places, source=(frame, text_columns))
