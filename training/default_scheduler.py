"""What a new pipeline samples its latents with."""

from __future__ import annotations

from typing import Any

from diffusers import EDMDPMSolverMultistepScheduler, KarrasVeScheduler


def default_scheduler(noise_floor: float) -> Any:
    """The scheduler for a denoiser of this ``noise_floor``; chosen as examples/benchmarks/policy.md says."""
    if noise_floor:
        # One evaluation a step. Far above the data's own spread the way is straight: no level there is of use.
        return EDMDPMSolverMultistepScheduler(
            sigma_min=noise_floor, sigma_max=20.0, sigma_data=1.0, final_sigmas_type="sigma_min"
        )
    # Without churn: added noise widens the samples.
    return KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=0.0, s_noise=1.0)
