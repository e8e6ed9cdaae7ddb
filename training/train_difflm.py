"""Fit a DiffLM: autoencoder, then denoiser, then a saved pipeline.

``fit`` is the Python entry; ``python -m difflm.training.train_difflm`` and ``difflm fit`` are commands around it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import KarrasVeScheduler
from safetensors.torch import save_file
from transformers import set_seed

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.pipeline_difflm import DiffLMPipeline, record_digest
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.encode_latents import encode_latents
from difflm.training.fit_folder import FitFolder
from difflm.training.hardware import hardware, peak_memory_mib
from difflm.training.latents import LatentDataset
from difflm.training.presets import Preset
from difflm.training.progress import no_file_bars
from difflm.training.record_dataset import RecordDataset
from difflm.training.stages import fit_autoencoder, load_model, read_data, resolve_settings, split_records


logger = logging.getLogger(__name__)
# Penguins, Adult and Beijing reach 2.9 to 4.4 in their minutes; shoppers after no more than 3,104 rows 1.05.
MIN_SHUFFLED_TO_OWN = 1.2


def fit(
    data: Any,
    output_dir: str | Path,
    *,
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
    validation: Any = None,
    max_length: int = 1024,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    training_kwargs: dict[str, Any] | None = None,
    denoiser_kwargs: dict[str, Any] | None = None,
) -> DiffLMPipeline:
    """Fit a DiffLM on a table and save it as a pipeline.

    Parameters
    ----------
    data : path, DataFrame, Dataset or list of dict
        At least 2 rows.
    output_dir : path
        Gets the pipeline, ``training_log.json`` and ``latents.safetensors``; checkpoints while it runs.
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
    validation : as ``data``, optional
        Held-out records; by default a tenth of the data (at most 1,000 rows), chosen by the seed.
    max_length : int, default 1024
        Most decoder tokens of a record; a longer one is refused.
    seed : int, default 0
    resume : bool, default False
        Go on from the last checkpoint in ``output_dir``.
    overwrite : bool, default False
        Replace a fitted pipeline in ``output_dir``.
    show_progress : bool, default True
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
        If a record has more than ``max_length`` tokens.
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
    )
    folder = FitFolder(output_dir)
    folder.prepare(resume=resume, overwrite=overwrite)
    frame = read_data(data, text_columns)
    schema = RecordSchema.infer(frame, record_format=settings.record_format, text_columns=tuple(text_columns))
    records = schema.to_records(frame)
    if validation is not None:
        train, held_out = records, schema.to_records(read_data(validation, text_columns))
    else:
        train, held_out = split_records(records, seed)
    folder.check_settings(
        {"settings": dataclasses.asdict(settings), "schema": schema.to_dict(), "seed": seed, "rows": len(train)},
        resume=resume,
    )
    set_seed(seed)

    finished = folder.autoencoder if folder.autoencoder_is_done else None
    with no_file_bars(not show_progress):
        model, (encoder_tokenizer, decoder_tokenizer) = load_model(
            settings, model_kwargs or {}, schema, train, finished
        )
    datasets = [
        RecordDataset(part, schema, encoder_tokenizer, decoder_tokenizer, model.config.eos_token_id, max_length)
        for part in (train, held_out)
    ]
    started, busy = time.monotonic(), time.process_time()
    log: dict[str, Any] = {"seed": seed, "rows": len(train), "validation_rows": len(held_out)}
    if finished is not None:
        logger.info("The autoencoder is fitted already: going on with the denoiser.")
        log |= json.loads((folder.autoencoder / "training_log.json").read_text(encoding="utf-8"))
    else:
        log |= fit_autoencoder(
            model,
            settings,
            datasets,
            folder.autoencoder_checkpoints,
            encoder_tokenizer,
            seed=seed,
            resume_from=folder.last_autoencoder_checkpoint() if resume else None,
            show_progress=show_progress,
            training_kwargs=training_kwargs,
        )
        folder.save_autoencoder(model, log)

    encoding_started = time.monotonic()
    posteriors = [
        encode_latents(
            model,
            dataset,
            encoder_pad_token_id=encoder_tokenizer.pad_token_id or 0,
            show_progress=show_progress,
        )
        for dataset in datasets
    ]
    log["encoding_seconds"] = time.monotonic() - encoding_started
    condition_encoder = ConditionEncoder.fit(train, schema.columns, condition_columns)
    digests = sorted(record_digest(schema.serialize(record)) for record in train)
    denoiser = DiffLMDenoiser(
        latent_size=model.config.latent_size,
        class_sizes=condition_encoder.class_sizes or None,
        class_names=condition_encoder.names or None,
        num_record_digests=len(digests),
        **settings.denoiser,
    )
    denoiser.set_record_digests(digests)
    remaining = None
    if settings.max_minutes is not None:
        remaining = max(20.0, 60 * settings.max_minutes - (time.monotonic() - started))
    options: dict[str, Any] = {
        "output_dir": str(folder.denoiser_checkpoints),
        "max_steps": settings.denoiser_steps,
        # Often enough to catch the best weights for a small table, which come early.
        "eval_steps": min(250, max(100, settings.denoiser_steps // 40)),
        "learning_rate": settings.denoiser_learning_rate,
        "max_seconds": remaining,
        "seed": seed,
        "resume": "auto" if resume else None,
        "show_progress": show_progress,
        "device": str(model.device),
    }
    result = DenoiserTrainer(
        denoiser,
        DenoiserTrainingArguments(**options | (denoiser_kwargs or {})),
        *[
            LatentDataset(
                mean=posterior.mean,
                log_variance=posterior.log_variance,
                labels=condition_encoder.labels(part) if condition_encoder.classes else None,
                class_sizes=condition_encoder.class_sizes or None,
                class_names=condition_encoder.names or None,
            )
            for posterior, part in zip(posteriors, (train, held_out), strict=True)
        ],
    ).train()
    log |= {
        "denoiser_history": result.history,
        "denoiser_steps": result.steps,
        "denoiser_seconds": result.seconds,
        "denoiser_stop_reason": result.stop_reason,
    }
    log |= {"hardware": hardware(model.device), "peak_memory_mib": peak_memory_mib()}
    log["fit_seconds"] = log["autoencoder_seconds"] + log["encoding_seconds"] + result.seconds
    if not resume:  # a fit that was resumed has worked in other processes, too
        log["fit_cpu_seconds"] = round(time.process_time() - busy, 1)

    pipeline = DiffLMPipeline(
        autoencoder=model.eval(),
        denoiser=denoiser.eval(),
        # Without churn: at 50 steps added noise widens the samples by 3 to 5 % on a Gaussian whose answer is known.
        scheduler=KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=0.0, s_noise=1.0),
        encoder_tokenizer=encoder_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
        record_schema=schema.to_dict(),
        condition_classes=condition_encoder.classes,
        max_new_tokens=max_length,
    )
    latents = {"mean": posteriors[0].mean, "log_variance": posteriors[0].log_variance}
    folder.save_pipeline(pipeline, log, lambda path: save_file(latents, path / "latents.safetensors"))
    # So that a later push finds the training log for its card.
    pipeline.register_to_config(_name_or_path=str(folder.path))
    warn_of_idle_latents(log)
    return pipeline


def warn_of_idle_latents(log: dict[str, Any]) -> None:
    """Say so if records are hardly written better from their own latents than from others'."""
    own, shuffled = log["reconstruction_own_latent"], log["reconstruction_shuffled_latent"]
    if shuffled < MIN_SHUFFLED_TO_OWN * own:
        warnings.warn(
            f"The latents say little about their records: one costs {own:.1f} nats from its own latent and "
            f"{shuffled:.1f} from another's, so that the columns of sampled records will fit each other poorly. "
            f"The fit saw {log['rows_seen']:,} rows: give it more minutes, or a faster machine.",
            stacklevel=3,
        )


def main() -> None:
    """``python -m difflm.training.train_difflm``: the same options as ``difflm fit``."""
    import sys

    from difflm.__main__ import main as command

    sys.exit(command(["fit", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
