"""Noisy latents for the denoiser's training: rows, noise levels, noise and label dropout, all from seeds."""

import math
from dataclasses import dataclass
from typing import cast

import torch

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.latents import LatentDataset
from difflm.training.seeds import seeded_generator


@dataclass
class NoisyLatents:
    """Examples for the denoiser, the noisy input being ``latents + sigma * noise``.

    Attributes
    ----------
    latents, noise : torch.Tensor
        Standardised latents and unit Gaussian noise, shape (batch, L).
    sigma : torch.Tensor
        Noise levels, shape (batch,).
    labels : torch.Tensor, optional
        Class labels after dropout, shape (batch, C).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return int(self.sigma.shape[0])

    def slice(self, rows: slice) -> "NoisyLatents":
        """Return a range of the examples."""
        labels = None if self.labels is None else self.labels[rows]
        return NoisyLatents(self.latents[rows], self.noise[rows], self.sigma[rows], labels)


class NoisyLatentSampler:
    """Draw examples as Karras et al. (2022), table 1: ``ln(sigma) ~ N(p_mean, p_std^2)``.

    With a noise floor the latents are the posterior means, ``ln(sigma)`` is cut off below the floor, and a batch holds
    one noise level of each of as many equal shares of the distribution as it has rows.

    All randomness is drawn on the CPU, so that devices agree.

    Parameters
    ----------
    denoiser : DiffLMDenoiser
        For the latents' statistics and the null classes.
    args : DenoiserTrainingArguments
        Seed, batch size, noise distribution and label dropout.
    device : torch.device
        Where the examples are put.
    """

    def __init__(self, denoiser: DiffLMDenoiser, args: DenoiserTrainingArguments, device: torch.device) -> None:
        self.denoiser = denoiser
        self.noise_floor = float(denoiser.config["noise_floor"])
        self.args = args = args.resolved(self.noise_floor)
        self.batch_size = cast(int, args.batch_size)
        self.p_mean, self.p_std = cast(float, args.p_mean), cast(float, args.p_std)
        self.device = device

    def training_batch(self, data: LatentDataset, step: int) -> NoisyLatents:
        """Return the batch of the given step (counted from 0)."""
        rows = self.training_rows(len(data), step)
        generator = seeded_generator(self.args.seed, "step", step)
        if self.noise_floor:
            offset = torch.rand(1, generator=generator, dtype=torch.float64)
            sigma = self._quantiles((torch.arange(len(rows), dtype=torch.float64) + offset) / len(rows))
        else:
            sigma = (self.p_mean + self.p_std * torch.randn(len(rows), generator=generator)).exp()
        return self._examples(data, rows, sigma, generator)

    def training_rows(self, count: int, step: int) -> torch.Tensor:
        """Return a batch's rows: an endless stream of shuffled passes over `count` rows, cut into equal batches."""
        size = self.batch_size
        positions = torch.arange(step * size, (step + 1) * size)
        epochs = positions // count
        rows = []
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            order = torch.randperm(count, generator=seeded_generator(self.args.seed, "epoch", epoch))
            rows.append(order[positions[epochs == epoch] % count])
        return torch.cat(rows)

    def validation_examples(self, data: LatentDataset) -> NoisyLatents:
        """Return the fixed examples of the validation loss: each row equally often, noise levels stratified."""
        rows = torch.arange(len(data)).repeat(max(1, round(self.args.validation_size / len(data))))
        generator = seeded_generator(self.args.seed, "validation", 0)
        # Equally spaced quantiles of the noise distribution: the loss depends strongly on sigma, and drawing sigma
        # at random would make the few validation rows a noisy judge.
        strata = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
        sigma = self._quantiles(strata[torch.randperm(len(rows), generator=generator)])
        return self._examples(data, rows, sigma, generator)

    def _quantiles(self, shares: torch.Tensor) -> torch.Tensor:
        """Noise levels below which these shares, float64 in (0, 1), of the distribution above the floor lie."""
        if self.noise_floor:
            lowest = (math.log(self.noise_floor) - self.p_mean) / self.p_std
            below = torch.special.ndtr(torch.tensor(lowest, dtype=torch.float64))
            shares = below + (1 - below) * shares
        return (self.p_mean + self.p_std * torch.special.ndtri(shares).float()).exp()

    def drop_labels(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Replace labels, shape (batch, C), by null classes, so that sampling may condition on any subset of columns.

        With probability `label_dropout` a row loses all its labels; otherwise it keeps each with a probability drawn
        uniformly for the row.
        """
        if self.args.label_dropout == 0:
            return labels
        count, columns = labels.shape
        drop_all = torch.rand(count, 1, generator=generator) < self.args.label_dropout
        keep_probability = torch.rand(count, 1, generator=generator)
        dropped = drop_all | (torch.rand(count, columns, generator=generator) >= keep_probability)
        return torch.where(dropped, self.denoiser.network.null_labels(count), labels)

    def _examples(
        self, data: LatentDataset, rows: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator
    ) -> NoisyLatents:
        latents = data.mean[rows]
        if self.args.sample_posterior and data.log_variance is not None and not self.noise_floor:
            eps = torch.randn(latents.shape, generator=generator)
            latents = latents + (0.5 * data.log_variance[rows]).exp() * eps
        noise = torch.randn(latents.shape, generator=generator)
        labels = None
        if data.labels is not None and self.denoiser.class_sizes:
            labels = self.drop_labels(data.labels[rows], generator).to(self.device)
        standardized = self.denoiser.standardize(latents.to(self.device))
        return NoisyLatents(standardized, noise.to(self.device), sigma.to(self.device), labels)
