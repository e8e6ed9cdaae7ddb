"""The latent denoiser of DiffLM: network F, its EDM preconditioning to D (Karras et al. 2022), the latents' scale.

This file is also stored beside the weights of a published model, so it imports nothing from the ``difflm`` package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn


# Angular frequencies of the noise-level embedding, in radians per unit of c_noise = ln(sigma) / 4. A sampler's whole
# range of sigma (0.002 to 80) spans 2.6 units: the lowest frequency stays monotone on it, the highest tells apart
# neighbouring steps of a 50-step schedule.
MIN_NOISE_FREQUENCY = 0.5
MAX_NOISE_FREQUENCY = 32.0
NOISE_EMBEDDING_SIZE = 128


class EDMCoefficients(NamedTuple):
    """Preconditioning of Karras et al. (2022), table 1: ``D(x) = c_skip * x + c_out * F(c_in * x, c_noise)``."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    c_noise: torch.Tensor


def edm_coefficients(sigma: torch.Tensor, sigma_data: torch.Tensor | float) -> EDMCoefficients:
    """Return the EDM coefficients at the noise levels ``sigma`` (standard deviations, > 0).

    ``c_noise`` has sigma's shape, the others that of sigma and ``sigma_data`` broadcast.
    """
    variance = sigma**2 + sigma_data**2
    return EDMCoefficients(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=sigma.log() / 4,
    )


def precondition(
    network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    noisy: torch.Tensor,
    sigma: torch.Tensor | float,
    class_labels: torch.Tensor | None = None,
    *,
    sigma_data: torch.Tensor | float,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Make of the raw network F the denoiser D of Karras et al. (2022), equation 7, and apply it.

    Parameters
    ----------
    network : callable
        F, from ``c_in * x``, ``c_noise`` and labels, as [`DenoiserNetwork`] is called.
    noisy : torch.Tensor
        Standardised latents plus Gaussian noise x, shape (batch, latent_size).
    sigma : torch.Tensor or float
        Standard deviation of the noise, > 0, shape (batch,) or scalar.
    class_labels : torch.Tensor, optional
        Passed on.
    sigma_data : torch.Tensor or float
        Standard deviation of the data, of each dimension, shape (latent_size,), or of all.
    dtype : torch.dtype, optional
        That of what the network is given. None: that of `noisy`.

    Returns
    -------
    torch.Tensor
        D, the estimate of the clean latents, shape (batch, latent_size), in the dtype of `noisy`.
    """
    sigma = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).reshape(-1, 1)
    if isinstance(sigma_data, torch.Tensor):
        sigma_data = sigma_data.to(noisy)
    c_skip, c_out, c_in, c_noise = edm_coefficients(sigma, sigma_data)
    output = network((c_in * noisy).to(dtype or noisy.dtype), c_noise[:, 0].to(dtype or noisy.dtype), class_labels)
    return c_skip * noisy + c_out * output.to(noisy.dtype)


@dataclass
class DiffLMDenoiserOutput(BaseOutput):
    """Output of [`DiffLMDenoiser`].

    Attributes
    ----------
    sample : torch.Tensor
        Raw network output F, shape (batch, latent_size).
    """

    sample: torch.Tensor


class NoiseLevelEmbedding(nn.Module):
    """Sines and cosines of ``c_noise`` at fixed frequencies, followed by a two-layer MLP."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.num_frequencies = embedding_size // 2
        self.mlp = nn.Sequential(
            nn.Linear(embedding_size, embedding_size), nn.SiLU(), nn.Linear(embedding_size, embedding_size)
        )

    def forward(self, c_noise: torch.Tensor) -> torch.Tensor:
        # Computed here, not kept in a buffer: a non-persistent buffer is lost by meta-device loading, and a
        # persistent one would be rounded when the weights are stored in half precision.
        exponents = torch.linspace(
            math.log(MIN_NOISE_FREQUENCY),
            math.log(MAX_NOISE_FREQUENCY),
            self.num_frequencies,
            dtype=c_noise.dtype,
            device=c_noise.device,
        )
        angles = c_noise[:, None] * exponents.exp()
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class DenoiserBlock(nn.Module):
    """LayerNorm, modulated by the noise embedding, then Linear, SiLU, Linear, around a skip connection."""

    def __init__(self, hidden_size: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.modulation = nn.Linear(embedding_size, 2 * hidden_size)
        self.linear_in = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear_out = nn.Linear(2 * hidden_size, hidden_size)
        self.activation = nn.SiLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=-1)
        update = self.norm(hidden) * (1 + scale) + shift
        return hidden + self.linear_out(self.dropout(self.activation(self.linear_in(update))))


class DenoiserNetwork(nn.Module):
    """F: a residual MLP over scaled noisy latents, modulated by the noise level and the labels.

    Parameters
    ----------
    latent_size, hidden_size, num_blocks, dropout, class_sizes
        See [`DiffLMDenoiser`].
    """

    def __init__(
        self, latent_size: int, hidden_size: int, num_blocks: int, dropout: float, class_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.class_sizes = tuple(class_sizes)
        self.noise_embedding = NoiseLevelEmbedding(NOISE_EMBEDDING_SIZE)
        # One row more than there are classes: the null class.
        self.class_embeddings = nn.ModuleList(nn.Embedding(size + 1, NOISE_EMBEDDING_SIZE) for size in class_sizes)
        self.input_projection = nn.Linear(latent_size, hidden_size)
        self.blocks = nn.ModuleList(
            DenoiserBlock(hidden_size, NOISE_EMBEDDING_SIZE, dropout) for _ in range(num_blocks)
        )
        self.output_norm = nn.LayerNorm(hidden_size)
        self.output_projection = nn.Linear(hidden_size, latent_size)
        self.embedding_activation = nn.SiLU()
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                # As large as the noise embedding it is added to, so that classes are told apart from the first steps.
                nn.init.normal_(module.weight, std=0.5)
        # F = 0 at the start: D is then the best linear denoiser of unit Gaussian data, and the first loss is 1.
        nn.init.zeros_(self.output_projection.weight)

    def null_labels(self, batch_size: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Return labels that drop every conditioning column, shape (batch_size, number of columns)."""
        return torch.tensor(self.class_sizes, dtype=torch.long, device=device).expand(batch_size, -1)

    def forward(
        self, sample: torch.Tensor, c_noise: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map ``c_in * x``, shape (batch, latent_size), to F of the same shape.

        ``c_noise`` has shape (batch,) or is a scalar. Labels, int64, have shape (batch, number of columns);
        ``class_sizes[j]`` means that column j is dropped; None drops all.
        """
        # One level for all rows, as in sampling, is embedded once.
        c_noise = torch.as_tensor(c_noise, dtype=sample.dtype, device=sample.device).reshape(-1)
        embedding = self.noise_embedding(c_noise)
        if self.class_sizes:
            labels = self.null_labels(1, sample.device) if class_labels is None else class_labels
            for column, class_embedding in enumerate(self.class_embeddings):
                embedding = embedding + class_embedding(labels[:, column])
        embedding = self.embedding_activation(embedding)
        hidden = self.input_projection(sample)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.output_projection(self.output_norm(hidden))


class LatentScaler(nn.Module):
    """Whitens latents: zero mean and identity covariance over the training latents.

    Attributes
    ----------
    latent_mean, latent_std, latent_axes : torch.Tensor
        Mean of the training latents, shape (latent_size,), their standard deviation along each principal axis, shape
        (latent_size,), and the axes as orthonormal columns, shape (latent_size, latent_size); stored with the weights.
    """

    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    latent_axes: torch.Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(latent_size))
        self.register_buffer("latent_std", torch.ones(latent_size))
        self.register_buffer("latent_axes", torch.eye(latent_size))

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Whiten latents, shape (batch, latent_size)."""
        return (latents - self.latent_mean.to(latents)) @ self.latent_axes.to(latents) / self.latent_std.to(latents)

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `standardize`."""
        return (latents * self.latent_std.to(latents)) @ self.latent_axes.to(latents).T + self.latent_mean.to(latents)

    @torch.no_grad()
    def set_latent_statistics(self, mean: torch.Tensor, std: torch.Tensor, axes: torch.Tensor | None = None) -> None:
        """Store the statistics of the training latents.

        Parameters
        ----------
        mean : torch.Tensor
            Shape (latent_size,).
        std : torch.Tensor
            Standard deviation along each axis, shape (latent_size,).
        axes : torch.Tensor, optional
            Orthonormal columns, shape (latent_size, latent_size). None: the latents' own dimensions.

        Raises
        ------
        ValueError
            If a shape differs, a value is not finite, a standard deviation is not positive or the axes are not
            orthonormal.
        """
        axes = torch.eye(len(self.latent_mean)).to(self.latent_axes) if axes is None else axes
        statistics = {"mean": mean, "std": std, "axes": axes}
        _check_statistics(self, statistics, positive=("std",))
        if not torch.allclose(axes.T @ axes, torch.eye(len(axes)).to(axes), atol=1e-3):
            raise ValueError("Latent axes must be orthonormal.")
        for name, value in statistics.items():
            getattr(self, f"latent_{name}").copy_(value)


class NoiseFloorScaler(nn.Module):
    """Scales each dimension by itself, so that the posterior's noise becomes the noise floor in all of them.

    Attributes
    ----------
    latent_mean, latent_scale, latent_spread : torch.Tensor
        Shape (latent_size,) each, stored with the weights: mean of the training records' posterior means; latent units
        of one standardised unit; standard deviation of the posterior means, in standardised units.
    """

    latent_mean: torch.Tensor
    latent_scale: torch.Tensor
    latent_spread: torch.Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("scale", 1.0), ("spread", 1.0)):
            self.register_buffer(f"latent_{name}", torch.full((latent_size,), value))

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Centre and scale latents, shape (batch, latent_size)."""
        return (latents - self.latent_mean.to(latents)) / self.latent_scale.to(latents)

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `standardize`."""
        return latents * self.latent_scale.to(latents) + self.latent_mean.to(latents)

    @torch.no_grad()
    def set_latent_statistics(self, mean: torch.Tensor, scale: torch.Tensor, spread: torch.Tensor) -> None:
        """Store the attributes of these names; raises ValueError if one has a wrong shape or cannot be divided by."""
        statistics = {"mean": mean, "scale": scale, "spread": spread}
        _check_statistics(self, statistics, positive=("scale", "spread"))
        for name, value in statistics.items():
            getattr(self, f"latent_{name}").copy_(value)


def _check_statistics(scaler: nn.Module, statistics: dict[str, torch.Tensor], positive: Sequence[str]) -> None:
    for name, value in statistics.items():
        expected = tuple(getattr(scaler, f"latent_{name}").shape)
        if tuple(value.shape) != expected:
            raise ValueError(f"Latent {name} must have shape {expected}, got {tuple(value.shape)}.")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Latent {name} has values that are not finite: was the autoencoder trained?")
    for name in positive:
        if bool((statistics[name] <= 0).any()):
            raise ValueError(f"Latent {name} must be positive in every dimension.")


class DiffLMDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]  # the two bases annotate config_name differently
    """Denoise latents: network F, its preconditioning to D (Karras et al. 2022), and the scale of the latents.

    Parameters
    ----------
    latent_size : int, default 64
        Number of dimensions L of a latent.
    hidden_size : int, default 512
        Width of the residual stream; each block's inner layer is twice as wide.
    num_blocks : int, default 4
        Number of residual blocks.
    dropout : float, default 0.0
        Dropout probability inside the blocks, in [0, 1).
    sigma_data : float, default 1.0
        Standard deviation of the data the network sees. Latents are whitened, hence 1. Not used with a noise floor.
    class_sizes : list of int, optional
        Number of classes of each conditioning column. Label ``class_sizes[j]`` is column j's null class ("dropped"),
        which classifier-free guidance needs. None: an unconditional denoiser.
    class_names : list of str, optional
        Names of the conditioning columns, as many as ``class_sizes``.
    noise_floor : float, default 0.0
        Standard deviation, in standardised units, of the noise at which the diffusion ends: that of the posterior, so
        that a sampled latent is distributed as one drawn from a posterior. The network then denoises posterior means,
        dimensions are scaled one by one, and each has a ``sigma_data`` of its own. 0: the diffusion ends at clean,
        whitened latents.

    Attributes
    ----------
    network : DenoiserNetwork
        F.
    scaler : LatentScaler or NoiseFloorScaler
        Holds the statistics of the training latents.

    Raises
    ------
    ValueError
        If a size is not positive, the noise floor is negative, or ``class_names`` does not match ``class_sizes``.
    """

    # The dtype of a pipeline's load is its decoder's: here, rounding would only move every sample.
    _keep_in_fp32_modules = ["network", "scaler"]  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        latent_size: int = 64,
        hidden_size: int = 512,
        num_blocks: int = 4,
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        class_sizes: list[int] | None = None,
        class_names: list[str] | None = None,
        noise_floor: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("latent_size", latent_size), ("hidden_size", hidden_size), ("num_blocks", num_blocks)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
        if not 0 <= noise_floor < math.inf:
            raise ValueError(f"noise_floor must be a number of at least 0, got {noise_floor}.")
        sizes = list(class_sizes or [])
        if any(size < 1 for size in sizes):
            raise ValueError(f"Every entry of class_sizes must be at least 1, got {sizes}.")
        if class_names is not None and len(class_names) != len(sizes):
            raise ValueError(f"class_names has {len(class_names)} names for {len(sizes)} class_sizes.")
        self.class_sizes = tuple(sizes)
        self.network = DenoiserNetwork(latent_size, hidden_size, num_blocks, dropout, sizes)
        self.scaler = NoiseFloorScaler(latent_size) if noise_floor else LatentScaler(latent_size)

    @property
    def dtype(self) -> torch.dtype:
        """The network's. diffusers' own is that of the modules that a load may round, of which there are none."""
        return self.network.output_projection.weight.dtype

    @property
    def sigma_data(self) -> torch.Tensor | float:
        """Standard deviation of the standardised data: with a noise floor, of each dimension, shape (latent_size,)."""
        if isinstance(self.scaler, NoiseFloorScaler):
            return self.scaler.latent_spread
        return float(self.config["sigma_data"])

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Read a configuration. Denoisers of format 1 also held digests of the training records, which are dropped."""
        config_dict = {name: value for name, value in config_dict.items() if name != "num_record_digests"}
        return super().extract_init_dict(config_dict, **kwargs)

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Bring the names of a checkpoint from before the three parts up to date; diffusers calls it at load."""
        state_dict.pop("record_digests", None)
        for name in list(state_dict):
            if name.startswith("latent_"):
                state_dict[f"scaler.{name}"] = state_dict.pop(name)
            elif not name.startswith(("network.", "scaler.")):
                state_dict[f"network.{name}"] = state_dict.pop(name)

    def check_labels(self, class_labels: torch.Tensor, batch_size: int) -> None:
        """Check conditioning labels.

        Parameters
        ----------
        class_labels : torch.Tensor
            Integer labels, shape (batch_size, number of columns); ``class_sizes[j]`` is column j's null class.
        batch_size : int
            Number of rows expected.

        Raises
        ------
        ValueError
            If the denoiser has no conditioning columns, or the labels have another shape, type or range.
        """
        if not self.class_sizes:
            raise ValueError("This denoiser was built without class_sizes, so it takes no class_labels.")
        if class_labels.dtype.is_floating_point or class_labels.dtype == torch.bool:
            raise ValueError(f"class_labels must be integers, got {class_labels.dtype}.")
        expected = (batch_size, len(self.class_sizes))
        if tuple(class_labels.shape) != expected:
            raise ValueError(f"class_labels must have shape {expected}, got {tuple(class_labels.shape)}.")
        names = dict(self.config)["class_names"] or [f"column {j}" for j in range(len(self.class_sizes))]
        for j, size in enumerate(self.class_sizes):
            if batch_size and not (int(class_labels[:, j].min()) >= 0 and int(class_labels[:, j].max()) <= size):
                raise ValueError(
                    f"class_labels of {names[j]!r} must be between 0 and {size - 1}, or {size} for the null class."
                )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DiffLMDenoiserOutput | tuple[torch.Tensor]:
        """Run the raw network F, as diffusers' EDM schedulers call it after their ``scale_model_input``.

        Parameters
        ----------
        sample : torch.Tensor
            Scaled noisy latents ``c_in * x``, shape (batch, latent_size).
        timestep : torch.Tensor or float
            ``c_noise = ln(sigma) / 4``, shape (batch,) or scalar.
        class_labels : torch.Tensor, optional
            Labels, int64, shape (batch, number of columns); ``class_sizes[j]`` means that column j is dropped.
            None drops every column.
        return_dict : bool, default True
            Return a `DiffLMDenoiserOutput` rather than a one-element tuple.

        Returns
        -------
        DiffLMDenoiserOutput or tuple
            ``sample``: F, shape (batch, latent_size).
        """
        if class_labels is not None and not self.class_sizes:
            self.check_labels(class_labels, len(sample))
        output = self.network(sample, timestep, class_labels)
        return DiffLMDenoiserOutput(sample=output) if return_dict else (output,)

    def denoise(
        self, noisy: torch.Tensor, sigma: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate clean standardised latents, the preconditioned denoiser D of Karras et al. (2022), equation 7.

        Parameters
        ----------
        noisy : torch.Tensor
            Standardised latents plus Gaussian noise, shape (batch, latent_size).
        sigma : torch.Tensor or float
            Standard deviation of the noise, > 0, shape (batch,) or scalar.
        class_labels : torch.Tensor, optional
            As in `forward`.

        Returns
        -------
        torch.Tensor
            D, shape (batch, latent_size), in the dtype of `noisy`.
        """
        if class_labels is not None and not self.class_sizes:
            self.check_labels(class_labels, len(noisy))
        return precondition(self.network, noisy, sigma, class_labels, sigma_data=self.sigma_data, dtype=self.dtype)

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Standardise latents, shape (batch, latent_size), see [`LatentScaler`] and [`NoiseFloorScaler`]."""
        return self.scaler.standardize(latents)

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `standardize`."""
        return self.scaler.unstandardize(latents)
