"""The one way to write a file or a folder: whole or not at all; and reading JSON back."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape as glob_escape
from pathlib import Path
from typing import Any

from difflm.errors import DamagedPipelineError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hand out a temporary file beside ``path``; when the block ends well, it takes the place of ``path``.

    Whoever reads ``path`` sees the old content or the whole new one, and a failure leaves the old one. The file gets
    the mode of any new file, whatever mode its writer gave it (safetensors' are readable for their owner alone).

    Parameters
    ----------
    path
        Its folder must exist.

    Yields
    ------
    Path
        Exists and is empty. Its ending is that of ``path``: pandas chooses the format by it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hand out an empty temporary folder beside ``path``; when the block ends well, it takes the place of ``path``.

    A failure leaves what was there. What a killed process left behind is removed by the next one.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int = 1) -> None:
    """Write a JSON document, whole or not at all; a line feed ends it."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object of a pipeline's folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedPipelineError
        If the file does not hold a JSON object; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedPipelineError(f"{path}: not a readable JSON file ({error}); copy the pipeline anew") from error
    if not isinstance(content, dict):
        raise DamagedPipelineError(f"{path}: expected a JSON object; copy the pipeline anew")
    return content


def drop_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of ``path`` that killed processes left; nobody else may be writing it."""
    target = Path(path)
    for left in target.parent.glob(f".{glob_escape(target.stem)}.*.partial{glob_escape(target.suffix)}"):
        left.unlink(missing_ok=True)
