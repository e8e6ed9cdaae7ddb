"""The autoencoder's part of a fit: training within its time, and encoding the records."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

import torch
from transformers import ProgressCallback

from difflm.devices import choose_device
from difflm.modeling_difflm import DiffLMModel, Posterior
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_losses import trains_columns
from difflm.training.autoencoder_trainer import AutoencoderTrainer, history
from difflm.training.draft_stage import FittedColumns, with_evaluation_noise
from difflm.training.encode_latents import encode_latents, estimated_seconds
from difflm.training.fit_time import Floor
from difflm.training.preparation import Prepared
from difflm.training.presets import Preset
from difflm.training.processes import from_main, num_processes
from difflm.training.progress import FitProgress, no_file_bars
from difflm.training.record_dataset import RecordCollator, RecordDataset


def train_autoencoder(
    model: DiffLMModel,
    prepared: Prepared,
    checkpoints: str | Path,
    *,
    columns: FittedColumns | None = None,
    max_seconds: float | None = None,
    floor: Floor | None = None,
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
    columns : FittedColumns, optional
        Whose latents the model reads.
    max_seconds : float, optional
        Loading not counted.
    floor : Floor, optional
        Where training may end before.
    seed : int, default 0
    resume_from : path, optional
        One of them.
    show_progress : bool, default True
    training_kwargs : dict, optional
        Fields of [`AutoencoderTrainingArguments`], which go before what the settings and the policy say.
    """
    train, held_out = prepared.datasets(model.config.eos_token_id, None if columns is None else columns.latents)
    policy = prepared.settings.policy
    options = autoencoder_options(model, prepared.settings, len(train), floor) | {
        "output_dir": str(checkpoints),
        "max_minutes": None if max_seconds is None else max_seconds / 60,
        "seed": seed,
        "disable_tqdm": not show_progress,
        "use_cpu": model.device.type == "cpu" and choose_device().type != "cpu",
    }
    args = AutoencoderTrainingArguments(**options | (training_kwargs or {}))
    evaluation = _first_records(held_out, policy.max_evaluation_records)
    pad_token_id = prepared.tokenizers.encoder_pad_token_id
    trainer = AutoencoderTrainer(model, args, train, evaluation, pad_token_id, policy, floor)
    if not args.disable_tqdm:
        description = "Fitting the autoencoder" if columns is None else "Fitting the language model"
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(FitProgress(trainer.time_limit, description))
    started = time.monotonic()
    with no_file_bars():
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    (seconds,) = from_main(time.monotonic() - started)
    final = trainer.keep_best()
    records_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
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


def autoencoder_options(
    model: DiffLMModel, settings: Preset, rows: int, floor: Floor | None = None
) -> dict[str, Any]:
    """Fields of [`AutoencoderTrainingArguments`] that settings and policy give for so many training rows."""
    policy, batch_size = settings.policy, cast(int, settings.batch_size)  # `resolve_settings` sets one
    steps_per_epoch = max(1, rows // batch_size)
    most = policy.max_evaluation_interval
    if floor is not None:
        most = max(1, min(most, floor.steps // policy.floor_evaluations))
    interval = min(most, max(policy.min_evaluation_interval, steps_per_epoch))
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


def encoding_seconds(
    model: DiffLMModel, prepared: Prepared, columns: FittedColumns | None = None
) -> float:
    """How long [`encode`] will take; the same in all processes."""
    datasets = prepared.datasets(model.config.eos_token_id, None if columns is None else columns.latents)
    options = {
        "batch_size": prepared.settings.policy.encoding_batch_size,
        "encoder_pad_token_id": prepared.tokenizers.encoder_pad_token_id,
    }
    return from_main(sum(estimated_seconds(model, part, **options) for part in datasets))[0]


def encode(
    model: DiffLMModel,
    prepared: Prepared,
    columns: FittedColumns | None = None,
    *,
    show_progress: bool = True,
) -> tuple[tuple[Posterior, Posterior], float]:
    """Posteriors of the training and of the held-out records, and the seconds it took."""
    started = time.monotonic()
    train, held_out = (
        encode_latents(
            model,
            dataset,
            batch_size=prepared.settings.policy.encoding_batch_size,
            encoder_pad_token_id=prepared.tokenizers.encoder_pad_token_id,
            show_progress=show_progress,
        )
        for dataset in prepared.datasets(model.config.eos_token_id, None if columns is None else columns.latents)
    )
    return (train, held_out), time.monotonic() - started


@torch.no_grad()
def drafted_nats(
    model: DiffLMModel, prepared: Prepared, columns: FittedColumns | None, held_out: Posterior, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """What a held-out record's cells that a draft writes cost the language model, and the draft; None without one.

    The language model reads the texts before them, too.
    """
    if columns is None or prepared.codes is None:
        return None, None
    most = min(prepared.settings.policy.max_evaluation_records, len(held_out.mean))
    dataset = prepared.datasets(model.config.eos_token_id, columns.latents)[1]
    latents = with_evaluation_noise(held_out.mean[:most], columns.noise, seed).to(model.device)
    total, size = 0.0, prepared.settings.policy.encoding_batch_size
    for start in range(0, most, size):
        rows = range(start, min(start + size, most))
        batch = RecordCollator()([{"labels": dataset.token_ids(dataset.records[row])} for row in rows])
        labels, counted = batch["labels"].to(model.device), torch.zeros_like(batch["labels"], dtype=torch.bool)
        for place, row in enumerate(rows):
            own = dataset.tokens_of(dataset.records[row], prepared.codes.names)
            counted[place, : len(own)] = torch.tensor(own)
        counted = counted.to(model.device)
        logits = model.logits(latents[rows.start : rows.stop], labels)[counted].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[counted], reduction="sum"))
    return total / most, columns.nats(prepared, most, seed)


def _first_records(dataset: RecordDataset, limit: int) -> Any:
    return dataset if len(dataset) <= limit else torch.utils.data.Subset(dataset, range(limit))
