"""Callbacks that end the autoencoder's training or save it: by time, and by evaluations without improvement."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from difflm.training.fit_time import Floor
from difflm.training.processes import from_main
from difflm.training.time_budget import TimeBudget


class TimeLimit(TrainerCallback):
    """Ends training when its time is used up, or at a floor. Evaluations and checkpoints count.

    Parameters
    ----------
    budget : TimeBudget
    floor : Floor, optional
        Told of every evaluation; there is one at its end, too, before training stops.

    Attributes
    ----------
    share_used : float
        Share of the time, or of the floor, that was used at the last step, the same in all processes: the main one's
        clock counts.
    """

    def __init__(self, budget: TimeBudget, floor: Floor | None = None) -> None:
        self.budget, self.floor = budget, floor
        self.share_used = self._time_used = 0.0

    @property
    def ends_early(self) -> bool:
        """Whether training may end before its last step."""
        return self.budget.max_seconds is not None or self.floor is not None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for entry in state.log_history:  # of the training that is resumed
            self.on_evaluate(args, state, control, entry)
        self._look_at_the_clock(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.floor is not None and "eval_reconstruction" in (metrics or {}):
            self.floor.look((metrics or {})["eval_reconstruction"])
            if self.share_used >= 1.0 and not self.floor.adds:
                control.should_training_stop = True

    # Before the learning rate's next value is asked for.
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._look_at_the_clock(state.global_step + 1)

    def _look_at_the_clock(self, steps: int) -> None:
        used, floor = self.budget.share, 0.0
        if self.floor is not None:
            used, floor = min(used, steps / self.floor.min_steps), self.floor.share(steps, self.budget.seconds)
        self._time_used, floor = from_main(used, floor)
        self.share_used = max(self._time_used, floor)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.share_used < 1.0:
            return
        if self.floor is not None and self.floor.may_go_on and self._time_used < 1.0:
            control.should_evaluate = True  # it may go on
        else:
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
            if self.evaluations_without_improvement >= self.patience:
                control.should_training_stop = True

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
