"""Sample latents from a DiffLM denoiser with diffusers' EDM-family schedulers."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import remove_hook_from_module
from tqdm.auto import tqdm

from .errors import ArgumentError


# Callback at the end of a denoising step: (step, timestep, {"latents": noisy standardised latents, "rows": range}).
# It may return a dict whose "latents" replace the current ones.
StepCallback = Callable[[int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]

# Final latents are rounded to this grid (standardised units). Matrix products of different batch sizes differ in the
# last bits; far below what the decoder can see, the rounding makes a row's latent the same in every batch.
LATENT_GRID = 2.0**-16

# Of what and which network in the loop's dtype, by denoiser, with which it goes.
_copies: WeakKeyDictionary[torch.nn.Module, tuple[Any, Any]] = WeakKeyDictionary()

_Network = Callable[[torch.Tensor, torch.Tensor | float, torch.Tensor | None], torch.Tensor]


@torch.no_grad()
def sample_latents(
    denoiser: Any,
    scheduler: Any,
    num: int,
    *,
    generators: Sequence[torch.Generator] | None = None,
    num_inference_steps: int = 50,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    start_latents: torch.Tensor | None = None,
    start_strength: float | None = None,
    chunk_size: int = 1024,
    dtype: torch.dtype | None = None,
    progress: bool | Callable[..., AbstractContextManager[Any]] = False,
    callback_on_step_end: StepCallback | None = None,
) -> torch.Tensor:
    """Sample latents by reversing the diffusion of Karras et al. (2022).

    Row i's latent depends on ``generators[i]`` (and its own label and start) only, not on the other rows.

    Parameters
    ----------
    denoiser : DiffLMDenoiser
        The denoiser; it is not modified.
    scheduler : KarrasVeScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler
        Its configuration is used; its state is neither read nor changed. The last two must have the denoiser's
        ``sigma_data``. ``KarrasVeScheduler`` is algorithm 2 of the paper: second order, two evaluations a step.
    num : int
        Number of latents N.
    generators : sequence of torch.Generator, optional
        One CPU generator per row, advanced by the call. None: fresh seeds.
    num_inference_steps : int, default 50
        Number of noise levels.
    class_labels : torch.Tensor, optional
        Conditioning labels, int64, shape (N, number of columns); the null class drops a column.
    guidance_scale : float, default 1.0
        Scale g of classifier-free guidance, ``D = D_uncond + g * (D_cond - D_uncond)``; 1 is plain conditioning.
        Only used with `class_labels`.
    start_latents : torch.Tensor, optional
        Latents to vary, in latent units, shape (N, L). They are noised part of the way and denoised.
    start_strength : float, optional
        Share of the schedule that `start_latents` go back, in [0, 1]: 0 returns them unchanged, 1 (almost) forgets
        them. Required with `start_latents`.
    chunk_size : int, default 1024
        Number of rows denoised at once. It bounds the memory and does not change the result.
    dtype : torch.dtype, optional
        Arithmetic of the loop. Default float64 (float32 on devices without it): the network is small, and rounding
        errors then stay too small for the batch to show in a row.
    progress : bool or callable, default False
        True shows a tqdm bar; a callable is called as ``progress(total=number_of_steps)`` and must return a context
        manager whose value has ``update()``, as ``DiffusionPipeline.progress_bar`` does.
    callback_on_step_end : callable, optional
        Called after each step of each chunk with ``(step, timestep, {"latents": ..., "rows": ...})``: noisy
        standardised latents and the range of their rows. A returned dict's ``"latents"`` replace them.

    Returns
    -------
    torch.Tensor
        Latents in latent units, shape (N, L), float32, on the denoiser's device.

    Raises
    ------
    ArgumentError
        If the arguments' sizes or ranges do not fit each other or the denoiser.
    TypeError
        If the scheduler is not one of the EDM family.
    """
    _check_scheduler(scheduler, denoiser, num_inference_steps)
    if num < 0 or chunk_size < 1:
        raise ArgumentError(f"num must be at least 0 and chunk_size at least 1, got {num} and {chunk_size}.")
    device, latent_size = denoiser.device, denoiser.config.latent_size
    rows_generators = _check_generators(generators, num)
    if class_labels is not None:
        class_labels = class_labels.to(device)
        denoiser.check_labels(class_labels, num)
    first_step = _first_step(start_latents, start_strength, num, latent_size, num_inference_steps)
    if start_latents is not None and first_step == num_inference_steps:
        return start_latents.to(device=device, dtype=torch.float32, copy=True)
    if dtype is None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
    network = _network_in(denoiser, dtype)
    output = torch.empty(num, latent_size, device=device, dtype=torch.float32)
    starts = range(0, num, chunk_size)
    total_steps = len(starts) * (num_inference_steps - first_step)
    with _progress_bar(progress, total_steps) as bar:
        for start in starts:
            rows = range(start, min(start + chunk_size, num))
            chunk = slice(rows.start, rows.stop)

            def on_step_end(
                step: int, timestep: torch.Tensor, latents: torch.Tensor, rows: range = rows
            ) -> torch.Tensor:
                if bar is not None:
                    bar.update()
                if callback_on_step_end is None:
                    return latents
                replaced = callback_on_step_end(step, timestep, {"latents": latents, "rows": rows}) or {}
                return replaced.get("latents", latents)

            run = _karras_loop if hasattr(scheduler, "step_correct") else _edm_loop
            latents = run(
                network,
                type(scheduler).from_config(scheduler.config),
                None if start_latents is None else network.standardize(start_latents[chunk].to(device, dtype)),
                rows_generators[chunk],
                None if class_labels is None else class_labels[chunk],
                guidance_scale,
                num_inference_steps,
                first_step,
                on_step_end,
            )
            latents = (latents / LATENT_GRID).round() * LATENT_GRID
            output[chunk] = network.unstandardize(latents).to(output.dtype)
    return output


def _network_in(denoiser: Any, dtype: torch.dtype) -> Any:
    """A copy of the denoiser in this dtype: changing the caller's own would leak out of the call.

    It is built once and gets the present weights at every call: whether they have changed cannot be told (writing
    through ``.data``, as averaging does, leaves no trace), and copying them costs less than comparing.
    """
    with torch.inference_mode(False), torch.no_grad():
        known, layout = _copies.get(denoiser), _layout(denoiser, dtype)
        if known is None or known[0] != layout:
            # nn.Module's own `to`: that of diffusers warns of the precision of the statistics, not lowered here.
            network = torch.nn.Module.to(copy.deepcopy(denoiser), dtype).eval()
            # Offloading hooks would move the copy's activations to another device than the loop's.
            remove_hook_from_module(network, recurse=True)
            _copies[denoiser] = known = (layout, network)
        for mine, current in zip(_tensors(known[1]).values(), _tensors(denoiser).values(), strict=True):
            mine.copy_(current)
    return known[1]


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])


def _layout(denoiser: torch.nn.Module, dtype: torch.dtype) -> Any:
    """What a copy in this dtype must have been made of for the weights to be copied to it."""
    return dtype, [(name, tensor.shape, tensor.device) for name, tensor in _tensors(denoiser).items()]


def _karras_loop(
    network: Any,
    scheduler: Any,
    start: torch.Tensor | None,
    generators: list[torch.Generator],
    class_labels: torch.Tensor | None,
    guidance_scale: float,
    num_inference_steps: int,
    first_step: int,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Algorithm 2 of Karras et al. (2022) with diffusers' KarrasVeScheduler."""
    denoise = _guided(network.denoise, class_labels, guidance_scale)
    scheduler.set_timesteps(num_inference_steps)
    # The scheduler's `schedule` holds variances (times of the VE process); its methods take standard deviations.
    sigmas = [math.sqrt(float(scheduler.schedule[t])) for t in scheduler.timesteps] + [0.0]
    initial_sigma = scheduler.init_noise_sigma if start is None else sigmas[first_step]
    latents = _initial_latents(network, start, generators, initial_sigma)
    for step in range(first_step, num_inference_steps):
        sigma, sigma_prev = sigmas[step], sigmas[step + 1]
        if scheduler.config.s_churn > 0:
            latents_hat, sigma_hat = scheduler.add_noise_to_input(latents, sigma, generators)
        else:  # Nothing to add: drawing a number per row and step would only cost time.
            latents_hat, sigma_hat = latents, sigma
        model_output = (denoise(latents_hat, sigma_hat, class_labels) - latents_hat) / sigma_hat
        result = scheduler.step(model_output, sigma_hat, sigma_prev, latents_hat)
        if sigma_prev > 0:
            predicted = result.prev_sample
            model_output = (denoise(predicted, sigma_prev, class_labels) - predicted) / sigma_prev
            result = scheduler.step_correct(
                model_output, sigma_hat, sigma_prev, latents_hat, predicted, result.derivative
            )
        latents = on_step_end(step, scheduler.timesteps[step], result.prev_sample)
    return latents


def _edm_loop(
    network: Any,
    scheduler: Any,
    start: torch.Tensor | None,
    generators: list[torch.Generator],
    class_labels: torch.Tensor | None,
    guidance_scale: float,
    num_inference_steps: int,
    first_step: int,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Denoise with an EDM scheduler of diffusers, which does the preconditioning itself."""

    def raw_network(scaled: torch.Tensor, c_noise: torch.Tensor | float, labels: torch.Tensor | None) -> torch.Tensor:
        return network(scaled, c_noise, labels, return_dict=False)[0]

    # D is linear in F at a given noise level, so guiding F is guiding D.
    predict = _guided(raw_network, class_labels, guidance_scale)
    scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(first_step)
    initial_sigma = scheduler.init_noise_sigma if start is None else float(scheduler.sigmas[first_step])
    latents = _initial_latents(network, start, generators, initial_sigma)
    for step in range(first_step, num_inference_steps):
        timestep = scheduler.timesteps[step]
        scaled = scheduler.scale_model_input(latents, timestep)
        model_output = predict(scaled, timestep, class_labels)
        latents = scheduler.step(model_output, timestep, latents, generator=generators).prev_sample
        latents = on_step_end(step, timestep, latents)
    return latents


def _guided(network: _Network, class_labels: torch.Tensor | None, guidance_scale: float) -> _Network:
    """Wrap a network in classifier-free guidance where it has an effect."""
    if class_labels is None or guidance_scale == 1.0:
        return network

    def guided(latents: torch.Tensor, noise_level: torch.Tensor | float, labels: torch.Tensor | None) -> torch.Tensor:
        unconditional = network(latents, noise_level, None)
        return unconditional + guidance_scale * (network(latents, noise_level, labels) - unconditional)

    return guided


def _initial_latents(
    network: Any, start: torch.Tensor | None, generators: list[torch.Generator], sigma: float
) -> torch.Tensor:
    """Draw each row's noise from its own generator, in float32 so that the loop's dtype does not change the draw."""
    size = network.config.latent_size
    noise = torch.stack([torch.randn(size, generator=generator, dtype=torch.float32) for generator in generators])
    noise = noise.to(network.device, network.dtype) * sigma
    return noise if start is None else start + noise


def _check_scheduler(scheduler: Any, denoiser: Any, num_inference_steps: int) -> None:
    if num_inference_steps < 2:  # Both the Karras ramp and diffusers' KarrasVeScheduler divide by steps - 1.
        raise ArgumentError(f"num_inference_steps must be at least 2, got {num_inference_steps}.")
    if hasattr(scheduler, "step_correct"):
        return
    name = type(scheduler).__name__
    if not hasattr(scheduler, "precondition_noise"):
        raise TypeError(
            f"{name} cannot drive a DiffLM denoiser: use KarrasVeScheduler, EDMEulerScheduler or "
            "EDMDPMSolverMultistepScheduler from diffusers."
        )
    sigma_data = denoiser.config.sigma_data
    if not math.isclose(scheduler.config.sigma_data, sigma_data):
        raise ArgumentError(
            f"The scheduler's sigma_data is {scheduler.config.sigma_data} and the denoiser's is {sigma_data}: "
            f"build the scheduler as {name}(sigma_data={sigma_data})."
        )
    if scheduler.config.prediction_type != "epsilon":
        raise ArgumentError(f"{name} must have prediction_type 'epsilon', got {scheduler.config.prediction_type!r}.")


def _check_generators(generators: Sequence[torch.Generator] | None, num: int) -> list[torch.Generator]:
    if generators is None:
        seeds = torch.randint(2**63 - 1, (num,)).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generators) != num:
        raise ArgumentError(f"generators must have one generator per row: got {len(generators)} for {num} rows.")
    if any(generator.device.type != "cpu" for generator in generators):
        raise ArgumentError("generators must be CPU generators, so that a seed gives the same rows on every device.")
    return list(generators)


def _first_step(
    start_latents: torch.Tensor | None, start_strength: float | None, num: int, latent_size: int, num_steps: int
) -> int:
    """Return the index of the first step to run: 0 from noise, later from given latents (as in image-to-image)."""
    if (start_latents is None) != (start_strength is None):
        raise ArgumentError("start_latents and start_strength must be given together.")
    if start_latents is None or start_strength is None:
        return 0
    if tuple(start_latents.shape) != (num, latent_size):
        raise ArgumentError(f"start_latents must have shape {(num, latent_size)}, got {tuple(start_latents.shape)}.")
    if not 0 <= start_strength <= 1:
        raise ArgumentError(f"start_strength must be between 0 and 1, got {start_strength}.")
    return num_steps - math.ceil(num_steps * start_strength)


def _progress_bar(
    progress: bool | Callable[..., AbstractContextManager[Any]], total: int
) -> AbstractContextManager[Any]:
    if callable(progress):
        return progress(total=total)
    return tqdm(total=total, desc="Sampling latents", unit="step") if progress else nullcontext()
