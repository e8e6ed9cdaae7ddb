"""Tables from text files with delimiters: what their encoding, delimiter and cells tell, and what would be lost."""

from __future__ import annotations

import codecs
import csv
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from difflm.errors import DiffLMError


_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_ROWS = 100
_EXACT_FLOAT_INTEGERS = 1 << 53
_LEADING_ZERO = r"\s*[+-]?0[0-9]"
_LONG_INTEGER = r"\s*[+-]?[0-9]{1,400}\s*"
# Numbers of pandas' text columns: how they are written, and the options that read them as numbers.
_NUMBERS_AS_TEXT: tuple[tuple[str, str, dict[str, str]], ...] = (
    (r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", r"[+-]?[0-9]+(\.[0-9]+)?", {"thousands": ","}),
    (r"[+-]?[0-9]{1,3}(_[0-9]{3})+(\.[0-9]+)?", r"[+-]?[0-9]+(\.[0-9]+)?", {"thousands": "_"}),
    (r"[+-]?[0-9]+,[0-9]+", r"[+-]?[0-9]+", {"decimal": ","}),
    (r"[+-]?[0-9]{1,3}(\.[0-9]{3})+,[0-9]+", r"[+-]?[0-9]+(,[0-9]+)?", {"decimal": ",", "thousands": "."}),
)
_NUMBER_WITH_SIGN = r"[+-]?\s*[$€£¥]?\s*[+-]?[0-9][0-9., ]*\s*[%$€£¥]?"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TableError(DiffLMError, ValueError):
    """A file or table cannot be used for fitting; the message names the file, row or column and the remedy."""


def find_encoding(path: Path, encoding: str | None) -> str:
    """The encoding of a text file: the one that is named, or its byte order mark's, or UTF-8.

    Raises
    ------
    TableError
        If Python knows no encoding of this name.
    """
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if encoding is None:
        return marked or "utf-8"
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise TableError(f"{path}: there is no encoding {encoding!r}; e.g. utf-8, latin-1, cp1252, utf-16") from None
    return "utf-8-sig" if name == "utf-8" else name


def find_delimiter(path: Path, encoding: str) -> str:
    """The delimiter of a ``.csv`` file: the comma, unless the file's first rows fit another one alone.

    Quotes are minded: a row fits if it has as many fields, at least two, as the header.
    """
    widths: dict[str, int] = {}
    for delimiter in _DELIMITERS:
        with path.open(encoding=encoding, newline="") as file, _long_fields():
            try:
                rows = [row for row in islice(csv.reader(file, delimiter=delimiter), _SNIFFED_ROWS) if row]
            except csv.Error:
                continue
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            widths[delimiter] = len(rows[0])
    # Never a choice between two: text holds commas and bars, too.
    if "," in widths or len(widths) != 1:
        return ","
    found = next(iter(widths))
    name = {"\t": "tab"}.get(found, found)
    warnings.warn(
        f"{path} is read with the delimiter {name!r} ({widths[found]} columns); name another with --delimiter "
        "(delimiter=)",
        stacklevel=4,
    )
    return found


def read_delimited(
    path: Path,
    *,
    delimiter: str,
    encoding: str,
    text_columns: Sequence[str],
    na_values: Sequence[str] | None,
    decimal: str,
    thousands: str | None,
) -> pd.DataFrame:
    """Read a file with a header line; see [`difflm.training.data.read_table`]."""
    if len(delimiter) != 1:
        raise TableError(f"{path}: the delimiter is one character, not {delimiter!r}")
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
        "decimal": decimal,
        "thousands": thousands,
    }
    dtypes: dict[str, Any] = dict.fromkeys(text_columns, "str")
    try:
        frame = pd.read_csv(path, dtype=dtypes, **options)
        rounded = rounded_integers(frame)
        long = [name for name in frame.columns if name not in text_columns and _is_long_integers(frame[name])]
        numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
        padded = _padded_numbers(path, [*numbers, *long], options)
        if rounded or padded:
            dtypes |= dict.fromkeys(rounded, "Int64") | dict.fromkeys(padded, "str")
            frame = pd.read_csv(path, dtype=dtypes, **options)
        for name in set(long).difference(padded):
            frame[name] = frame[name].map(int, na_action="ignore")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path} is not a table with the delimiter {delimiter!r}: {error}") from None
    except ValueError as error:
        raise TableError(f"{path} cannot be read with these options: {error}") from None
    if padded:
        warnings.warn(
            f"{path}: numbers with leading zeros are read as text, which keeps them: --text-columns "
            f"{shlex.join(padded)} (text_columns={padded}) says so without this warning",
            stacklevel=4,
        )
    _warn_of_numbers_as_text(path, frame.drop(columns=list(text_columns)))
    return frame


def rounded_integers(frame: pd.DataFrame) -> list[str]:
    """Integer columns that pandas rounded: read as floats because of a missing value, and too large for that."""
    rounded = []
    for name in frame.columns[frame.dtypes == "float64"]:
        present = frame[name].dropna()
        exact = present.abs().between(_EXACT_FLOAT_INTEGERS, 2.0**63, inclusive="left")
        if len(present) < len(frame) and exact.any() and (present % 1 == 0).all() and (present.abs() < 2.0**63).all():
            rounded.append(name)
    return rounded


def _is_long_integers(column: pd.Series) -> bool:
    """Whether a column holds integers of more than 64 bits, which pandas leaves as text."""
    present = column.dropna()
    if column.dtype != "object" or not len(present) or pd.api.types.infer_dtype(present) != "string":
        return False
    return present.str.fullmatch(_LONG_INTEGER).all()


def _padded_numbers(path: Path, numbers: Sequence[str], options: dict[str, Any]) -> list[str]:
    """Columns of numbers some of which are written with leading zeros: postcodes, codes, numbers of accounts."""
    if not numbers:
        return []
    raw = pd.read_csv(path, dtype="str", usecols=list(numbers), **options | {"index_col": None})
    return [name for name in numbers if raw[name].str.match(_LEADING_ZERO, na=False).any()]


def _warn_of_numbers_as_text(path: Path, frame: pd.DataFrame) -> None:
    for name in frame.columns:
        column = frame[name].dropna()
        if not len(column) or pd.api.types.infer_dtype(column, skipna=True) != "string":
            continue
        for grouped, plain, options in _NUMBERS_AS_TEXT:
            if column.str.fullmatch(rf"{grouped}|{plain}").all() and column.str.fullmatch(grouped).any():
                command = " ".join(f"--{option} {value!r}" for option, value in options.items())
                keywords = ", ".join(f"{option}={value!r}" for option, value in options.items())
                warnings.warn(
                    f"{path}: column {name!r} is text like {column.iloc[0]!r}; are these numbers? Read them with "
                    f"{command} ({keywords})",
                    stacklevel=5,
                )
                break
        else:
            if column.str.contains("[%$€£¥]").all() and column.str.fullmatch(_NUMBER_WITH_SIGN).all():
                warnings.warn(
                    f"{path}: column {name!r} is text like {column.iloc[0]!r}; to have it as numbers, take the signs "
                    "off in the file",
                    stacklevel=5,
                )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields over 128 KiB; the limit is global, so it is put back."""
    previous = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _check_lines(path: Path, delimiter: str, encoding: str) -> list[str]:
    """Check header and row lengths on the raw file (pandas renames repeated columns and pads short rows)."""
    with path.open(encoding=encoding, newline="") as file, _long_fields():
        reader = csv.reader(_without_nul(file, path), delimiter=delimiter)
        try:
            names = next((row for row in reader if row), [])
            _check_names(path, names, delimiter)
            for row in reader:
                if row and len(row) != len(names):  # pandas skips empty lines too
                    raise TableError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}: quote "
                        f"fields that contain the delimiter {delimiter!r}, or name another with --delimiter "
                        "(delimiter=)"
                    )
        except csv.Error as error:
            raise TableError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    return names


def _without_nul(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, none of which holds a NUL: pandas would cut a cell there."""
    for number, line in enumerate(file, start=1):
        if "\0" in line:
            raise TableError(
                f"{path}, line {number} holds a NUL character, so that the file is damaged, no text, or in another "
                "encoding, e.g. --encoding utf-16-le (encoding='utf-16-le')"
            )
        yield line


def _check_names(path: Path, names: Sequence[str], delimiter: str) -> None:
    if not any(name.strip() for name in names):
        raise TableError(f"{path} has no header line with column names")
    for name in names:
        if name and names.count(name) > 1:
            raise TableError(
                f"{path}: column name {name!r} occurs {names.count(name)} times in the header: rename them"
            )
    if unnamed := [str(number) for number, name in enumerate(names, start=1) if not name]:
        warnings.warn(
            f"{path}: column {', '.join(unnamed)} has no name; if it holds row numbers, drop it",
            stacklevel=6,
        )
    if len(names) == 1 and (other := next((char for char in ";\t|" if char in names[0]), None)):
        warnings.warn(
            f"{path} has one column, {names[0]!r}: is the delimiter {other!r}? Name it with --delimiter (delimiter=)",
            stacklevel=6,
        )
