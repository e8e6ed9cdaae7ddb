"""Sampling that ends at a noise floor: exact answers on a Gaussian, and a row that is the same in whatever company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, KarrasVeScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.modeling_difflm import multiplies_bf16
from difflm.pipelines.latent_sampling import (
    ALIGNED_ROWS,
    _aligned_chunks,
    _network_dtype,
    default_steps,
    sample_latents,
)
from difflm.training.default_scheduler import default_scheduler

from .test_latent_sampling import COVARIANCE, MEAN, GaussianDenoiser, generators


FLOOR = 0.5
SIZE = 6


class FlooredGaussian(GaussianDenoiser):
    """Exact, for data whose means are the Gaussian of the other tests."""

    def __init__(self, class_means: torch.Tensor | None = None) -> None:
        super().__init__(class_means)
        self.config.noise_floor = FLOOR
        self.sigma_data = COVARIANCE.diag().sqrt()


def floored_denoiser(**overrides: Any) -> DiffLMDenoiser:
    torch.manual_seed(0)
    arguments = {"latent_size": SIZE, "hidden_size": 64, "num_blocks": 2, "noise_floor": FLOOR}
    denoiser = DiffLMDenoiser(**arguments | overrides).eval()
    torch.nn.init.normal_(denoiser.network.output_projection.weight, std=0.3)
    spread = torch.tensor([3.3, 1.0, 1.0, 0.7, 1e-3, 2.0])
    denoiser.scaler.set_latent_statistics(torch.arange(6.0), torch.arange(1.0, 7.0), spread)
    return denoiser


DENOISER = floored_denoiser(class_sizes=[3])


def run(rows: Any, denoiser: Any = DENOISER, scheduler: Any = None, **arguments: Any) -> torch.Tensor:
    """Latents of rows of a run, whose generators are seeded by their numbers."""
    used = [torch.Generator().manual_seed(row) for row in rows]
    scheduler = scheduler or default_scheduler(FLOOR)
    return sample_latents(denoiser, scheduler, len(used), generators=used, rows=list(rows), **arguments)


# Where it ends


@pytest.mark.parametrize(
    ("scheduler", "steps", "tolerance"),
    [
        (default_scheduler(FLOOR), 16, 0.06),
        (EDMDPMSolverMultistepScheduler(solver_type="heun"), 40, 0.06),
        (EDMDPMSolverMultistepScheduler(sigma_data=1.0, solver_order=3), 30, 0.06),
        (EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), 100, 0.09),
        (EDMEulerScheduler(), 200, 0.08),
        (KarrasVeScheduler(s_churn=0), 25, 0.06),
        (KarrasVeScheduler(s_churn=20, s_noise=1.0), 150, 0.09),
    ],
    ids=["default", "dpm-heun", "dpm-3", "dpm-sde", "euler", "karras", "karras-churn"],
)
def test_samples_are_the_data_with_the_floors_noise_whatever_the_scheduler_ends_at(
    scheduler: Any, steps: int, tolerance: float
) -> None:
    samples = run(range(6000), FlooredGaussian(), scheduler, num_inference_steps=steps) / 2
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.06, rtol=0)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE + FLOOR**2 * torch.eye(3), atol=tolerance, rtol=0)


def test_the_default_evaluates_the_network_once_a_step_and_never_below_the_floor() -> None:
    levels: list[float] = []

    class Counting(FlooredGaussian):
        def denoise(self, noisy: torch.Tensor, sigma: Any, class_labels: torch.Tensor | None = None) -> torch.Tensor:
            levels.append(float(sigma))
            return super().denoise(noisy, sigma, class_labels)

    denoiser = Counting()
    run(range(3), denoiser)
    assert len(levels) == default_steps(denoiser) == 16
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] > FLOOR
    levels.clear()
    run(range(3), denoiser, KarrasVeScheduler(s_churn=0), num_inference_steps=10)
    assert len(levels) == 20 and min(levels) == pytest.approx(FLOOR, rel=1e-5)
    assert default_steps(GaussianDenoiser()) == 50


def test_the_first_noise_is_as_wide_as_noisy_data_in_each_dimension() -> None:
    first: list[torch.Tensor] = []

    def keep(step: int, timestep: Any, values: dict[str, Any]) -> None:
        if step == 0:
            first.append(values["latents"])

    scheduler = EDMDPMSolverMultistepScheduler(sigma_max=4.0, solver_order=1)
    # After one step to (almost) the same level the spread is still that of the start.
    run(range(4000), FlooredGaussian(), scheduler, num_inference_steps=400, callback_on_step_end=keep)
    spread = torch.cat(first).std(0)
    torch.testing.assert_close(spread, (16 + COVARIANCE.diag()).sqrt(), rtol=0.04, atol=0)


@pytest.mark.parametrize("options", [{"sigma_data": 1.0}, {"sigma_data": 3.0}, {"prediction_type": "v_prediction"}])
def test_the_schedulers_own_preconditioning_changes_nothing(options: dict[str, Any]) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_max=20.0, solver_order=3, **options)
    own = run(range(5), scheduler=default_scheduler(FLOOR), dtype=torch.float32)
    torch.testing.assert_close(run(range(5), scheduler=scheduler, dtype=torch.float32), own, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guidance_moves_samples_to_the_class_and_beyond(scale: float) -> None:
    class_means = torch.tensor([[3.0, 3.0, 1.0], [-3.0, 2.0, 0.0]])
    labels = torch.arange(2).repeat(600)[:, None]
    denoiser = FlooredGaussian(class_means)
    scheduler = default_scheduler(FLOOR, spread=5.0)
    samples = run(range(1200), denoiser, scheduler, class_labels=labels, guidance_scale=scale) / 2
    found = torch.stack([samples[labels[:, 0] == label].mean(0) for label in range(2)])
    # The first noise knows no class: a mean is short by the class's spread in it, here a sixtieth.
    torch.testing.assert_close(found, MEAN + scale * (class_means - MEAN), atol=0.3, rtol=0)


def test_a_start_is_noised_and_denoised_down_to_the_floor() -> None:
    start = 2 * torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((4000,))
    scheduler = default_scheduler(FLOOR)

    def vary(strength: float) -> torch.Tensor:
        options: dict[str, Any] = {"start_latents": start, "start_strength": strength, "num_inference_steps": 40}
        return run(range(4000), FlooredGaussian(), scheduler, **options)

    assert torch.equal(vary(0.0), start)
    torch.testing.assert_close((vary(0.5) / 2).T.cov(), COVARIANCE + 0.25 * torch.eye(3), atol=0.07, rtol=0)
    assert (vary(0.2) - start).norm(dim=1).mean() < (vary(0.6) - start).norm(dim=1).mean()


# A row in whatever company


ROWS = list(range(300))
WHOLE = {dtype: run(ROWS, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.sampled_from(ROWS), unique=True, min_size=1, max_size=200))
def test_a_row_is_the_same_to_the_bit_in_any_batch_and_order(dtype: torch.dtype, rows: list[int]) -> None:
    assert torch.equal(run(rows, dtype=dtype), WHOLE[dtype][rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_in_every_shard(dtype: torch.dtype) -> None:
    whole = WHOLE[dtype]
    assert len(whole.unique(dim=0)) == len(ROWS)
    for size in (1, 7, 150, ALIGNED_ROWS):
        for start in range(0, 300, 100 if size == 1 else size):
            part = range(start, min(start + size, 300))
            assert torch.equal(run(part, dtype=dtype), whole[part.start : part.stop]), (size, start)


def test_labels_guidance_starts_and_noise_on_the_way_are_the_rows_own() -> None:
    labels, start = torch.arange(300)[:, None] % 4, torch.randn(300, SIZE)
    scheduler = KarrasVeScheduler(s_churn=40, sigma_min=FLOOR, sigma_max=20)

    def some(rows: list[int]) -> torch.Tensor:
        return run(
            rows,
            scheduler=scheduler,
            class_labels=labels[rows],
            guidance_scale=2.0,
            start_latents=start[rows],
            start_strength=0.6,
            num_inference_steps=6,
        )

    whole = some(ROWS)
    for rows in ([5], [ALIGNED_ROWS + 5, 5, 261], ROWS[120:140], ROWS[::-1]):
        assert torch.equal(some(rows), whole[rows])


def test_a_saved_denoiser_gives_the_same_bits(tmp_path: Path) -> None:
    DENOISER.save_pretrained(tmp_path)
    loaded = DiffLMDenoiser.from_pretrained(tmp_path)
    for dtype, whole in WHOLE.items():
        assert torch.equal(run(ROWS[:20], loaded, dtype=dtype), whole[:20])


def test_products_are_bf16_where_the_hardware_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda fast=fast: fast, raising=False)
        assert torch.equal(run(ROWS[:3]), WHOLE[dtype][:3])


def test_bf16_products_move_a_latent_far_less_than_the_floors_noise() -> None:
    difference = (WHOLE[torch.bfloat16] - WHOLE[torch.float32]) / DENOISER.scaler.latent_scale
    assert 0 < float(difference.square().mean().sqrt()) < 0.1 * FLOOR


def test_the_network_is_in_bf16_where_the_models_are() -> None:
    device = torch.device("cpu")
    expected = torch.bfloat16 if multiplies_bf16(device) else torch.float32
    assert _network_dtype(FLOOR, device) == expected
    assert _network_dtype(0.0, device) == torch.float64


def test_the_callback_sees_and_replaces_rows_not_places() -> None:
    seen = []

    def callback(step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any] | None:
        assert values["latents"].shape == (len(values["rows"]), SIZE)
        if step == 15:
            seen.append(values["rows"])
            return {"latents": torch.tensor(values["rows"])[:, None].float().expand(-1, SIZE)}
        return None

    latents = run([3, 3 + ALIGNED_ROWS, 4, 4 + ALIGNED_ROWS], callback_on_step_end=callback)
    assert seen == [[0, 2], [1, 3]]
    expected = DENOISER.unstandardize(torch.arange(4.0)[:, None].expand(-1, SIZE))
    torch.testing.assert_close(latents, expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=60), st.integers(1, 16))
def test_chunks_are_as_few_as_give_each_row_its_place(rows: list[int], size: int) -> None:
    chunks = _aligned_chunks(rows, size)
    assert sorted(index for chunk in chunks for index in chunk.rows) == list(range(len(rows)))
    for chunk in chunks:
        assert chunk.places == [rows[index] % size for index in chunk.rows]
        assert len(set(chunk.places)) == len(chunk.places)
    places = [row % size for row in rows]
    assert len(chunks) == max((places.count(place) for place in places), default=0)


@pytest.mark.parametrize(
    ("rows", "message"), [([0], "got 1 for 2 rows"), ([0, -1], "at least 0, got -1"), ([], "got 0 for 2 rows")]
)
def test_rows_that_do_not_fit_are_named(rows: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_latents(DENOISER, default_scheduler(FLOOR), 2, generators=generators(2), rows=rows)
