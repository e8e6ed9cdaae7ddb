"""The output folder of a fit: who may write it, checkpoints, resuming, and the swap of the old pipeline for the new.

A fit works in ``checkpoints/`` and touches nothing beside it until the new pipeline is saved whole there::

    checkpoints/difflm_fit.json      what is fitted on what: a fit with other data or arguments does not resume it
    checkpoints/fitted_draft/        the draft of a table's columns
    checkpoints/autoencoder/         the trainer's checkpoints
    checkpoints/fitted_autoencoder/  its result, where the denoiser comes after
    checkpoints/denoiser/            the other trainer's checkpoints
    checkpoints/fitted_denoiser/     its result, where the language model comes after
    checkpoints/finished/            the new pipeline, whole, on its way out
    checkpoints/previous/            the old one, while the new takes its place
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from difflm.errors import DiffLMError
from difflm.files import atomic_folder, read_json, write_json
from difflm.training.fingerprint import check_same
from difflm.training.processes import is_main_process, wait_for_everyone
from difflm.training.progress import no_file_bars


INDEX = "model_index.json"
MARKER = "difflm_fit.json"
FINISHED = "finished"
PREVIOUS = "previous"
SWAP = "swap.json"
LOCK = "lock"
# What else describes a pipeline: it goes with the one it describes.
CARD = ("README.md", "evaluation.json", "figures", "training_log.json", "latents.safetensors")


class FolderInUseError(DiffLMError, FileExistsError):
    """Another fit is at work in the folder."""


class FitFolder:
    """A folder that a fit owns. Of several processes the main one reads and writes, the others wait for it.

    Parameters
    ----------
    path : path
        Created when the fit begins.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.autoencoder_checkpoints = self.checkpoints / "autoencoder"
        self.denoiser_checkpoints = self.checkpoints / "denoiser"
        self.draft, self.autoencoder, self.denoiser = (
            self.checkpoints / f"fitted_{part}" for part in ("draft", "autoencoder", "denoiser")
        )

    @property
    def has_pipeline(self) -> bool:
        """Whether a whole pipeline lies here."""
        return (self.path / INDEX).is_file()

    @property
    def has_progress(self) -> bool:
        """Whether there is something to resume: a fit that was begun and has a whole checkpoint."""
        if not (self.checkpoints / MARKER).is_file():
            return False
        done = (self.draft.is_dir(), self.autoencoder.is_dir(), self.denoiser.is_dir())
        return any(done) or self.last_autoencoder_checkpoint() is not None

    def last_autoencoder_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, if any."""
        found = []
        for path in self.autoencoder_checkpoints.glob("checkpoint-*"):
            number = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if number and (path / "trainer_state.json").is_file():
                found.append((int(number.group(1)), path))
        return max(found)[1] if found else None

    def check(self, *, resume: bool = False, overwrite: bool = False) -> Literal["new", "resume", "done"]:
        """Say how a fit begins here, or why it must not, before any work is done. Nothing in the folder is changed.

        But a swap that was interrupted is completed: the new pipeline was saved whole.

        Returns
        -------
        {"new", "resume", "done"}
            Anew, from a checkpoint, or not at all, since the fit to resume had only its swap left.

        Raises
        ------
        FileExistsError, NotADirectoryError, FileNotFoundError
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: name a folder for the pipeline.")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
            raise FileExistsError(
                f"{self.path} exists and was not written by a fit; nothing in it is touched. Name a new folder."
            )
        swapping = (self.checkpoints / FINISHED).is_dir()
        wait_for_everyone()
        if swapping and is_main_process():
            with self._lock():
                if (self.checkpoints / FINISHED).is_dir():  # the fit that was swapping may have ended meanwhile
                    self._swap()
        wait_for_everyone()
        if resume and swapping:
            return "done"
        begins: Literal["new", "resume"] = "resume" if resume and self.has_progress else "new"
        if begins == "new" and not overwrite:
            self._refuse(resume)
        wait_for_everyone()
        return begins

    def _refuse(self, resume: bool) -> None:
        begun = (self.checkpoints / MARKER).is_file()
        if resume and self.has_pipeline:
            if begun:
                raise FileExistsError(f"The fit begun in {self.path} has no checkpoint: start it anew (--overwrite).")
            raise FileExistsError(f"{self.path} holds a finished fit: there is nothing to resume.")
        if resume and not begun:
            raise FileNotFoundError(f"{self.path} holds no fit to resume: leave --resume out to start one.")
        if found := ["a fitted pipeline"] * self.has_pipeline + ["an unfinished fit"] * self.has_progress:
            remedy = "resume it (--resume) or " * self.has_progress + "overwrite it (--overwrite)"
            raise FileExistsError(f"{self.path} holds {' and '.join(found)}: {remedy}.")
        if (self.path / MARKER).is_file():
            raise FileExistsError(
                f"{self.path} holds an unfinished fit of an older version, which cannot be resumed: overwrite it "
                "(--overwrite)."
            )

    def _is_ours(self) -> bool:
        if (self.path / MARKER).is_file() or (self.checkpoints / MARKER).is_file():
            return True
        # A fit that was killed before it had written what it is.
        names = {item.name for item in self.path.iterdir()}
        return names == {"checkpoints"} and {item.name for item in self.checkpoints.iterdir()} <= {LOCK}

    @contextlib.contextmanager
    def opened(self, description: dict[str, Any], *, resume: bool) -> Iterator[None]:
        """Own the folder while the block runs, from the first step on.

        A fit that ends before it has a checkpoint leaves nothing behind.

        Parameters
        ----------
        description : dict
            What is fitted on what; see [`describe`].
        resume : bool
            Go on with the fit that is there, if its description is the same, instead of starting anew.

        Raises
        ------
        FolderInUseError
            If another fit is at work here.
        ResumeError
            If the fit to resume has other data or arguments; names them.
        """
        if not is_main_process():
            wait_for_everyone()
            if resume:
                check_same(read_json(self.checkpoints / MARKER), description, self.path)
            yield
            return
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if resume:
                check_same(read_json(self.checkpoints / MARKER), description, self.path)
            else:
                for item in self.checkpoints.iterdir():
                    if item.name != LOCK:
                        _remove(item)
                write_json(self.checkpoints / MARKER, description)
            wait_for_everyone()
            try:
                yield
            finally:
                if not self.has_progress:
                    shutil.rmtree(self.checkpoints, ignore_errors=True)
                    with contextlib.suppress(OSError):  # not empty
                        for path in made:
                            path.rmdir()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other fits out; a process that is killed gives its lock back."""
        lock = FileLock(self.checkpoints / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUseError(
                f"Another fit is at work in {self.path}: wait for it, or name a new folder."
            ) from None
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        try:
            yield
        finally:
            lock.release()

    def save_pipeline(self, save: Callable[[Path], None]) -> None:
        """Save the new pipeline beside the old one, then let it take the old one's place; then drop the checkpoints.

        Whenever this is interrupted, the old pipeline or the new one is whole here, or the next fit makes it so.
        """
        if is_main_process():
            with atomic_folder(self.checkpoints / FINISHED) as folder:
                with no_file_bars():
                    save(folder)
                description = read_json(self.checkpoints / MARKER)
                names = sorted({item.name for item in folder.iterdir()} | {MARKER})
                write_json(folder / MARKER, description | {"files": names})
            self._swap()
        wait_for_everyone()

    def _swap(self) -> None:
        """Move the old pipeline away and the new one in, each with its index as the last to be there.

        Moving is all that happens, so that a full disk cannot stop it. What a killed process left is completed; a
        failure puts the old one back.
        """
        finished, previous = self.checkpoints / FINISHED, self.checkpoints / PREVIOUS
        previous.mkdir(exist_ok=True)
        if not (self.checkpoints / SWAP).is_file():
            new = sorted(item.name for item in finished.iterdir())
            old = self._old_names(new)
            write_json(self.checkpoints / SWAP, {"new": new, "old": old})
        plan = read_json(self.checkpoints / SWAP)
        new, old = plan["new"], plan["old"]
        try:
            for name in sorted(old, key=lambda name: name != INDEX):
                if os.path.lexists(self.path / name) and (name not in new or (finished / name).exists()):
                    os.replace(self.path / name, previous / name)
            for name in sorted(new, key=lambda name: name == INDEX):
                if (finished / name).exists():
                    os.replace(finished / name, self.path / name)
        except BaseException:
            for name in new:
                if os.path.lexists(self.path / name) and not (finished / name).exists():
                    os.replace(self.path / name, finished / name)
            for name in sorted(old, key=lambda name: name == INDEX):
                if os.path.lexists(previous / name):
                    os.replace(previous / name, self.path / name)
            raise
        (self.checkpoints / MARKER).unlink(missing_ok=True)
        finished.rmdir()
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _old_names(self, new: list[str]) -> list[str]:
        """What of the folder is the old pipeline's: files that others put there stay."""
        names = {*new, *CARD}
        marker = self.path / MARKER
        written = read_json(marker).get("files") if marker.is_file() else None
        # Older versions did not write them down.
        names.update(written or [path.name for path in self.path.glob("*.py")])
        return sorted(name for name in names if os.path.lexists(self.path / name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
