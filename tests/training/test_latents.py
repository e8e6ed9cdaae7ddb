"""Latents as training data: what is refused, and statistics that are always fit to divide by."""

from __future__ import annotations

import math

import pytest
import torch

from difflm.training.latents import LatentDataset


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted(bad: float) -> None:
    values = torch.zeros(4, 3)
    values[1, 2] = values[3, 0] = bad
    with pytest.raises(ValueError, match="means of 2 records are not finite"):
        LatentDataset(values)
    with pytest.raises(ValueError, match="log-variances of 2 records are not finite"):
        LatentDataset(torch.zeros(4, 3), values)


def test_latents_are_data_in_float32_without_a_gradient() -> None:
    data = LatentDataset(torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), torch.zeros(2, 3).half())
    assert not data.mean.requires_grad
    assert data.mean.dtype == data.log_variance.dtype == torch.float32


def test_latents_that_do_not_vary_have_a_deviation_to_divide_by() -> None:
    mean, std, _ = LatentDataset(torch.full((5, 3), 7.0)).statistics(sample_posterior=False)
    assert mean.tolist() == [7.0] * 3
    assert (std > 0).all() and std.isfinite().all()


def test_rounding_gives_no_negative_variance() -> None:
    """All but one axis have a variance of zero, which rounding may put on either side of it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        line = torch.randn(200, 1, generator=generator) * torch.randn(1, 6, generator=generator)
        _, std, axes = LatentDataset(line).statistics(sample_posterior=False)
        assert std.isfinite().all() and axes.isfinite().all()
        assert float(std.min()) == pytest.approx(1e-3 * float(std.max()))


def test_the_posteriors_own_variance_is_part_of_the_spread() -> None:
    spread = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    data = LatentDataset(spread, torch.full((2, 2), math.log(4.0)))
    _, std, _ = data.statistics(sample_posterior=True)
    torch.testing.assert_close(std.square().sort().values, torch.tensor([4.0, 5.0]))


def test_with_a_noise_floor_the_posteriors_noise_is_the_floor_and_the_means_have_their_spread() -> None:
    means = torch.tensor([[0.0, 4.0, 7.0], [2.0, 0.0, 7.0]])
    noise = torch.tensor([0.5, 2.0, 1.0])
    data = LatentDataset(means, (2 * noise.log()).expand(2, 3))
    mean, scale, spread = data.noise_floor_statistics(0.25)
    assert mean.tolist() == [1.0, 2.0, 7.0]
    torch.testing.assert_close(noise / scale, torch.full((3,), 0.25))
    torch.testing.assert_close(spread, torch.tensor([1 / 2.0, 2 / 8.0, 0.25e-3]))  # the last one does not vary
    with pytest.raises(ValueError, match="log_variance"):
        LatentDataset(means).noise_floor_statistics(0.25)
