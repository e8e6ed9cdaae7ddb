"""A new DiffLM of a pretrained encoder and a pretrained causal LM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, DynamicCache, PreTrainedModel

from difflm.modeling_difflm import (
    DiffLMConfig,
    DiffLMModel,
    decoder_arguments,
    decoder_fingerprint,
    embedding_weight,
    load_decoder,
    readable,
    resolve_source,
)


def from_encoder_decoder(
    encoder: str | PreTrainedModel | None, decoder: str | PreTrainedModel, **config_kwargs: Any
) -> DiffLMModel:
    """Build a model from a pretrained encoder and a pretrained causal LM.

    Parameters
    ----------
    encoder, decoder : str or PreTrainedModel
        Names (see [`resolve_source`]) or loaded models. A loaded decoder is used as is; the checkpoint
        remembers its ``name_or_path``. No encoder where the latent has no dimension for the text.
    **config_kwargs
        Fields of [`DiffLMConfig`], e.g. ``latent_size``, ``injection``, ``decoder_dtype``.
    """
    config_kwargs = dict(config_kwargs)
    encoder_model: PreTrainedModel | None = None
    if isinstance(encoder, str):
        config_kwargs["encoder_name_or_path"] = _absolute(encoder)
        source = resolve_source(encoder)[0]
        with readable(encoder):
            encoder_model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    elif encoder is not None:
        encoder_model = encoder
        config_kwargs.setdefault("encoder_name_or_path", encoder.name_or_path)
    if encoder_model is not None:
        config_kwargs["encoder_config"] = encoder_model.config.to_dict()
    if isinstance(decoder, str):
        decoder_model = load_decoder(decoder_name_or_path=decoder, **decoder_arguments(config_kwargs))
        config_kwargs["decoder_name_or_path"] = _absolute(decoder)
    else:
        decoder_model = decoder
        config_kwargs.setdefault("decoder_name_or_path", decoder.name_or_path)
        config_kwargs.setdefault("decoder_dtype", str(decoder.dtype).removeprefix("torch."))
    text_config = decoder_model.config.get_text_config(decoder=True)
    embeddings = embedding_weight(decoder_model)
    config = DiffLMConfig(
        decoder_hidden_size=embeddings.shape[1],
        decoder_fingerprint=decoder_fingerprint(decoder_model),
        embedding_std=float(embeddings[:4096].detach().float().std()),
        **_probe_cache(decoder_model, config_kwargs.get("injection", DiffLMConfig.injection)),
        **{
            "bos_token_id": _first_id(text_config.bos_token_id),
            "eos_token_id": _first_id(text_config.eos_token_id),
        }
        | config_kwargs,
    )
    model = DiffLMModel(config, encoder=encoder_model)
    model.attach_decoder(decoder_model)
    return model


def _absolute(name: str) -> str:
    """A folder's or file's path from the root: a checkpoint is loaded from other working directories."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _first_id(token_id: int | list[int] | None) -> int | None:
    return token_id[0] if isinstance(token_id, list) else token_id


def _probe_cache(decoder: PreTrainedModel, injection: str) -> dict[str, Any]:
    """Read the sizes of the decoder's keys and values off one forward pass: no attribute name is trusted."""
    try:
        cache = DynamicCache(config=decoder.config)
        with torch.no_grad():
            decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=decoder.device), past_key_values=cache)
        layers: list[Any] = cache.layers
        shapes = {(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers}
        if len(shapes) != 1:
            raise ValueError(f"layers differ: {sorted(shapes)}")
        heads, key_dim, value_dim = next(iter(shapes))
        if key_dim != value_dim:
            raise ValueError(f"keys have {key_dim} dimensions and values {value_dim}")
    except (AttributeError, TypeError, ValueError) as error:
        if injection != "kv_memory":
            return {}
        raise ValueError(
            f"{type(decoder).__name__} keeps no plain key/value cache in every layer ({error}): "
            'use injection="soft_prompt".'
        ) from error
    return {
        "decoder_num_layers": len(cache.layers),
        "decoder_num_key_value_heads": heads,
        "decoder_head_dim": key_dim,
    }
