"""The output folder of a fit: what may be written where, checkpoints, resuming, atomic saving."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from difflm.files import write_json
from difflm.pipelines.hub_saving import follow_umask, replace_pipeline
from difflm.training.progress import no_file_bars


MARKER = "difflm_fit.json"


class FitFolder:
    """A folder that a fit owns.

    Parameters
    ----------
    path : path
        Created if missing. While a fit runs it holds ``difflm_fit.json`` and ``checkpoints/``; at its end the
        pipeline, ``training_log.json`` and ``latents.safetensors``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.autoencoder_checkpoints = self.checkpoints / "autoencoder"
        self.denoiser_checkpoints = self.checkpoints / "denoiser"
        self.autoencoder = self.checkpoints / "fitted_autoencoder"

    def prepare(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready, or say why it must not be used.

        Raises
        ------
        FileExistsError, NotADirectoryError, FileNotFoundError
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: name a folder for the pipeline.")
        ours = (self.path / MARKER).is_file()
        if self.path.is_dir() and any(self.path.iterdir()) and not ours:
            raise FileExistsError(
                f"{self.path} exists and was not written by a fit; nothing in it is touched. Name a new folder."
            )
        finished = (self.path / "model_index.json").is_file()
        if ours and not (resume or overwrite):
            remedy = "overwrite it (--overwrite)" if finished else "resume it (--resume) or overwrite it (--overwrite)"
            raise FileExistsError(
                f"{self.path} holds {'a fitted pipeline' if finished else 'an unfinished fit'}: {remedy}."
            )
        if resume and not overwrite:
            if not ours:
                raise FileNotFoundError(f"{self.path} holds no fit to resume: leave --resume out to start one.")
            if finished:
                raise FileExistsError(f"{self.path} holds a finished fit: there is nothing to resume.")
        if overwrite and ours and not resume:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def check_settings(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Write the fit's settings; when resuming, refuse others than those it was started with."""
        marker = self.path / MARKER
        settings = json.loads(json.dumps(settings))
        if resume and marker.is_file():
            before = json.loads(marker.read_text(encoding="utf-8"))
            changed = sorted(name for name in settings if settings[name] != before.get(name))
            if changed:
                raise ValueError(
                    f"The fit in {self.path} was started with other {', '.join(changed)}: resume with the same data "
                    "and options, or start anew with --overwrite."
                )
        write_json(marker, settings)

    def last_autoencoder_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, if any."""
        found = []
        for path in self.autoencoder_checkpoints.glob("checkpoint-*"):
            number = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if number and (path / "trainer_state.json").is_file():
                found.append((int(number.group(1)), path))
        return max(found)[1] if found else None

    @property
    def autoencoder_is_done(self) -> bool:
        return (self.autoencoder / "training_log.json").is_file()

    def save_autoencoder(self, model: Any, log: dict[str, Any]) -> None:
        """Keep the fitted autoencoder, so that an interruption later does not cost it."""
        with no_file_bars():
            model.save_pretrained(self.autoencoder)
        write_json(self.autoencoder / "training_log.json", log)

    def save_pipeline(self, pipeline: Any, log: dict[str, Any], save_more: Callable[[Path], None]) -> None:
        """Save the pipeline whole or not at all, then drop the checkpoints."""
        partial = self.path / ".saving"
        shutil.rmtree(partial, ignore_errors=True)
        with no_file_bars():
            pipeline.save_pretrained(partial)
        save_more(partial)
        follow_umask(partial.glob("*.safetensors"))
        write_json(partial / "training_log.json", log)
        replace_pipeline(partial, self.path)
        partial.rmdir()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
