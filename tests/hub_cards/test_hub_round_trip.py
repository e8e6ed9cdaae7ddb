"""Push and load over HTTP, in fresh processes: with difflm, without difflm, after a re-save, offline."""

import json

import pytest


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


def test_hub_repo_loads_where_difflm_is_not_installed(hub, run_python, published, expected, python_without_difflm):
    # Of a name with a dot diffusers makes a package that Python cannot import: the code copes.
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("{repo}", subfolder="autoencoder", trust_remote_code=True)
assert model.decoder is not None and type(model).__name__ == "DiffLMModel"
"""
    push = 'pipe.push_to_hub("user/again-v0.1", token="hf_user")'
    code = WITHOUT_DIFFLM + SAMPLE + code
    assert records(run_python(code.format(repo="user/toys") + push, hub, python=python_without_difflm)) == expected
    # What was loaded from the Hub and pushed again loads again: it carries its code.
    again = hub.repos["model", "user/again-v0.1"].files
    assert {name for name in published.files if name.endswith(".py")} == {n for n in again if n.endswith(".py")}
    for name, content in published.files.items():
        if name.endswith((".py", ".safetensors")):
            assert again[name] == content, name
    code = code.format(repo="user/again-v0.1")
    assert records(run_python(code, hub, python=python_without_difflm, home="another")) == expected


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
