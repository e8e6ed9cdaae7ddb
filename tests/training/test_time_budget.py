"""A time budget counts what was used before, and never says more than all."""

from __future__ import annotations

import pytest

from difflm.training.time_budget import TimeBudget


def test_a_budget_is_used_up():
    now = [100.0]
    budget = TimeBudget(60, used=15, clock=lambda: now[0])
    assert (budget.seconds, budget.share, budget.seconds_left) == (15, 0.25, 45)
    now[0] += 60
    assert (budget.share, budget.seconds_left) == (1.0, 0.0)
    budget.start(used=30)
    assert (budget.share, budget.seconds_left) == (0.5, 30)


def test_without_a_limit_it_never_ends():
    now = [0.0]
    budget = TimeBudget(None, clock=lambda: now[0])
    now[0] = 1e9
    assert (budget.seconds, budget.share, budget.seconds_left) == (1e9, 0.0, None)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_budget_is_positive(seconds):
    with pytest.raises(ValueError, match="must be positive"):
        TimeBudget(seconds)
