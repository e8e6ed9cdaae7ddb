"""Noisy latents: what each example is made of, and that every step has its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.latents import LatentDataset
from difflm.training.noisy_latents import NoisyLatentSampler


def make_sampler(
    class_sizes: list[int] | None = None, noise_floor: float = 0.0, **overrides: Any
) -> NoisyLatentSampler:
    torch.manual_seed(0)
    denoiser = DiffLMDenoiser(
        latent_size=4, hidden_size=8, num_blocks=1, class_sizes=class_sizes, noise_floor=noise_floor
    )
    return NoisyLatentSampler(denoiser, DenoiserTrainingArguments(**overrides), torch.device("cpu"))


def make_latents(count: int, **overrides: Any) -> LatentDataset:
    return LatentDataset(mean=torch.randn(count, 4, generator=torch.Generator().manual_seed(1)), **overrides)


def test_validation_noise_levels_are_the_distributions_quantiles_in_an_order_without_meaning() -> None:
    sampler, data = make_sampler(validation_size=400, p_mean=-1.0, p_std=1.5), make_latents(40)
    examples = sampler.validation_examples(data)
    quantiles = torch.distributions.Normal(-1.0, 1.5).icdf((torch.arange(400) + 0.5) / 400)
    ln_sigma = examples.sigma.log()
    torch.testing.assert_close(ln_sigma.sort().values, quantiles, atol=1e-4, rtol=1e-4)
    # Each row is seen at levels of the whole range, in every ten of them.
    assert torch.equal(examples.latents.reshape(10, 40, 4), data.mean.expand(10, 40, 4))
    assert abs(float(torch.corrcoef(torch.stack([ln_sigma, torch.arange(400.0)]))[0, 1])) < 0.2
    assert not torch.equal(make_sampler(validation_size=400, seed=1).validation_examples(data).noise, examples.noise)


def test_every_validation_row_is_judged_however_few_examples_are_asked_for() -> None:
    examples = make_sampler(validation_size=4).validation_examples(make_latents(40))
    assert torch.equal(examples.latents, make_latents(40).mean)


def test_each_step_has_noise_of_its_own_and_always_the_same() -> None:
    sampler, data = make_sampler(batch_size=16), make_latents(16)
    first, second, again = (sampler.training_batch(data, step) for step in (0, 1, 0))
    assert not torch.equal(first.noise, second.noise)
    assert not torch.equal(first.sigma, second.sigma)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.sigma, again.sigma)
    assert not torch.equal(make_sampler(batch_size=16, seed=1).training_batch(data, 0).noise, first.noise)


def test_posteriors_are_sampled_with_their_own_deviation() -> None:
    narrow = make_latents(4000, log_variance=torch.full((4000, 4), 2 * math.log(0.1)))
    sampler = make_sampler(batch_size=4000)
    rows = sampler.training_rows(4000, 0)
    residual = sampler.training_batch(narrow, 0).latents - narrow.mean[rows]
    assert float(residual.std()) == pytest.approx(0.1, rel=0.05)
    assert float(residual.mean()) == pytest.approx(0.0, abs=0.01)


def test_labels_are_left_out_where_the_denoiser_takes_none() -> None:
    labelled = make_latents(20, labels=torch.zeros(20, 1, dtype=torch.long), class_sizes=[3])
    assert make_sampler().training_batch(labelled, 0).labels is None
    assert make_sampler([3], batch_size=8).training_batch(labelled, 0).labels.shape == (8, 1)


# With a noise floor


@pytest.mark.parametrize("floor", [0.5, 0.01])
def test_a_batch_has_a_noise_level_of_each_stratum_above_the_floor(floor: float) -> None:
    sampler = make_sampler(noise_floor=floor)
    assert (sampler.args.batch_size, sampler.args.p_mean, sampler.args.p_std) == (512, 0.5, 1.2)
    normal = torch.distributions.Normal(0.5, 1.2)
    below = float(normal.cdf(torch.tensor(math.log(floor))))
    for step in range(3):
        sigma = sampler.training_batch(make_latents(600), step).sigma
        assert len(sigma) == 512 and float(sigma.min()) >= floor
        shares = (normal.cdf(sigma.log().double()) - below) / (1 - below)
        assert torch.equal((shares * 512).floor().clamp(0, 511), torch.arange(512.0, dtype=torch.float64))


def test_validation_levels_are_quantiles_above_the_floor() -> None:
    sigma = make_sampler(noise_floor=0.5, validation_size=400).validation_examples(make_latents(40)).sigma
    normal = torch.distributions.Normal(0.5, 1.2)
    below = normal.cdf(torch.tensor(math.log(0.5)))
    shares = below + (1 - below) * (torch.arange(400) + 0.5) / 400
    torch.testing.assert_close(sigma.sort().values, normal.icdf(shares).exp(), atol=1e-4, rtol=1e-4)


def test_with_a_noise_floor_the_latents_are_the_means() -> None:
    data = make_latents(20, log_variance=torch.zeros(20, 4))
    sampler = make_sampler(noise_floor=0.5, batch_size=20)
    assert torch.equal(sampler.training_batch(data, 0).latents, data.mean[sampler.training_rows(20, 0)])


def test_given_arguments_go_before_the_defaults_of_either_kind() -> None:
    given = DenoiserTrainingArguments(p_mean=0.3, batch_size=7)
    for floor, learning_rate, p_std in ((0.0, 1e-3, 1.2), (0.5, 2e-3, 1.2)):
        args = given.resolved(floor)
        assert (args.p_mean, args.batch_size, args.learning_rate, args.p_std) == (0.3, 7, learning_rate, p_std)
        assert args.resolved(floor) == args
