"""Arguments of the denoiser's training. Importing this file does not import torch."""

from dataclasses import dataclass, field, replace
from typing import Any


# What fields of None stand for, by whether the diffusion ends at a noise floor.
_DEFAULTS: dict[bool, dict[str, Any]] = {
    False: {"batch_size": 256, "learning_rate": 1e-3, "p_mean": -1.2, "p_std": 1.2},
    True: {"batch_size": 512, "learning_rate": 2e-3, "p_mean": 0.5, "p_std": 1.2},
}


@dataclass
class DenoiserTrainingArguments:
    """Arguments of [`DenoiserTrainer`]; the defaults suit a few hundred to some ten thousand latents on a CPU.

    Each field's ``help`` states its meaning and unit. `max_steps` and `max_seconds` are budgets: training ends at
    whichever comes first, and the learning rate's schedule follows whichever is nearer its end.

    Raises
    ------
    ValueError
        If a value is out of its range, or neither budget is given.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for checkpoints. None: no checkpoint is written."}
    )
    max_steps: int | None = field(default=2000, metadata={"help": "Number of optimizer steps. None: no limit."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "Wall-clock budget in seconds, evaluations included. None: no limit."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Latents per step. None: 256, or 512 with a noise floor."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of AdamW. None: 1e-3, or 2e-3 with a noise floor."}
    )
    final_learning_rate_ratio: float = field(
        default=0.01, metadata={"help": "Learning rate at the end of the cosine schedule, as a share of the peak."}
    )
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the budget spent on linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm at which gradients are clipped."})
    ema_decay: float = field(
        default=0.999, metadata={"help": "Upper limit of the decay of the averaged weights, which are evaluated."}
    )
    p_mean: float | None = field(
        default=None,
        metadata={"help": "Mean of ln(sigma) of the training noise. None: -1.2, or -0.2 with a noise floor."},
    )
    p_std: float | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of ln(sigma) of the training noise. None: 1.2, or 1.0 with a noise floor, "
            "below which the distribution is cut off."
        },
    )
    sample_posterior: bool = field(
        default=True,
        metadata={
            "help": "Draw each latent from its posterior at every step, rather than its mean. With a noise floor it "
            "is always the mean."
        },
    )
    label_dropout: float = field(
        default=0.5,
        metadata={
            "help": "Probability that a row is trained without any label; otherwise each of its labels is kept with "
            "a probability drawn uniformly per row, so that sampling may condition on any subset of the columns."
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the latents held out, unless validation latents are given."}
    )
    validation_size: int = field(
        default=4096, metadata={"help": "Number of noisy examples of the fixed validation set (latents x noises)."}
    )
    eval_steps: int = field(default=100, metadata={"help": "Steps between evaluations of the averaged weights."})
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Evaluations without a better validation loss that end training. 0: never."}
    )
    checkpoint_steps: int = field(default=500, metadata={"help": "Steps between checkpoints. 0: only on Ctrl-C."})
    checkpoint_limit: int = field(default=2, metadata={"help": "Number of checkpoints kept."})
    resume: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder to resume from, or 'auto': the latest in output_dir if there is one."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the split, the order and the noise."})
    bf16: bool = field(default=True, metadata={"help": "Mixed precision, where the hardware multiplies bf16."})
    device: str | None = field(default=None, metadata={"help": "Torch device. None: CUDA, else MPS, else the CPU."})
    show_progress: bool = field(default=True, metadata={"help": "Show a bar with rate, ETA and losses."})

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("Give max_steps or max_seconds: without either, training would never end.")
        for name in ("max_steps", "max_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        for name in ("batch_size", "validation_size", "eval_steps", "checkpoint_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("learning_rate", "max_grad_norm", "p_std"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        for name in ("early_stopping_patience", "checkpoint_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("final_learning_rate_ratio", "warmup_ratio", "label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        if self.resume == "auto" and self.output_dir is None:
            raise ValueError("resume='auto' looks in output_dir, which is not given.")

    def resolved(self, noise_floor: float) -> "DenoiserTrainingArguments":
        """These arguments, with the defaults for a denoiser of this ``noise_floor`` in place of None."""
        defaults = _DEFAULTS[noise_floor > 0]
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})
