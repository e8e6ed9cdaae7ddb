"""Writing sampled records to a file, whole or not at all."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difflm.errors import ArgumentError
from difflm.files import atomic_file, write_text
from difflm.pipelines.arrow_tables import csv_frame


if TYPE_CHECKING:
    import pandas as pd


ENDINGS = (".parquet", ".csv", ".jsonl")


def is_folder(path: str | Path) -> bool:
    """Whether an output names a folder: by a slash at its end, or because it is one."""
    return str(path).endswith(("/", os.sep)) or Path(path).is_dir()


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check that records can be written to ``path``, before any work is done.

    Raises
    ------
    ArgumentError
        If the ending is none of ``.parquet``, ``.csv``, ``.jsonl``.
    FileNotFoundError
        If the folder does not exist.
    FileExistsError
        If the file exists and may not be replaced.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise ArgumentError(f"{path}: the file must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; create it first", str(target.parent))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(target))
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; add --overwrite or name another file", str(target))
    return target


def write_records(result: Any, path: Path, *, big_integers: str = "decimal") -> None:
    """Write the records of a ``DiffLMPipelineOutput`` as the ending of ``path`` says.

    ``.jsonl`` keeps the JSON values as sampled (missing is ``null``), dates in the data's format; ``.csv`` and
    ``.parquet`` hold the columns with the dtypes of the training table; in ``.csv`` missing is an empty cell, and
    nested values are JSON text. What is written in another form than the records have is said by [`output_notes`]
    beforehand.
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        records = map(result.schema.in_data, result.records)
        write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return
    with atomic_file(path) as temporary:
        if ending == ".csv":
            frame = csv_frame(result.to_pandas(), result.schema)
            frame.to_csv(temporary, index=False, quoting=_quoting(frame))
        else:
            import pyarrow.parquet as pq

            pq.write_table(result.to_arrow(big_integers=big_integers), temporary)


def _quoting(frame: pd.DataFrame) -> int:
    """Which cells of a CSV file stand in quotes: those that must.

    Python's writer leaves a lone carriage return bare where lines end otherwise, and readers take it for a line's end:
    with one in any cell or name, all texts are quoted.
    """
    texts = (value for name in frame.columns for value in (name, *frame[name].unique()))
    bare = any(isinstance(value, str) and "\r" in value for value in texts)
    return csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
