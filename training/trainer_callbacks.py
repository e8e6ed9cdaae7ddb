"""Callbacks that end the autoencoder's training or save it: by time, and by evaluations without improvement."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from difflm.training.processes import from_main
from difflm.training.time_budget import TimeBudget


class TimeLimit(TrainerCallback):
    """Ends training when its time is used up. Evaluations and checkpoints count.

    Attributes
    ----------
    share_used : float
        Share of the time that was used at the last step, the same in all processes: the main one's clock counts.
    """

    def __init__(self, budget: TimeBudget) -> None:
        self.budget = budget
        self.share_used = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        (self.share_used,) = from_main(self.budget.share)

    # Before the learning rate's next value is asked for.
    on_optimizer_step = on_train_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.share_used >= 1.0:
            control.should_training_stop = True


class TimedCheckpoints(TrainerCallback):
    """Writes a checkpoint when none was written for so long: where steps are slow, few of them are many minutes."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    on_save = on_train_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        (seconds,) = from_main(time.monotonic() - self.last)
        if seconds >= self.seconds:
            control.should_save = True


class EarlyStoppingAtFloor(TrainerCallback, ExportableState):
    """Early stopping. Where beta falls at plateaus, its patience starts to count once beta cannot fall any more."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.evaluations_without_improvement = 0

    def on_evaluate(
        self,
        args: Any,  # AutoencoderTrainingArguments
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_reconstruction")
        if loss is None:
            return
        at_floor = args.beta_schedule != "decreasing" or _current_beta(state) <= args.beta_minimum * (1 + 1e-6)
        if self.best is None or loss < self.best:
            self.best, self.evaluations_without_improvement = loss, 0
        elif at_floor:
            self.evaluations_without_improvement += 1
            control.should_training_stop = self.evaluations_without_improvement >= self.patience

    def state(self) -> dict[str, Any]:
        return {
            "args": {"patience": self.patience},
            "attributes": {
                "best": self.best,
                "evaluations_without_improvement": self.evaluations_without_improvement,
            },
        }


def _current_beta(state: TrainerState) -> float:
    return next((entry["beta"] for entry in reversed(state.log_history) if "beta" in entry), float("inf"))
