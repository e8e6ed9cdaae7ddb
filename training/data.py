"""Tables from files: reading with the checks that keep a wrong file from becoming a wrong model."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from difflm.errors import DiffLMError
from difflm.pipelines import tables


MIN_ROWS = 2
READABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
_EXACT_FLOAT_INTEGERS = 1 << 53


class TableError(DiffLMError, ValueError):
    """A file or table cannot be used for fitting; the message names the file, row or column and the remedy."""


def as_dataframe(data: Any, *, min_rows: int = MIN_ROWS) -> pd.DataFrame:
    """Turn a pandas.DataFrame, a datasets.Dataset or a list of dict into a checked DataFrame.

    Parameters
    ----------
    data : pandas.DataFrame, datasets.Dataset or list of dict
    min_rows : int, default 2
        Fewer rows are refused: a fit needs one to learn from and one to validate on.

    Raises
    ------
    TableError
        No columns or fewer than ``min_rows`` rows.
    difflm.pipelines.errors.SchemaError
        Repeated or non-string column names, or data of another type.
    """
    return _checked(tables.as_dataframe(data), "the data", min_rows)


def read_table(
    path: str | Path,
    *,
    text_columns: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str = "utf-8",
    na_values: Sequence[str] | None = None,
    min_rows: int = MIN_ROWS,
) -> pd.DataFrame:
    """Read a table; the ending says how.

    Parameters
    ----------
    path : str or Path
        ``.csv`` and ``.tsv`` with a header line; ``.parquet``; ``.jsonl``, one object a line; ``.json``, an array of
        objects.
    text_columns : sequence of str
        Columns of a CSV or TSV file to read as strings, digits and leading zeros kept (codes, phone numbers).
    delimiter : str, optional
        Of CSV and TSV files; default "," for .csv and tab for .tsv.
    encoding : str, default "utf-8"
        Of text files. A byte order mark is skipped.
    na_values : sequence of str, optional
        The only strings that mean "missing" in a CSV or TSV file. Default: pandas' list ("", "NA", "null", ...).
    min_rows : int, default 2
        Fewer rows are refused.

    Returns
    -------
    pandas.DataFrame
        Decimals are read to the last digit, integers beyond 2**53 beside missing values as Int64.

    Raises
    ------
    FileNotFoundError
        No such file.
    TableError
        Unknown ending, empty or damaged file, too few rows, a repeated column name, a row of the wrong length,
        another encoding.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise TableError(f"{path} is a folder, expected a file ending in {', '.join(READABLE_ENDINGS)}")
    ending = path.suffix.lower()
    if ending not in READABLE_ENDINGS:
        raise TableError(
            f"{path}: cannot read files ending in {ending or 'nothing'!r}, only {', '.join(READABLE_ENDINGS)}: "
            "convert it"
        )
    if path.stat().st_size == 0:
        raise TableError(f"{path} is empty")
    try:
        if ending == ".parquet":
            frame = _read_parquet(path)
        elif ending in (".csv", ".tsv"):
            separator = delimiter or ("\t" if ending == ".tsv" else ",")
            frame = _read_delimited(path, separator, encoding, text_columns, na_values)
        else:
            frame = _read_objects(path, encoding, lines=ending == ".jsonl")
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path} is not {encoding} text (byte {error.object[error.start]:#04x} at position {error.start}): pass "
            f"its encoding, e.g. encoding='latin-1', or convert it: iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    return _checked(frame, str(path), min_rows)


def _checked(frame: pd.DataFrame, source: str, min_rows: int) -> pd.DataFrame:
    if len(frame.columns) == 0:
        raise TableError(f"{source} has no columns")
    if len(frame) < min_rows:
        found = {0: "no rows, only column names", 1: "one row"}.get(len(frame), f"{len(frame)} rows")
        fit = f"a fit needs at least {min_rows} rows (some hundreds to be useful)"
        raise TableError(f"{source} has {found}: {fit if min_rows > 1 else 'at least one is needed'}")
    return frame


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields over 128 KiB; the limit is global, so it is put back."""
    previous = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _read_delimited(
    path: Path, delimiter: str, encoding: str, text_columns: Sequence[str], na_values: Sequence[str] | None
) -> pd.DataFrame:
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    names = _check_lines(path, delimiter, encoding)
    if unknown := [name for name in text_columns if name not in names]:
        raise TableError(
            f"{path}: text_columns: no column {unknown[0]!r}; the columns are {', '.join(map(repr, names))}"
        )
    options: dict[str, Any] = {
        "sep": delimiter,
        "encoding": encoding,
        "index_col": False,
        "low_memory": False,  # in chunks, a column could come out with mixed types
        "float_precision": "round_trip",  # the default is off by the last digit, which would look like more decimals
        "keep_default_na": na_values is None,
        "na_values": list(na_values) if na_values is not None else None,
    }
    dtypes: dict[str, Any] = dict.fromkeys(text_columns, "str")
    try:
        frame = pd.read_csv(path, dtype=dtypes, **options)
        rounded = _rounded_integers(frame)
        if rounded:
            frame = pd.read_csv(path, dtype=dtypes | dict.fromkeys(rounded, "Int64"), **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path} is not a table with the delimiter {delimiter!r}: {error}") from None
    return frame


def _rounded_integers(frame: pd.DataFrame) -> list[str]:
    """Integer columns that pandas rounded: read as floats because of a missing value, and too large for that."""
    rounded = []
    for name in frame.columns[frame.dtypes == "float64"]:
        present = frame[name].dropna()
        exact = present.abs().between(_EXACT_FLOAT_INTEGERS, 2.0**63, inclusive="left")
        if len(present) < len(frame) and exact.any() and (present % 1 == 0).all() and (present.abs() < 2.0**63).all():
            rounded.append(name)
    return rounded


def _check_lines(path: Path, delimiter: str, encoding: str) -> list[str]:
    """Check header and row lengths on the raw file (pandas renames repeated columns and pads short rows)."""
    with path.open(encoding=encoding, newline="") as file, _long_fields():
        reader = csv.reader(file, delimiter=delimiter)
        try:
            names = next((row for row in reader if row), [])
            _check_names(path, names, delimiter)
            for row in reader:
                if row and len(row) != len(names):  # pandas skips empty lines too
                    raise TableError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}: quote "
                        f"fields that contain the delimiter {delimiter!r}, or pass another delimiter"
                    )
        except csv.Error as error:
            raise TableError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    return names


def _check_names(path: Path, names: Sequence[str], delimiter: str) -> None:
    if not any(name.strip() for name in names):
        raise TableError(f"{path} has no header line with column names")
    for name in names:
        if name and names.count(name) > 1:
            raise TableError(
                f"{path}: column name {name!r} occurs {names.count(name)} times in the header: rename them"
            )
    if "" in names:
        warnings.warn(
            f"{path}: column {names.index('') + 1} has no name; if it holds row numbers, drop it",
            stacklevel=5,
        )
    if len(names) == 1 and (other := next((char for char in ";\t|" if char in names[0]), None)):
        warnings.warn(f"{path} has one column, {names[0]!r}: is the delimiter {other!r}?", stacklevel=5)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise TableError(f"{path}: column name {repeated!r} occurs {names.count(repeated)} times: rename them")
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path} is not a readable parquet file: {error}") from None
    frame = tables.as_dataframe(table.to_pandas())
    for name in _rounded_integers(frame):
        if pa.types.is_integer(table.schema.field(name).type):
            frame[name] = pd.array(table[name].to_pylist(), dtype="Int64")
    return frame


def _read_objects(path: Path, encoding: str, *, lines: bool) -> pd.DataFrame:
    rows: list[Any] = []
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    with path.open(encoding=encoding) as file:
        if lines:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_load_json(line, f"{path}, line {number}"))
                    if not isinstance(rows[-1], Mapping):
                        raise TableError(f"{path}, line {number}: expected an object, found {type(rows[-1]).__name__}")
        else:
            rows = _load_json(file.read(), str(path))
            if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
                raise TableError(f"{path}: expected an array of objects, one for each row")
    if not rows:
        raise TableError(f"{path} has no rows")
    return tables.as_dataframe(rows)


def _load_json(text: str, place: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise TableError(f"{place}: the key {key!r} occurs twice in an object: rename one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise TableError(f"{place}: not JSON: {error}") from None
