"""``difflm info``: read from JSON files and safetensors headers, and damage is named."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from difflm import cli
from difflm.cli.info import describe, read_safetensors_header, render
from difflm.pipelines.record_schema import RecordSchema


TABLE = pd.DataFrame(
    {"mass": [3000, 3500, 4000] * 20, "length": [1.5, 2.25, None] * 20, "species": ["Adelie", "Gentoo", None] * 20}
)


@pytest.fixture
def pipeline(tmp_path):
    """The files of a pipeline, as far as ``info`` reads them."""
    folder = tmp_path / "out"
    files = {
        "model_index.json": {"_class_name": ["pipeline_difflm", "DiffLMPipeline"]},
        "record_schema.json": RecordSchema.infer(TABLE).to_dict(),
        "autoencoder/config.json": {"latent_size": 8, "injection": "kv_memory", "decoder_name_or_path": "some/llm"},
        "denoiser/config.json": {"hidden_size": 16, "num_blocks": 2},
        "scheduler/scheduler_config.json": {"_class_name": "KarrasVeScheduler"},
        "training_log.json": {"fit_seconds": 61.5, "rows_seen": 1200, "autoencoder_history": [{"step": 1}]},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    weights = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32), "c": np.zeros((), np.int64)}
    save_file(weights, folder / "autoencoder" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_describes_models_columns_and_training(pipeline):
    description = describe(pipeline)
    assert description["class_name"] == "DiffLMPipeline"
    assert description["autoencoder"]["latent_size"] == 8
    assert description["autoencoder"]["weights"]["parameters"] == 3 * 4 + 5 + 1
    assert description["autoencoder"]["weights"]["dtypes"] == ["F32", "I64"]
    assert description["scheduler"] == {"class_name": "KarrasVeScheduler"}
    assert [column["name"] for column in description["columns"]] == ["mass", "length", "species"]
    assert description["training"] == {"fit_seconds": 61.5, "rows_seen": 1200}


def test_text_names_what_matters(pipeline):
    text = render(describe(pipeline))
    for words in (
        "some/llm",
        "18 parameters",
        "species: category (2: Adelie, Gentoo; may be missing)",
        "rows_seen: 1200",
    ):
        assert words in text


def test_json_output(pipeline, capsys):
    assert cli.main(["info", str(pipeline), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(pipeline)


def test_loads_no_torch(pipeline):
    code = f"""
import sys
from difflm.cli import main
main(["info", {str(pipeline)!r}])
sys.exit(1 if {{"torch", "transformers"}} & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_schema_inside_the_index_is_found(pipeline):
    schema = (pipeline / "record_schema.json").read_text()
    (pipeline / "record_schema.json").unlink()
    (pipeline / "model_index.json").write_text(json.dumps({"schema": json.loads(schema)}))
    assert [column["name"] for column in describe(pipeline)["columns"]] == ["mass", "length", "species"]


def test_no_pipeline(tmp_path, capsys):
    assert cli.main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"difflm: error: {tmp_path}: no fitted pipeline here")


@pytest.mark.parametrize("content", ["{", "[1]", "\x00\x01"])
def test_broken_json_names_the_file(pipeline, content, capsys):
    (pipeline / "denoiser" / "config.json").write_text(content)
    assert cli.main(["info", str(pipeline)]) == 2
    assert str(pipeline / "denoiser" / "config.json") in capsys.readouterr().err


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_cut_off_weights_name_the_file(pipeline, keep):
    path = pipeline / "autoencoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors: cut off"):
        read_safetensors_header(path)


def test_a_header_that_is_no_json(pipeline):
    path = pipeline / "autoencoder" / "model.safetensors"
    path.write_bytes((10).to_bytes(8, "little") + b"x" * 10)
    with pytest.raises(ValueError, match="broken safetensors header"):
        read_safetensors_header(path)


def test_who_writes_and_why_is_said(drafting_folder, tmp_path, pipeline):
    assert describe(pipeline)["writer"] == "lm"
    assert "records are written by the language model\n" in render(describe(pipeline))
    folder = shutil.copytree(drafting_folder, tmp_path / "drafted")
    (folder / "training_log.json").write_text(json.dumps({"writer_reason": "the model adds 0.2 %"}))
    description = describe(folder)
    assert description["writer"] == "draft"
    assert description["draft"]["hidden_size"] == 16
    assert "records are written by the draft (the model adds 0.2 %)" in render(description)
