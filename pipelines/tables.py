"""Tables to columns of Python values, and back to a DataFrame with the dtypes of the training data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import SchemaError
from .json_values import without_absent
from .stored_types import restored
from .values import is_missing, listed


if TYPE_CHECKING:
    import pandas as pd

    from .column_kinds import Column


def as_dataframe(data: Any) -> pd.DataFrame:
    """Turn a DataFrame, a datasets.Dataset or a list of dict into a DataFrame with checked column names.

    Class labels of a Dataset become their names. The index is dropped.
    """
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        frame = data
        if dropped := _index_levels(frame):
            warnings.warn(
                f"index level {listed(dropped)} is left out: make it a column with data.reset_index()", stacklevel=3
            )
    elif hasattr(data, "to_pandas") and hasattr(data, "features"):
        frame = data.to_pandas()
        for name, feature in data.features.items():
            if (labels := getattr(feature, "names", None)) and hasattr(feature, "int2str"):
                frame[name] = frame[name].map(dict(enumerate(labels)))
        frame = without_absent_fields(frame, data.features.arrow_schema)
    elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        for row, record in enumerate(data):
            if not isinstance(record, Mapping):
                raise SchemaError(f"row {row} (the first is 0) is {type(record).__name__}, not a dict")
        names = dict.fromkeys(name for record in data for name in record)
        frame = pd.DataFrame({name: _series([record.get(name) for record in data]) for name in names})
    else:
        raise SchemaError(
            f"cannot read records from {type(data).__name__}: give a pandas.DataFrame, a datasets.Dataset or a list "
            "of dict (read files with difflm.read_table)"
        )
    for name in frame.columns:
        if not isinstance(name, str):
            raise SchemaError(
                f"column name {name!r} is {type(name).__name__}, not a string: rename it, e.g. "
                "data.columns = data.columns.map(str)"
            )
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise SchemaError(f"column name {name!r} occurs more than once: rename or drop one of the columns")
    return frame.reset_index(drop=True)


def _index_levels(frame: pd.DataFrame) -> list[str]:
    """The levels of an index that say more than a row's number: those with a name, and those of no integers."""
    import pandas as pd

    found = []
    for number, name in enumerate(frame.index.names):
        values = frame.index.get_level_values(number)
        if name is not None:
            found.append(str(name))
        elif len(values) and not pd.api.types.is_integer_dtype(values.dtype):
            found.append(f"{number} (without a name: {values[0]!s}, ...)")
    return found


def without_absent_fields(frame: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """A frame made of an Arrow table, in whose nested columns absent fields are absent instead of None."""
    structs = [field.name for field in schema if "struct<" in str(field.type)]
    return frame.assign(**{name: frame[name].map(without_absent) for name in structs if name in frame.columns})


def _series(values: list[Any]) -> pd.Series:
    """A column of Python values; pandas would round large integers beside a missing value to floats."""
    import pandas as pd

    present = [value for value in values if not is_missing(value)]
    whole = len(present) < len(values) and all(type(value) is int for value in present)
    if whole and max(map(abs, present), default=0) > 1 << 53:
        fits = all(-(1 << 63) <= value < 1 << 63 for value in present)
        return pd.Series(values, dtype="Int64" if fits else "object")
    return pd.Series(values) if present else pd.Series(values, dtype="object")


def restore_dtype(values: list[Any], column: Column) -> pd.Series:
    """A column of records as a series of the dtype that the training data had."""
    plain = _plain_series(values, column)
    return plain if column.stored is None else restored(values, plain, column.stored)


def _plain_series(values: list[Any], column: Column) -> pd.Series:
    import pandas as pd

    if (series := column.rules.restored(values)) is not None:
        return series
    if column.dtype == "category":
        dtype = pd.CategoricalDtype(list(column.dtype_categories or ()), column.dtype_ordered)
        return pd.Series(pd.Categorical(values, dtype=dtype))
    if column.dtype.startswith("datetime64"):
        return pd.to_datetime(pd.Series(values, dtype="object"), utc="," in column.dtype).astype(column.dtype)
    if column.dtype == "object" and column.kind != "json":  # as pandas reads missing strings
        values = [math.nan if value is None else value for value in values]
    return pd.Series(values, dtype=column.dtype)
