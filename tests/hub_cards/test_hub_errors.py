"""What is wrong with a repository, a folder, a name or the Hub is said clearly, and nothing is half-written."""

import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from difflm import DiffLMPipeline
from difflm.errors import DamagedPipelineError
from difflm.modeling_difflm import DecoderMismatchError, DiffLMModel
from difflm.pipelines.hub_saving import push_folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved pipeline that a test may damage."""
    return shutil.copytree(saved, tmp_path / "out")


@pytest.fixture
def published(hub, saved):
    files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    return hub.add("user/toys", files)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -------------------------------------------------------------------- loading


def test_hub_repo_without_an_index(hub):
    hub.add("user/words", {"README.md": b"# words\n"})
    with pytest.raises(FileNotFoundError, match="'user/words' holds no model_index.json"):
        DiffLMPipeline.from_pretrained("user/words")


@pytest.mark.parametrize("name", ["a/b/c", "user/na me", "-x", "user/" + "x" * 100])
def test_hub_name_that_is_no_repo_id(name, hub):
    with pytest.raises(ValueError, match="neither a folder with a saved pipeline nor a repository id"):
        DiffLMPipeline.from_pretrained(name)
    assert hub.requests == []


def test_hub_repo_that_does_not_exist(hub):
    with pytest.raises(RepositoryNotFoundError, match="Repository Not Found"):
        DiffLMPipeline.from_pretrained("user/nothing")


def test_hub_private_repo_needs_the_token_of_its_owner(hub, published, expected):
    published.private = True
    for token in (None, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            DiffLMPipeline.from_pretrained("user/toys", token=token)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        DiffLMPipeline.from_pretrained("user/toys", token="hf_wrong")
    pipe = DiffLMPipeline.from_pretrained("user/toys", token="hf_user")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(4, seed=7).records == expected


def test_hub_revision_cache_dir_and_local_files_only(hub, published, tmp_path):
    first = published.refs["main"]
    published.commit("main", published.files | {"model_index.json": b"{}"}, "break it")
    cache = tmp_path / "elsewhere"
    with pytest.raises(FileNotFoundError, match="not in the local cache"):
        DiffLMPipeline.from_pretrained("user/toys", revision=first, cache_dir=cache, local_files_only=True)
    DiffLMPipeline.from_pretrained("user/toys", revision=first, cache_dir=cache)
    assert list(cache.glob("models--user--toys/snapshots/*/model_index.json"))
    assert not list(cache.glob("models--user--toys/snapshots/*/*.py")), "no code is even downloaded"
    hub.requests.clear()
    DiffLMPipeline.from_pretrained("user/toys", revision=first, cache_dir=cache, local_files_only=True)
    assert hub.requests == []
    with pytest.raises(RevisionNotFoundError):
        DiffLMPipeline.from_pretrained("user/toys", revision="no-such-branch", cache_dir=cache)


def test_hub_offline_mode_uses_the_cache(hub, published, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not in the local cache"):
        DiffLMPipeline.from_pretrained("user/toys")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    DiffLMPipeline.from_pretrained("user/toys")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    DiffLMPipeline.from_pretrained("user/toys")
    assert hub.requests == []


@pytest.mark.parametrize("status", [403, 429, 500])
def test_hub_that_refuses_or_fails(status, hub, published, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("GET /api/models/user/toys", status)
    with pytest.raises(OSError, match=str(status)):
        DiffLMPipeline.from_pretrained("user/toys")


@pytest.mark.parametrize("status", [429])
def test_hub_busy_for_a_moment_is_asked_again(status, hub, published, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("GET /lfs/", status, times=1)
    DiffLMPipeline.from_pretrained("user/toys")


def test_hub_cut_download_is_resumed_by_range(hub, published, monkeypatch):
    """The client asks for the rest of what it has; the digests tell that the whole is whole."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    name = "autoencoder/model.safetensors"
    content = published.files[name]
    digest = hashlib.sha256(content).hexdigest()
    hub.fail(f"GET /lfs/{digest}", -1, times=1)
    DiffLMPipeline.from_pretrained("user/toys")
    (asked,) = hub.ranges[f"/lfs/{digest}"]
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= len(content) // 2


@pytest.mark.parametrize("name", ["autoencoder/model.safetensors", "denoiser/diffusion_pytorch_model.safetensors"])
def test_hub_weights_cut_off_or_altered(name, folder):
    path = folder / name
    whole = path.read_bytes()
    for content in (whole[:-16], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(DamagedPipelineError, match=f"{name} is not the file that was saved.*SHA-256"):
            DiffLMPipeline.from_pretrained(folder)
    path.unlink()
    with pytest.raises(DamagedPipelineError, match=f"{name} is missing"):
        DiffLMPipeline.from_pretrained(folder)


def test_hub_newer_formats(folder):
    edit_json(folder / "model_index.json", _difflm_layout=4)
    with pytest.raises(DamagedPipelineError, match="layout version 4.*pip install -U difflm"):
        DiffLMPipeline.from_pretrained(folder)
    edit_json(folder / "model_index.json", _difflm_layout=1)
    edit_json(folder / "autoencoder" / "config.json", format_version=99)
    with pytest.raises(ValueError, match="format version 99.*pip install -U difflm"):
        DiffLMPipeline.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_hub_index_that_is_no_json(content, folder):
    (folder / "model_index.json").write_text(content)
    with pytest.raises(DamagedPipelineError, match="model_index.json"):
        DiffLMPipeline.from_pretrained(folder)


def test_hub_another_decoder_is_refused(folder, random_pipeline, tmp_path):
    other = type(random_pipeline.autoencoder.decoder)(random_pipeline.autoencoder.decoder.config)
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DecoderMismatchError, match="not the one this checkpoint was trained with"):
        DiffLMPipeline.from_pretrained(folder, decoder_name_or_path=str(tmp_path / "other"))


def test_hub_gated_decoder_needs_a_token(hub, folder, model_folders):
    files = {path.name: path.read_bytes() for path in Path(model_folders["decoder"]).iterdir()}
    hub.add("meta/gated", files, gated=True)
    config = {"decoder_name_or_path": "meta/gated"}
    with pytest.raises(OSError, match="meta/gated: .*accept its terms"):
        DiffLMPipeline.from_pretrained(folder, **config)
    # The pipeline's token is the decoder's too.
    model = DiffLMModel.from_pretrained(folder / "autoencoder", token="hf_user", **config)
    assert model.decoder is not None
    assert DiffLMPipeline.from_pretrained(folder, token="hf_user", **config).autoencoder.decoder is not None


# -------------------------------------------------------------------- pushing


def test_hub_push_replaces_in_one_commit_and_keeps_training_latents_here(hub, folder):
    (folder / "latents.safetensors").write_bytes(b"encodings of training records")
    (folder / "difflm_fit.json").write_text('{"data": "/home/me/secret.csv"}')
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "old.safetensors").write_bytes(b"x")
    push_folder(folder, "user/toys", token="hf_user", private=True)
    repo = hub.repos["model", "user/toys"]
    assert repo.private
    assert not {"latents.safetensors", "difflm_fit.json", "checkpoints/old.safetensors"} & set(repo.files)
    assert {"README.md", "pipeline_difflm.py", "record_schema.py", "denoiser/modeling_denoiser.py"} <= set(repo.files)
    # A file of the earlier push that is there no more goes with the next one; what others added stays.
    repo.commit("main", repo.files | {"old_code.py": b"", "denoiser/old.safetensors": b"", "notes.txt": b""}, "edit")
    push_folder(folder, "user/toys", token="hf_user", commit_message="Again")
    assert not {"old_code.py", "denoiser/old.safetensors"} & set(repo.files)
    assert "notes.txt" in repo.files
    assert repo.messages[-1] == "Again" and len(repo.messages) == 4


def test_hub_push_and_load_speak_the_protocol(hub, folder):
    push_folder(folder, "user/toys", token="hf_user")
    DiffLMPipeline.from_pretrained("user/toys")
    reads = ("GET .*/tree/", "HEAD .*/resolve/.*/model_index.json", "GET .*/resolve/.*/model_index.json")
    writes = ("POST .*/create", "POST .*/preupload/", "POST .*objects/batch", "PUT /lfs/", "POST .*/commit/main")
    for part in reads + writes:
        assert any(re.fullmatch(f"{part}.*", request) for request in hub.requests), (part, hub.requests)
    # What is in the cache under its ETag is not downloaded again, and what is there already is not uploaded again.
    hub.requests.clear()
    DiffLMPipeline.from_pretrained("user/toys")
    push_folder(folder, "user/toys", token="hf_user")
    assert not [request for request in hub.requests if request.startswith(("GET /user/", "GET /lfs/", "PUT "))]


@pytest.mark.parametrize("place", ["PUT /lfs/", "POST .*/commit/", "POST .*/preupload/", "POST .*objects/batch"])
@pytest.mark.parametrize("status", [403, 0])
def test_hub_push_that_breaks_leaves_the_repo_as_it_was(place, status, hub, published, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Other weights than those published, so that there is something to upload.
    weights = folder / "denoiser" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    index = json.loads((folder / "model_index.json").read_text())
    index["_sha256"]["denoiser/" + weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "model_index.json").write_text(json.dumps(index))
    before = dict(published.files)
    hub.fail(place, status)
    with pytest.raises(Exception, match=r"(?i)forbidden|403|disconnect|closed|reset|error while uploading"):
        push_folder(folder, "user/toys", token="hf_user")
    assert published.files == before
    assert len(published.commits) == 1


@pytest.mark.parametrize(("token", "match"), [(False, "401"), ("hf_other", "403"), ("hf_wrong", "401")])
def test_hub_push_without_the_right(token, match, hub, folder):
    with pytest.raises(HfHubHTTPError, match=match):
        push_folder(folder, "user/toys", token=token)
    assert hub.repos == {}


def test_hub_push_refuses_what_could_not_be_loaded(hub, folder):
    with pytest.raises(ValueError, match="'user/a b' is no repository id"):
        push_folder(folder, "user/a b")
    (folder / "denoiser" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(DamagedPipelineError, match="SHA-256"):
        push_folder(folder, "user/toys", token="hf_user")
    assert hub.requests == []


def test_hub_push_to_a_branch(hub, published, folder):
    before = dict(published.files)
    push_folder(folder, "user/toys", token="hf_user", revision="next")
    assert published.files == before
    assert "README.md" in published.commits[published.refs["next"]]


# -------------------------------------------------------------------- saving


def test_hub_save_that_fails_leaves_the_old_pipeline(folder, random_pipeline, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(random_pipeline.denoiser), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        random_pipeline.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_hub_saved_files_follow_the_umask(random_pipeline, tmp_path):
    before = os.umask(0o027)
    try:
        random_pipeline.save_pretrained(tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o640}, modes


def test_hub_save_refuses_other_formats(random_pipeline, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        random_pipeline.save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(TypeError, match="nonsense"):
        random_pipeline.save_pretrained(tmp_path / "x", nonsense=1)
    assert not (tmp_path / "x").exists()


def test_hub_save_tells_nothing_of_this_machine(saved, model_folders):
    config = json.loads((saved / "autoencoder" / "config.json").read_text())
    # Only where the decoder is must be known at load, and here it is a folder.
    told = [name for name, value in config.items() if model_folders["encoder"] in json.dumps(value)]
    assert told == ["encoder_name_or_path"]
    assert "_name_or_path" not in json.loads((saved / "model_index.json").read_text())


def test_hub_save_can_push(hub, random_pipeline, tmp_path):
    random_pipeline.save_pretrained(tmp_path / "toys", push_to_hub=True, token="hf_user", repo_id="user/toys")
    index = json.loads(hub.repos["model", "user/toys"].files["model_index.json"])
    assert index["_class_name"] == ["pipeline_difflm", "DiffLMPipeline"]
    assert index["scheduler"] == ["diffusers", "KarrasVeScheduler"]
