"""Tables: each row is a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from difflm.errors import ArgumentError
from difflm.pipelines.errors import SchemaError
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.data import as_dataframe, read_table
from difflm.training.domains.domain import CardWords, Domain, Reading


#: Options of inferring a schema, which held-out rows are not read with.
INFERENCE = ("category_columns", "max_categories", "max_decimals")


class Tables(Domain):
    """Tables from files, DataFrames, Datasets or lists of dictionaries."""

    name = "tables"
    record_formats = ("values", "json")
    words = CardWords(source="table", record="row", tags=("tabular",))

    def read(
        self,
        source: Any,
        *,
        record_format: str,
        text_columns: Sequence[str] = (),
        category_columns: Sequence[str] = (),
        max_categories: int = 512,
        max_decimals: int | None = None,
        **options: Any,
    ) -> Reading:
        """Read a table.

        Parameters
        ----------
        source : path, DataFrame, Dataset or list of dict
            At least 2 rows.
        record_format : {"values", "json"}
        text_columns, category_columns, max_categories, max_decimals
            Of [`RecordSchema.infer`].
        options
            Of [`read_table`], for a path.
        """
        frame = _frame(source, text_columns, options)
        inference = {
            "record_format": record_format,
            "text_columns": tuple(text_columns),
            "category_columns": tuple(category_columns),
            "max_categories": max_categories,
            "max_decimals": max_decimals,
        }
        return _reading(frame, range(len(frame)), inference)

    def read_held_out(
        self, source: Any, schema: RecordSchema, text_columns: Sequence[str] = (), **options: Any
    ) -> list[dict[str, Any]]:
        options = {name: value for name, value in options.items() if name not in INFERENCE}
        frame = _frame(source, text_columns, options, min_rows=1)
        # What is text in the training data is text here, too, even if these rows look like numbers.
        texts = {column.name for column in schema.columns if column.kind == "text" or _is_texts(column.categories)}
        if numbers := texts.intersection(frame.select_dtypes("number").columns):
            frame = _frame(source, [*text_columns, *sorted(numbers)], options, min_rows=1)
        try:
            return schema.to_records(frame)
        except SchemaError as error:
            raise SchemaError(f"the validation data does not fit the training data: {error}") from error

    def select(self, reading: Reading, rows: Sequence[int]) -> Reading:
        # What only the other rows held (a category, the widest range) leaves the schema, too.
        frame, inference = reading.source
        places = [reading.places[row] for row in rows]
        return _reading(frame.iloc[list(rows)].reset_index(drop=True), places, inference)


def _frame(
    source: Any, text_columns: Sequence[str], options: Mapping[str, Any], min_rows: int = 2
) -> pd.DataFrame:
    if isinstance(source, str | Path):
        return read_table(source, text_columns=text_columns, min_rows=min_rows, **options)
    if options:
        raise ArgumentError(f"{', '.join(options)}: only for reading a file, not for {type(source).__name__}.")
    return as_dataframe(source, min_rows=min_rows)


def _reading(frame: pd.DataFrame, places: Sequence[int], inference: dict[str, Any]) -> Reading:
    schema = RecordSchema.infer(frame, **inference)
    return Reading(schema.to_records(frame), schema, places, source=(frame, inference))


def _is_texts(categories: tuple[Any, ...] | None) -> bool:
    return bool(categories) and all(isinstance(category, str) for category in categories or ())
