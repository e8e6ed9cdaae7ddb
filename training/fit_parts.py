"""The parts of a fit, in the order that its data asks for, each within its time.

Where a draft encodes all columns: draft, denoiser, language model. Where a text encoder has a part of the latent:
draft (if there is one), autoencoder, encoding, denoiser. What a resumed fit has in its folder is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.conditions import ConditionEncoder
from difflm.training.autoencoder_stage import drafted_nats, encode, encoding_seconds, train_autoencoder
from difflm.training.build_autoencoder import build_autoencoder
from difflm.training.denoiser_stage import load_denoiser, save_denoiser, train_denoiser
from difflm.training.draft_stage import FittedColumns, fit_columns
from difflm.training.fit_folder import FitFolder
from difflm.training.fit_time import FitTime, Writer, seconds_used
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.preparation import Prepared
from difflm.training.processes import num_processes
from difflm.training.progress import no_file_bars
from difflm.training.script_results import save_result
from difflm.training.writer_choice import choose_writer


logger = logging.getLogger(__name__)


@dataclass
class FitParts:
    """What the parts work on.

    Attributes
    ----------
    prepared : Prepared
    conditions : ConditionEncoder
    writer : {"auto", "lm", "draft"}, default "auto"
        Who is to write the records; "auto": who does it better on those held out.
    seed : int, default 0
    device : str, optional
        See [`choose_device`].
    show_progress : bool, default True
    model_kwargs, training_kwargs, denoiser_kwargs : dict
        See [`fit`].
    """

    prepared: Prepared
    conditions: ConditionEncoder
    writer: Writer = "auto"
    seed: int = 0
    device: str | None = None
    show_progress: bool = True
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    training_kwargs: dict[str, Any] = field(default_factory=dict)
    denoiser_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.time = FitTime(self.prepared.settings, lm_leads=self.writer == "lm" or self.prepared.reads_text)

    def run(self, folder: FitFolder, *, resume: bool) -> tuple[FittedAutoencoder, DiffLMDenoiser]:
        """Make all parts; the autoencoder's ``log`` then has all figures."""
        columns = self.draft(folder.draft, resume=resume)
        checkpoint = folder.last_autoencoder_checkpoint() if resume else None
        if columns is None or self.prepared.reads_text:
            if resume and folder.autoencoder.is_dir():
                logger.info("The autoencoder is fitted already: going on with the denoiser.")
                fitted = FittedAutoencoder.load(folder.autoencoder, self.device)
            else:
                model, log = self.autoencoder(columns, folder.autoencoder_checkpoints, resume_from=checkpoint)
                fitted = self.encoded(model, columns, log)
                save_result(folder.autoencoder, fitted.save)
            denoiser, log = self.denoiser(fitted, folder, resume=resume, last=True)
            fitted.log |= log
        else:
            fitted = self.encoded(None, columns, columns.log)
            denoiser, log = self.denoiser(fitted, folder, resume=resume, last=False)
            fitted.log |= log
            fitted.model, log = self.autoencoder(
                columns, folder.autoencoder_checkpoints, before=fitted.log, last=True, resume_from=checkpoint
            )
            fitted.log |= log
        fitted.log["fit_seconds"] = seconds_used(fitted.log)
        return fitted, denoiser

    def draft(self, folder: Path | None = None, *, resume: bool = False) -> FittedColumns | None:
        """The draft, kept in the folder if one is given; None where there is nothing for a draft to write."""
        if resume and folder is not None and folder.is_dir():
            return FittedColumns.load(folder, self.device)
        found = fit_columns(
            self.prepared,
            max_seconds=self.time.draft(),
            seed=self.seed,
            device=self.device,
            show_progress=self.show_progress,
        )
        if found is not None and folder is not None:
            save_result(folder, found.save)
            if num_processes() > 1:  # each has trained one, and all go on with the same
                found = FittedColumns.load(folder, self.device)
        return found

    def autoencoder(
        self,
        columns: FittedColumns | None,
        checkpoints: Path,
        *,
        before: Mapping[str, Any] | None = None,
        last: bool = False,
        resume_from: Path | None = None,
    ) -> tuple[DiffLMModel, dict[str, Any]]:
        """Build a model and train it, over a draft's latents if there is one; return it and its figures.

        ``before`` are the figures of the parts before, and ``last`` says that none comes after.
        """
        prepared, policy = self.prepared, self.prepared.settings.policy
        used = seconds_used(before or ({} if columns is None else columns.log))
        set_seed(self.seed)
        with no_file_bars(not self.show_progress):
            model = build_autoencoder(prepared, self.model_kwargs, self.device, columns)
        floor = rival = None
        if last:
            seconds = self.time.language_model(used)
        else:
            encoding = encoding_seconds(model, prepared, columns) if model.encoder is not None else 0.0
            seconds = self.time.autoencoder(used, encoding, has_draft=model.record_draft is not None)
        if columns is not None and not prepared.reads_text:
            rival = columns.nats(prepared, policy.max_evaluation_records, self.seed)
            floor = self.time.floor((1 - policy.min_writer_gain) * rival, self.writer)
        log = train_autoencoder(
            model,
            prepared,
            checkpoints,
            columns=columns,
            max_seconds=seconds,
            floor=floor,
            seed=self.seed,
            resume_from=resume_from,
            show_progress=self.show_progress,
            training_kwargs=self.training_kwargs,
        )
        if rival is not None:
            log |= self._writer(log["reconstruction_own_latent"], rival)
        return model, log

    def encoded(
        self, model: DiffLMModel | None, columns: FittedColumns | None, log: dict[str, Any]
    ) -> FittedAutoencoder:
        """What the denoiser learns: the draft's latents, and where there is a text encoder its part of them."""
        prepared = self.prepared
        log = self._first_figures() | ({} if columns is None else columns.log) | log
        if columns is not None and not prepared.reads_text:
            posteriors = columns.posteriors
        else:
            if model is None:
                raise ValueError("Texts are encoded by an autoencoder.")
            posteriors, log["encoding_seconds"] = encode(model, prepared, columns, show_progress=self.show_progress)
            log |= self._writer(*drafted_nats(model, prepared, columns, posteriors[1], self.seed))
        return FittedAutoencoder.of_posteriors(
            prepared, posteriors, self.conditions, log, model=model, columns=columns
        )

    def denoiser(
        self, fitted: FittedAutoencoder, folder: FitFolder, *, resume: bool, last: bool
    ) -> tuple[DiffLMDenoiser, dict[str, Any]]:
        """The denoiser and its figures, kept in the folder where another part comes after."""
        if resume and folder.denoiser.is_dir():
            return load_denoiser(folder.denoiser, fitted.device)
        denoiser, log = train_denoiser(
            fitted,
            folder.denoiser_checkpoints,
            max_seconds=self.time.denoiser(seconds_used(fitted.log), last=last),
            seed=self.seed,
            resume=resume,
            show_progress=self.show_progress,
            denoiser_kwargs=self.denoiser_kwargs,
        )
        if not last:
            save_result(folder.denoiser, lambda path: save_denoiser(denoiser, log, path))
        return denoiser, log

    def _writer(self, lm_nats: float | None, draft_nats: float | None) -> dict[str, Any]:
        choice = choose_writer(
            self.writer,
            has_draft=draft_nats is not None,
            lm_nats=lm_nats,
            draft_nats=draft_nats,
            least_gain=self.prepared.settings.policy.min_writer_gain,
        )
        if draft_nats is not None:
            name = "language model" if choice.writer == "lm" else "draft"
            logger.info("Records will be written by the %s: %s.", name, choice.reason)
        return {
            "writer": choice.writer,
            "writer_reason": choice.reason,
            "lm_nats": lm_nats,
            "draft_nats": draft_nats,
        }

    def _first_figures(self) -> dict[str, Any]:
        prepared = self.prepared
        return {
            "domain": prepared.domain.name,
            "rows": len(prepared.train),
            "validation_rows": len(prepared.held_out),
            "left_out": dict(prepared.left_out),
            "disclosure": prepared.disclosure,
            "seed": self.seed,
        }
