"""A wall-clock budget: how much of it is used, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from difflm.errors import ArgumentError


class TimeBudget:
    """Time that work may take. Both stages, the warm-up and the fit around them count with it.

    Parameters
    ----------
    max_seconds : float, optional
        None: no limit.
    used : float, default 0
        Seconds that were used before, for example by the part of a training that is resumed.
    clock : callable, default time.monotonic
        Returns the time in seconds.

    Raises
    ------
    ArgumentError
        If ``max_seconds`` is not positive.
    """

    def __init__(
        self, max_seconds: float | None = None, *, used: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise ArgumentError(f"A time budget must be positive, not {max_seconds} seconds.")
        self.max_seconds, self._clock = max_seconds, clock
        self.start(used)

    def start(self, used: float = 0.0) -> None:
        """Count from now on, with ``used`` seconds used before."""
        self._started = self._clock() - used

    @property
    def seconds(self) -> float:
        """Seconds used."""
        return self._clock() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Seconds that remain, not below 0; None without a limit."""
        return None if self.max_seconds is None else max(0.0, self.max_seconds - self.seconds)

    @property
    def share(self) -> float:
        """Share of the budget that is used, 0 to 1; 0 without a limit."""
        return 0.0 if self.max_seconds is None else min(1.0, self.seconds / self.max_seconds)
