"""What a new pipeline samples its latents with."""

from __future__ import annotations

from typing import Any

from diffusers import EDMDPMSolverMultistepScheduler, KarrasVeScheduler


# The highest noise level, in standard deviations of the latents: what they have to do with each other is lost in it.
HIGHEST_NOISE = 12.0


def default_scheduler(noise_floor: float, spread: float = 1.0) -> Any:
    """The scheduler for a denoiser of this ``noise_floor``; chosen as examples/benchmarks/policy.md says.

    Parameters
    ----------
    noise_floor : float
        Of the denoiser.
    spread : float, default 1.0
        The largest of the standardised latents' standard deviations.
    """
    if noise_floor:
        # One evaluation a step.
        return EDMDPMSolverMultistepScheduler(
            sigma_min=noise_floor,
            sigma_max=max(20.0, HIGHEST_NOISE * spread),
            sigma_data=1.0,
            solver_order=3,
            final_sigmas_type="sigma_min",
        )
    # Without churn: added noise widens the samples.
    return KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=0.0, s_noise=1.0)
