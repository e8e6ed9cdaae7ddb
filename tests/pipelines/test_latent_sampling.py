"""sample_latents: exact answers on a Gaussian, independence of rows, guidance, variation."""

import gc
import logging
import weakref
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    KarrasVeScheduler,
)

from difflm.modeling_denoiser import DiffLMDenoiser, edm_coefficients
from difflm.pipelines import latent_sampling
from difflm.pipelines.latent_sampling import LATENT_GRID, sample_latents


MEAN = torch.tensor([0.5, -1.0, 0.0])
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.3, 0.5, 0.4]])
COVARIANCE = FACTOR @ FACTOR.T


class GaussianDenoiser(torch.nn.Module):
    """The exact denoiser of Gaussian data; with a label, of the Gaussian moved to the class's mean."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def __init__(self, class_means: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(latent_size=3, sigma_data=1.0)
        self.register_buffer("mean", MEAN.clone())
        self.register_buffer("covariance", COVARIANCE.clone())
        self.class_means = class_means

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype

    def check_labels(self, class_labels: torch.Tensor, batch_size: int) -> None:
        if len(class_labels) != batch_size:
            raise ValueError("labels")

    def denoise(self, noisy: torch.Tensor, sigma: Any, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        mean = self.mean
        if class_labels is not None and self.class_means is not None:
            mean = self.class_means.to(noisy)[class_labels[:, 0]]
        noise_covariance = float(sigma) ** 2 * torch.eye(3, dtype=noisy.dtype)
        gain = torch.linalg.solve(self.covariance + noise_covariance, self.covariance)
        return mean + (noisy - mean) @ gain

    def forward(
        self, scaled: torch.Tensor, c_noise: torch.Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> tuple[torch.Tensor]:
        sigma = torch.exp(4 * torch.as_tensor(c_noise).double())
        c_skip, c_out, c_in, _ = edm_coefficients(sigma, 1.0)
        noisy = scaled / c_in
        return ((self.denoise(noisy, sigma, class_labels) - c_skip * noisy) / c_out,)

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / 2

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * 2


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + count)]


def sample_gaussian(scheduler: Any, num: int = 6000, **arguments: Any) -> torch.Tensor:
    """Standardised samples."""
    denoiser = GaussianDenoiser(arguments.pop("class_means", None))
    return sample_latents(denoiser, scheduler, num, generators=generators(num), **arguments) / 2


def tiny_denoiser(**overrides: Any) -> DiffLMDenoiser:
    torch.manual_seed(0)
    denoiser = DiffLMDenoiser(**({"latent_size": 6, "hidden_size": 32, "num_blocks": 2} | overrides))
    torch.nn.init.normal_(denoiser.network.output_projection.weight, std=0.3)
    denoiser.scaler.set_latent_statistics(torch.arange(6.0), torch.arange(1.0, 7.0))
    return denoiser


SCHEDULERS = [
    pytest.param(lambda: KarrasVeScheduler(s_churn=0, sigma_min=0.002, sigma_max=80), id="karras"),
    pytest.param(lambda: KarrasVeScheduler(), id="karras-churn"),
    pytest.param(lambda: EDMEulerScheduler(sigma_data=1.0), id="euler"),
    pytest.param(lambda: EDMDPMSolverMultistepScheduler(sigma_data=1.0), id="dpm"),
    pytest.param(
        lambda: EDMDPMSolverMultistepScheduler(sigma_data=1.0, algorithm_type="sde-dpmsolver++"), id="dpm-sde"
    ),
]


# Tolerances: the sampling error of 6,000 rows is about 0.02 (one standard deviation of a variance of 1), plus the
# discretisation error, which is largest for the first-order scheduler and for churn in few steps.
@pytest.mark.parametrize(
    ("scheduler", "steps", "tolerance"),
    [
        (KarrasVeScheduler(s_churn=0, sigma_min=0.002, sigma_max=80), 50, 0.06),
        (KarrasVeScheduler(s_churn=20, s_noise=1.0), 150, 0.07),
        (EDMEulerScheduler(sigma_data=1.0), 200, 0.08),
        (EDMDPMSolverMultistepScheduler(sigma_data=1.0), 50, 0.06),
        (EDMDPMSolverMultistepScheduler(sigma_data=1.0, algorithm_type="sde-dpmsolver++"), 100, 0.07),
    ],
    ids=["karras", "karras-churn", "euler", "dpm", "dpm-sde"],
)
def test_samples_have_the_known_mean_and_covariance(scheduler: Any, steps: int, tolerance: float) -> None:
    samples = sample_gaussian(scheduler, num_inference_steps=steps)
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, atol=tolerance, rtol=0)


def test_karras_loop_is_second_order() -> None:
    """From the same noise, halving the step divides the error by about four (by two were it first order)."""

    def run(steps: int) -> torch.Tensor:
        return sample_gaussian(KarrasVeScheduler(s_churn=0), 50, num_inference_steps=steps)

    exact = run(800)
    coarse, fine = (run(steps) - exact for steps in (40, 80))
    ratio = float(coarse.norm() / fine.norm())
    assert 3.2 < ratio < 5


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_a_row_depends_on_its_generator_only(make_scheduler: Any) -> None:
    denoiser, scheduler = tiny_denoiser(), make_scheduler()

    def run(first: int, count: int, chunk_size: int) -> torch.Tensor:
        return sample_latents(
            denoiser,
            scheduler,
            count,
            generators=generators(count, first),
            num_inference_steps=12,
            chunk_size=chunk_size,
        )

    together = run(0, 33, 1000)
    assert len(torch.unique(together, dim=0)) == 33
    assert torch.equal(run(0, 33, 7), together)
    for row in (0, 17, 32):
        assert torch.equal(run(row, 1, 1000)[0], together[row])


def test_latents_lie_on_a_grid() -> None:
    """Below it batches of different sizes differ, above it the decoder could tell."""
    denoiser = tiny_denoiser()
    denoiser.scaler.set_latent_statistics(torch.zeros(6), torch.ones(6))
    latents = sample_latents(denoiser, KarrasVeScheduler(), 20, generators=generators(20), num_inference_steps=9)
    steps = latents.double() / LATENT_GRID
    assert torch.equal(steps, steps.round())
    assert len(steps.unique()) == 120
    assert not latents.requires_grad


def test_churn_adds_noise_of_the_rows_own_and_none_without() -> None:
    denoiser = tiny_denoiser()

    def run(churn: float, count: int = 4) -> tuple[torch.Tensor, list[torch.Generator]]:
        used, scheduler = generators(count), KarrasVeScheduler(s_churn=churn)
        return sample_latents(denoiser, scheduler, count, generators=used, num_inference_steps=9), used

    (calm, used), (churned, _) = run(0.0), run(40.0)
    assert ((churned - calm).abs().amax(dim=1) > 0.1).all()
    assert torch.equal(run(40.0, 2)[0], churned[:2])
    for generator, fresh in zip(used, generators(4), strict=True):  # the start was drawn, and nothing after it
        torch.randn(6, generator=fresh)
        assert torch.equal(generator.get_state(), fresh.get_state())


def test_the_networks_copy_is_built_once_follows_the_weights_and_goes_with_the_denoiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = []

    def spy(value: Any, *memo: Any) -> Any:
        made = deepcopy(value, *memo)
        if not memo:  # not of a part of what is copied
            copied.append(weakref.ref(made))
        return made

    monkeypatch.setattr(latent_sampling.copy, "deepcopy", spy)
    denoiser, scheduler = tiny_denoiser(), KarrasVeScheduler(s_churn=0)

    def run(sampled: DiffLMDenoiser) -> torch.Tensor:
        return sample_latents(sampled, scheduler, 3, generators=generators(3), num_inference_steps=5)

    with torch.inference_mode():  # what is made here must serve outside, too
        first = run(denoiser)
    assert torch.equal(run(denoiser), first)
    assert len(copied) == 1
    weight = next(parameter for name, parameter in denoiser.named_parameters() if name.endswith("projection.weight"))
    weight.data.mul_(1.5)  # leaves no trace in the tensor's version
    changed = run(denoiser)
    assert not torch.equal(changed, first)
    assert len(copied) == 1
    weight.data.div_(1.5)
    assert torch.equal(run(denoiser), first)
    denoiser.bfloat16()
    assert not torch.equal(run(denoiser), first)
    before = len(copied)
    sample_latents(denoiser, scheduler, 3, num_inference_steps=5, dtype=torch.float32)
    assert len(copied) == before + 1
    del denoiser, weight
    gc.collect()
    assert all(made() is None for made in copied)


def test_float32_and_float64_start_from_the_same_noise() -> None:
    denoiser, scheduler = tiny_denoiser(), KarrasVeScheduler(s_churn=0)
    precise = sample_latents(denoiser, scheduler, 5, generators=generators(5), num_inference_steps=20)
    single = sample_latents(
        denoiser, scheduler, 5, generators=generators(5), num_inference_steps=20, dtype=torch.float32
    )
    assert precise.dtype == single.dtype == torch.float32
    torch.testing.assert_close(single, precise, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_neither_the_scheduler_nor_the_denoiser_changes(make_scheduler: Any) -> None:
    denoiser, scheduler = tiny_denoiser().train(), make_scheduler()
    scheduler.set_timesteps(7)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    state = {key: repr(value) for key, value in vars(scheduler).items()}

    first = sample_latents(denoiser, scheduler, 3, generators=generators(3), num_inference_steps=9)
    again = sample_latents(denoiser, scheduler, 3, generators=generators(3), num_inference_steps=9)
    assert torch.equal(first, again)
    assert {key: repr(value) for key, value in vars(scheduler).items()} == state
    assert denoiser.training
    for name, value in denoiser.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name


def test_an_offloaded_denoiser_gives_the_same_latents() -> None:
    scheduler = KarrasVeScheduler(s_churn=0)
    plain = sample_latents(tiny_denoiser(), scheduler, 3, generators=generators(3), num_inference_steps=5)

    class FailingHook(ModelHook):  # Stands for a hook that moves inputs away from the loop's device.
        def pre_forward(self, module: torch.nn.Module, *arguments: Any, **keywords: Any) -> Any:
            raise RuntimeError("moved")

    denoiser = tiny_denoiser()
    add_hook_to_module(denoiser, FailingHook())
    hooked = sample_latents(denoiser, scheduler, 3, generators=generators(3), num_inference_steps=5)
    assert torch.equal(plain, hooked)
    with pytest.raises(RuntimeError, match="moved"):  # The caller's denoiser keeps its hook.
        denoiser(torch.zeros(1, 6), 0.0)


def test_sampling_logs_no_warning() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        sample_latents(tiny_denoiser(), EDMEulerScheduler(sigma_data=1.0), 2, num_inference_steps=3)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def test_dropout_is_no_part_of_sampling() -> None:
    denoiser = tiny_denoiser(dropout=0.5)

    def run(training: bool) -> torch.Tensor:
        return sample_latents(
            denoiser.train(training), KarrasVeScheduler(), 3, generators=generators(3), num_inference_steps=5
        )

    trained = run(True)
    assert denoiser.training
    # Built anew in the other mode, too.
    denoiser = tiny_denoiser(dropout=0.5)
    assert torch.equal(run(False), trained)


def test_the_network_is_evaluated_twice_for_guidance_alone() -> None:
    calls: list[Any] = []

    class Counting(GaussianDenoiser):
        def denoise(self, noisy: torch.Tensor, sigma: Any, class_labels: torch.Tensor | None = None) -> torch.Tensor:
            calls.append(class_labels)
            return super().denoise(noisy, sigma, class_labels)

    def count(scale: float, labels: torch.Tensor | None) -> int:
        calls.clear()
        denoiser = Counting(torch.zeros(1, 3))
        sample_latents(
            denoiser, KarrasVeScheduler(), 2, num_inference_steps=5, guidance_scale=scale, class_labels=labels
        )
        return len(calls)

    labels = torch.zeros(2, 1, dtype=torch.long)
    assert [count(1.0, labels), count(2.0, None), count(2.0, labels)] == [9, 9, 18]


def test_no_generators_means_fresh_noise() -> None:
    denoiser, scheduler = tiny_denoiser(), KarrasVeScheduler(s_churn=0)
    torch.manual_seed(0)
    first = sample_latents(denoiser, scheduler, 2, num_inference_steps=5)
    assert not torch.allclose(first, sample_latents(denoiser, scheduler, 2, num_inference_steps=5))
    torch.manual_seed(0)
    assert torch.equal(first, sample_latents(denoiser, scheduler, 2, num_inference_steps=5))


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_guidance_moves_samples_to_the_class_and_beyond(make_scheduler: Any) -> None:
    class_means = torch.tensor([[3.0, 3.0, 1.0], [-3.0, 2.0, 0.0]])
    labels = torch.arange(2).repeat(600)[:, None]

    def class_mean(scale: float) -> torch.Tensor:
        samples = sample_gaussian(
            make_scheduler(), 1200, class_labels=labels, guidance_scale=scale, class_means=class_means
        )
        return torch.stack([samples[labels[:, 0] == label].mean(0) for label in range(2)])

    torch.testing.assert_close(class_mean(1.0), class_means, atol=0.15, rtol=0)
    # Both branches are Gaussian with one covariance, so guidance moves the mean linearly.
    torch.testing.assert_close(class_mean(2.0), MEAN + 2 * (class_means - MEAN), atol=0.2, rtol=0)
    torch.testing.assert_close(class_mean(0.0), MEAN.expand(2, 3), atol=0.15, rtol=0)


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_variation_goes_from_the_start_to_a_fresh_sample(make_scheduler: Any) -> None:
    start = torch.tensor([2.0, 0.0, 1.0]).expand(300, 3)  # In latent units, twice the standardised ones.

    def vary(strength: float) -> torch.Tensor:
        return sample_latents(
            GaussianDenoiser(),
            make_scheduler(),
            300,
            generators=generators(300),
            start_latents=start,
            start_strength=strength,
        )

    distances = [float((vary(strength) - start).norm(dim=1).mean()) for strength in (0.0, 0.2, 0.4)]
    assert distances[0] == 0.0
    assert 0 < distances[1] < 0.7 * distances[2]
    torch.testing.assert_close(vary(1.0).mean(0), 2 * MEAN, atol=0.35, rtol=0)


def test_a_start_goes_back_whole_steps_and_by_nothing_unchanged() -> None:
    start, denoiser = torch.randn(2, 6), tiny_denoiser()

    def vary(strength: float) -> tuple[torch.Tensor, int]:
        steps: list[int] = []
        varied = sample_latents(
            denoiser,
            KarrasVeScheduler(),
            2,
            num_inference_steps=10,
            start_latents=start,
            start_strength=strength,
            callback_on_step_end=lambda step, timestep, values: steps.append(step),
        )
        return varied, len(steps)

    assert [vary(strength)[1] for strength in (0.0, 0.01, 0.1, 0.21, 1.0)] == [0, 1, 1, 3, 10]
    same = vary(0.0)[0]
    assert torch.equal(same, start)
    same.zero_()  # the caller's own
    assert not torch.equal(same, start)


def test_partial_start_has_the_exact_posterior_spread() -> None:
    """Noising to sigma and denoising again samples p(x | noisy): its variance is known for a Gaussian."""
    scheduler: Any = KarrasVeScheduler(s_churn=0, sigma_min=0.002, sigma_max=80)
    scheduler.set_timesteps(50)
    strength = 0.5
    sigma = float(scheduler.schedule[scheduler.timesteps[25]]) ** 0.5
    start = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((4000,))
    varied = (
        sample_latents(
            GaussianDenoiser(),
            scheduler,
            4000,
            generators=generators(4000),
            start_latents=2 * start,
            start_strength=strength,
        )
        / 2
    )
    # The probability-flow ODE maps N(mean, C + sigma^2) to N(mean, C) by (C (C + sigma^2)^-1)^(1/2).
    eigenvalues, vectors = torch.linalg.eigh(COVARIANCE)
    shrink = (vectors * (eigenvalues / (eigenvalues + sigma**2)).sqrt()) @ vectors.T
    expected = COVARIANCE @ shrink
    cross = (start - start.mean(0)).T @ (varied - varied.mean(0)) / (len(start) - 1)
    torch.testing.assert_close(cross, expected, atol=0.06, rtol=0)


def test_callback_sees_and_replaces_latents_and_progress_counts_steps() -> None:
    calls: list[tuple[int, list[int]]] = []
    totals: list[int] = []
    updates: list[int] = []

    class Bar:
        def update(self) -> None:
            updates.append(1)

    @contextmanager
    def progress(total: int) -> Any:
        totals.append(total)
        yield Bar()

    def callback(step: int, timestep: torch.Tensor, values: dict[str, Any]) -> dict[str, Any] | None:
        calls.append((step, values["rows"]))
        assert values["latents"].shape == (len(values["rows"]), 6)
        return {"latents": torch.zeros_like(values["latents"])} if step == 4 else None

    denoiser = tiny_denoiser()
    latents = sample_latents(
        denoiser,
        KarrasVeScheduler(s_churn=0),
        5,
        generators=generators(5),
        num_inference_steps=5,
        chunk_size=3,
        progress=progress,
        callback_on_step_end=callback,
    )
    assert calls == [(step, rows) for rows in ([0, 1, 2], [3, 4]) for step in range(5)]
    assert totals == [10] and len(updates) == 10
    torch.testing.assert_close(latents, denoiser.scaler.latent_mean.expand(5, 6))  # Zeroed in the last step.


def test_no_rows_is_no_error() -> None:
    assert sample_latents(tiny_denoiser(), KarrasVeScheduler(), 0, generators=[]).shape == (0, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 1}, "num_inference_steps"),
        ({"generators": generators(3)}, "got 3 for 2 rows"),
        ({"start_latents": torch.zeros(2, 6)}, "together"),
        ({"start_strength": 0.5}, "together"),
        ({"start_latents": torch.zeros(2, 6), "start_strength": 1.5}, "between 0 and 1"),
        ({"start_latents": torch.zeros(1, 6), "start_strength": 0.5}, "start_latents must have shape"),
        ({"class_labels": torch.zeros(2, 1, dtype=torch.long)}, "without class_sizes"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"generators": [SimpleNamespace(device=torch.device("cuda"))] * 2}, "must be CPU generators"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_latents(tiny_denoiser(), KarrasVeScheduler(), 2, **arguments)


def test_numbers_and_labels_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="num must be at least 0"):
        sample_latents(tiny_denoiser(), KarrasVeScheduler(), -1)
    labels = torch.tensor([[0], [3]])
    with pytest.raises(ValueError, match="must be between 0 and 1, or 2 for the null class"):
        sample_latents(tiny_denoiser(class_sizes=[2]), KarrasVeScheduler(), 2, class_labels=labels)


def test_schedulers_that_do_not_fit_are_refused_with_a_remedy() -> None:
    with pytest.raises(TypeError, match="KarrasVeScheduler, EDMEulerScheduler"):
        sample_latents(tiny_denoiser(), DDIMScheduler(), 2)
