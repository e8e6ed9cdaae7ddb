"""What the autoencoder is trained to do, and the part that only training needs: no published model holds these."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from difflm.modeling_difflm import DiffLMConfig, DiffLMModel, DiffLMOutput, Posterior, locate, sum_by_record
from difflm.training.candidate_tokens import CandidateTokens


class ColumnDecoder(nn.Module):
    """Latent -> the waves of [`ColumnFeatures`]: a small decoder beside the LLM (ours, not the paper's).

    Through it the latents learn what a record holds in a minute or two, and keep it while the injector learns to tell
    the LLM; through the LLM alone that takes thousands of records.
    """

    def __init__(self, config: DiffLMConfig, num_waves: int) -> None:
        super().__init__()
        size = config.feature_size
        widths = (config.latent_size, size, size)
        layers = [(nn.Linear(one, other), nn.GELU()) for one, other in zip(widths[:-1], widths[1:], strict=True)]
        self.latent_to_waves = nn.Sequential(*[part for pair in layers for part in pair], nn.Linear(size, num_waves))

    def forward(self, latents: Tensor, waves: Tensor) -> Tensor:
        """Nats of each record's waves, ``[B]``, under Gaussians of variance 1 (but for a constant)."""
        return 0.5 * (self.latent_to_waves(latents) - waves).square().sum(dim=1)


def trains_columns(model: DiffLMModel) -> bool:
    """Whether a loss of the columns' values, or of the draft, is part of the training."""
    told = model.config.num_feature_columns or model.record_draft is not None
    return bool(told and model.config.column_loss_weight)


def reconstruction(
    model: DiffLMModel, latents: Tensor, labels: Tensor, candidates: CandidateTokens | None = None
) -> Tensor:
    """Nats of each record given its latent, ``[batch]``, as [`~DiffLMModel.reconstruction`].

    With ``candidates`` the softmax's normaliser is estimated from these tokens instead of the whole vocabulary.
    """
    if candidates is None:
        return model.reconstruction(latents, labels)
    with model.decoder_lock, candidates.narrowed(cast(PreTrainedModel, model.decoder)):
        logits = model.logits(latents, labels)
    kept = labels != -100
    logits = logits[kept].float()
    logits = logits + candidates.log_weights.to(logits)
    losses = nn.functional.cross_entropy(logits, candidates.places(labels[kept]), reduction="none")
    return sum_by_record(losses, kept)


def kl(posterior: Posterior, free_bits: float = 0.0) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each record, ``[batch]``.

    A dimension whose mean over the batch is below ``free_bits`` nats counts as that many, so that it is not pushed
    further down.
    """
    found = posterior.kl_per_dimension()
    if free_bits > 0:
        found = torch.where(found.mean(dim=0, keepdim=True) < free_bits, torch.full_like(found, free_bits), found)
    return found.sum(dim=-1)


def draft_loss(model: DiffLMModel, latents: Tensor, labels: Tensor) -> Tensor:
    """Nats of each record's tokens by its draft alone, ``[batch]``; those it has no place for are not counted.

    All tokens that are none of the draft's count as one more. What a decoder does to its logits behind the head
    (scaling, soft capping) is left out.

    Raises
    ------
    ValueError
        If the model makes no draft, or the decoder's head is quantised.
    """
    record_draft = model.record_draft
    if record_draft is None:
        raise ValueError("This model makes no draft.")
    output = None if model.decoder is None else model.decoder.get_output_embeddings()
    head = getattr(output, "weight", None)
    if head is None or not head.is_floating_point():
        raise ValueError('The decoder\'s head is quantised: pass model_kwargs={"draft_places": None}.')
    draft = record_draft(latents)
    columns, since, _ = locate(model.fed(labels), model.separator_ids)
    places = record_draft.places(columns, since)
    tokens = record_draft.token_ids
    kept = (labels != -100) & (places >= 0)
    index = torch.searchsorted(tokens, labels[kept]).clamp(max=len(tokens) - 1)
    index = torch.where(tokens[index] == labels[kept], index, len(tokens))
    rows = head[tokens.to(head.device)].to(draft)
    # The head's rows times the small matrix first: far fewer products than hidden states of all places.
    logits = draft[kept.nonzero()[:, 0], places[kept]] @ (rows @ record_draft.to_hidden.weight).T
    logits = nn.functional.pad(logits + rows @ record_draft.to_hidden.bias, (0, 1))
    return sum_by_record(nn.functional.cross_entropy(logits, index, reduction="none"), kept)


class AutoencoderObjective(nn.Module):
    """A [`DiffLMModel`] with what its training adds: the losses of a step, computed in one forward pass.

    Parameters
    ----------
    autoencoder : DiffLMModel
        With feature columns and a ``column_loss_weight``, a [`ColumnDecoder`] is put beside it.
    free_bits : float, default 0.0
        See [`kl`].
    """

    def __init__(self, autoencoder: DiffLMModel, free_bits: float = 0.0) -> None:
        super().__init__()
        self.autoencoder, self.free_bits = autoencoder, free_bits
        self.column_decoder: ColumnDecoder | None = None
        if autoencoder.column_features is not None and trains_columns(autoencoder):
            waves = autoencoder.column_features.num_waves
            self.column_decoder = ColumnDecoder(cast(DiffLMConfig, autoencoder.config), waves).to(autoencoder.device)

    def column_loss(
        self, latents: Tensor, feature_values: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Nats of each record's features given its latent, and with ``labels`` of its draft too, ``[batch]``."""
        loss = latents.new_zeros(len(latents))
        features = self.autoencoder.column_features
        if self.column_decoder is not None and features is not None and feature_values is not None:
            waves = features.waves(feature_values.to(latents))
            loss = loss + self.column_decoder(latents, waves)
        if self.autoencoder.record_draft is not None and labels is not None:
            loss = loss + draft_loss(self.autoencoder, latents, labels)
        return loss

    def forward(
        self,
        *,
        labels: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        feature_values: Tensor | None = None,
        column_latents: Tensor | None = None,
        beta: float = 0.0,
        eps: Tensor | None = None,
        candidates: CandidateTokens | None = None,
    ) -> DiffLMOutput:
        """Take one ELBO step: ``loss`` has the columns' term beside those of [`DiffLMModel.forward`].

        Parameters
        ----------
        labels, input_ids, attention_mask, feature_values, column_latents, beta
            See [`DiffLMModel.forward`].
        eps : Tensor, optional
            Unit Gaussian noise of the reparameterisation, ``[batch, latent_size]``; drawn unless given. In eval mode
            the posterior's mean is used instead of a sample.
        candidates : CandidateTokens, optional
            See [`reconstruction`].
        """
        model = self.autoencoder
        posterior = model.encode(input_ids, attention_mask, feature_values, column_latents)
        latents = posterior.sample(eps=eps) if self.training else posterior.mean
        record_losses = reconstruction(model, latents, labels, candidates)
        reconstruction_loss, divergence = record_losses.mean(), kl(posterior, self.free_bits).mean()
        loss = reconstruction_loss + beta * divergence
        if trains_columns(model):
            loss = loss + model.config.column_loss_weight * self.column_loss(latents, feature_values, labels).mean()
        return DiffLMOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss.detach(),
            kl=divergence.detach(),
            record_losses=record_losses.detach(),
        )
