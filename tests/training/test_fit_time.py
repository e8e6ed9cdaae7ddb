"""Every part gets its time, and together they keep the limit."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import TrainerControl, TrainerState

from difflm.training.fit_time import FitTime, Floor, seconds_used
from difflm.training.policy import Policy
from difflm.training.presets import Preset
from difflm.training.time_budget import TimeBudget
from difflm.training.trainer_callbacks import TimeLimit


MINUTES = Preset(max_minutes=10.0)


def test_where_the_draft_writes_the_denoiser_gets_what_the_others_leave():
    time = FitTime(MINUTES, lm_leads=False)
    assert time.draft() == pytest.approx(0.4 * 0.85 * 600)
    assert time.denoiser(100.0, last=False) == pytest.approx(600 - 90 - 100)
    assert time.language_model(300.0) == pytest.approx(300)
    assert time.language_model(590.0) == pytest.approx(90)  # its share, however late it is
    assert time.denoiser(595.0, last=False) == 20.0
    floor = time.floor(10.0, "auto")
    assert (floor.seconds, floor.rival_nats, floor.may_go_on) == (90.0, 10.0, True)
    assert not time.floor(10.0, "draft").may_go_on


def test_where_the_language_model_writes_it_gets_most():
    time = FitTime(MINUTES, lm_leads=True)
    assert time.draft() == pytest.approx(60)
    assert time.denoiser(60.0, last=False) == pytest.approx(90)
    assert time.language_model(150.0) == pytest.approx(450)
    assert time.floor(10.0, "lm") is None
    assert time.autoencoder(0.0, 1.0, has_draft=True) == pytest.approx(450)
    assert time.autoencoder(100.0, 100.0, has_draft=True) == pytest.approx((1 - 0.12 - 0.2) * 500)
    assert time.denoiser(580.0, last=True) == 20.0


@pytest.mark.parametrize("lm_leads", [True, False])
def test_without_a_limit_there_is_none(lm_leads):
    time = FitTime(dataclasses.replace(MINUTES, max_minutes=None), lm_leads=lm_leads)
    limits = [time.draft(), time.denoiser(9.0, last=False), time.language_model(9.0)]
    assert [*limits, time.autoencoder(9.0, 9.0, has_draft=True)] == [None] * 4
    assert lm_leads or time.floor(1.0, "auto").seconds is None


def test_seconds_of_all_parts_count():
    log = {"draft_seconds": 1.0, "denoiser_seconds": 2.0, "encoding_seconds": 4.0, "autoencoder_seconds": 8.0}
    assert seconds_used(log | {"fit_cpu_seconds": 99.0}) == 15.0
    assert seconds_used({}) == 0.0


class TestFloor:
    def test_it_ends_after_steps_or_seconds(self):
        floor = Floor(rival_nats=10.0, steps=100, min_steps=10, seconds=50.0)
        assert floor.share(50, 5.0) == 0.5
        assert floor.share(20, 40.0) == 0.8
        assert floor.share(100, 0.0) == floor.share(20, 60.0) == 1.0

    def test_slow_steps_are_made_nevertheless(self):
        floor = Floor(rival_nats=10.0, steps=100, min_steps=10, seconds=50.0)
        assert floor.share(5, 500.0) == 0.5
        assert floor.share(10, 500.0) == 1.0

    def test_it_counts_no_more_where_the_language_model_adds(self):
        floor = Floor(rival_nats=10.0, steps=100, min_steps=10)
        floor.look(10.0)
        assert floor.share(100, 9.0) == 1.0
        floor.look(9.0)
        assert floor.share(100, 9.0) == 0.0
        floor.look(11.0)
        assert floor.adds

    def test_it_does_not_go_on_where_it_must_not(self):
        floor = Floor(rival_nats=10.0, steps=100, min_steps=10, may_go_on=False)
        floor.look(1.0)
        assert floor.share(100, 9.0) == 1.0


def test_shares_leave_something_for_all():
    policy = Policy()
    assert policy.floor_share + policy.column_draft_share * (1 - policy.floor_share) < 0.6


def test_slow_steps_are_made_beyond_the_limit():
    limit = TimeLimit(TimeBudget(1.0, used=99.0), Floor(rival_nats=10.0, steps=400, min_steps=10, seconds=1.0))
    state, control = TrainerState(global_step=8), TrainerControl()
    limit.on_optimizer_step(None, state, control)
    limit.on_step_end(None, state, control)
    assert limit.share_used == 0.9 and not control.should_training_stop
    state.global_step = 9
    limit.on_optimizer_step(None, state, control)
    limit.on_step_end(None, state, control)
    assert control.should_training_stop and not control.should_evaluate


def test_at_the_floors_end_there_is_an_evaluation_that_decides():
    for nats, goes_on in ((9.0, True), (11.0, False)):
        limit = TimeLimit(TimeBudget(None), Floor(rival_nats=10.0, steps=2, min_steps=1))
        state, control = TrainerState(), TrainerControl()
        limit.on_train_begin(None, state, control)
        for step in (1, 2):
            state.global_step = step - 1
            limit.on_optimizer_step(None, state, control)
            state.global_step = step
            limit.on_step_end(None, state, control)
            assert (control.should_evaluate, control.should_training_stop) == (step == 2, False)
        limit.on_evaluate(None, state, control, {"eval_reconstruction": nats})
        assert control.should_training_stop == (not goes_on)
        limit.on_optimizer_step(None, state, control)
        assert limit.share_used == (0.0 if goes_on else 1.0)
