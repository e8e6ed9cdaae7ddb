"""Fit a DiffLM: autoencoder, then denoiser, then a saved pipeline.

``fit`` is the Python entry; ``python -m difflm.training.train_difflm`` and ``difflm fit`` are commands around it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import KarrasVeScheduler
from safetensors.torch import save_file
from transformers import AutoTokenizer, set_seed

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.modeling_difflm import DiffLMModel, resolve_source
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.pipeline_difflm import DiffLMPipeline, record_digest
from difflm.pipelines.records import RecordSchema
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.data import as_dataframe, read_table
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.encode_latents import encode_latents
from difflm.training.fit_folder import FitFolder
from difflm.training.latents import LatentDataset
from difflm.training.presets import PRESETS, Preset
from difflm.training.record_dataset import RecordDataset


logger = logging.getLogger(__name__)

AUTOENCODER_SHARE_OF_TIME = 0.85
MAX_EVALUATION_RECORDS = 256


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
    settings = _settings(preset, encoder, decoder, injection, record_format, epochs, max_minutes, batch_size)
    folder = FitFolder(output_dir)
    folder.prepare(resume=resume, overwrite=overwrite)
    frame = _frame(data, text_columns)
    schema = RecordSchema.infer(frame, record_format=settings.record_format, text_columns=tuple(text_columns))
    records = schema.to_records(frame)
    if validation is not None:
        train, held_out = records, schema.to_records(_frame(validation, text_columns))
    else:
        train, held_out = _split(records, seed)
    folder.check_settings(
        {"settings": dataclasses.asdict(settings), "schema": schema.to_dict(), "seed": seed, "rows": len(train)},
        resume=resume,
    )
    set_seed(seed)

    model, tokenizers, loaded = _load_model(settings, folder, model_kwargs or {})
    encoder_tokenizer, decoder_tokenizer = tokenizers
    datasets = [
        RecordDataset(part, schema, encoder_tokenizer, decoder_tokenizer, model.config.eos_token_id, max_length)
        for part in (train, held_out)
    ]
    started = time.monotonic()
    log: dict[str, Any] = {"seed": seed, "rows": len(train), "validation_rows": len(held_out)}
    if loaded:
        logger.info("The autoencoder is fitted already: going on with the denoiser.")
        log |= json.loads((folder.autoencoder / "training_log.json").read_text(encoding="utf-8"))
    else:
        log |= _fit_autoencoder(
            model, settings, datasets, folder, encoder_tokenizer, seed, resume, show_progress, training_kwargs or {}
        )
        folder.save_autoencoder(model, log)

    posteriors = [
        encode_latents(
            model,
            dataset,
            encoder_pad_token_id=encoder_tokenizer.pad_token_id or 0,
            show_progress=show_progress,
        )
        for dataset in datasets
    ]
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
    result = DenoiserTrainer(
        denoiser,
        DenoiserTrainingArguments(
            **{
                "output_dir": str(folder.denoiser_checkpoints),
                "max_steps": settings.denoiser_steps,
                "learning_rate": settings.denoiser_learning_rate,
                "max_seconds": remaining,
                "seed": seed,
                "resume": "auto" if resume else None,
                "show_progress": show_progress,
                "device": str(model.device),
            }
            | (denoiser_kwargs or {})
        ),
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
    log["fit_seconds"] = log["autoencoder_seconds"] + result.seconds

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
    return pipeline


def _settings(
    preset: str | Preset,
    encoder: str | None,
    decoder: str | None,
    injection: str | None,
    record_format: str | None,
    epochs: float | None,
    max_minutes: float | None,
    batch_size: int | None,
) -> Preset:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is not one of {', '.join(PRESETS)}.")
        preset = PRESETS[preset]
    changes = {
        "encoder": encoder,
        "decoder": decoder,
        "record_format": record_format,
        "epochs": epochs,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
    }
    settings = dataclasses.replace(preset, **{name: value for name, value in changes.items() if value is not None})
    if injection is not None:
        settings = dataclasses.replace(settings, model=settings.model | {"injection": injection})
    return settings


def _frame(data: Any, text_columns: Sequence[str]) -> Any:
    return read_table(data, text_columns=text_columns) if isinstance(data, str | Path) else as_dataframe(data)


def _split(records: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold out a tenth of the records, at least one and at most 1,000."""
    order = np.random.default_rng(seed).permutation(len(records))
    held_out = min(1000, max(1, len(records) // 10))
    return [records[i] for i in sorted(order[held_out:])], [records[i] for i in sorted(order[:held_out])]


def _load_model(
    settings: Preset, folder: FitFolder, model_kwargs: dict[str, Any]
) -> tuple[DiffLMModel, tuple[Any, Any], bool]:
    """Build the autoencoder, or load the one that an interrupted fit has finished."""
    encoder_source, _ = resolve_source(settings.encoder)
    decoder_source, gguf_file = resolve_source(settings.decoder)
    tokenizers = (
        AutoTokenizer.from_pretrained(encoder_source),
        AutoTokenizer.from_pretrained(decoder_source, **({"gguf_file": gguf_file} if gguf_file else {})),
    )
    if folder.autoencoder_is_done:
        model = DiffLMModel.from_pretrained(folder.autoencoder)
    else:
        model = DiffLMModel.from_encoder_decoder(settings.encoder, settings.decoder, **settings.model | model_kwargs)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, tokenizers, folder.autoencoder_is_done


def _fit_autoencoder(
    model: DiffLMModel,
    settings: Preset,
    datasets: Sequence[RecordDataset],
    folder: FitFolder,
    encoder_tokenizer: Any,
    seed: int,
    resume: bool,
    show_progress: bool,
    training_kwargs: dict[str, Any],
) -> dict[str, Any]:
    train, held_out = datasets
    steps_per_epoch = max(1, len(train) // settings.batch_size)
    interval = max(20, min(200, steps_per_epoch))
    minutes = None if settings.max_minutes is None else settings.max_minutes * AUTOENCODER_SHARE_OF_TIME
    args = AutoencoderTrainingArguments(
        **{
            "output_dir": str(folder.autoencoder_checkpoints),
            "num_train_epochs": settings.epochs,
            "max_minutes": minutes,
            "per_device_train_batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "encoder_learning_rate": settings.encoder_learning_rate,
            "eval_steps": interval,
            "save_steps": 3 * interval,
            "logging_steps": max(1, interval // 2),
            "seed": seed,
            "disable_tqdm": not show_progress,
        }
        | training_kwargs
    )
    evaluation = _first_records(held_out, MAX_EVALUATION_RECORDS)
    trainer = AutoencoderTrainer(model, args, train, evaluation, encoder_tokenizer.pad_token_id or 0)
    started = time.monotonic()
    checkpoint = folder.last_autoencoder_checkpoint() if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.monotonic() - started
    final = trainer.evaluate()
    return {
        "reconstruction_own_latent": final["eval_reconstruction"],
        "reconstruction_shuffled_latent": final["eval_reconstruction_shuffled"],
        "kl": final["eval_kl"],
        "autoencoder_seconds": seconds,
        "autoencoder_steps": trainer.state.global_step,
        "rows_seen": trainer.state.global_step * args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "autoencoder_history": _history(trainer.state.log_history),
    }


def _first_records(dataset: RecordDataset, limit: int) -> Any:
    return dataset if len(dataset) <= limit else torch.utils.data.Subset(dataset, range(limit))


def _history(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """One entry per step, training and evaluation figures together."""
    steps: dict[int, dict[str, float]] = {}
    for entry in entries:
        steps.setdefault(int(entry["step"]), {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def main() -> None:
    """``python -m difflm.training.train_difflm``: the same options as ``difflm fit``."""
    import sys

    from difflm.__main__ import main as command

    sys.exit(command(["fit", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
