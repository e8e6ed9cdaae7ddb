"""Push and load over HTTP, in fresh processes: with difflm, without difflm, after a re-save, offline."""

import json
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM


WITH_DIFFLM = 'from difflm import DiffLMPipeline\npipe = DiffLMPipeline.from_pretrained("{repo}")'
WITHOUT_DIFFLM = """
import importlib.util
assert importlib.util.find_spec("difflm") is None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("{repo}", trust_remote_code=True)
"""
SAMPLE = """
import json, sys
pipe.set_progress_bar_config(disable=True)
print("RECORDS", json.dumps(pipe(4, seed=7).records))
"""


def records(done):
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORDS ")]
    assert done.returncode == 0 and lines, done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RECORDS "))


@pytest.fixture
def published(hub, saved):
    """The saved folder as the repository ``user/toys``."""
    files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    return hub.add("user/toys", files)


def test_hub_pushed_pipeline_loads_with_difflm_and_then_offline(hub, run_python, random_pipeline, expected):
    random_pipeline.push_to_hub("user/toys", token="hf_user")
    repo = hub.repos["model", "user/toys"]
    assert repo.messages == ["initial commit", "Upload DiffLM pipeline"]
    code = (WITH_DIFFLM + SAMPLE).format(repo="user/toys")
    assert records(run_python(code, hub)) == expected
    assert not [request for request in hub.requests if "/resolve/" in request and request.endswith(".py")]
    hub.requests.clear()
    assert records(run_python(code, hub, HF_HUB_OFFLINE="1")) == expected
    assert hub.requests == []


def test_hub_repo_loads_where_difflm_is_not_installed(
    hub, run_python, published, expected, python_without_difflm, tmp_path
):
    # Of a name with a dot diffusers makes a package that Python cannot import: the code copes.
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("{repo}", subfolder="autoencoder", trust_remote_code=True)
assert model.decoder is not None and type(model).__name__ == "DiffLMModel"
"""
    # An old revision of a private repository, whose main is broken, into another cache; then pushed elsewhere.
    secret = hub.add("user/secret", published.files, private=True)
    options = f'trust_remote_code=True, revision="{secret.refs["main"]}", cache_dir="elsewhere"'
    secret.commit("main", published.files | {"model_index.json": b"{}"}, "break it")
    more = f"""
pipe = DiffusionPipeline.from_pretrained("user/secret", {options})
pipe.push_to_hub("user/again-v0.1")
"""
    code = WITHOUT_DIFFLM + SAMPLE + code
    environment = {"python": python_without_difflm, "HF_TOKEN": "hf_user"}
    assert records(run_python(code.format(repo="user/toys") + more, hub, **environment)) == expected
    assert list(tmp_path.glob("elsewhere/models--user--secret/snapshots/*/model_index.json"))
    # What was loaded from the Hub and pushed again loads again: it carries its code.
    again = hub.repos["model", "user/again-v0.1"].files
    assert {name for name in published.files if name.endswith(".py")} == {n for n in again if n.endswith(".py")}
    for name, content in published.files.items():
        if name.endswith((".py", ".safetensors")):
            assert again[name] == content, name
    code = code.format(repo="user/again-v0.1")
    assert records(run_python(code, hub, python=python_without_difflm, home="another")) == expected
    # Offline, diffusers asks the Hub for the commit of a repository's code all the same, but takes the cache's folder.
    hub.requests.clear()
    folder = """
from pathlib import Path
from huggingface_hub import hf_hub_download
folder = Path(hf_hub_download("user/again-v0.1", "model_index.json")).parent
"""
    code = folder + code.replace(
        'DiffusionPipeline.from_pretrained("user/again-v0.1"', "DiffusionPipeline.from_pretrained(folder"
    )
    offline = {"home": "another", "HF_HUB_OFFLINE": "1"}
    assert records(run_python(code, hub, python=python_without_difflm, **offline)) == expected
    assert hub.requests == []


def test_hub_the_dtype_of_a_load_is_the_decoders_alone(hub, run_python, published, saved):
    code = """
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
pipe = DiffusionPipeline.from_pretrained("user/toys", trust_remote_code=True, torch_dtype=torch.bfloat16)
print("DECODER", pipe.autoencoder.decoder.dtype)
for name in ("autoencoder", "denoiser"):
    weights = next(Path(FOLDER, name).glob("*.safetensors"))
    state = getattr(pipe, name).state_dict()
    print("ROUNDED", [key for key, value in load_file(weights).items() if not torch.equal(state[key], value)])
"""
    done = run_python(f"FOLDER = {str(saved)!r}" + code, hub)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DECODER torch.bfloat16" in done.stdout
    assert done.stdout.count("ROUNDED []") == 2


def test_hub_pipeline_with_a_draft_loads_with_and_without_difflm(hub, run_python, drafting, python_without_difflm):
    drafting.push_to_hub("user/drafted", token="hf_user")
    files = hub.repos["model", "user/drafted"].files
    assert {"draft/modeling_draft.py", "draft/config.json", "draft_writer.py", "cell_codes.py"} <= files.keys()
    code = """
print("WRITER", pipe.who_writes(), sorted(pipe.deferred()))
pipe.save_pretrained("again")
pipe.push_to_hub("user/{name}", token="hf_user")
"""
    expected = drafting(4, seed=7).records
    done = run_python((WITH_DIFFLM + SAMPLE + code).format(repo="user/drafted", name="again"), hub)
    assert records(done) == expected
    assert "WRITER draft ['autoencoder', 'decoder_tokenizer']" in done.stdout
    there = {"python": python_without_difflm, "home": "another"}
    done = run_python((WITHOUT_DIFFLM + SAMPLE + code).format(repo="user/again", name="more"), hub, **there)
    assert records(done) == expected
    assert "WRITER draft []" in done.stdout
    more = hub.repos["model", "user/more"].files
    assert files.keys() == more.keys()
    assert all(more[name] == content for name, content in files.items() if name.endswith((".py", ".safetensors")))


def test_hub_code_does_not_run_without_trust(hub, run_python, published, tmp_path):
    trace = tmp_path / "trace"
    poison = f"\nopen({str(trace)!r}, 'w').write('ran')\n".encode()
    files = {name: content + poison if name.endswith(".py") else content for name, content in published.files.items()}
    hub.add("user/poisoned", files)
    code = """
from diffusers import DiffusionPipeline
from transformers import AutoModel
from difflm import DiffLMPipeline
pipe = DiffLMPipeline.from_pretrained("user/poisoned")
try:
    DiffusionPipeline.from_pretrained("user/poisoned")
except ValueError as error:
    print("REFUSED", error)
AutoModel.from_pretrained("user/poisoned", subfolder="autoencoder")
"""
    done = run_python(code, hub)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "REFUSED" in done.stdout and "trust_remote_code" in done.stdout
    assert not trace.exists()
    # The trace would show: with trust the code does run.
    code = 'from diffusers import DiffusionPipeline as P\nP.from_pretrained("user/poisoned", trust_remote_code=True)'
    run_python(code, hub)
    assert trace.read_text() == "ran"


REFUSALS = """
from diffusers import DiffusionPipeline

for name in {names}:
    try:
        DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
        print("SAID", name, "loaded")
    except Exception as error:
        print("SAID", name, type(error).__name__, " ".join(str(error).split()))
"""


def test_hub_bad_repos_are_refused_where_difflm_is_not_installed(
    hub, run_python, published, model_folders, python_without_difflm, tmp_path
):
    def edited(name, **changes):
        return published.files | {name: json.dumps(json.loads(published.files[name]) | changes).encode()}

    decoder = Path(model_folders["decoder"])
    other = LlamaForCausalLM.from_pretrained(decoder)
    other.get_input_embeddings().weight.data.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    hub.add("meta/gated", {path.name: path.read_bytes() for path in decoder.iterdir()}, gated=True)
    weights, denoiser = "autoencoder/model.safetensors", "denoiser/diffusion_pytorch_model.safetensors"
    whole, cut = published.files[denoiser], published.files[weights][:-16]
    config = "autoencoder/config.json"
    bad = {
        "no-index": ({n: c for n, c in published.files.items() if n != "model_index.json"}, "model_index.json"),
        "cut": (published.files | {weights: cut}, "autoencoder: the weights cannot be read"),
        "altered": (published.files | {denoiser: whole[:-1] + bytes([whole[-1] ^ 1])}, "its SHA-256 differs"),
        "newer": (edited("model_index.json", _difflm_layout=4), "layout version 4"),
        "newer-model": (edited(config, format_version=99), "format version 99"),
        "decoder": (edited(config, decoder_name_or_path=str(tmp_path / "other")), "not the one this checkpoint was"),
        "gated-decoder": (edited(config, decoder_name_or_path="meta/gated"), "meta/gated"),
    }
    for name, (files, _) in bad.items():
        hub.add(f"bad/{name}", files)
    names = [*(f"bad/{name}" for name in bad), "bad/no/name"]
    done = run_python(REFUSALS.format(names=names), hub, python=python_without_difflm)
    said = dict(line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("SAID "))
    assert list(said) == names, done.stderr[-3000:]
    for name, (_, message) in bad.items():
        assert message in said[f"bad/{name}"], said[f"bad/{name}"]
    assert "neither a valid local path nor a valid repo id" in said["bad/no/name"]
