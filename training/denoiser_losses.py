"""The loss that the denoiser is trained with."""

from __future__ import annotations

import torch


def edm_loss_weight(sigma: torch.Tensor, sigma_data: torch.Tensor | float) -> torch.Tensor:
    """Return Karras et al. (2022)'s loss weight ``(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2``, broadcast."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def edm_losses(
    denoised: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor, sigma_data: torch.Tensor | float
) -> torch.Tensor:
    """Weighted squared error of each example, averaged over the dimensions, shape (batch,).

    Karras et al. (2022), equation 8, with ``denoised`` D's estimates of the clean ``latents``. The weight undoes
    ``c_out``: with a ``sigma_data`` of its own, shape (latent_size,), each dimension counts alike.
    """
    return (edm_loss_weight(sigma[:, None], sigma_data) * (denoised - latents).square()).mean(dim=1)
