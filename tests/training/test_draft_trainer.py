"""The draft's training: it learns what columns have to do with each other, and stops when held-out records say so."""

import numpy as np
import pytest
import torch

from difflm.pipelines.cell_codes import CodedColumn
from difflm.training.draft_trainer import train_draft
from difflm.training.policy import Policy


COLUMNS = (CodedColumn("a", "choice", 4), CodedColumn("b", "choice", 4), CodedColumn("c", "number"))
FAST = Policy(column_batch_size=64, column_min_steps=60, column_max_epochs=20, column_evaluation_interval=20)


def rows(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    a = random.integers(0, 4, count)
    return np.stack([a, (a + 1) % 4, 100 * a + random.integers(0, 50, count)], 1)


def trained(**options):
    settings = {"policy": FAST, "show_progress": False, "hidden_size": 32, "num_blocks": 1} | options
    return train_draft(COLUMNS, rows(600), rows(100, 1), **settings)


def test_it_learns_what_the_columns_have_to_do_with_each_other():
    fitted = trained()
    draft = fitted.draft
    generator = torch.Generator().manual_seed(0)
    means = draft.encode(torch.from_numpy(rows(300, 2)), generator)
    latents = means + draft.latent_noise * torch.randn(means.shape, generator=generator)
    written = draft.write(latents, torch.rand(300, 6, generator=generator, dtype=torch.float64))
    assert float(((written[:, 0] + 1) % 4 == written[:, 1]).double().mean()) > 0.9
    assert float((written[:, 2] // 100 == written[:, 0]).double().mean()) > 0.85
    assert fitted.held_out_nats < 6
    assert fitted.history[-1]["held_out_nats"] < fitted.history[0]["held_out_nats"]


def test_it_depends_on_the_seed_alone():
    torch.manual_seed(5)
    first = trained(seed=3)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    second = trained(seed=3)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in first.draft.state_dict().items():
        assert torch.equal(value, second.draft.state_dict()[name]), name
    assert trained(seed=4).held_out_nats != first.held_out_nats


def test_it_stops_when_held_out_records_no_longer_gain():
    noise = np.random.default_rng(0).integers(0, 4, (60, 3))
    policy = FAST.changed({"column_patience": 2, "column_max_epochs": 400})
    fitted = train_draft(
        COLUMNS, noise, np.random.default_rng(1).integers(0, 4, (60, 3)), policy=policy, show_progress=False
    )
    assert fitted.stop_reason == "held-out nats"
    assert fitted.best_step < fitted.steps < 400


def test_it_ends_by_the_clock_with_a_draft_that_writes():
    fitted = trained(max_seconds=1e-9)
    assert (fitted.stop_reason, fitted.steps) == ("max_seconds", 0)
    assert fitted.draft.write(torch.zeros(1, fitted.draft.latent_size), torch.full((1, 6), 0.5)).shape == (1, 3)


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match="column_learning_rate"):
        trained(policy=FAST.changed({"column_learning_rate": 1e30, "column_max_grad_norm": 1e30}))
