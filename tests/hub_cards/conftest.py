"""A pipeline with random weights: what is published does not depend on what was learned."""

from __future__ import annotations

import importlib.util
import os
import site
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import KarrasVeScheduler
from huggingface_hub import constants, hf_api

from difflm import DiffLMDenoiser, DiffLMPipeline, RecordSchema
from difflm.build_difflm import from_encoder_decoder
from difflm.pipelines.conditions import ConditionEncoder


@pytest.fixture(scope="session")
def random_pipeline(
    model_folders: dict[str, str], encoder_tokenizer: Any, decoder_tokenizer: Any, small_table: pd.DataFrame
) -> DiffLMPipeline:
    torch.manual_seed(0)
    model = from_encoder_decoder(
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

    def run(code: str, hub: Any, *, python: str = sys.executable, home: str = "home", **environment: str):
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS_", "PYTHONPATH"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [python, "-c", code],
            env=kept | settings | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def python_without_difflm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of a virtual environment that holds everything installed here but difflm."""
    folder = tmp_path_factory.mktemp("without") / "venv"
    venv.create(folder, symlinks=True)
    (target,) = folder.glob("lib/python*/site-packages")
    for site_packages in map(Path, site.getsitepackages()):
        for item in site_packages.iterdir() if site_packages.is_dir() else ():
            # An editable install is a .pth file and its finder.
            if "difflm" not in item.name and item.suffix != ".pth" and not (target / item.name).exists():
                (target / item.name).symlink_to(item)
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-c", "import difflm"], cwd=folder, capture_output=True, text=True, check=False)
    if "No module named 'difflm'" not in done.stderr:
        raise RuntimeError(f"difflm can be imported from {folder}: {done.stderr}")
    return python
