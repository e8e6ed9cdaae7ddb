"""Work on given records: reconstruct, vary, interpolate, impute. A mixin of [`DiffLMPipeline`]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .call_arguments import choose_seed, integer, real
from .cell_codes import CellCodes
from .errors import ArgumentError
from .values import is_missing


class RecordEditingMixin:
    """Methods that start from records instead of noise; they need what [`DiffLMPipeline`] registers."""

    @torch.no_grad()
    def encode(self: Any, records: Any, batch_size: int = 64) -> Tensor:
        """Posterior means of records, ``[records, latent_size]``.

        Parameters
        ----------
        records : list of dict, DataFrame or Dataset
        batch_size : int, default 64
        """
        batch_size, records = integer("batch_size", batch_size, 1), self.schema.to_records(records)
        if not records:
            raise ArgumentError("There are no records to encode.")
        return self._encode_records(records, batch_size)

    def _encode_records(
        self: Any,
        records: Sequence[Mapping[str, Any]],
        batch_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Posterior means of normalised records, or with a generator a sample of each posterior."""
        columns = self._encode_columns(records, generator) if self.has_component("draft") else None
        if columns is not None and columns.shape[1] == self.denoiser.config.latent_size:
            if generator is None:
                return columns
            return columns + self.draft.latent_noise * torch.randn(columns.shape, generator=generator).to(columns)
        limit = min(self.encoder_tokenizer.model_max_length, 512)
        found = []
        for start in range(0, len(records), batch_size):
            chosen = records[start : start + batch_size]
            batch = self.encoder_tokenizer(
                [self.schema.serialize(record) for record in chosen],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.autoencoder.device)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            if self.autoencoder.config.num_feature_columns:
                numbers = torch.tensor([self.schema.feature_values(record) for record in chosen])
                inputs["feature_values"] = numbers.to(self.autoencoder.device)
            if columns is not None:
                inputs["column_latents"] = columns[start : start + batch_size]
            posterior = self.autoencoder.encode(**inputs)
            found.append(posterior.mean if generator is None else posterior.sample(generator))
        return torch.cat(found)

    def _encode_columns(
        self: Any, records: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> Tensor:
        """The draft's part of the posterior means, the first dimensions."""
        codes = torch.from_numpy(CellCodes(self.schema).encode(records))
        return self.draft.encode(codes, generator)

    def reconstruct(self: Any, records: Any, **kwargs: Any) -> Any:
        """Encode records and write them again from their latents.

        ``kwargs`` are those of the pipeline's call (``seed``, ``temperature``, ...).
        """
        latents = self.encode(records)
        return self(len(latents), latents=latents, **kwargs)

    def vary(self: Any, records: Any, strength: float = 0.3, *, seed: int | None = None, **kwargs: Any) -> Any:
        """Records near the given ones: noise each latent part of the way and denoise it again.

        Parameters
        ----------
        records : list of dict, DataFrame or Dataset
        strength : float, default 0.3
            Share of the noise schedule in [0, 1]: 0 reconstructs, 1 samples anew.
        seed : int, optional
        """
        if not 0 <= strength <= 1:
            raise ArgumentError(f"strength must lie in [0, 1], not {strength}.")
        seed = choose_seed(seed, kwargs.pop("generator", None))
        latents = self._noised_and_denoised(self.encode(records), strength, seed, kwargs)
        return self(len(latents), latents=latents, seed=seed, **kwargs)

    def _noised_and_denoised(
        self: Any,
        latents: Tensor,
        strength: float,
        seed: int,
        options: Mapping[str, Any],
        labels: Tensor | None = None,
    ) -> Tensor:
        steps = options.get("num_inference_steps")
        return self._sample_latents(
            self.row_randoms(seed, len(latents), integer("first_row", options.get("first_row", 0), 0)),
            labels,
            start_latents=latents,
            start_strength=strength,
            num_inference_steps=None if steps is None else integer("num_inference_steps", steps, 2),
            guidance_scale=real("guidance_scale", options.get("guidance_scale", 1.0)),
        )

    def interpolate(self: Any, a: Mapping[str, Any], b: Mapping[str, Any], num_steps: int = 5, **kwargs: Any) -> Any:
        """Records on the way from ``a`` to ``b``, both ends included.

        Spherical interpolation of standardised latents: a straight line would pass through shorter, untypical ones.

        Parameters
        ----------
        a, b : dict
        num_steps : int, default 5
            At least 2.
        """
        num_steps = integer("num_steps", num_steps, 2)
        start, end = self.denoiser.standardize(self.encode([a, b]))
        shares = torch.linspace(0, 1, num_steps, device=start.device)[:, None]
        cosine = torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-0.9995, 0.9995)
        angle = torch.arccos(cosine)
        path = (torch.sin((1 - shares) * angle) * start + torch.sin(shares * angle) * end) / torch.sin(angle)
        if bool(cosine >= 0.9995):
            path = start + shares * (end - start)
        return self(num_steps, latents=self.denoiser.unstandardize(path), **kwargs)

    def impute(
        self: Any,
        records: Sequence[Mapping[str, Any]],
        strength: float = 0.5,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Fill the missing cells of records; given cells are kept exactly.

        A cell is missing if its column is absent, ``None`` or NaN. The latent starts from the record with the
        training data's commonest values in its gaps, is noised part of the way and denoised towards the given cells.

        Parameters
        ----------
        records : list of dict or DataFrame
        strength : float, default 0.5
            Share of the noise schedule; more forgets more of what the gaps were filled with.
        seed : int, optional
        """
        if kwargs.get("schema") is not None:
            raise ArgumentError("impute fills gaps in records of the training table: leave schema= out.")
        if hasattr(records, "to_dict"):
            records = records.to_dict("records")
        if not records:
            raise ArgumentError("There are no records to impute.")
        known = [self._given_cells(row, record) for row, record in enumerate(records)]
        filled = [self.schema.normalize(self._typical_values() | cells) for cells in known]
        seed = choose_seed(seed, kwargs.pop("generator", None))
        labels = self.condition_encoder.partial_labels(known) if self.condition_encoder.classes else None
        latents = self._noised_and_denoised(self._encode_records(filled), strength, seed, kwargs, labels)
        return self(len(latents), latents=latents, given=known, seed=seed, **kwargs)

    @torch.no_grad()
    def prior_latents(
        self: Any, prior: str, num_samples: int, *, records: Any = None, seed: int = 0, num_components: int = 20
    ) -> Tensor:
        """Latents from a simpler distribution than the diffusion's, to decode with ``latents=`` and compare.

        Parameters
        ----------
        prior : {"gaussian", "gmm", "encode"}
            The VAE's own standard normal; a Gaussian mixture with full covariances fitted to the encodings of
            ``records`` (scikit-learn); or a posterior sample of a record drawn from ``records``.
        num_samples : int
        records : list of dict, DataFrame or Dataset, optional
            Needed by "gmm" and "encode".
        seed : int, default 0
        num_components : int, default 20
            Of the mixture.

        Returns
        -------
        Tensor
            ``[num_samples, latent_size]``.
        """
        if prior not in ("gaussian", "gmm", "encode"):
            raise ArgumentError(f"prior={prior!r} is not one of gaussian, gmm, encode (the default is the diffusion).")
        num_samples, seed = integer("num_samples", num_samples, 1), integer("seed", seed)
        num_components = integer("num_components", num_components, 1)
        generator = torch.Generator().manual_seed(seed)
        if prior == "gaussian":
            return torch.randn(num_samples, self.denoiser.config.latent_size, generator=generator)
        if records is None:
            raise ArgumentError(f"prior={prior!r} needs records=, rows of the training table.")
        records = self.schema.to_records(records)
        if prior == "encode":
            chosen = torch.randint(len(records), (num_samples,), generator=generator)
            return self._encode_records([records[index] for index in chosen], generator=generator).cpu()
        from sklearn.mixture import GaussianMixture

        means = self._encode_records(records, generator=generator).cpu().double().numpy()
        components = min(num_components, len(means))
        mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed % 2**32).fit(means)
        drawn, _ = mixture.sample(num_samples)
        order = torch.randperm(num_samples, generator=generator)  # scikit-learn returns them by component
        return torch.from_numpy(drawn).float()[order]

    def _given_cells(self: Any, row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [name for name in record if name not in self.schema.names]
        if unknown:
            raise ArgumentError(
                f"Record {row} has the unknown column {unknown[0]!r}; known: {', '.join(self.schema.names)}."
            )
        return {
            name: self.schema.column(name).normalize(value)
            for name, value in record.items()
            if not is_missing(value)
        }

    def _typical_values(self: Any) -> dict[str, Any]:
        """Something to encode in place of a gap: the commonest category, the middle of a number's range."""
        return {column.name: column.typical() for column in self.schema.columns}
