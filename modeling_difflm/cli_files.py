"""Writing sampled records to a file, whole or not at all."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


ENDINGS = (".parquet", ".csv", ".jsonl")


def is_folder(path: str | Path) -> bool:
    """Whether an output names a folder: by a slash at its end, or because it is one."""
    return str(path).endswith(("/", os.sep)) or Path(path).is_dir()


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check that records can be written to ``path``, before any work is done.

    Raises
    ------
    ValueError
        If the ending is none of ``.parquet``, ``.csv``, ``.jsonl``.
    FileNotFoundError
        If the folder does not exist.
    FileExistsError
        If the file exists and may not be replaced.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: the file must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; create it first", str(target.parent))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(target))
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; add --overwrite or name another file", str(target))
    return target


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it into place.

    Whoever reads ``path`` sees the old content or the whole new one, and a failure leaves the old one.
    """
    # The ending stays the last: pandas chooses by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_records(result: Any, path: Path) -> None:
    """Write the records of a ``DiffLMPipelineOutput`` as the ending of ``path`` says.

    ``.jsonl`` keeps the JSON values as sampled (missing is ``null``); ``.csv`` and ``.parquet`` hold the columns with
    the dtypes of the training table (missing is an empty cell in ``.csv``).
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in result.records)
        write_atomically(path, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        return
    frame = result.to_pandas()
    if ending == ".csv":
        write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))
    else:
        write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))
