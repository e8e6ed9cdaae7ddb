"""Tables from files: reading with the checks that keep a wrong file from becoming a wrong model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from difflm.pipelines import tables
from difflm.training.delimited_files import (
    TableError,
    find_delimiter,
    find_encoding,
    read_delimited,
    rounded_integers,
)


MIN_ROWS = 2
READABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".json")

_UNPACK = "unpack it first"
_EXPORT = "save the sheet as .csv, or read it in Python and fit the frame: fit(pandas.read_excel(...), ...)"
_REMEDIES = dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz"), _UNPACK)
_REMEDIES |= dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _EXPORT)
_REMEDIES |= dict.fromkeys((".txt", ".dat", ".data", ""), "if it is a table of text, rename it to .csv or .tsv")
_REMEDIES |= {".ndjson": "rename it to .jsonl", ".geojson": "convert it to one object a line, .jsonl"}
# Starts of files that are no text, whatever their ending says.
_NO_TEXT = (
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh91AY&SY", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstandard", _UNPACK),
    (b"PK\x03\x04", "a zip archive or an Excel file", f"unpack it, or {_EXPORT}"),
    (b"\xd0\xcf\x11\xe0", "an Excel file", _EXPORT),
    (b"PAR1\x15", "a parquet file", "rename it to .parquet"),
)


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
    encoding: str | None = None,
    na_values: Sequence[str] | None = None,
    decimal: str = ".",
    thousands: str | None = None,
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
        Of CSV and TSV files. Default: tab for .tsv, and for .csv the comma, or that one of ";", tab and "|" which
        alone fits the first rows (with a warning that says so).
    encoding : str, optional
        Of text files. Default: what a byte order mark says (UTF-8, UTF-16, UTF-32), else UTF-8.
    na_values : sequence of str, optional
        The only strings that mean "missing" in a CSV or TSV file. Default: pandas' list ("", "NA", "null", ...).
    decimal : str, default "."
        Decimal mark of numbers in a CSV or TSV file.
    thousands : str, optional
        What groups the digits of numbers in a CSV or TSV file, e.g. ",".
    min_rows : int, default 2
        Fewer rows are refused.

    Returns
    -------
    pandas.DataFrame
        Decimals are read to the last digit, integers beyond 2**53 beside missing values as Int64. A CSV column of
        numbers with leading zeros is text (with a warning), and named index levels of a parquet file are columns.

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
        found = f"files ending in {ending!r}" if ending else "a file without an ending"
        raise TableError(
            f"{path}: cannot read {found}, only {', '.join(READABLE_ENDINGS)}: {_REMEDIES.get(ending, 'convert it')}"
        )
    if path.stat().st_size == 0:
        raise TableError(f"{path} is empty")
    if ending == ".parquet":
        return _checked(_read_parquet(path), str(path), min_rows)
    _check_text(path)
    found = find_encoding(path, encoding)
    try:
        if ending in (".csv", ".tsv"):
            frame = read_delimited(
                path,
                delimiter=delimiter or ("\t" if ending == ".tsv" else find_delimiter(path, found)),
                encoding=found,
                text_columns=text_columns,
                na_values=na_values,
                decimal=decimal,
                thousands=thousands,
            )
        else:
            frame = _read_objects(path, found, lines=ending == ".jsonl")
    except UnicodeError as error:
        place = ""
        if isinstance(error, UnicodeDecodeError):
            place = f" (byte {error.object[error.start]:#04x} at position {error.start})"
        raise TableError(
            f"{path} is not {encoding or found} text{place}: name its encoding, e.g. --encoding latin-1 "
            f"(encoding='latin-1'), or convert it: iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    return _checked(frame, str(path), min_rows)


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    for mark, kind, remedy in _NO_TEXT:
        if start.startswith(mark):
            raise TableError(f"{path} is {kind}, not {path.suffix.lower()}: {remedy}")


def read_like(path: str | Path, text_columns: Sequence[str], **options: Any) -> pd.DataFrame:
    """Read a table beside another whose ``text_columns`` are text: they are text here, too, if they are here.

    Parameters
    ----------
    path : str or Path
    text_columns : sequence of str
    **options
        Of [`read_table`]; one row is enough.
    """
    frame = read_table(path, min_rows=1, **options)
    numbers = [name for name in text_columns if name in frame and pd.api.types.is_numeric_dtype(frame[name])]
    return read_table(path, min_rows=1, text_columns=numbers, **options) if numbers else frame


def _checked(frame: pd.DataFrame, source: str, min_rows: int) -> pd.DataFrame:
    if len(frame.columns) == 0:
        raise TableError(f"{source} has no columns")
    if len(frame) < min_rows:
        found = {0: "no rows, only column names", 1: "one row"}.get(len(frame), f"{len(frame)} rows")
        fit = f"a fit needs at least {min_rows} rows (some hundreds to be useful)"
        raise TableError(f"{source} has {found}: {fit if min_rows > 1 else 'at least one is needed'}")
    return frame


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
    frame = tables.without_absent_fields(table.to_pandas(maps_as_pydicts="lossy"), table.schema)
    # What pandas stored as the index is a column like the others; row numbers have no name.
    levels = [level for level in frame.index.names if level is not None and level not in frame.columns]
    frame = tables.as_dataframe(frame.reset_index(level=levels) if levels else frame)
    for name in rounded_integers(frame):
        if pa.types.is_integer(table.schema.field(name).type):
            frame[name] = pd.array(table[name].to_pylist(), dtype="Int64")
    return frame


def _read_objects(path: Path, encoding: str, *, lines: bool) -> pd.DataFrame:
    rows: list[Any] = []
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
