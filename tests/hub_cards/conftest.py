"""A pipeline with random weights: what is published does not depend on what was learned."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import KarrasVeScheduler
from huggingface_hub import constants, hf_api

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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A stand-in of the Hub that this process's huggingface_hub talks to, with an empty cache of its own."""
    with stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield server


@contextmanager
def stand_in() -> Iterator[Any]:
    specification = importlib.util.spec_from_file_location("hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules["hub_stand_in"] = module
    specification.loader.exec_module(module)
    server = module.StandInHub()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh process with a home of its own that asks a stand-in of the Hub."""

    def run(code: str, hub: Any, *, python_path: str | None = None, home: str = "home", **environment: str):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        flags = [] if python_path is None else ["-S"]
        if python_path is not None:
            settings["PYTHONPATH"] = python_path
        return subprocess.run(
            [sys.executable, *flags, "-c", code],
            env=kept | settings | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def without_difflm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of links to everything installed but difflm: with ``python -S`` this is a machine without it."""
    folder = tmp_path_factory.mktemp("site-packages")
    for site in map(Path, sysconfig.get_paths().values()):
        if site.name not in ("site-packages", "dist-packages"):
            continue
        for item in site.iterdir():
            if "difflm" not in item.name and item.suffix != ".pth" and not (folder / item.name).exists():
                (folder / item.name).symlink_to(item)
    return str(folder)
