"""What a training of the denoiser did, and where it stands."""

from dataclasses import dataclass, field


@dataclass
class DenoiserTrainingResult:
    """What a training run did.

    Attributes
    ----------
    history : list of dict
        One entry per evaluation: ``step``, ``seconds``, ``train_loss`` (mean since the last evaluation),
        ``validation_loss`` (of the averaged weights) and ``learning_rate``.
    best_step : int
        Step whose averaged weights the denoiser now holds.
    best_validation_loss : float
        Their validation loss.
    steps : int
        Number of optimizer steps.
    seconds : float
        Wall-clock time, over all resumed parts.
    stop_reason : {"max_steps", "max_seconds", "early_stopping"}
        What ended training.
    """

    history: list[dict[str, float]]
    best_step: int
    best_validation_loss: float
    steps: int
    seconds: float
    stop_reason: str


@dataclass
class DenoiserTrainingState:
    """Progress that a checkpoint keeps as JSON."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_validation_loss: float | None = None
    evaluations_without_improvement: int = 0
    interval_loss_sum: float = 0.0
    interval_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
