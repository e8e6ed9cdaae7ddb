"""The folder of a script's result: whole or not at all, written by one process, never in place of something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from difflm.files import atomic_folder
from difflm.training.processes import is_main_process, wait_for_everyone


def check_result_folder(path: str | Path, marker: str) -> None:
    """Refuse a folder that holds anything but an earlier result, before any work is done.

    Parameters
    ----------
    path : path
    marker : str
        The file that an earlier result has.

    Raises
    ------
    FileExistsError
    """
    folder = Path(path)
    if not folder.exists() or (folder / marker).is_file() or folder.is_dir() and not any(folder.iterdir()):
        return
    raise FileExistsError(f"{folder} exists and is no earlier result (no {marker}); it is not touched. Name another.")


def save_result(path: str | Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write into a new folder, which takes the place of ``path``. Of several processes the main one does.

    The others wait for it.
    """
    if is_main_process():
        with atomic_folder(path) as folder:
            save(folder)
    wait_for_everyone()
