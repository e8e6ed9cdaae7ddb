"""Session-scoped tiny models and tables; no test reaches a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from difflm.build_difflm import from_encoder_decoder
from difflm.modeling_difflm import DiffLMModel


BOS, EOS = "<s>", "</s>"


def byte_tokenizer(specials: list[str], **kwargs: object) -> PreTrainedTokenizerFast:
    """One token per byte; special tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if "[CLS]" in specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


@pytest.fixture(scope="session")
def decoder_tokenizer() -> PreTrainedTokenizerFast:
    # As SmolLM2's: the pad token is the EOS token.
    return byte_tokenizer([BOS, EOS], bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=512)


@pytest.fixture(scope="session")
def encoder_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(
        ["[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=512
    )


def tiny_decoder(seed: int = 0, **kwargs: object) -> LlamaForCausalLM:
    """A grouped-query Llama of two layers, fp32."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | kwargs)).eval()


def tiny_encoder(seed: int = 0) -> BertModel:
    """A BERT of two layers, without dropout, so that training is a function of the seed."""
    torch.manual_seed(seed)
    return BertModel(
        BertConfig(
            vocab_size=259,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, decoder_tokenizer, encoder_tokenizer) -> dict[str, str]:
    """Folders of a tiny encoder and a tiny decoder with their tokenizers, as ``from_pretrained`` wants them."""
    root = tmp_path_factory.mktemp("models")
    for name, model, tokenizer in (
        ("encoder", tiny_encoder(), encoder_tokenizer),
        ("decoder", tiny_decoder(), decoder_tokenizer),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {"encoder": str(root / "encoder"), "decoder": str(root / "decoder")}


def build_tiny_model(model_folders: dict[str, str], **kwargs: object) -> DiffLMModel:
    """A tiny model, KV memory, fp32; ``kwargs`` are fields of its config."""
    torch.manual_seed(0)
    settings = {
        "decoder_dtype": "float32",
        "latent_size": 8,
        "num_injection_tokens": 3,
        "injection_hidden_size": 32,
        "injection_token_size": 16,
    }
    return from_encoder_decoder(model_folders["encoder"], model_folders["decoder"], **settings | kwargs)


@pytest.fixture
def tiny_model(model_folders: dict[str, str]) -> DiffLMModel:
    """A fresh one per test."""
    return build_tiny_model(model_folders)


@pytest.fixture(scope="session")
def small_table() -> pd.DataFrame:
    """60 rows with a category, an integer, a nullable decimal and a boolean; size depends on kind."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog"], size=60)
    weight = np.where(kind == "dog", 20.0, 4.0) + rng.normal(0, 1, 60).round(1)
    weight[::10] = np.nan
    return pd.DataFrame(
        {
            "kind": kind,
            "age": rng.integers(1, 15, 60),
            "weight": weight.round(1),
            "tame": rng.random(60) < 0.7,
        }
    )


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, str], small_table: pd.DataFrame):
    """A pipeline fitted for a few steps on ``small_table``, without a draft, with its folder: (pipeline, folder)."""
    from difflm.training.fitting import fit

    folder = tmp_path_factory.mktemp("fitted") / "out"
    pipeline = fit(small_table, folder, preset=tiny_preset(model_folders, column_draft=False), show_progress=False)
    return pipeline, folder


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, str], small_table: pd.DataFrame):
    """The same with a draft, which writes."""
    from difflm.training.fitting import fit

    folder = tmp_path_factory.mktemp("drafted") / "out"
    pipeline = fit(small_table, folder, preset=tiny_preset(model_folders), show_progress=False)
    return pipeline, folder


def tiny_preset(model_folders: dict[str, str], **kwargs: object):
    """Settings of a fit that takes a few seconds; ``kwargs`` are fields to change."""
    from difflm.training.policy import Policy
    from difflm.training.presets import Preset

    settings: dict[str, object] = {
        "encoder": model_folders["encoder"],
        "decoder": model_folders["decoder"],
        "epochs": 2.0,
        "max_minutes": None,
        "batch_size": 8,
        "denoiser_steps": 20,
        "model": {
            "decoder_dtype": "float32",
            "latent_size": 8,
            "num_injection_tokens": 3,
            "injection_hidden_size": 32,
            "injection_token_size": 16,
        },
        "denoiser": {"hidden_size": 32, "num_blocks": 2},
        "policy": Policy(
            column_min_steps=20,
            column_max_epochs=20,
            column_evaluation_records=100,
            warm_up_max_epochs=10,
            min_floor_steps=5,
            floor_steps=10,
        ),
    }
    return Preset(**settings | kwargs)


@pytest.fixture(scope="session")
def mixed_table(small_table: pd.DataFrame) -> pd.DataFrame:
    """``small_table`` with dates, some of them missing."""
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(60) * 3 % 50, unit="D")
    return small_table.assign(seen=days.where(np.arange(60) % 6 > 0))


@pytest.fixture(scope="session")
def build_drafted(
    model_folders: dict[str, str], encoder_tokenizer: Any, decoder_tokenizer: Any
) -> Callable[..., Any]:
    """Builds a pipeline of random weights whose draft writes a table's columns, the language model its texts."""
    from diffusers import KarrasVeScheduler

    from difflm import DiffLMDenoiser, DiffLMPipeline, RecordSchema
    from difflm.pipelines.cell_codes import CellCodes
    from difflm.pipelines.conditions import ConditionEncoder
    from difflm.training.draft_layout import new_draft

    def build(table: pd.DataFrame, writer: str = "draft", text_size: int = 0, **options: Any) -> Any:
        schema = RecordSchema.infer(table, record_format="values", **options)
        records = schema.to_records(table)
        codes = CellCodes(schema)
        torch.manual_seed(0)
        draft = new_draft(codes.columns, codes.encode(records), hidden_size=16, num_blocks=1)
        for head in draft.heads:  # an untrained head says nothing of the latent
            torch.nn.init.normal_(head.weight, std=0.2)
        model = from_encoder_decoder(
            model_folders["encoder"] if text_size else None,
            model_folders["decoder"],
            decoder_dtype="float32",
            latent_size=draft.latent_size + text_size,
            column_latent_noise=draft.latent_noise.tolist(),
            num_injection_tokens=3,
            injection_hidden_size=32,
            injection_token_size=16,
        )
        conditions = ConditionEncoder.fit(records, schema.columns)
        denoiser = DiffLMDenoiser(
            latent_size=draft.latent_size + text_size,
            hidden_size=32,
            num_blocks=2,
            class_sizes=conditions.class_sizes,
            class_names=conditions.names,
        )
        pipeline = DiffLMPipeline(
            autoencoder=model.eval(),
            denoiser=denoiser.eval(),
            scheduler=KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=10.0, s_noise=1.0),
            encoder_tokenizer=encoder_tokenizer if text_size else None,
            decoder_tokenizer=decoder_tokenizer,
            record_schema=schema.to_dict(),
            condition_classes=conditions.classes,
            max_new_tokens=128,
            draft=draft.eval(),
            writer=writer,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def drafting(build_drafted: Callable[..., Any], mixed_table: pd.DataFrame) -> Any:
    """A pipeline whose draft writes all columns."""
    return build_drafted(mixed_table)


@pytest.fixture(scope="session")
def drafting_folder(drafting: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``drafting``; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("drafted") / "out"
    drafting.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_models():
    """MiniLM and SmolLM2-135M-Instruct (bf16) with their tokenizers, from the weight packages."""
    from transformers import AutoModel, AutoTokenizer

    from difflm.modeling_difflm import load_decoder, resolve_source
    from difflm.training.presets import MINILM, SMOLLM2

    encoder_source, _ = resolve_source(MINILM)
    decoder_source, gguf_file = resolve_source(SMOLLM2)
    return (
        AutoModel.from_pretrained(encoder_source),
        load_decoder(SMOLLM2),
        AutoTokenizer.from_pretrained(encoder_source),
        AutoTokenizer.from_pretrained(decoder_source, gguf_file=gguf_file),
    )
