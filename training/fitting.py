"""Fit a DiffLM: prepare the data, train the parts (see fit_parts.py), assemble a pipeline.

``fit`` makes these steps in an output folder, with checkpoints; the scripts ``train_autoencoder`` and
``train_denoiser`` make the first and the second half of the same.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from difflm.devices import choose_device, decoder_options
from difflm.errors import ArgumentError
from difflm.files import write_json
from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.pipelines.call_arguments import WRITERS
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.decoder_context import within_context
from difflm.training.default_scheduler import default_scheduler
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.disclosure import Disclosure
from difflm.training.domains import Domain
from difflm.training.fingerprint import describe
from difflm.training.fit_folder import FitFolder
from difflm.training.fit_parts import FitParts
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.hardware import hardware, peak_memory_mib
from difflm.training.latents import LatentDataset
from difflm.training.policy import Policy
from difflm.training.preparation import prepare, resolve_settings
from difflm.training.presets import Preset
from difflm.training.processes import is_main_process


logger = logging.getLogger(__name__)


def fit(
    data: Any,
    output_dir: str | Path,
    *,
    domain: str | Domain = "tables",
    preset: str | Preset = "small",
    encoder: str | None = None,
    decoder: str | None = None,
    injection: str | None = None,
    record_format: str | None = None,
    epochs: float | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
    writer: Literal["auto", "lm", "draft"] = "auto",
    condition_columns: Sequence[str] | str = "auto",
    text_columns: Sequence[str] = (),
    read_options: Mapping[str, Any] | None = None,
    validation: Any = None,
    max_length: int = 1024,
    overlong: Literal["refuse", "drop"] = "refuse",
    rare_categories: Literal["keep", "merge", "missing", "drop"] = "keep",
    rare_below: int = 5,
    ranges: Literal["exact", "rounded", "clipped"] = "exact",
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    policy: Policy | Mapping[str, Any] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    training_kwargs: dict[str, Any] | None = None,
    denoiser_kwargs: dict[str, Any] | None = None,
) -> DiffLMPipeline:
    """Fit a DiffLM on data and save it as a pipeline.

    Parameters
    ----------
    data : path, DataFrame, Dataset or list of dict
        At least 2 rows.
    output_dir : path
        Gets the pipeline, ``training_log.json`` and ``latents.safetensors``; ``checkpoints/`` while the fit runs.
    domain : str or Domain, default "tables"
        What the data is; see ``difflm.training.domains``.
    preset : {"tiny", "small", "paper"} or Preset, default "small"
        Settings; the arguments below override them.
    encoder, decoder : str, optional
        Hub id, folder or ``package://`` name.
    injection : {"kv_memory", "soft_prompt", "embedding"}, optional
    record_format : {"values", "json"}, optional
    epochs : float, optional
        Most passes over the table.
    max_minutes : float, optional
        Wall-clock limit of all stages together, loading and saving not counted.
    batch_size : int, optional
    writer : {"auto", "lm", "draft"}, default "auto"
        Who writes the records of a table: the language model, or the small draft of its columns (columns of text and
        nested ones by the language model). "auto" takes the former where held-out records cost it clearly less, and
        gives it little time elsewhere. With "draft" it gets no more than that, with "lm" most of the time.
    condition_columns : sequence of str or "auto"
        Columns the denoiser can be conditioned on; "auto" takes all categories (up to 64 values), booleans, numbers.
    text_columns : sequence of str
        Columns to read as text.
    read_options : dict, optional
        How the domain reads the data, and the validation data: for tables ``category_columns``, ``max_categories`` and
        ``max_decimals`` of [`RecordSchema.infer`], and for those in files also the options of [`read_table`], as
        ``delimiter``, ``encoding`` and ``na_values``.
    validation : as ``data``, optional
        Held-out records; by default a tenth of the data (at most 1,000 rows), chosen by the seed.
    max_length : int, default 1024
        Most decoder tokens of a record; fewer where the decoder's context, beside the latent's tokens, is shorter.
    overlong : {"refuse", "drop"}, default "refuse"
        A longer record is an error that names it, or is left out: a warning and ``left_out`` in the log say how many.
    rare_categories, rare_below, ranges : str, int, str, default "keep", 5, "exact"
        What the checkpoint tells of single records: see [`Disclosure`]. The card says what was chosen.
    device, dtype : str, optional
        Where to train, and the frozen language model's dtype; default: see [`choose_device`], [`decoder_options`].
    seed : int, default 0
        On one thread and without a limit of time (``max_minutes``), the same seed, data, arguments and versions give
        the same weights; a limit ends the steps where the clock says, several threads add numbers in other orders.
    resume : bool, default False
        Go on from the last checkpoint in ``output_dir``, with the same data and arguments; ``max_minutes``, which then
        counts anew, and ``show_progress`` may be others.
    overwrite : bool, default False
        Replace a fitted pipeline in ``output_dir``, with its card, once the new one is saved; an unfinished fit that
        is there is given up at this one's first step. With ``resume``, only where there is nothing to go on from.
    show_progress : bool, default True
    policy : Policy or dict, optional
        Measured constants of training, or those of them to change; see [`Policy`].
    model_kwargs, training_kwargs, denoiser_kwargs : dict, optional
        Further fields of [`DiffLMConfig`], [`AutoencoderTrainingArguments`] and [`DenoiserTrainingArguments`].

    Returns
    -------
    DiffLMPipeline

    Raises
    ------
    TableError, SchemaError
        If the data cannot be learned from; names the column and the remedy.
    FileExistsError
        If ``output_dir`` holds something else, or a pipeline and neither ``resume`` nor ``overwrite`` is given.
    RecordTooLongError
        If a record has more than ``max_length`` tokens, or more than the decoder can read.
    ResumeError
        If the fit to resume was started with other data or arguments; names them.
    """
    if writer not in WRITERS:
        raise ArgumentError(f"writer={writer!r} is not one of {', '.join(WRITERS)}.")
    settings = resolve_settings(
        preset,
        encoder=encoder,
        decoder=decoder,
        injection=injection,
        record_format=record_format,
        epochs=epochs,
        max_minutes=max_minutes,
        batch_size=batch_size,
        policy=policy,
        device=device,
    )
    model_kwargs = decoder_options(choose_device(device), dtype) | (model_kwargs or {})
    show_progress = show_progress and is_main_process()
    folder = FitFolder(output_dir)
    begins = folder.check(resume=resume, overwrite=overwrite)
    if begins == "done":
        return DiffLMPipeline.from_pretrained(folder.path).to(choose_device(device))
    prepared = prepare(
        data,
        settings,
        validation=validation,
        domain=domain,
        read_options={**(read_options or {}), **({"text_columns": tuple(text_columns)} if text_columns else {})},
        max_length=max_length,
        overlong=overlong,
        disclosure=Disclosure(rare_categories, rare_below, ranges),
        seed=seed,
    )
    description = describe(
        settings=prepared.settings,
        domain=prepared.domain.name,
        schema=prepared.schema.to_dict(),
        rows=len(prepared.train),
        data=prepared.data,
        validation=prepared.validation,
        condition_columns=condition_columns,
        text_columns=text_columns,
        max_length=max_length,
        overlong=overlong,
        disclosure=prepared.disclosure,
        seed=seed,
        writer=writer,
        model_kwargs=model_kwargs or {},
        training_kwargs=training_kwargs or {},
        denoiser_kwargs=denoiser_kwargs or {},
    )
    if writer == "draft" and prepared.codes is None:
        raise ArgumentError("writer='draft' needs columns that a draft can write, and a preset with a draft.")
    prepared = within_context(prepared, model_kwargs)
    # Checked before minutes are spent: the later parts' options, and the columns that the denoiser is conditioned on.
    conditions = ConditionEncoder.fit(prepared.train, prepared.schema.columns, condition_columns)
    DenoiserTrainingArguments(**denoiser_kwargs or {})
    AutoencoderTrainingArguments(**{"output_dir": str(folder.autoencoder_checkpoints)} | (training_kwargs or {}))
    parts = FitParts(
        prepared,
        conditions,
        writer=writer,
        seed=seed,
        device=device,
        show_progress=show_progress,
        model_kwargs=model_kwargs,
        training_kwargs=training_kwargs or {},
        denoiser_kwargs=denoiser_kwargs or {},
    )
    with folder.opened(description, resume=begins == "resume"):
        busy = time.process_time()
        fitted, denoiser = parts.run(folder, resume=begins == "resume")
        if begins == "new":  # a fit that was resumed has worked in other processes, too
            fitted.log["fit_cpu_seconds"] = round(time.process_time() - busy, 1)
        pipeline = assemble(fitted, denoiser)
        folder.save_pipeline(lambda path: save_pipeline(pipeline, fitted, path))
    # So that a later push finds the training log for its card.
    pipeline.register_to_config(_name_or_path=str(folder.path))
    if fitted.log["writer"] == "lm":
        warn_of_idle_latents(fitted.log, settings.policy)
    return pipeline


def assemble(fitted: FittedAutoencoder, denoiser: DiffLMDenoiser) -> DiffLMPipeline:
    """Put a pipeline together from the parts, and complete their log."""
    if fitted.model is None:
        raise ValueError("A pipeline needs an autoencoder, and none is trained yet.")
    fitted.log |= {"hardware": hardware(fitted.device), "peak_memory_mib": peak_memory_mib()}
    pipeline = DiffLMPipeline(
        autoencoder=fitted.model.eval(),
        denoiser=denoiser.eval(),
        scheduler=default_scheduler(denoiser.config["noise_floor"], float(torch.as_tensor(denoiser.sigma_data).max())),
        encoder_tokenizer=fitted.tokenizers.encoder,
        decoder_tokenizer=fitted.tokenizers.decoder,
        record_schema=fitted.schema.to_dict(),
        condition_classes=fitted.condition_classes,
        max_new_tokens=fitted.max_length,
        draft=fitted.draft,
        writer=fitted.log["writer"],
    )
    if fitted.latents.record_digests is not None:
        pipeline.set_training_digests(bytes(digest) for digest in fitted.latents.record_digests.cpu().numpy())
    return pipeline


def save_pipeline(pipeline: DiffLMPipeline, fitted: FittedAutoencoder, folder: Path) -> None:
    """Save a pipeline with what stays beside it: the log, and the training records' latents, which are not pushed."""
    pipeline.save_pretrained(folder)
    LatentDataset(mean=fitted.latents.mean, log_variance=fitted.latents.log_variance).save(
        folder / "latents.safetensors"
    )
    write_json(folder / "training_log.json", fitted.log)


def warn_of_idle_latents(log: dict[str, Any], policy: Policy) -> None:
    """Say so if records are hardly written better from their own latents than from others'."""
    own, shuffled = log["reconstruction_own_latent"], log["reconstruction_shuffled_latent"]
    if shuffled < policy.min_shuffled_to_own * own:
        warnings.warn(
            f"The latents say little about their records: one costs {own:.1f} nats from its own latent and "
            f"{shuffled:.1f} from another's, so that the columns of sampled records will fit each other poorly. "
            f"The fit saw {log['rows_seen']:,} rows: give it more minutes, or a faster machine.",
            stacklevel=3,
        )
