"""A pipeline whose draft writes: what belongs to the language model stays on disk until somebody asks for it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import pytest
import torch

from difflm import DiffLMPipeline
from difflm.errors import DamagedPipelineError
from difflm.modeling_difflm import DiffLMModel


STEPS = {"num_inference_steps": 4}
WEIGHTS = "autoencoder/model.safetensors"


@pytest.fixture
def loaded(drafting_folder):
    pipe = DiffLMPipeline.from_pretrained(drafting_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def copied(drafting_folder, tmp_path):
    """A folder of the test's own."""
    return shutil.copytree(drafting_folder, tmp_path / "copied")


def test_the_draft_samples_without_the_autoencoders_file(drafting, copied):
    (copied / WEIGHTS).unlink()
    shutil.rmtree(copied / "decoder_tokenizer")
    pipe = DiffLMPipeline.from_pretrained(copied)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(5, seed=0, **STEPS)
    assert output.texts == drafting(5, seed=0, **STEPS).texts
    assert torch.equal(pipe.encode(output.records), drafting.encode(output.records))
    assert pipe.impute([{"age": 3}], seed=0, **STEPS).records[0]["age"] == 3
    assert pipe.device.type == "cpu"
    with pytest.raises(DamagedPipelineError, match="model.safetensors is missing"):
        pipe(1, writer="lm")
    with pytest.raises(DamagedPipelineError, match="is gone, and was to be loaded on first use"):
        _ = pipe.decoder_tokenizer
    assert pipe(5, seed=0, **STEPS).texts == output.texts


def test_it_is_loaded_when_it_is_needed(drafting, loaded):
    assert set(loaded.deferred()) == {"autoencoder", "decoder_tokenizer"}
    assert loaded.component_class("autoencoder") is DiffLMModel
    assert loaded(3, seed=0, writer="lm", **STEPS).texts == drafting(3, seed=0, writer="lm", **STEPS).texts
    assert loaded.deferred() == {}
    assert not loaded.autoencoder.training
    loaded.autoencoder = None
    assert not loaded.has_component("autoencoder")


def test_components_are_all_of_them(drafting, loaded):
    assert loaded.components.keys() == drafting.components.keys()
    assert DiffLMPipeline(**loaded.components, record_schema=loaded.config["record_schema"]).draft is loaded.draft


def test_a_writer_of_texts_defers_nothing(build_drafted, small_table, drafting_folder, tmp_path):
    build_drafted(small_table, writer="lm").save_pretrained(tmp_path)
    assert DiffLMPipeline.from_pretrained(tmp_path).deferred() == {}
    passed = DiffLMPipeline.from_pretrained(drafting_folder, autoencoder=None)
    assert set(passed.deferred()) == {"decoder_tokenizer"}


def test_it_is_moved_with_the_pipeline(loaded):
    assert loaded.to("meta", torch.bfloat16).device.type == "meta"
    assert "autoencoder" in loaded.deferred()
    assert loaded.draft.device.type == "meta"
    loaded.denoiser.to_empty(device="cpu")
    assert loaded.autoencoder.decoder.dtype == torch.bfloat16
    assert next(loaded.autoencoder.injector.parameters()).dtype == torch.float32


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_load_their_own(drafting, loaded, copy_of):
    other = copy_of(loaded)
    assert set(other.deferred()) == set(loaded.deferred()) == {"autoencoder", "decoder_tokenizer"}
    assert other(2, seed=0, **STEPS).texts == drafting(2, seed=0, **STEPS).texts
    assert other.autoencoder is not loaded.autoencoder


def test_saving_copies_what_is_not_loaded(drafting_folder, loaded, tmp_path):
    loaded.save_pretrained(tmp_path / "again")
    assert set(loaded.deferred()) == {"autoencoder", "decoder_tokenizer"}
    before = {path.relative_to(drafting_folder): path for path in drafting_folder.rglob("*") if path.is_file()}
    after = {path.relative_to(tmp_path / "again"): path for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    for name, path in before.items():
        assert after[name].read_bytes() == path.read_bytes(), name


def test_saving_in_its_own_folder(drafting, copied):
    pipe = DiffLMPipeline.from_pretrained(copied)
    pipe.save_pretrained(copied)
    again = DiffLMPipeline.from_pretrained(copied)
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
        assert one(2, seed=0, writer="lm", **STEPS).texts == drafting(2, seed=0, writer="lm", **STEPS).texts


def test_files_that_changed_meanwhile_are_refused(copied, tmp_path):
    pipe = DiffLMPipeline.from_pretrained(copied)
    content = bytearray((copied / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copied / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedPipelineError, match="its SHA-256 differs"):
        _ = pipe.autoencoder
    with pytest.raises(DamagedPipelineError, match="its SHA-256 differs"):
        pipe.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "model_index.json").exists()
    # What is loaded at once is checked at once.
    (copied / "draft" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedPipelineError, match="its SHA-256 differs"):
        DiffLMPipeline.from_pretrained(copied)


def test_settings_that_divert_are_refused_when_it_is_loaded(copied):
    pipe = DiffLMPipeline.from_pretrained(copied)
    (copied / "decoder_tokenizer" / "adapter_config.json").write_text("{}")
    with pytest.raises(DamagedPipelineError, match="names other weights"):
        _ = pipe.decoder_tokenizer


def test_versions_without_drafts_refuse_it(drafting_folder, build_drafted, small_table, tmp_path):
    index = json.loads((drafting_folder / "model_index.json").read_text())
    assert (index["_difflm_layout"], index["writer"]) == (3, "draft")
    assert index["draft"] == ["modeling_draft", "ColumnDraft"]
    assert "encoder_tokenizer" not in index
    pipe = build_drafted(small_table)
    parts = pipe.components | {"draft": None}
    plain = DiffLMPipeline(**parts, record_schema=pipe.config["record_schema"])
    plain.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_difflm_layout"] == 2 and not {"draft", "writer"} & index.keys()
    assert not (tmp_path / "draft").exists()
    assert DiffLMPipeline.from_pretrained(tmp_path).draft is None
