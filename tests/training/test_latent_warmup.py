"""The warm-up: latents that tell records apart before the LLM has read one."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from difflm.training import latent_warmup
from difflm.training.autoencoder_losses import AutoencoderObjective
from difflm.training.latent_warmup import warm_up_latents
from difflm.training.policy import Policy
from difflm.training.time_budget import TimeBudget
from tests.conftest import build_tiny_model


@pytest.fixture
def objective(model_folders) -> AutoencoderObjective:
    return AutoencoderObjective(build_tiny_model(model_folders, num_feature_columns=2, feature_size=64))


@pytest.fixture
def model(objective):
    return objective.autoencoder


@pytest.fixture
def values(model) -> torch.Tensor:
    values = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) ** 3
    values[::7, 1] = float("nan")
    model.column_features.fit(values)
    return values


def column_losses(objective: AutoencoderObjective, values: torch.Tensor) -> tuple[float, float]:
    """Nats of the columns from each record's own latent, and from another's."""
    with torch.no_grad():
        latents = objective.autoencoder.encode_features(values).mean
        own, other = (objective.column_loss(z, values).mean().item() for z in (latents, latents.roll(1, 0)))
    return own, other


def test_the_latents_learn_what_the_columns_hold(objective, model, values):
    own, other = column_losses(objective, values)
    assert other < 1.05 * own
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert warm_up_latents(objective, values, steps=300, show_progress=False) == 300
    own, other = column_losses(objective, values)
    assert other > 2 * own
    now = objective.state_dict()
    moved = {
        name.removeprefix("autoencoder.").split(".")[0] for name in now if not torch.equal(now[name], before[name])
    }
    assert moved == {"column_features", "column_decoder", "posterior_mean", "posterior_log_variance"}
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_a_draft_is_learnt_beside_them(model_folders):
    columns = {"num_embedded_columns": 2, "separator_token_ids": [14], "draft_places": [2, 3]}
    columns |= {"num_feature_columns": 2, "feature_size": 64, "draft_token_ids": [14, *range(20, 30)]}
    objective = AutoencoderObjective(build_tiny_model(model_folders, **columns))
    model = objective.autoencoder
    digits = torch.randint(20, 30, (500, 3), generator=torch.Generator().manual_seed(1))
    labels = torch.stack([digits[:, 0], torch.full((500,), 14), *digits[:, 1:].T, torch.ones(500).long()], dim=1)
    first, second, third = (digits - 20).T
    values = torch.stack([first / 9, (10 * second + third) / 99], dim=1)
    model.column_features.fit(values)

    def nats(latents):
        with torch.no_grad():
            waves = objective.column_loss(latents, values)
            return (objective.column_loss(latents, values, labels) - waves).mean().item()

    latents = model.encode_features(values).mean.detach()
    assert nats(latents) == pytest.approx(5 * math.log(13))  # of five tokens nothing is known
    warm_up_latents(objective, values, lambda row: labels[row].tolist(), steps=600, show_progress=False)
    model.eval()
    latents = model.encode_features(values).mean.detach()
    assert nats(latents) < 3 * math.log(10) / 2 and 3 * math.log(10) < nats(latents.roll(1, 0))
    # The decoder's head reads them off the hidden states.
    head = model.decoder.get_output_embeddings().weight
    read = (model.record_draft.to_hidden(model.record_draft(latents)) @ head.T)[:, [0, 2, 3]].argmax(-1)
    assert (read == digits)[:, :2].float().mean() > 0.7


def drafting(model_folders) -> AutoencoderObjective:
    """Of a model with a draft, whose dropout is what else is random."""
    columns = {"num_embedded_columns": 1, "separator_token_ids": [14], "draft_places": [2], "draft_token_ids": [20]}
    columns |= {"num_feature_columns": 2, "feature_size": 16, "draft_dropout": 0.5}
    return AutoencoderObjective(build_tiny_model(model_folders, **columns))


def weights(objective: AutoencoderObjective) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in objective.parameters()])


def test_the_seed_alone_decides_and_the_mode_is_kept(model_folders, values):
    def run(seed, training):
        objective = drafting(model_folders).train(training)
        torch.manual_seed(100 + 10 * seed + training)  # whatever the caller drew
        warm_up_latents(objective, values, lambda row: [20, 1], steps=3, seed=seed, show_progress=False)
        assert objective.training == objective.autoencoder.training == training
        return weights(objective)

    first = run(0, True)
    assert torch.equal(run(0, False), first)  # trained in training mode in any case
    assert not torch.equal(run(1, True), first)


def test_gradients_are_clipped(objective, values):
    before = weights(objective)
    policy = Policy(warm_up_max_grad_norm=1e-13)
    warm_up_latents(objective, values, steps=5, policy=policy, show_progress=False)
    assert float((weights(objective) - before).abs().max()) < 1e-7  # AdamW's epsilon is far above such gradients
    warm_up_latents(objective, values, steps=5, show_progress=False)
    assert float((weights(objective) - before).abs().max()) > 1e-5


@pytest.fixture
def rates():
    """The learning rate of each step of any optimizer."""
    found: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: found.append(optimizer.param_groups[0]["lr"])
    )
    yield found
    hook.remove()


def test_the_learning_rate_rises_over_its_ramp_and_follows_a_cosine(objective, values, rates):
    policy = Policy(warm_up_learning_rate=1e-3, warm_up_ramp_steps=4)
    warm_up_latents(objective, values, steps=12, policy=policy, show_progress=False)
    cosine = [0.5e-3 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert rates == pytest.approx([value * min(1, (step + 1) / 4) for step, value in enumerate(cosine)])


def test_the_learning_rate_follows_time_where_that_is_nearer_its_end(objective, values, rates, monkeypatch):
    now = itertools.count(0.0)
    monkeypatch.setattr(latent_warmup, "TimeBudget", functools.partial(TimeBudget, clock=lambda: next(now)))
    policy = Policy(warm_up_learning_rate=1e-3, warm_up_ramp_steps=1)
    made = warm_up_latents(objective, values, steps=1000, max_seconds=10, policy=policy, show_progress=False)
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * second / 10)) for second in range(1, made + 1)])
    assert made == 9


def test_no_more_rows_are_read_than_there_are(objective, values):
    read = []

    def labels(row):
        read.append(row)
        return [3]

    warm_up_latents(objective, values[:3], labels, steps=2, show_progress=False)
    assert len(read) == 2 * 3 and set(read) <= {0, 1, 2}


def test_the_kl_is_weighed(objective, values):
    found = []
    for beta in (0.001, 100.0):
        warm_up_latents(objective, values, steps=100, policy=Policy(warm_up_beta=beta), show_progress=False)
        with torch.no_grad():
            found.append(objective.autoencoder.encode_features(values).kl().mean().item())
    assert found[1] < 0.1 * found[0]


def test_the_last_weights_stay_where_none_before_were_better(objective, model, values, monkeypatch):
    losses = iter([9.0, 8.0, 7.0, 6.0, 5.0])
    kept = []

    def evaluate(*args, beta):
        kept.append(model.posterior_mean.weight.clone())
        return next(losses)

    monkeypatch.setattr(latent_warmup, "_held_out_loss", evaluate)
    warm_up_latents(objective, values, None, (values, []), steps=210, show_progress=False)
    assert torch.equal(model.posterior_mean.weight, kept[-1])


def test_held_out_rows_are_judged_without_dropout_and_gradients(model_folders, values, monkeypatch):
    objective = drafting(model_folders)
    seen, column_loss = [], objective.column_loss

    def spy(*args):
        found = column_loss(*args)
        seen.append((objective.training, found.requires_grad))
        return found

    monkeypatch.setattr(objective, "column_loss", spy)
    labels = [[20, 1]] * len(values)
    warm_up_latents(objective, values, labels.__getitem__, (values[:9], labels[:9]), steps=1, show_progress=False)
    assert seen == [(True, True), (False, False)]


def test_the_weights_best_for_held_out_rows_are_kept(objective, model, values, monkeypatch):
    losses = iter([9.0, 8.0, 8.5, 8.1, 8.1])
    kept = []

    def evaluate(*args, beta):
        kept.append(model.posterior_mean.weight.clone())
        return next(losses)

    monkeypatch.setattr(latent_warmup, "_held_out_loss", evaluate)
    assert warm_up_latents(objective, values, None, (values, []), steps=210, show_progress=False) == 210
    assert torch.equal(model.posterior_mean.weight, kept[1])


def test_the_held_out_loss_is_that_of_the_mean(objective, model, values):
    rows = values[:9]
    posterior = model.eval().encode_features(rows)
    expected = objective.column_loss(posterior.mean, rows).mean() + 0.3 * posterior.kl().mean()
    assert latent_warmup._held_out_loss(objective, rows, [], beta=0.3) == pytest.approx(expected.item(), rel=1e-5)
    assert model.training and objective.training


def test_it_draws_from_its_own_generator(objective, model, values):
    state = torch.get_rng_state()
    warm_up_latents(objective, values, steps=3, seed=5, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_ends_by_time_and_on_few_rows(objective, model, values):
    assert warm_up_latents(objective, values, max_seconds=1e-9, show_progress=False) == 0
    assert warm_up_latents(objective, values[:1], steps=1000, show_progress=False) == 400


def test_the_text_adds_nothing_until_it_is_trained(objective, model, values):
    warm_up_latents(objective, values, steps=5, show_progress=False)
    tokens = torch.randint(3, 250, (4, 12), generator=torch.Generator().manual_seed(0))
    found = model.encode(tokens, torch.ones_like(tokens), values[:4])
    expected = model.encode_features(values[:4])
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.log_variance, expected.log_variance, atol=1e-5, rtol=0)


def test_a_model_without_feature_columns(tiny_model):
    with pytest.raises(ValueError, match="no feature columns: use encode"):
        tiny_model.encode_features(torch.rand(2, 2))
    assert AutoencoderObjective(tiny_model).column_loss(torch.rand(3, 8), torch.rand(3, 2)).tolist() == [0.0] * 3
