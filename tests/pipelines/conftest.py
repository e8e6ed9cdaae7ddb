"""Pipelines with a draft, of random weights: who writes does not depend on what was learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import KarrasVeScheduler

from difflm import DiffLMDenoiser, DiffLMPipeline, RecordSchema
from difflm.build_difflm import from_encoder_decoder
from difflm.pipelines.cell_codes import CellCodes
from difflm.pipelines.conditions import ConditionEncoder
from difflm.training.draft_layout import new_draft


@pytest.fixture(scope="session")
def mixed_table(small_table: pd.DataFrame) -> pd.DataFrame:
    """``small_table`` with dates, some of them missing."""
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(60) * 3 % 50, unit="D")
    return small_table.assign(seen=days.where(np.arange(60) % 6 > 0))


@pytest.fixture(scope="session")
def build_drafted(
    model_folders: dict[str, str], encoder_tokenizer: Any, decoder_tokenizer: Any
) -> Callable[..., DiffLMPipeline]:
    """Builds a pipeline whose draft writes a table's columns, the language model its texts."""

    def build(table: pd.DataFrame, writer: str = "draft", text_size: int = 0, **options: Any) -> DiffLMPipeline:
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
def drafted(build_drafted: Callable[..., DiffLMPipeline], mixed_table: pd.DataFrame) -> DiffLMPipeline:
    """A pipeline whose draft writes all columns."""
    return build_drafted(mixed_table)


@pytest.fixture(scope="session")
def drafted_folder(drafted: DiffLMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``drafted``; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("drafted") / "out"
    drafted.save_pretrained(folder)
    return folder
