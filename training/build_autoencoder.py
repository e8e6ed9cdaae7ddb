"""The autoencoder before its training: as the settings say, with what the records' columns ask for."""

from __future__ import annotations

from typing import Any

import torch

from difflm.build_difflm import from_encoder_decoder
from difflm.devices import choose_device
from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment
from difflm.training.draft_stage import FittedColumns
from difflm.training.preparation import Prepared
from difflm.training.record_draft import draft_options


def build_autoencoder(
    prepared: Prepared,
    model_kwargs: dict[str, Any] | None = None,
    device: str | None = None,
    columns: FittedColumns | None = None,
) -> DiffLMModel:
    """Build the model of a fit. Its new weights are drawn from torch's global generator.

    Parameters
    ----------
    prepared : Prepared
    model_kwargs : dict, optional
        Fields of [`DiffLMConfig`], which go before those that the settings and the records give.
    device : str, optional
        See [`choose_device`].
    columns : FittedColumns, optional
        Whose latents are the first dimensions of the model's; where they are all, it gets no encoder.
    """
    settings, schema, policy = prepared.settings, prepared.schema, prepared.settings.policy
    options = settings.model | (model_kwargs or {})
    warms_up = settings.column_features and len(prepared.train) >= policy.min_rows_to_warm_up
    if columns is not None:
        warms_up = True
        text_size = options.get("latent_size", policy.text_latent_size) if prepared.reads_text else 0
        noise = columns.noise.tolist()
        options = options | {"latent_size": len(noise) + text_size, "column_latent_noise": noise}
    elif settings.column_features:
        weight = {} if warms_up else {"column_loss_weight": 0.0}
        options = {"num_feature_columns": len(schema.feature_columns)} | weight | options
    if settings.column_embeddings and len(schema.columns) > 1:
        tokenizer, most = prepared.tokenizers.decoder, policy.max_embedded_columns
        options = _column_options(schema, tokenizer, most) | options
        told = columns is not None or options.get("num_feature_columns")
        if warms_up and told and (separators := options["separator_token_ids"]):
            options = draft_options(prepared.train, schema, tokenizer, separators, policy) | options
    encoder = settings.encoder if prepared.reads_text else None
    model = from_encoder_decoder(encoder, settings.decoder, **options)
    network: torch.nn.Module = model
    network.to(choose_device(device))
    return model


def _column_options(schema: RecordSchema, tokenizer: Any, most: int) -> dict[str, Any]:
    between = schema.fixed_segments()[1:-1]
    return {
        "num_embedded_columns": min(len(schema.columns), most),
        "separator_token_ids": sorted({tokenize_segment(tokenizer, text)[0] for text in between}),
    }
