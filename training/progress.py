"""One progress bar for a fit whose end may be set by time instead of by steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from difflm.training.trainer_callbacks import TimeLimit


FIGURES = ("loss", "reconstruction", "eval_reconstruction", "beta")


@contextlib.contextmanager
def no_file_bars(active: bool = True) -> Iterator[None]:
    """While open (and ``active``), transformers shows no bars of its own ("Writing model shards")."""
    if not active:
        yield
        return
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


class FitProgress(TrainerCallback):
    """A bar whose total, and with it the ETA, follows whichever of steps and time budget ends training first.

    Takes the place of transformers' ProgressCallback, which counts all epochs even if time ends before them and
    prints every log entry as a dict.

    Parameters
    ----------
    limit : TimeLimit
        The trainer's; a callback that is called before this one.
    description : str, default "Fitting the autoencoder"
    """

    def __init__(self, limit: TimeLimit, description: str = "Fitting the autoencoder") -> None:
        self.limit = limit
        self.description = description
        self.bar: tqdm[Any] | None = None
        self.first_step, self.first_share = 0, 0.0
        self.figures: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.first_step, self.first_share = state.global_step, self.limit.share_used
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.description,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.total = self.expected_steps(state)
            self.bar.update(state.global_step - self.bar.n)

    def expected_steps(self, state: TrainerState) -> int:
        """Steps at which training will end: all of them, or as many as the time budget has room for at this rate."""
        share = self.limit.share_used - self.first_share
        if share <= 0:
            return state.max_steps
        in_time = self.first_step + round((state.global_step - self.first_step) * (1 - self.first_share) / share)
        return max(state.global_step, min(state.max_steps, in_time))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None:
            self.figures |= {name: f"{logs[name]:.4g}" for name in FIGURES if logs and name in logs}
            self.bar.set_postfix(self.figures, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
