"""A pipeline with random weights: what is published does not depend on what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import KarrasVeScheduler

from difflm import DiffLMDenoiser, DiffLMModel, DiffLMPipeline, RecordSchema
from difflm.pipelines.conditions import ConditionEncoder


@pytest.fixture(scope="session")
def random_pipeline(
    model_folders: dict[str, str], encoder_tokenizer: Any, decoder_tokenizer: Any, small_table: pd.DataFrame
) -> DiffLMPipeline:
    torch.manual_seed(0)
    model = DiffLMModel.from_encoder_decoder(
        model_folders["encoder"],
        model_folders["decoder"],
        decoder_dtype="float32",
        latent_size=8,
        num_injection_tokens=3,
        injection_hidden_size=32,
        injection_token_size=16,
    )
    schema = RecordSchema.infer(small_table, record_format="values")
    conditions = ConditionEncoder.fit(schema.to_records(small_table), schema.columns)
    denoiser = DiffLMDenoiser(
        latent_size=8,
        hidden_size=32,
        num_blocks=2,
        class_sizes=conditions.class_sizes,
        class_names=conditions.names,
    )
    pipeline = DiffLMPipeline(
        autoencoder=model.eval(),
        denoiser=denoiser.eval(),
        scheduler=KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=10.0, s_noise=1.0),
        encoder_tokenizer=encoder_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
        record_schema=schema.to_dict(),
        condition_classes=conditions.classes,
        max_new_tokens=128,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def saved(random_pipeline: DiffLMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    random_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def expected(random_pipeline: DiffLMPipeline) -> list[dict[str, Any]]:
    """What seed 7 gives, wherever the pipeline runs."""
    return random_pipeline(4, seed=7).records
