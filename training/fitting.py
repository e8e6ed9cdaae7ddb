"""Fit a DiffLM: prepare the data, train the autoencoder, encode the records, train the denoiser, assemble a pipeline.

``fit`` makes these steps in an output folder, with checkpoints; the scripts ``train_autoencoder`` and
``train_denoiser`` make the first and the second half of the same.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import ProgressCallback, set_seed

from difflm.devices import choose_device, decoder_options
from difflm.files import write_json
from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.pipelines.training_digests import record_digest
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_losses import trains_columns
from difflm.training.autoencoder_trainer import AutoencoderTrainer, history
from difflm.training.build_autoencoder import build_autoencoder
from difflm.training.decoder_context import within_context
from difflm.training.default_scheduler import default_scheduler
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.disclosure import Disclosure
from difflm.training.domains import Domain
from difflm.training.encode_latents import encode_latents, estimated_seconds
from difflm.training.fingerprint import describe
from difflm.training.fit_folder import FitFolder
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.hardware import hardware, peak_memory_mib
from difflm.training.latents import LatentDataset
from difflm.training.policy import Policy
from difflm.training.preparation import Prepared, prepare, resolve_settings
from difflm.training.presets import Preset
from difflm.training.processes import from_main, is_main_process, num_processes
from difflm.training.progress import FitProgress, no_file_bars
from difflm.training.record_dataset import RecordDataset


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
        Wall-clock limit of both stages together, loading and saving not counted.
    batch_size : int, optional
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
        model_kwargs=model_kwargs or {},
        training_kwargs=training_kwargs or {},
        denoiser_kwargs=denoiser_kwargs or {},
    )
    # Checked before minutes are spent: the second stage's options, and the columns it is conditioned on.
    conditions = ConditionEncoder.fit(prepared.train, prepared.schema.columns, condition_columns)
    DenoiserTrainingArguments(**denoiser_options(prepared.settings) | (denoiser_kwargs or {}))
    set_seed(seed)
    with no_file_bars(not show_progress):
        if begins == "resume" and folder.autoencoder_is_done:
            logger.info("The autoencoder is fitted already: going on with the denoiser.")
            model = None
        else:
            model = build_autoencoder(prepared, model_kwargs, device)
            prepared = within_context(prepared, model)
    with folder.opened(description, resume=begins == "resume"):
        busy = time.process_time()
        if model is None:
            fitted = FittedAutoencoder.load(folder.autoencoder, device)
        else:
            log = train_autoencoder(
                model,
                prepared,
                folder.autoencoder_checkpoints,
                seed=seed,
                resume_from=folder.last_autoencoder_checkpoint() if begins == "resume" else None,
                show_progress=show_progress,
                training_kwargs=training_kwargs,
            )
            fitted = encode(model, prepared, conditions, log | {"seed": seed}, show_progress=show_progress)
            folder.save_autoencoder(fitted.save)
        denoiser, log = train_denoiser(
            fitted,
            folder.denoiser_checkpoints,
            seed=seed,
            resume=begins == "resume",
            show_progress=show_progress,
            denoiser_kwargs=denoiser_kwargs,
        )
        if begins == "new":  # a fit that was resumed has worked in other processes, too
            log["fit_cpu_seconds"] = round(time.process_time() - busy, 1)
        pipeline = assemble(fitted, denoiser)
        folder.save_pipeline(lambda path: save_pipeline(pipeline, fitted, log, path))
    # So that a later push finds the training log for its card.
    pipeline.register_to_config(_name_or_path=str(folder.path))
    warn_of_idle_latents(log, settings.policy)
    return pipeline


def train_autoencoder(
    model: DiffLMModel,
    prepared: Prepared,
    checkpoints: str | Path,
    *,
    seed: int = 0,
    resume_from: Path | None = None,
    show_progress: bool = True,
    training_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``model``, in place, and return the figures of the run.

    Parameters
    ----------
    model : DiffLMModel
        See [`build_autoencoder`].
    prepared : Prepared
    checkpoints : path
        Folder of the trainer's checkpoints.
    seed : int, default 0
    resume_from : path, optional
        One of them.
    show_progress : bool, default True
    training_kwargs : dict, optional
        Fields of [`AutoencoderTrainingArguments`], which go before what the settings and the policy say.
    """
    train, held_out = prepared.datasets(model.config.eos_token_id)
    pad_token_id = prepared.tokenizers.encoder_pad_token_id
    policy = prepared.settings.policy
    minutes = None
    if prepared.settings.max_minutes is not None:
        minutes = _autoencoder_minutes(model, prepared.settings, (train, held_out), pad_token_id)
    options = autoencoder_options(model, prepared.settings, len(train)) | {
        "output_dir": str(checkpoints),
        "max_minutes": minutes,
        "seed": seed,
        "disable_tqdm": not show_progress,
        "use_cpu": model.device.type == "cpu" and choose_device().type != "cpu",
    }
    args = AutoencoderTrainingArguments(**options | (training_kwargs or {}))
    evaluation = _first_records(held_out, policy.max_evaluation_records)
    trainer = AutoencoderTrainer(model, args, train, evaluation, pad_token_id, policy)
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(FitProgress(trainer.budget))
    started = time.monotonic()
    with no_file_bars():
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    (seconds,) = from_main(time.monotonic() - started)
    final = trainer.keep_best()
    records_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "domain": prepared.domain.name,
        "rows": len(train),
        "validation_rows": len(held_out),
        "left_out": dict(prepared.left_out),
        "disclosure": prepared.disclosure,
        "reconstruction_own_latent": final["eval_reconstruction"],
        "reconstruction_shuffled_latent": final["eval_reconstruction_shuffled"],
        # None: a model without a draft.
        "reconstruction_draft_alone": final.get("eval_reconstruction_draft"),
        "kl": final["eval_kl"],
        "autoencoder_seconds": seconds,
        "autoencoder_steps": trainer.state.global_step,
        "rows_seen": trainer.state.global_step * records_per_step,
        "autoencoder_history": history(trainer.state.log_history),
    }


def autoencoder_options(model: DiffLMModel, settings: Preset, rows: int) -> dict[str, Any]:
    """Fields of [`AutoencoderTrainingArguments`] that settings and policy give for so many training rows."""
    policy, batch_size = settings.policy, cast(int, settings.batch_size)  # `resolve_settings` sets one
    steps_per_epoch = max(1, rows // batch_size)
    interval = max(policy.min_evaluation_interval, min(policy.max_evaluation_interval, steps_per_epoch))
    options: dict[str, Any] = {
        "num_train_epochs": settings.epochs,
        # All processes' together, whatever their number; more than asked for where it cannot be shared out.
        "per_device_train_batch_size": math.ceil(batch_size / num_processes()),
        "beta_schedule": settings.beta_schedule,
        "learning_rate": settings.learning_rate,
        "encoder_learning_rate": settings.encoder_learning_rate,
        "eval_steps": interval,
        "save_steps": policy.evaluations_per_checkpoint * interval,
        "logging_steps": max(1, interval // 2),
    }
    if trains_columns(model) and settings.beta_schedule == "geometric":
        beta = policy.beta_after_warm_up
        options |= {"beta": beta, "beta_minimum": policy.beta_fall_after_warm_up * beta}
    return options


def _autoencoder_minutes(
    model: DiffLMModel, settings: Preset, datasets: Sequence[RecordDataset], pad_token_id: int
) -> float:
    """The autoencoder's part of the time: what encoding and the denoiser need is kept, however slow the processor."""
    policy, minutes = settings.policy, cast(float, settings.max_minutes)
    options = {"batch_size": policy.encoding_batch_size, "encoder_pad_token_id": pad_token_id}
    encoding = sum(estimated_seconds(model, part, **options) for part in datasets) / 60
    most = policy.autoencoder_share if model.record_draft is None else policy.autoencoder_share_with_draft
    (encoding,) = from_main(encoding)
    share = min(most, 1 - policy.denoiser_share - encoding / minutes)
    return max(policy.min_autoencoder_share, share) * minutes


def encode(
    model: DiffLMModel,
    prepared: Prepared,
    conditions: ConditionEncoder,
    log: dict[str, Any],
    *,
    show_progress: bool = True,
) -> FittedAutoencoder:
    """Encode the records: the first stage's result, with ``log`` and the time it took."""
    started = time.monotonic()
    latents = []
    for dataset in prepared.datasets(model.config.eos_token_id):
        posterior = encode_latents(
            model,
            dataset,
            batch_size=prepared.settings.policy.encoding_batch_size,
            encoder_pad_token_id=prepared.tokenizers.encoder_pad_token_id,
            show_progress=show_progress,
        )
        latents.append(
            LatentDataset(
                mean=posterior.mean,
                log_variance=posterior.log_variance,
                labels=conditions.labels(dataset.records) if conditions.classes else None,
                class_sizes=conditions.class_sizes or None,
                class_names=conditions.names or None,
            )
        )
    digests = sorted(record_digest(prepared.schema.serialize(record)) for record in prepared.train)
    latents[0].record_digests = torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
    return FittedAutoencoder(
        model=model,
        tokenizers=prepared.tokenizers,
        settings=prepared.settings,
        schema=prepared.schema,
        latents=latents[0],
        held_out_latents=latents[1],
        condition_classes=conditions.classes,
        max_length=prepared.max_length,
        log=log | {"encoding_seconds": time.monotonic() - started},
    )


def train_denoiser(
    fitted: FittedAutoencoder,
    checkpoints: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    denoiser_kwargs: dict[str, Any] | None = None,
) -> tuple[DiffLMDenoiser, dict[str, Any]]:
    """Train a denoiser on the records' latents; return it, and the log of both stages.

    Parameters
    ----------
    fitted : FittedAutoencoder
    checkpoints : path
        Folder of the trainer's checkpoints.
    seed : int, default 0
        Of the first weights, too: they depend on nothing else, so that a resumed fit ends as an uninterrupted one.
    resume : bool, default False
        Go on from the last checkpoint, if there is one.
    show_progress : bool, default True
    denoiser_kwargs : dict, optional
        Fields of [`DenoiserTrainingArguments`], which go before what the settings and the policy say.
    """
    settings, log = fitted.settings, fitted.log
    options = denoiser_options(settings) | {
        "output_dir": str(checkpoints),
        "seed": seed,
        "resume": "auto" if resume else None,
        "show_progress": show_progress,
        "device": str(fitted.model.device),
    }
    if settings.max_minutes is not None:
        used = log["autoencoder_seconds"] + log["encoding_seconds"]
        options["max_seconds"] = max(settings.policy.min_denoiser_seconds, 60 * settings.max_minutes - used)
    set_seed(seed)
    denoiser = DiffLMDenoiser(
        latent_size=fitted.model.config.latent_size,
        class_sizes=fitted.latents.class_sizes,
        class_names=fitted.latents.class_names,
        **settings.denoiser,
    )
    args = DenoiserTrainingArguments(**options | (denoiser_kwargs or {}))
    result = DenoiserTrainer(
        denoiser, args, fitted.latents, fitted.held_out_latents, policy=settings.policy
    ).train()
    return denoiser, log | {
        "denoiser_history": result.history,
        "denoiser_steps": result.steps,
        "denoiser_seconds": result.seconds,
        "denoiser_stop_reason": result.stop_reason,
        "hardware": hardware(fitted.model.device),
        "peak_memory_mib": peak_memory_mib(),
        "fit_seconds": log["autoencoder_seconds"] + log["encoding_seconds"] + result.seconds,
    }


def denoiser_options(settings: Preset) -> dict[str, Any]:
    """Fields of [`DenoiserTrainingArguments`] that settings and policy give."""
    policy = settings.policy
    interval = settings.denoiser_steps // policy.denoiser_evaluations
    return {
        "max_steps": settings.denoiser_steps,
        "eval_steps": min(policy.max_denoiser_interval, max(policy.min_denoiser_interval, interval)),
        "learning_rate": settings.denoiser_learning_rate,
    }


def assemble(fitted: FittedAutoencoder, denoiser: DiffLMDenoiser) -> DiffLMPipeline:
    """Put a pipeline together from both stages' results."""
    pipeline = DiffLMPipeline(
        autoencoder=fitted.model.eval(),
        denoiser=denoiser.eval(),
        scheduler=default_scheduler(denoiser.config["noise_floor"], float(torch.as_tensor(denoiser.sigma_data).max())),
        encoder_tokenizer=fitted.tokenizers.encoder,
        decoder_tokenizer=fitted.tokenizers.decoder,
        record_schema=fitted.schema.to_dict(),
        condition_classes=fitted.condition_classes,
        max_new_tokens=fitted.max_length,
    )
    if fitted.latents.record_digests is not None:
        pipeline.set_training_digests(bytes(digest) for digest in fitted.latents.record_digests.cpu().numpy())
    return pipeline


def save_pipeline(pipeline: DiffLMPipeline, fitted: FittedAutoencoder, log: dict[str, Any], folder: Path) -> None:
    """Save a pipeline with what stays beside it: the log, and the training records' latents, which are not pushed."""
    pipeline.save_pretrained(folder)
    LatentDataset(mean=fitted.latents.mean, log_variance=fitted.latents.log_variance).save(
        folder / "latents.safetensors"
    )
    write_json(folder / "training_log.json", log)


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


def _first_records(dataset: RecordDataset, limit: int) -> Any:
    return dataset if len(dataset) <= limit else torch.utils.data.Subset(dataset, range(limit))
