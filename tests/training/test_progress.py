"""The bar of a fit tells the truth about when it ends."""

from __future__ import annotations

import re

import pytest
from transformers import TrainerControl, TrainerState

from difflm.training.fitting import fit
from difflm.training.presets import Preset
from difflm.training.progress import FitProgress
from difflm.training.time_budget import TimeBudget
from difflm.training.trainer_callbacks import TimeLimit
from tests.conftest import tiny_preset


def state(step: int, max_steps: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=True)


@pytest.fixture
def preset(model_folders) -> Preset:
    return tiny_preset(model_folders, max_minutes=5.0)


@pytest.mark.parametrize(
    ("started_at", "step", "share", "total"),
    [
        (0, 10, 0.0, 1000),  # no budget, or none used yet
        (0, 10, 0.1, 100),  # time ends first
        (0, 600, 0.5, 1000),  # the steps end first
        (50, 60, 0.1, 150),  # resumed: earlier steps took none of this run's time
        (0, 10, 1.0, 10),
    ],
)
def test_the_total_follows_the_nearer_end(started_at, step, share, total, capsys):
    progress = FitProgress(TimeLimit(TimeBudget(1.0)))
    progress.on_train_begin(None, state(started_at, 1000), TrainerControl())
    progress.limit.share_used = share
    progress.on_step_end(None, state(step, 1000), TrainerControl())
    assert progress.bar.total == total
    assert progress.bar.n == step
    progress.on_train_end(None, state(step, 1000), TrainerControl())
    assert progress.bar is None


def test_time_used_before_the_first_step_is_not_the_steps():
    progress = FitProgress(TimeLimit(TimeBudget(1.0)))
    progress.limit.share_used = 0.2
    progress.on_train_begin(None, state(0, 1000), TrainerControl())
    progress.limit.share_used = 0.4
    progress.on_step_end(None, state(10, 1000), TrainerControl())
    assert progress.bar.total == 40


def test_a_fit_shows_bars_and_no_raw_logs(preset, small_table, tmp_path, capfd):
    fit(small_table, tmp_path / "out", preset=preset)
    out, err = capfd.readouterr()
    assert out == ""
    bars = set(re.findall(r"([A-Z][^:\r\n]*):", err))
    assert {"Training the draft", "Training the denoiser", "Fitting the language model"} <= bars
    assert "Writing model shards" not in bars
    assert "reconstruction=" in err
    assert "beta=" in err
    assert "{'" not in err


def test_a_silent_fit_is_silent(preset, small_table, tmp_path, capfd):
    fit(small_table, tmp_path / "out", preset=preset, show_progress=False)
    assert capfd.readouterr() == ("", "")
