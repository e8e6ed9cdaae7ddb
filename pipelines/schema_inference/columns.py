"""Inferring the schema of a table: which kind each column is, from its values and its pandas dtype."""

from __future__ import annotations

import datetime
import decimal
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from difflm.pipelines.column_kinds import Column
from difflm.pipelines.errors import SchemaError
from difflm.pipelines.json_values import plain_json
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.schema_inference.dates import by_frequency, infer_dates
from difflm.pipelines.schema_inference.nested import infer_json_schema
from difflm.pipelines.schema_inference.stored import plain_series, with_stored
from difflm.pipelines.schema_inference.time_texts import unread_times
from difflm.pipelines.values import as_text, clean_text, listed, shown


def infer_schema(
    frame: pd.DataFrame,
    *,
    record_format: str,
    max_categories: int,
    max_decimals: int | None,
    text_columns: Sequence[str],
    category_columns: Sequence[str],
) -> RecordSchema:
    """Infer a schema; the work of :meth:`RecordSchema.infer`, which documents the parameters."""
    for option, names in (("text_columns", text_columns), ("category_columns", category_columns)):
        if unknown := [name for name in names if name not in frame.columns]:
            raise SchemaError(f"{option}: no column {unknown[0]!r}; the columns are {listed(frame.columns)}")
    if both := set(text_columns) & set(category_columns):
        raise SchemaError(f"column {min(both)!r} is in text_columns and in category_columns: choose one")
    if len(frame.columns) == 0:
        raise SchemaError("the data has no columns")
    if len(frame) == 0:
        raise SchemaError("the data has no rows: a schema is inferred from values")
    columns = []
    for name in frame.columns:
        forced = "text" if name in text_columns else "category" if name in category_columns else None
        columns.append(_infer_column(name, frame[name], forced, max_categories, max_decimals))
    return RecordSchema(tuple(columns), record_format)


def _infer_column(
    name: str, series: pd.Series, forced: str | None, max_categories: int, max_decimals: int | None
) -> Column:
    plain, stored = plain_series(series)
    column = _infer_plain(name, plain, forced, max_categories, max_decimals)
    return with_stored(column, stored, plain[plain.notna()], forced is not None)


def _infer_plain(
    name: str, series: pd.Series, forced: str | None, max_categories: int, max_decimals: int | None
) -> Column:
    dtype = series.dtype
    missing = series.isna()
    column = Column(name, "null", nullable=bool(missing.any()), dtype=str(dtype))
    values = series[~missing]
    if isinstance(dtype, pd.CategoricalDtype):
        listed = [_category_scalar(value) for value in dtype.categories.tolist()]
        column = replace(column, dtype="category", dtype_categories=tuple(listed), dtype_ordered=bool(dtype.ordered))
        values = values.astype(object).map(_category_scalar)
    if len(values) == 0:
        warnings.warn(f"column {name!r} has no values at all: it will be null in every record", stacklevel=4)
        return column
    if column.dtype != "category" and forced != "text" and not (forced == "category" and _is_string(values)):
        dates = infer_dates(column, values)
        if dates is not None:
            return _date_column(*dates, forced, max_categories)
    family = "text" if forced == "text" else _family(name, values)
    if family == "json":
        schema = infer_json_schema((plain_json(value, None, name) for value in values), name)
        return replace(column, kind="json", json_schema=schema, dtype="object")
    if family == "boolean":
        return replace(column, kind="boolean")
    if family == "number":
        return _infer_number(column, values, forced, max_decimals)
    is_string = _is_string(values)
    strings = values.map(lambda value: clean_text(as_text(value)))
    if not is_string and column.dtype != "category":
        column = replace(column, dtype="object")
    counts = Counter(strings)
    is_text = not _is_list(counts, max_categories)
    if forced == "text" or forced is None and is_text and column.dtype != "category":
        if forced is None and (warning := unread_times(name, strings.tolist())):
            warnings.warn(warning, stacklevel=4)
        dtype_name = "object" if column.dtype == "category" else column.dtype
        return replace(column, kind="text", max_length=int(strings.map(len).max()), dtype=dtype_name)
    return replace(column, kind="category", categories=by_frequency(counts))


def _is_string(values: pd.Series) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_list(counts: Counter[Any], max_categories: int) -> bool:
    """Whether values repeat so much that a new record has one of them."""
    distinct = len(counts)
    return distinct <= max_categories and (distinct <= 20 or distinct * 2 <= counts.total())


def _date_column(column: Column, texts: list[str], forced: str | None, max_categories: int) -> Column:
    counts = Counter(texts)
    if forced == "category" or _is_list(counts, max_categories):
        column = replace(column, categories=by_frequency(counts))
    return column


# Characters per value, on average, from which zeros at the end are not worth writing.
_SPARED_BY_TRIMMING = 1.0
_UNIFORM = {bool: "boolean", int: "number", float: "number", decimal.Decimal: "number", str: "string"}


def _family(name: str, values: pd.Series) -> str:
    """Which of boolean, number, string, json the values of a column are; SchemaError if they are mixed."""
    if pd.api.types.is_bool_dtype(values.dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_complex_dtype(values.dtype):
        return "number"
    examples: dict[str, Any] = {}
    for value in values.drop_duplicates() if isinstance(values.dtype, pd.StringDtype) else values:
        examples.setdefault(_value_family(value), value)
    if "json" in examples and "other" not in examples:
        return "json"
    remedy = f"cast the column, or take it as text (text_columns=[{name!r}], --text-columns {name})"
    if "other" in examples:
        value = examples["other"]
        found = f"{type(value).__name__} ({shown(value)})"
        raise SchemaError(f"column {name!r} holds {found}, which is not supported: {remedy}")
    if len(examples) > 1:
        first, second = list(examples.values())[:2]
        raise SchemaError(
            f"column {name!r} mixes types: {shown(first)} ({type(first).__name__}) and {shown(second)} "
            f"({type(second).__name__}): {remedy}"
        )
    return next(iter(examples))


def _value_family(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime.date):
        return "string"
    if isinstance(value, (Mapping, list, tuple, np.ndarray)):
        return "json"
    return next((family for kind, family in _UNIFORM.items() if isinstance(value, kind)), "other")


def _infer_number(column: Column, values: pd.Series, forced: str | None, max_decimals: int | None) -> Column:
    name = column.name
    exact = values.tolist()
    for row, value in zip(values.index, exact, strict=True):
        if isinstance(value, (float, decimal.Decimal)) and math.isinf(value):
            raise SchemaError(
                f"column {name!r} holds {value} in row {row} (the first is 0): replace infinities by missing values "
                "or finite numbers"
            )
    if any(isinstance(value, decimal.Decimal) for value in exact):
        column = replace(column, dtype="float64")
    if all(value == int(value) for value in exact):
        whole = [int(value) for value in exact]
        if forced == "category" or column.dtype == "category":
            return replace(column, kind="category", categories=by_frequency(Counter(whole)))
        return replace(column, kind="integer", minimum=min(whole), maximum=max(whole))
    if forced == "category" or column.dtype == "category":
        return replace(column, kind="category", categories=by_frequency(Counter(float(value) for value in exact)))
    small = column.dtype.lower() if column.dtype.lower() in ("float32", "float16") else "float64"
    numbers = np.unique(np.asarray(exact, dtype=small))
    limit = _most_decimals(numbers) if max_decimals is None else max_decimals
    decimals = max(
        [1, *(_count_decimals(text, limit) for text in numbers.astype(str).tolist())]
    )  # one at least: other readers of JSON see a float
    spared = decimals - np.mean([max(1, _count_decimals(str(value), decimals)) for value in exact])
    column = replace(column, kind="decimal", decimals=decimals, trimmed=bool(spared >= _SPARED_BY_TRIMMING))
    low, high = (column.normalize(number) for number in (numbers[0], numbers[-1]))
    if (lost := np.abs(numbers[numbers != 0]).min(initial=np.inf)) < 0.5 * 10.0**-decimals:
        warnings.warn(
            f"column {name!r}: values as small as {lost:g} become 0 with {decimals} decimals: rescale the column or "
            "raise max_decimals (--max-decimals)",
            stacklevel=5,
        )
    return replace(column, minimum=low, maximum=high)


def _most_decimals(numbers: np.ndarray) -> int:
    """As many that the largest number keeps 7 significant digits, at least 12."""
    largest = float(np.abs(numbers).max(initial=0))
    return max(12, 6 - math.floor(math.log10(largest))) if largest > 0 else 12


def _count_decimals(text: str, limit: int) -> int:
    digits = format(decimal.Decimal(text), "f").partition(".")[2].rstrip("0")
    if len(digits) > limit:  # 0.30000000000000004 needs one decimal, not the limit
        digits = format(decimal.Decimal(text), f".{limit}f").partition(".")[2].rstrip("0")
    return len(digits)


def _category_scalar(value: Any) -> Any:
    """A category of a pandas dtype as a JSON scalar: dates and intervals become strings."""
    return value if isinstance(value, (str, bool, int, float)) else as_text(value)


