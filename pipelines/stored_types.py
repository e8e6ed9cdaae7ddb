"""Types that tables store and records do not: Arrow's, decimals, durations, intervals, periods, bytes; both ways.

A column's ``stored`` says what its plain values stand for: a dtype's name ("interval[int64, right]", "date32[day]
[pyarrow]"), for durations with the unit of the integers ("timedelta64[ns] in s"), "decimal(2)" for Decimals of two
digits after the point, or "bytes".
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .values import in_utc, is_missing, number_text


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ARROW = "[pyarrow]"
_DECIMAL = re.compile(r"decimal\((\d+)\)")
_INTERVAL = re.compile(r"[\[(](.*), (.*)[\])]")
_INTERVAL_DTYPE = re.compile(r"interval\[(.*), (right|left|both|neither)\]")
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}


def plain_scalar(value: Any, stored: str) -> Any:
    """A value of a column that stores ``stored``, in the form that records hold; plain ones stay as they are."""
    import pandas as pd

    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (datetime.timedelta, np.timedelta64)) and " in " in stored:
        unit = stored.rpartition(" in ")[2]
        nanoseconds, rest = divmod(pd.Timedelta(value).as_unit("ns").value, _UNITS[unit])
        return nanoseconds if rest == 0 else nanoseconds + rest / _UNITS[unit]  # refused: no integer
    if stored == "decimal" and isinstance(value, decimal.Decimal):
        return str(value)
    return str(value) if isinstance(value, (pd.Interval, pd.Period, complex)) else value


def restored(values: Sequence[Any], plain: pd.Series, stored: str) -> pd.Series:
    """The series that stands for a column's values.

    Parameters
    ----------
    values : sequence
        As records hold them.
    plain : pandas.Series
        The same, with the dtype of the plain values.
    stored : str
    """
    import pandas as pd

    if isinstance(plain.dtype, pd.CategoricalDtype):
        return plain.cat.rename_categories(parsed(plain.cat.categories.tolist(), stored))
    if (match := _DECIMAL.fullmatch(stored)) is not None:
        step = decimal.Decimal(1).scaleb(-int(match[1]))
        return _objects(values, lambda value: _quantized(value, step))
    if stored == "bytes":
        return _objects(values, str.encode)
    name, _, unit = stored.partition(" in ")
    if unit:
        plain = pd.Series(pd.to_timedelta(plain.astype("Int64"), unit=unit))
        return plain.astype(name) if not name.endswith(ARROW) else _arrow_series(plain.tolist(), name)
    if name.endswith(ARROW):
        return _arrow_series(plain.tolist(), name, values)
    found = iter(parsed([value for value in values if value is not None], name))
    missing = math.nan if name == "complex128" else None
    return pd.Series([missing if value is None else next(found) for value in values], dtype=name)


def parsed(texts: Sequence[str], stored: str) -> pd.Index:
    """The values that texts stand for; ValueError if a text stands for none."""
    import pandas as pd

    if (match := _INTERVAL_DTYPE.fullmatch(stored)) is not None:
        ends = [found.groups() if (found := _INTERVAL.fullmatch(text)) else () for text in texts]
        left, right = (pd.Index([pair[side] for pair in ends], dtype="object") for side in (0, 1))
        if match[1].startswith("datetime"):
            left, right = pd.to_datetime(left), pd.to_datetime(right)
        return pd.IntervalIndex.from_arrays(left.astype(match[1]), right.astype(match[1]), closed=match[2])
    if stored.startswith("period["):
        return pd.PeriodIndex(list(texts), dtype=stored)
    if stored.startswith("timedelta64"):
        return pd.to_timedelta(list(texts)).astype(stored)
    if stored.startswith("datetime64"):
        return pd.to_datetime(list(texts), format="ISO8601", utc="," in stored).astype(stored)
    if stored == "complex128":
        return pd.Index([complex(text) for text in texts], dtype=stored)
    if stored == "date":
        return pd.Index([datetime.date.fromisoformat(text) for text in texts], dtype="object")
    if stored == "decimal":
        return pd.Index([decimal.Decimal(text) for text in texts], dtype="object")
    raise ValueError(f"nothing is known of how {stored!r} is written")


def arrow_type_of(name: str) -> pa.DataType:
    """The Arrow type of a name such as "list<item: int64>[pyarrow]"; ValueError if it is none, or not unique."""
    found, rest = _arrow_type(name.removesuffix(ARROW))
    if rest:
        raise ValueError(f"{name!r} is not understood from {rest!r} on")
    return found


def _arrow_type(text: str) -> tuple[pa.DataType, str]:
    import pyarrow as pa

    for head, build in (("list<", pa.list_), ("large_list<", pa.large_list)):
        if text.startswith(head):
            (inner,), rest = _fields(text[len(head) :])
            return build(inner), rest
    if text.startswith("struct<"):
        fields, rest = _fields(text[len("struct<") :])
        return pa.struct(fields), rest
    if match := re.match(r"dictionary<values=(.*), indices=(u?int\d+), ordered=([01])>", text):
        values, rest = _arrow_type(match[1])
        if rest:
            raise ValueError(f"{match[1]!r} is no type")
        return pa.dictionary(pa.type_for_alias(match[2]), values, match[3] == "1"), text[match.end() :]
    if match := re.match(r"timestamp\[(\w+), tz=([^\]]+)\]", text):
        return pa.timestamp(match[1], match[2]), text[match.end() :]
    if match := re.match(r"decimal(128|256)\((\d+), (-?\d+)\)", text):
        build = pa.decimal128 if match[1] == "128" else pa.decimal256
        return build(int(match[2]), int(match[3])), text[match.end() :]
    match = re.match(r"\w+(\[\w+\])?", text)
    if match is None:
        raise ValueError(f"{text!r} is no type")
    return pa.type_for_alias(match[0]), text[match.end() :]


def _fields(text: str) -> tuple[list[pa.Field], str]:
    """Fields up to the closing ">", and what follows it."""
    import pyarrow as pa

    fields = []
    while True:
        name, separator, text = text.partition(": ")
        if not separator:
            raise ValueError("a field has no type")
        inner, text = _arrow_type(text)
        nullable = not text.startswith(" not null")
        fields.append(pa.field(name, inner, nullable))
        text = text.removeprefix(" not null")
        if text.startswith(">"):
            return fields, text[1:]
        if not text.startswith(", "):
            raise ValueError(f"{text!r} follows a field")
        text = text[2:]


def _arrow_series(values: Sequence[Any], name: str, written: Sequence[Any] = ()) -> pd.Series:
    import pandas as pd
    import pyarrow as pa

    kind = arrow_type_of(name)
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    cells: list[Any] = [None if is_missing(value) else value for value in values]
    if pa.types.is_decimal(inner):
        step = decimal.Decimal(1).scaleb(-inner.scale)
        cells = [None if value is None else _quantized(value, step) for value in written]
    if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
        cells = [value.encode() if isinstance(value, str) else value for value in cells]
    if pa.types.is_timestamp(inner) and inner.tz is not None:
        cells = in_utc(cells)
    array = pa.array(cells, type=inner)
    if inner is not kind:
        array = array.dictionary_encode().cast(kind)
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))


def _objects(values: Sequence[Any], convert: Any) -> pd.Series:
    import pandas as pd

    return pd.Series([None if value is None else convert(value) for value in values], dtype="object")


def _quantized(value: Any, step: decimal.Decimal) -> decimal.Decimal:
    with decimal.localcontext(prec=100):
        return decimal.Decimal(number_text(value)).quantize(step)
