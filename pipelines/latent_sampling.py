"""Sample latents from a DiffLM denoiser with diffusers' EDM-family schedulers."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import remove_hook_from_module
from tqdm.auto import tqdm

from .errors import ArgumentError


# Callback at the end of a denoising step: (step, timestep, {"latents": noisy standardised latents, "rows": indices}).
# It may return a dict whose "latents" replace the current ones.
StepCallback = Callable[[int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]

# Steps between noise levels unless asked for otherwise: down to nothing, and to a noise floor.
STEPS, STEPS_TO_NOISE_FLOOR = 50, 16
# Rows denoised at once: at most, and with a noise floor on a CPU, where each row has its place in the chunk.
MOST_ROWS, ALIGNED_ROWS = 1024, 256
# Final latents without a noise floor are rounded to this grid (standardised units). Matrix products of different batch
# sizes differ in the last bits; far below what the decoder can see, the rounding makes a row's latent the same in
# every batch.
LATENT_GRID = 2.0**-16

# Of what and which network in the loop's dtype, by denoiser, with which it goes.
_copies: WeakKeyDictionary[torch.nn.Module, tuple[Any, Any]] = WeakKeyDictionary()

_Network = Callable[[torch.Tensor, float, torch.Tensor | None], torch.Tensor]
_Denoise = Callable[[torch.Tensor, float], torch.Tensor]


@torch.no_grad()
def sample_latents(
    denoiser: Any,
    scheduler: Any,
    num: int,
    *,
    generators: Sequence[torch.Generator] | None = None,
    rows: Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    start_latents: torch.Tensor | None = None,
    start_strength: float | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | Callable[..., AbstractContextManager[Any]] = False,
    callback_on_step_end: StepCallback | None = None,
) -> torch.Tensor:
    """Sample latents by reversing the diffusion of Karras et al. (2022).

    Row i's latent depends on ``generators[i]`` and ``rows[i]`` (and its own label and start) only, not on the other
    rows. Where the denoiser has a noise floor, rows are denoised in chunks of one size, filled up where rows are
    missing, and a row is always at the same place of its chunk: equal products on equal places round alike.

    Parameters
    ----------
    denoiser : DiffLMDenoiser
        The denoiser; it is not modified. With a ``noise_floor`` sampling ends at it.
    scheduler : KarrasVeScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler
        Its configuration is used; its state is neither read nor changed. Its ``sigma_data`` may differ from the
        denoiser's. ``KarrasVeScheduler`` is algorithm 2 of the paper: second order, two evaluations a step.
    num : int
        Number of latents N.
    generators : sequence of torch.Generator, optional
        One CPU generator per row, advanced by the call. None: fresh seeds.
    rows : sequence of int, optional
        Index of each row in the whole run, at least 0, N of them. None: 0 to N - 1.
    num_inference_steps : int, optional
        Number of steps between noise levels. None: 50, or 16 with a noise floor.
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
    chunk_size : int, optional
        Number of rows denoised at once: it bounds the memory. None: 1024, or with a noise floor 256 on a CPU, where
        another size may change the last bits.
    dtype : torch.dtype, optional
        Arithmetic of the network. None: with a noise floor bfloat16 where the hardware multiplies it, else float32;
        without one float64 (float32 on devices without it), whose rounding errors stay too small for the batch to
        show in a row.
    progress : bool or callable, default False
        True shows a tqdm bar; a callable is called as ``progress(total=number_of_steps)`` and must return a context
        manager whose value has ``update()``, as ``DiffusionPipeline.progress_bar`` does.
    callback_on_step_end : callable, optional
        Called after each step of each chunk with ``(step, timestep, {"latents": ..., "rows": ...})``: noisy
        standardised latents and which of the N rows they are. A returned dict's ``"latents"`` replace them.

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
    _check_scheduler(scheduler)
    floor, device, latent_size = _noise_floor(denoiser), denoiser.device, denoiser.config.latent_size
    steps = default_steps(denoiser) if num_inference_steps is None else num_inference_steps
    if steps < 2:  # Both the Karras ramp and diffusers' KarrasVeScheduler divide by steps - 1.
        raise ArgumentError(f"num_inference_steps must be at least 2, got {steps}.")
    if chunk_size is None:
        chunk_size = ALIGNED_ROWS if floor and device.type == "cpu" else MOST_ROWS
    if num < 0 or chunk_size < 1:
        raise ArgumentError(f"num must be at least 0 and chunk_size at least 1, got {num} and {chunk_size}.")
    generators = _check_generators(generators, num)
    rows = _check_rows(rows, num)
    if class_labels is not None:
        class_labels = class_labels.to(device)
        denoiser.check_labels(class_labels, num)
    first_step = _first_step(start_latents, start_strength, num, latent_size, steps)
    if start_latents is not None and first_step == steps:
        return start_latents.to(device=device, dtype=torch.float32, copy=True)
    if dtype is None:
        dtype = _network_dtype(floor, device)
    precise = torch.promote_types(dtype, torch.float32)
    network = _network_in(denoiser, dtype)
    levels = _NoiseLevels.of(scheduler, steps, floor)
    run = _karras_loop if hasattr(scheduler, "step_correct") else _edm_loop
    output = torch.empty(num, latent_size, device=device, dtype=torch.float32)
    chunks = _aligned_chunks(rows, chunk_size) if floor else _whole_chunks(num, chunk_size)
    with _progress_bar(progress, len(chunks) * (steps - first_step)) as bar:
        for chunk in chunks:

            def on_step_end(step: int, latents: torch.Tensor, chunk: _Chunk = chunk) -> torch.Tensor:
                if bar is not None:
                    bar.update()
                if callback_on_step_end is None:
                    return latents
                values = {"latents": latents[chunk.places], "rows": chunk.rows}
                replaced = callback_on_step_end(step, levels.scheduler.timesteps[step], values) or {}
                return chunk.placed(replaced["latents"]) if "latents" in replaced else latents

            # Each row's noise is drawn in float32, so that the loop's dtype does not change the draw.
            noise = torch.stack([torch.randn(latent_size, generator=generators[row]) for row in chunk.rows])
            noise = noise.to(device, precise)
            if start_latents is None:
                latents = noise * levels.initial_spread(network)
            else:
                start = network.standardize(start_latents[chunk.rows].to(device, precise))
                latents = start + noise * levels.sigmas[first_step]
            labels = None if class_labels is None else chunk.placed(class_labels[chunk.rows])
            latents = run(
                _guided(network.denoise, labels, guidance_scale),
                levels,
                first_step,
                chunk.placed(latents),
                chunk.placed_generators(generators),
                on_step_end,
            )[chunk.places]
            if not floor:
                latents = (latents / LATENT_GRID).round() * LATENT_GRID
            output[chunk.rows] = network.unstandardize(latents).to(output.dtype)
    return output


@dataclass(frozen=True)
class _Chunk:
    """Rows that are denoised together; places of no row are filled up with zeros.

    Attributes
    ----------
    rows : list of int
        Which of the call's rows.
    places : list of int
        Where in the chunk each of them is.
    size : int
        Number of places.
    """

    rows: list[int]
    places: list[int]
    size: int

    def placed(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the rows, ``[rows, ...]``, at their places: ``[size, ...]``."""
        filled = values.new_zeros(self.size, *values.shape[1:])
        filled[self.places] = values
        return filled

    def placed_generators(self, generators: Sequence[torch.Generator]) -> list[torch.Generator]:
        """The same of generators, those of all rows of the call."""
        filled = [torch.Generator()] * self.size
        for place, row in zip(self.places, self.rows, strict=True):
            filled[place] = generators[row]
        return filled


def _whole_chunks(num: int, size: int) -> list[_Chunk]:
    """Rows in order, the last chunk smaller."""
    starts = range(0, num, size)
    spans = [list(range(start, min(start + size, num))) for start in starts]
    return [_Chunk(span, list(range(len(span))), len(span)) for span in spans]


def _aligned_chunks(rows: Sequence[int], size: int) -> list[_Chunk]:
    """As few chunks of `size` as give each row the place ``row % size``."""
    chunks: list[_Chunk] = []
    taken = [0] * size  # in how many chunks a place is taken
    for index, row in enumerate(rows):
        place = row % size
        if taken[place] == len(chunks):
            chunks.append(_Chunk([], [], size))
        chunks[taken[place]].rows.append(index)
        chunks[taken[place]].places.append(place)
        taken[place] += 1
    return chunks


@dataclass(frozen=True)
class _NoiseLevels:
    """A scheduler of one's own, set to so many steps, and the standard deviations of the noise between them.

    Attributes
    ----------
    scheduler : Any
    sigmas : list of float
        One more than there are steps.
    ends_at_floor : bool
    """

    scheduler: Any
    sigmas: list[float]
    ends_at_floor: bool

    @classmethod
    def of(cls, scheduler: Any, steps: int, floor: float) -> "_NoiseLevels":
        changes: dict[str, Any] = {"sigma_min": floor} if floor else {}
        if floor and hasattr(scheduler, "precondition_noise"):
            changes["final_sigmas_type"] = "sigma_min"
        scheduler = type(scheduler).from_config(scheduler.config, **changes)
        # The last of a scheduler's levels is sigma_min, from which it steps to zero, or not at all: with a floor this
        # step is not made.
        scheduler.set_timesteps(steps + 1 if floor else steps)
        if hasattr(scheduler, "step_correct"):
            # `schedule` holds variances (times of the VE process); its methods take standard deviations.
            sigmas = [math.sqrt(float(scheduler.schedule[t])) for t in scheduler.timesteps] + [0.0]
        else:
            sigmas = scheduler.sigmas.tolist()
        return cls(scheduler, sigmas[: steps + 1], bool(floor))

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def initial_spread(self, network: Any) -> torch.Tensor | float:
        """Standard deviation of the noise that is denoised, of each dimension with a noise floor."""
        if not self.ends_at_floor:
            return float(self.scheduler.init_noise_sigma)
        return (self.sigmas[0] ** 2 + network.sigma_data**2).sqrt()


def _network_dtype(floor: float, device: torch.device) -> torch.dtype:
    """The default arithmetic of the network: above a noise floor what bf16 rounds is far below the noise."""
    if not floor:
        return torch.float32 if device.type == "mps" else torch.float64
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of torch
    fast = device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)
    fast = fast or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.bfloat16 if fast else torch.float32


def default_steps(denoiser: Any) -> int:
    """Number of steps in which the denoiser's latents are sampled unless another is asked for."""
    return STEPS_TO_NOISE_FLOOR if _noise_floor(denoiser) else STEPS


def _noise_floor(denoiser: Any) -> float:
    return float(getattr(denoiser.config, "noise_floor", 0.0))


def _network_in(denoiser: Any, dtype: torch.dtype) -> Any:
    """A copy of the denoiser, its weights in this dtype: changing the caller's own would leak out of the call.

    The copy's weights also begin where products expect them; those of a file may not, and then round differently.

    It is built once and gets the present weights at every call: whether they have changed cannot be told (writing
    through ``.data``, as averaging does, leaves no trace), and copying them costs less than comparing.
    """
    with torch.inference_mode(False), torch.no_grad():
        known, layout = _copies.get(denoiser), _layout(denoiser, dtype)
        if known is None or known[0] != layout:
            # nn.Module's own `to`: that of diffusers warns of the precision of the statistics, not lowered here.
            network = torch.nn.Module.to(copy.deepcopy(denoiser), torch.promote_types(dtype, torch.float32)).eval()
            for parameter in network.parameters():  # the latents' statistics stay precise
                parameter.data = parameter.data.to(dtype)
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
    denoise: _Denoise,
    levels: _NoiseLevels,
    first_step: int,
    latents: torch.Tensor,
    generators: list[torch.Generator],
    on_step_end: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Algorithm 2 of Karras et al. (2022) with diffusers' KarrasVeScheduler."""
    scheduler = levels.scheduler
    for step in range(first_step, levels.steps):
        sigma, sigma_prev = levels.sigmas[step], levels.sigmas[step + 1]
        if scheduler.config.s_churn > 0:
            latents_hat, sigma_hat = scheduler.add_noise_to_input(latents, sigma, generators)
        else:  # Nothing to add: drawing a number per row and step would only cost time.
            latents_hat, sigma_hat = latents, sigma
        model_output = (denoise(latents_hat, sigma_hat) - latents_hat) / sigma_hat
        result = scheduler.step(model_output, sigma_hat, sigma_prev, latents_hat)
        if sigma_prev > 0:
            predicted = result.prev_sample
            model_output = (denoise(predicted, sigma_prev) - predicted) / sigma_prev
            result = scheduler.step_correct(
                model_output, sigma_hat, sigma_prev, latents_hat, predicted, result.derivative
            )
        latents = on_step_end(step, result.prev_sample)
    return latents


def _edm_loop(
    denoise: _Denoise,
    levels: _NoiseLevels,
    first_step: int,
    latents: torch.Tensor,
    generators: list[torch.Generator],
    on_step_end: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Denoise with an EDM scheduler of diffusers, which does the preconditioning itself."""
    scheduler = levels.scheduler
    scheduler.set_timesteps(scheduler.num_inference_steps)  # forgets the steps of the last chunk
    scheduler.set_begin_index(first_step)
    for step in range(first_step, levels.steps):
        timestep, sigma = scheduler.timesteps[step], scheduler.sigmas[step]
        scheduler.scale_model_input(latents, timestep)  # wants to be called before each step
        # The scheduler makes D of F by a sigma_data of its own, one for all dimensions: it is given the F that makes
        # this D.
        residual = denoise(latents, levels.sigmas[step]) - scheduler.precondition_outputs(latents, 0.0, sigma)
        model_output = residual / scheduler.precondition_outputs(0.0, 1.0, sigma)
        latents = on_step_end(
            step, scheduler.step(model_output, timestep, latents, generator=generators).prev_sample
        )
    return latents


def _guided(network: _Network, class_labels: torch.Tensor | None, guidance_scale: float) -> _Denoise:
    """D for these labels, by classifier-free guidance where it has an effect."""

    def denoise(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        if class_labels is None or guidance_scale == 1.0:
            return network(latents, sigma, class_labels)
        unconditional = network(latents, sigma, None)
        return unconditional + guidance_scale * (network(latents, sigma, class_labels) - unconditional)

    return denoise


def _check_scheduler(scheduler: Any) -> None:
    if not hasattr(scheduler, "step_correct") and not hasattr(scheduler, "precondition_outputs"):
        raise TypeError(
            f"{type(scheduler).__name__} cannot drive a DiffLM denoiser: use KarrasVeScheduler, EDMEulerScheduler or "
            "EDMDPMSolverMultistepScheduler from diffusers."
        )


def _check_rows(rows: Sequence[int] | None, num: int) -> Sequence[int]:
    if rows is None:
        return range(num)
    if len(rows) != num:
        raise ArgumentError(f"rows must have one index per row: got {len(rows)} for {num} rows.")
    if any(row < 0 for row in rows):
        raise ArgumentError(f"rows must be at least 0, got {min(rows)}.")
    return rows


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
