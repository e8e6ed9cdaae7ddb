"""Schedules of beta, the KL's weight, as trainer callbacks (DiffLM, arXiv 2411.03250, section 3.2 and ablation)."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from difflm.errors import ArgumentError


class BetaSchedule(TrainerCallback, ExportableState):
    """Base of the schedules: holds ``beta``, which the trainer reads at every step and which checkpoints keep."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def advance(self, share: float) -> float:
        """Return beta for a step, given the share of the training (0 to 1, of its steps or its time) that is over."""
        return self.beta

    def state(self) -> dict[str, Any]:
        return {"args": {"beta": self.beta}, "attributes": {}}


class ConstantBeta(BetaSchedule):
    """The same beta throughout."""


class DecreasingBeta(BetaSchedule):
    """The paper's schedule: beta starts high and is multiplied by a factor on each plateau of the validation loss.

    Parameters
    ----------
    beta : float, default 0.1
        First value.
    minimum : float, default 0.001
        Floor.
    factor : float, default 0.5
        Multiplies beta each time the validation reconstruction loss has not improved for ``patience`` evaluations.
    patience : int, default 1
        Evaluations without improvement that count as a plateau.
    threshold : float, default 0.0
        Relative improvement below which an evaluation does not count as one.
    """

    def __init__(
        self,
        beta: float = 0.1,
        minimum: float = 0.001,
        factor: float = 0.5,
        patience: int = 1,
        threshold: float = 0.0,
    ) -> None:
        super().__init__(beta)
        if not 0 < factor < 1:
            raise ArgumentError(f"beta_factor must lie between 0 and 1, not {factor}.")
        self.minimum, self.factor, self.patience, self.threshold = minimum, factor, patience, threshold
        self.best = math.inf
        self.evaluations_without_improvement = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_reconstruction")
        if loss is None:
            return
        if loss < self.best * (1 - self.threshold):
            self.best, self.evaluations_without_improvement = loss, 0
            return
        self.evaluations_without_improvement += 1
        if self.evaluations_without_improvement >= self.patience:
            self.beta = max(self.minimum, self.beta * self.factor)
            self.evaluations_without_improvement = 0

    def state(self) -> dict[str, Any]:
        names = ("beta", "minimum", "factor", "patience", "threshold")
        return {
            "args": {name: getattr(self, name) for name in names},
            "attributes": {
                "best": self.best if math.isfinite(self.best) else None,
                "evaluations_without_improvement": self.evaluations_without_improvement,
            },
        }

    def __setattr__(self, name: str, value: Any) -> None:
        # JSON has no infinity: a checkpoint from before the first evaluation stores none.
        super().__setattr__(name, math.inf if name == "best" and value is None else value)


class GeometricBeta(BetaSchedule):
    """Beta falls geometrically to its floor over the first part of the training, and stays there.

    Unlike the paper's schedule it reaches the floor within any budget: few evaluations fit into minutes, and a
    posterior that a high beta has collapsed recovers only once beta is low.

    Parameters
    ----------
    beta : float, default 0.1
        First value.
    minimum : float, default 0.001
        Floor.
    anneal_share : float, default 0.67
        Share of the training (0 to 1) after which the floor is reached.
    """

    def __init__(self, beta: float = 0.1, minimum: float = 0.001, anneal_share: float = 0.67) -> None:
        super().__init__(beta)
        if not 0 < minimum <= beta:
            raise ArgumentError(f"beta_minimum must lie above 0 and not above beta={beta}, not at {minimum}.")
        if not 0 < anneal_share <= 1:
            raise ArgumentError(f"beta_anneal_share must lie between 0 and 1, not at {anneal_share}.")
        self.first, self.minimum, self.anneal_share = beta, minimum, anneal_share

    def advance(self, share: float) -> float:
        target = self.first * (self.minimum / self.first) ** min(1.0, share / self.anneal_share)
        # A resumed training has a new time budget, hence a smaller share: beta does not rise again.
        self.beta = min(self.beta, target)
        return self.beta

    def state(self) -> dict[str, Any]:
        return {
            "args": {"beta": self.first, "minimum": self.minimum, "anneal_share": self.anneal_share},
            "attributes": {"beta": self.beta},
        }


class CyclicalBeta(BetaSchedule):
    """The ablation's rival: beta rises linearly from 0 to ``maximum`` over half of each cycle and stays there.

    Parameters
    ----------
    maximum : float, default 0.2
    num_cycles : int, default 4
        Over the whole training.
    """

    def __init__(self, maximum: float = 0.2, num_cycles: int = 4, beta: float = 0.0) -> None:
        super().__init__(beta)
        self.maximum, self.num_cycles = maximum, num_cycles

    def advance(self, share: float) -> float:
        self.beta = self.maximum * min(1.0, 2.0 * (share * self.num_cycles % 1.0))
        return self.beta

    def state(self) -> dict[str, Any]:
        return {
            "args": {"maximum": self.maximum, "num_cycles": self.num_cycles, "beta": self.beta},
            "attributes": {},
        }


def build_beta_schedule(args: Any) -> BetaSchedule:
    """The schedule that [`AutoencoderTrainingArguments`] name."""
    if args.beta_schedule == "constant":
        return ConstantBeta(args.beta)
    if args.beta_schedule == "cyclical":
        return CyclicalBeta(args.beta, args.beta_cycles)
    if args.beta_schedule == "geometric":
        return GeometricBeta(args.beta, args.beta_minimum, args.beta_anneal_share)
    return DecreasingBeta(args.beta, args.beta_minimum, args.beta_factor, args.beta_patience, args.beta_threshold)
