"""Who of the parts of a fit may take how much of its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from difflm.training.presets import Preset


Writer = Literal["auto", "lm", "draft"]
PARTS = ("draft_seconds", "denoiser_seconds", "encoding_seconds", "autoencoder_seconds")


def seconds_used(log: Mapping[str, Any]) -> float:
    """Seconds of a fit's parts so far; loading and saving are not counted."""
    return sum(log.get(part, 0.0) for part in PARTS)


@dataclass
class Floor:
    """How long the language model trains where the draft writes; without an end where it adds to the draft.

    Attributes
    ----------
    rival_nats : float
        What the draft needs for a held-out record.
    steps, min_steps : int
        It ends after so many; it makes the latter however slow they are.
    seconds : float, optional
        It ends then, too.
    may_go_on : bool, default True
        Whether it goes on where it adds.
    adds : bool
        Whether a held-out record cost it less than the draft at an evaluation.
    """

    rival_nats: float
    steps: int
    min_steps: int
    seconds: float | None = None
    may_go_on: bool = True
    adds: bool = False

    def look(self, nats: float) -> None:
        """Take note of an evaluation."""
        self.adds = self.adds or (self.may_go_on and nats < self.rival_nats)

    def share(self, step: int, seconds: float) -> float:
        """How much of the floor is behind, 0 to 1; 0 where it counts no more."""
        if self.adds:
            return 0.0
        by_time = 0.0 if self.seconds is None else min(seconds / self.seconds, step / self.min_steps)
        return min(1.0, max(step / self.steps, by_time))


class FitTime:
    """The parts' limits in seconds; None without ``max_minutes``.

    Parameters
    ----------
    settings : Preset
    lm_leads : bool
        Whether the language model gets most of the time: it writes, or it reads texts. Else the draft writes.
    """

    def __init__(self, settings: Preset, *, lm_leads: bool) -> None:
        self.policy, self.lm_leads = settings.policy, lm_leads
        self.total = None if settings.max_minutes is None else 60 * settings.max_minutes
        self.lm_share = self.policy.autoencoder_share_with_draft if lm_leads else self.policy.floor_share

    def draft(self) -> float | None:
        """Of the column draft, which ends by itself."""
        return None if self.total is None else self.policy.column_draft_share * (1 - self.lm_share) * self.total

    def denoiser(self, used: float, *, last: bool) -> float | None:
        """Of the denoiser: what is left, but for the language model's share if that is not the ``last`` part."""
        if self.total is None:
            return None
        kept = 0.0 if last else self.lm_share * self.total
        return max(self.policy.min_denoiser_seconds, self.total - kept - used)

    def autoencoder(self, used: float, encoding: float, *, has_draft: bool) -> float | None:
        """Of an autoencoder that others wait for: what they need, of them ``encoding`` so many seconds, is kept."""
        if self.total is None:
            return None
        policy, left = self.policy, max(self.total - used, 1.0)
        most = policy.autoencoder_share_with_draft if has_draft else policy.autoencoder_share
        share = min(most, 1 - policy.denoiser_share - encoding / left)
        return max(policy.min_autoencoder_share, share) * left

    def language_model(self, used: float) -> float | None:
        """Of the language model as the last part: what is left, and its share however little that is."""
        if self.total is None:
            return None
        least = self.policy.floor_share * self.total
        return max(least, self.total - used)

    def floor(self, rival_nats: float, writer: Writer) -> Floor | None:
        """At which it ends where the draft writes; None where the language model leads."""
        if self.lm_leads:
            return None
        policy = self.policy
        return Floor(
            rival_nats=rival_nats,
            steps=policy.floor_steps,
            min_steps=policy.min_floor_steps,
            seconds=None if self.total is None else policy.floor_share * self.total,
            may_go_on=writer == "auto",
        )
