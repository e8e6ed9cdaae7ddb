"""The steps that fitting an autoencoder and fitting a whole DiffLM share: settings, data, models, training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoTokenizer, ProgressCallback

from difflm.devices import choose_device
from difflm.modeling_difflm import DiffLMModel, multiplies_bf16, resolve_source
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.data import as_dataframe, read_table
from difflm.training.encode_latents import estimated_seconds
from difflm.training.latent_warmup import trains_columns
from difflm.training.presets import PRESETS, Preset
from difflm.training.progress import FitProgress, no_file_bars
from difflm.training.record_dataset import RecordDataset
from difflm.training.record_draft import draft_options


AUTOENCODER_SHARE_OF_TIME = 0.85
# With a draft it is learnt early: Adult's held-out records cost 12.3 nats after 22 of 32 minutes, 12.1 in the end.
SHARE_WITH_DRAFT = 0.75
DENOISER_SHARE_OF_TIME = 0.12
MAX_EVALUATION_RECORDS = 128
MAX_EMBEDDED_COLUMNS = 128
# On few rows the precise latents that a warm-up leaves are learnt by heart: of 310 penguins, the denoiser's validation
# loss rose from 0.98 to 1.50. Such a table is passed over often enough without.
MIN_ROWS_TO_WARM_UP = 2000
# As high as the column loss, which keeps the latents, allows; without it, what the decoder does not read yet was
# unlearnt at 0.005 already (from 160 to 37 nats in 36 steps).
BETA_AFTER_WARM_UP = 0.05


def resolve_settings(
    preset: str | Preset,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    injection: str | None = None,
    record_format: str | None = None,
    epochs: float | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
) -> Preset:
    """A preset with some settings replaced, and a batch size that suits the hardware where none is given."""
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is not one of {', '.join(PRESETS)}.")
        preset = PRESETS[preset]
    changes: dict[str, Any] = {
        "encoder": encoder,
        "decoder": decoder,
        "record_format": record_format,
        "epochs": epochs,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
    }
    settings = dataclasses.replace(preset, **{name: value for name, value in changes.items() if value is not None})
    if settings.batch_size is None:
        settings = dataclasses.replace(settings, batch_size=_default_batch_size())
    if injection is not None:
        settings = dataclasses.replace(settings, model=settings.model | {"injection": injection})
    return settings


def _default_batch_size() -> int:
    # Few steps fit into the minutes of a slow processor, and more of them teach more than larger ones: penguins in
    # 8 minutes, nats of a held-out record by batches of 16, 8, 4: 21.0, 18.8, 18.5; shoppers in 45: 66.5, 60.9.
    device = choose_device()
    return 8 if device.type == "cpu" and not multiplies_bf16(device) else 16


def read_data(data: Any, text_columns: Sequence[str] = ()) -> Any:
    """A checked DataFrame from a path, DataFrame, Dataset or list of dict."""
    return read_table(data, text_columns=text_columns) if isinstance(data, str | Path) else as_dataframe(data)


def split_records(records: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold out a tenth of the records, at least one and at most 1,000."""
    order = np.random.default_rng(seed).permutation(len(records))
    held_out = min(1000, max(1, len(records) // 10))
    return [records[i] for i in sorted(order[held_out:])], [records[i] for i in sorted(order[:held_out])]


def load_model(
    settings: Preset,
    model_kwargs: dict[str, Any],
    schema: RecordSchema,
    records: list[dict[str, Any]],
    finished: Path | None = None,
) -> tuple[DiffLMModel, tuple[Any, Any]]:
    """Build the autoencoder, or load a ``finished`` one, with the encoder's and the decoder's tokenizer."""
    tokenizers = (_load_tokenizer(settings.encoder), _load_tokenizer(settings.decoder))
    if finished is not None:
        model = DiffLMModel.from_pretrained(finished)
    else:
        options = settings.model | model_kwargs
        warms_up = settings.column_features and len(records) >= MIN_ROWS_TO_WARM_UP
        if settings.column_features:
            weight = {} if warms_up else {"column_loss_weight": 0.0}
            options = {"num_feature_columns": len(schema.feature_columns)} | weight | options
        if settings.column_embeddings and len(schema.columns) > 1:
            options = _column_options(schema, tokenizers[1]) | options
            if warms_up and options["num_feature_columns"] and (separators := options["separator_token_ids"]):
                options = draft_options(records, schema, tokenizers[1], separators, MAX_EMBEDDED_COLUMNS) | options
        model = DiffLMModel.from_encoder_decoder(settings.encoder, settings.decoder, **options)
    return model.to(choose_device()), tokenizers


def _column_options(schema: RecordSchema, tokenizer: Any) -> dict[str, Any]:
    between = schema.fixed_segments()[1:-1]
    return {
        "num_embedded_columns": min(len(schema.columns), MAX_EMBEDDED_COLUMNS),
        "separator_token_ids": sorted({tokenize_segment(tokenizer, text)[0] for text in between}),
    }


def _load_tokenizer(name: str) -> Any:
    source, gguf_file = resolve_source(name)
    try:
        return AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf_file} if gguf_file else {}))
    except ValueError as error:
        raise ValueError(f"{name}: its tokenizer cannot be loaded: {error}") from error


def fit_autoencoder(
    model: DiffLMModel,
    settings: Preset,
    datasets: Sequence[RecordDataset],
    checkpoints: Path,
    encoder_tokenizer: Any,
    *,
    seed: int,
    resume_from: Path | None = None,
    show_progress: bool = True,
    training_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``model`` on the first of two datasets, evaluating on the second; return the figures of the run."""
    train, held_out = datasets
    batch_size = cast(int, settings.batch_size)  # `resolve_settings` sets one
    steps_per_epoch = max(1, len(train) // batch_size)
    interval = max(20, min(200, steps_per_epoch))
    pad_token_id = encoder_tokenizer.pad_token_id or 0
    minutes = None
    if settings.max_minutes is not None:
        # On a slow processor encoding a long table takes more than the usual rest: what the denoiser needs is kept.
        encoding = sum(estimated_seconds(model, part, encoder_pad_token_id=pad_token_id) for part in datasets) / 60
        most = AUTOENCODER_SHARE_OF_TIME if model.record_draft is None else SHARE_WITH_DRAFT
        share = min(most, 1 - DENOISER_SHARE_OF_TIME - encoding / settings.max_minutes)
        minutes = max(0.5, share) * settings.max_minutes
    options: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": settings.epochs,
        "max_minutes": minutes,
        "per_device_train_batch_size": batch_size,
        "beta_schedule": settings.beta_schedule,
        "learning_rate": settings.learning_rate,
        "encoder_learning_rate": settings.encoder_learning_rate,
        "eval_steps": interval,
        "save_steps": 3 * interval,
        "logging_steps": max(1, interval // 2),
        "seed": seed,
        "disable_tqdm": not show_progress,
    }
    if trains_columns(model) and settings.beta_schedule == "geometric":
        options |= {"beta": BETA_AFTER_WARM_UP, "beta_minimum": BETA_AFTER_WARM_UP / 10}
    args = AutoencoderTrainingArguments(**options | (training_kwargs or {}))
    evaluation = _first_records(held_out, MAX_EVALUATION_RECORDS)
    trainer = AutoencoderTrainer(model, args, train, evaluation, pad_token_id)
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(FitProgress(trainer.budget))
    started = time.monotonic()
    with no_file_bars():
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    seconds = time.monotonic() - started
    final = trainer.keep_best()
    return {
        "reconstruction_own_latent": final["eval_reconstruction"],
        "reconstruction_shuffled_latent": final["eval_reconstruction_shuffled"],
        # None: a model without a draft.
        "reconstruction_draft_alone": final.get("eval_reconstruction_draft"),
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
