"""The denoiser's training data: posteriors of the training records, and their file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from difflm.files import atomic_file


@dataclass
class LatentDataset:
    """Posteriors of N records, with what the denoiser is conditioned on.

    Attributes
    ----------
    mean : torch.Tensor
        Posterior means, float, shape (N, L).
    log_variance : torch.Tensor, optional
        Posterior log-variances, shape (N, L). None: the means are the latents.
    labels : torch.Tensor, optional
        Class labels, int64, shape (N, C). Label ``class_sizes[j]`` is column j's null class (no condition).
    class_sizes : list of int, optional
        Number of classes of each of the C columns, required with `labels`.
    class_names : list of str, optional
        Names of the C columns.
    record_digests : torch.Tensor, optional
        Digests of the training records, uint8, shape (N, 16).

    Raises
    ------
    ValueError
        If shapes disagree or a value is not finite.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    class_sizes: list[int] | None = None
    class_names: list[str] | None = None
    record_digests: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 2:
            raise ValueError(f"Latent means must have shape (N, L), got {tuple(self.mean.shape)}.")
        self.mean = self.mean.detach().float()
        if self.log_variance is not None:
            if self.log_variance.shape != self.mean.shape:
                raise ValueError(
                    f"Latent log-variances must have the means' shape {tuple(self.mean.shape)}, "
                    f"got {tuple(self.log_variance.shape)}."
                )
            self.log_variance = self.log_variance.detach().float()
        for name, values in (("means", self.mean), ("log-variances", self.log_variance)):
            if values is not None and not bool(torch.isfinite(values).all()):
                rows = int((~torch.isfinite(values)).any(dim=1).sum())
                raise ValueError(
                    f"Latent {name} of {rows} records are not finite: the autoencoder's training diverged; "
                    "train it again with a lower learning rate."
                )
        if self.labels is not None:
            if self.class_sizes is None:
                raise ValueError("labels need class_sizes, the number of classes of each column.")
            expected = (len(self), len(self.class_sizes))
            if tuple(self.labels.shape) != expected or self.labels.dtype.is_floating_point:
                raise ValueError(
                    f"labels must be integers of shape {expected}, "
                    f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}."
                )
            self.labels = self.labels.detach().long()

    def __len__(self) -> int:
        return int(self.mean.shape[0])

    def select(self, rows: torch.Tensor) -> "LatentDataset":
        """Return the rows at the given indices, int64, shape (M,); digests are left out."""
        return LatentDataset(
            mean=self.mean[rows],
            log_variance=None if self.log_variance is None else self.log_variance[rows],
            labels=None if self.labels is None else self.labels[rows],
            class_sizes=self.class_sizes,
            class_names=self.class_names,
        )

    def statistics(self, *, sample_posterior: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the latents' mean, standard deviations along their principal axes, and these axes.

        An autoencoder spreads what it says of a record over dimensions that vary together: along some axes the
        latents then hardly vary, and a denoiser that only knew each dimension's spread would overshoot there.

        Parameters
        ----------
        sample_posterior : bool
            Statistics of ``z = mean + sigma * eps``; else those of the posterior means.

        Returns
        -------
        tuple of torch.Tensor
            Mean, shape (L,); standard deviations, shape (L,); axes as orthonormal columns, shape (L, L).
        """
        means = self.mean.double()
        centred = means - means.mean(dim=0)
        covariance = centred.T @ centred / len(means)
        if sample_posterior and self.log_variance is not None:
            covariance += torch.diag(self.log_variance.double().exp().mean(dim=0))
        variance, axes = torch.linalg.eigh(covariance)
        std = variance.clamp(min=0).sqrt()
        # An axis along which the latents are (almost) constant: do not blow its rounding errors up.
        floor = max(1e-3 * float(std.max()), 1e-6)
        return means.mean(dim=0).float(), std.clamp(min=floor).float(), axes.float()

    def noise_floor_statistics(self, noise_floor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what [`NoiseFloorScaler`] stores: the means' mean, each dimension's scale, and the means' spread.

        Parameters
        ----------
        noise_floor : float
            What the posterior's standard deviation, its mean over the records, becomes in standardised units.

        Returns
        -------
        tuple of torch.Tensor
            Three of shape (L,): in latent units, in latent units for each standardised one, in standardised units.

        Raises
        ------
        ValueError
            If there are no log-variances.
        """
        if self.log_variance is None:
            raise ValueError(
                "A denoiser with a noise_floor ends at the posterior's own noise: give latents with log_variance."
            )
        means = self.mean.double()
        scale = self.log_variance.double().exp().mean(dim=0).sqrt() / noise_floor
        # A dimension that does not vary, as that of a column with one value, is given a spread to divide by.
        spread = (means.std(dim=0, correction=0) / scale).clamp(min=1e-3 * noise_floor)
        return means.mean(dim=0).float(), scale.float(), spread.float()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        tensors = {
            name: value.contiguous().cpu()
            for name in ("mean", "log_variance", "labels", "record_digests")
            if (value := getattr(self, name)) is not None
        }
        metadata = {"class_sizes": json.dumps(self.class_sizes), "class_names": json.dumps(self.class_names)}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LatentDataset":
        """Read a file written by `save`.

        Raises
        ------
        ValueError
            If the file is missing, or is not a file of latents.
        """
        if not Path(path).is_file():
            raise ValueError(f"There is no latents file {str(path)!r}: encode the training records first.")
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                if "mean" not in names:
                    raise ValueError(f"{str(path)!r} has no tensor 'mean', so it is not a file of latents.")
                metadata = file.metadata() or {}
                fields = ("mean", "log_variance", "labels", "record_digests")
                tensors = {name: file.get_tensor(name) for name in fields if name in names}
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
        return cls(
            **tensors,
            class_sizes=json.loads(metadata.get("class_sizes", "null")),
            class_names=json.loads(metadata.get("class_names", "null")),
        )
