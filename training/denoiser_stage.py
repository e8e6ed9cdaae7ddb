"""The denoiser's part of a fit: training on the records' latents, within its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from difflm.files import read_json, write_json
from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.presets import Preset
from difflm.training.progress import no_file_bars


LOG = "denoiser_log.json"
NOISE_FLOOR_BATCH_SIZE = 512


def train_denoiser(
    fitted: FittedAutoencoder,
    checkpoints: str | Path,
    *,
    max_seconds: float | None = None,
    seed: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    denoiser_kwargs: dict[str, Any] | None = None,
) -> tuple[DiffLMDenoiser, dict[str, Any]]:
    """Train a denoiser on the records' latents; return it, and its figures.

    Parameters
    ----------
    fitted : FittedAutoencoder
    checkpoints : path
        Folder of the trainer's checkpoints.
    max_seconds : float, optional
    seed : int, default 0
        Of the first weights, too: they depend on nothing else, so that a resumed fit ends as an uninterrupted one.
    resume : bool, default False
        Go on from the last checkpoint, if there is one.
    show_progress : bool, default True
    denoiser_kwargs : dict, optional
        Fields of [`DenoiserTrainingArguments`], which go before what the settings and the policy say.
    """
    settings = fitted.settings
    options = denoiser_options(settings, len(fitted.latents), has_draft=fitted.draft is not None) | {
        "max_seconds": max_seconds,
        "output_dir": str(checkpoints),
        "seed": seed,
        "resume": "auto" if resume else None,
        "show_progress": show_progress,
        "device": str(fitted.device),
    }
    set_seed(seed)
    denoiser = DiffLMDenoiser(
        latent_size=fitted.latents.mean.shape[1],
        class_sizes=fitted.latents.class_sizes,
        class_names=fitted.latents.class_names,
        **({} if fitted.draft is None else {"noise_floor": settings.policy.noise_floor}) | settings.denoiser,
    )
    args = DenoiserTrainingArguments(**options | (denoiser_kwargs or {}))
    result = DenoiserTrainer(
        denoiser, args, fitted.latents, fitted.held_out_latents, policy=settings.policy
    ).train()
    return denoiser, {
        "denoiser_history": result.history,
        "denoiser_steps": result.steps,
        "denoiser_seconds": result.seconds,
        "denoiser_stop_reason": result.stop_reason,
    }


def denoiser_options(settings: Preset, rows: int, *, has_draft: bool) -> dict[str, Any]:
    """Fields of [`DenoiserTrainingArguments`] that settings and policy give for so many latents."""
    policy, steps = settings.policy, settings.denoiser_steps
    if has_draft:
        passes = round(policy.denoiser_passes * rows / NOISE_FLOOR_BATCH_SIZE)
        steps = min(steps, max(policy.min_denoiser_steps, min(policy.max_denoiser_steps, passes)))
    interval = steps // policy.denoiser_evaluations
    return {
        "max_steps": steps,
        "eval_steps": min(policy.max_denoiser_interval, max(policy.min_denoiser_interval, interval)),
        "learning_rate": settings.denoiser_learning_rate,
    }


def save_denoiser(denoiser: DiffLMDenoiser, log: dict[str, Any], folder: Path) -> None:
    """Write a folder that `load_denoiser` reads."""
    with no_file_bars():
        denoiser.save_pretrained(folder)
    write_json(folder / LOG, log)


def load_denoiser(folder: Path, device: Any) -> tuple[DiffLMDenoiser, dict[str, Any]]:
    """A trained denoiser and its figures."""
    denoiser: Any = DiffLMDenoiser.from_pretrained(folder, use_safetensors=True)
    return denoiser.to(device).eval(), read_json(folder / LOG)
