"""A checkpoint of somebody else's: it can neither choose the code that runs nor reach out of its folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from difflm import DiffLMModel, DiffLMPipeline
from difflm.modeling_difflm import resolve_source
from difflm.pipelines.checkpoint_safety import (
    DamagedPipelineError,
    UnsafePipelineError,
    file_inside,
    library_class,
    read_index,
    verify,
)


FORMAT_1 = Path(__file__).parent.parent / "data" / "format_1"
TRACE = "trace_of_foreign_code"
# Whatever imports it leaves a trace.
FOREIGN = f"from pathlib import Path\nPath(__file__).with_name({TRACE!r}).touch()\n\n\nclass X:\n    pass\n"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may edit."""
    return shutil.copytree(FORMAT_1 / "json", tmp_path / "out")


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


INDEXES = {
    "a module beside it": {"autoencoder": ["pwn", "X"]},
    "a module of the standard library": {"denoiser": ["os", "system"]},
    "another of our modules": {"autoencoder": ["difflm.cli", "main"]},
    "another class of our module": {"autoencoder": ["modeling_difflm", "DiffLMConfig"]},
    "a scheduler from elsewhere": {"scheduler": ["pwn", "KarrasVeScheduler"]},
    "no scheduler": {"scheduler": ["diffusers", "DiffusionPipeline"]},
    "a scheduler that it cannot sample with": {"scheduler": ["diffusers", "DDPMScheduler"]},
    "a tokenizer from elsewhere": {"encoder_tokenizer": ["pwn", "X"]},
    "a submodule": {"decoder_tokenizer": ["transformers", "models.bert.BertTokenizer"]},
    "one part more": {"helper": ["pwn", "X"]},
    "a setting more": {"helper": 3},
    "a part of our name that is none": {"record_schema": ["pwn", "X"]},
    "a part without a class": {"scheduler": ["diffusers"]},
    "a part that is text": {"autoencoder": "pwn.X"},
}


@pytest.mark.parametrize("changes", INDEXES.values(), ids=INDEXES)
def test_index_that_names_anything_else_is_refused_before_anything_is_imported(folder, changes, monkeypatch):
    edit(folder / "model_index.json", **changes)
    (folder / "pwn.py").write_text(FOREIGN, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UnsafePipelineError, match=r"model_index\.json"):
        DiffLMPipeline.from_pretrained(".")
    assert not (folder / TRACE).exists() and "pwn" not in sys.modules


@pytest.mark.parametrize("name", ["AutoTokenizer", "BertModel", "pipelines", "NoSuchThing"])
def test_what_is_no_tokenizer_is_refused(name):
    with pytest.raises(UnsafePipelineError, match="PreTrainedTokenizerBase"):
        library_class("encoder_tokenizer", name)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", ".", "a//b", None, 3])
def test_names_that_lead_out_of_the_folder(folder, name):
    with pytest.raises(UnsafePipelineError, match="does not lie in it"):
        file_inside(folder, name)


def test_digests_are_of_files_inside(folder):
    edit(folder / "model_index.json", _sha256={"../secret": "0" * 64})
    (folder.parent / "secret").write_text("secret")
    with pytest.raises(UnsafePipelineError, match="does not lie in it"):
        verify(folder)


SETTINGS = {
    "a kernel of the Hub for the encoder": (
        "autoencoder/config.json",
        {"encoder_config": {"model_type": "bert", "attn_implementation": "evil/kernel"}},
        "code from the Hub",
    ),
    "a kernel of the Hub for the decoder": (
        "autoencoder/config.json",
        {"decoder_attn_implementation": "evil/kernel"},
        "code from the Hub",
    ),
    "a kernel of the Hub": ("autoencoder/config.json", {"_attn_implementation": "evil/kernel"}, "code from the Hub"),
    "a GGUF file elsewhere": ("autoencoder/config.json", {"decoder_gguf_file": "../../x.gguf"}, "does not lie"),
    "weights of another name": ("autoencoder/config.json", {"transformers_weights": "../x.safetensors"}, "never"),
    "a shard elsewhere": (
        "autoencoder/model.safetensors.index.json",
        {"weight_map": {"x": "../../x.safetensors"}},
        "beside their table",
    ),
    "an adapter": ("autoencoder/adapter_config.json", {"base_model_name_or_path": "evil/model"}, "Remove it"),
    "a vocabulary elsewhere": ("encoder_tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "does not"),
    "a tokenizer file elsewhere": (
        "encoder_tokenizer/tokenizer_config.json",
        {"fast_tokenizer_files": ["tokenizer./../../x.json"]},
        "never",
    ),
}


@pytest.mark.parametrize(("name", "changes", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_lead_to_code_or_out_of_the_folder(folder, name, changes, message):
    edit(folder / name, **changes)
    with pytest.raises(UnsafePipelineError, match=message):
        read_index(folder)


@pytest.mark.parametrize("name", ["denoiser", "denoiser/config.json", "model_index.json"])
def test_links_out_of_the_folder_are_refused(folder, name):
    elsewhere = folder.parent / "elsewhere"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UnsafePipelineError, match="links to"):
        verify(folder)


def test_links_inside_the_folder_and_of_the_hubs_cache_are_taken(folder):
    snapshot = folder.parent / "models--user--x" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    verify(snapshot)
    shutil.move(folder / "denoiser" / "config.json", folder / "denoiser" / "moved.json")
    (folder / "denoiser" / "config.json").symlink_to("moved.json")
    verify(folder)


def test_code_that_configurations_name_does_not_run(folder, monkeypatch):
    for name in ("autoencoder", "denoiser", "scheduler", "encoder_tokenizer", "decoder_tokenizer"):
        (folder / name / "pwn.py").write_text(FOREIGN, encoding="utf-8")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "pwn.X")
    edit(folder / "autoencoder" / "config.json", auto_map=auto_map)
    for name in ("encoder_tokenizer", "decoder_tokenizer"):
        edit(folder / name / "tokenizer_config.json", auto_map={"AutoTokenizer": ["pwn.X", "pwn.X"]})
    config = json.loads((folder / "autoencoder" / "config.json").read_text(encoding="utf-8"))["encoder_config"]
    edit(folder / "autoencoder" / "config.json", encoder_config=config | {"auto_map": auto_map})
    shutil.copytree(FORMAT_1 / "decoder", folder / "decoder")
    (folder / "decoder" / "pwn.py").write_text(FOREIGN, encoding="utf-8")
    edit(folder / "decoder" / "config.json", auto_map=auto_map)
    monkeypatch.chdir(folder)
    pipe = DiffLMPipeline.from_pretrained(".")
    assert pipe.schema.names and not list(folder.rglob(TRACE))


def test_decoder_of_unknown_code_is_refused_without_a_question(folder, monkeypatch):
    shutil.copytree(FORMAT_1 / "decoder", folder / "decoder")
    (folder / "decoder" / "pwn.py").write_text(FOREIGN, encoding="utf-8")
    edit(folder / "decoder" / "config.json", model_type="pwn", auto_map={"AutoConfig": "pwn.X"})
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(ValueError, match="decoder"):
        DiffLMPipeline.from_pretrained(".")
    assert not list(folder.rglob(TRACE))


def test_decoder_outside_of_where_the_checkpoint_says(folder):
    edit(folder / "autoencoder" / "config.json", decoder_name_or_path="../../decoder")
    with pytest.raises(ValueError, match="lies outside"):
        DiffLMModel.from_pretrained(folder / "autoencoder")


def test_pickled_weights_are_not_read(folder):
    weights = folder / "autoencoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    edit(folder / "model_index.json", _sha256={})
    with pytest.raises(OSError, match="model.safetensors"):
        DiffLMPipeline.from_pretrained(folder, decoder_name_or_path=str(FORMAT_1 / "decoder"))


@pytest.mark.parametrize("name", ["pwn.inner/x", "pwn/../x", "__main__/x", ".pwn/x", "/x"])
def test_package_source_imports_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "pwn").mkdir()
    (tmp_path / "pwn" / "__init__.py").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "pwn" / "inner.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((ValueError, ModuleNotFoundError)):
        resolve_source(f"package://{name}")
    assert not (tmp_path / "pwn" / TRACE).exists() and "pwn" not in sys.modules
    with pytest.raises(FileNotFoundError):  # the trace would show: it is found
        resolve_source("package://pwn/weights")
    assert not (tmp_path / "pwn" / TRACE).exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "\x80", "[]", ""])
def test_broken_index_is_a_users_error(folder, content):
    (folder / "model_index.json").write_text(content, encoding="latin-1")
    with pytest.raises(DamagedPipelineError, match=r"model_index\.json"):
        verify(folder)


# -------------------------------------------------------------------- the command, in the folder


COMMANDS = {
    "sample": ["sample", ".", "-o", "x.csv", "-n", "1"],
    "info": ["info", "."],
    "card": ["card", "."],
    "push": ["push", ".", "user/x"],
    "evaluate": ["evaluate", "real.csv", "real.csv", "-o", "eval"],
    "space": ["space", "."],
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A checkpoint whose every name that could be imported lies beside it."""
    folder = shutil.copytree(FORMAT_1 / "json", tmp_path_factory.mktemp("hostile") / "out")
    edit(folder / "model_index.json", autoencoder=["pwn", "X"])
    for name in ("pwn", "torch", "numpy", "pandas", "transformers", "regex", "argparse", "json", "modeling_difflm"):
        (folder / f"{name}.py").write_text(FOREIGN, encoding="utf-8")
    (folder / "real.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    return SimpleNamespace(folder=folder, trace=folder / TRACE)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_command_in_a_hostile_folder_runs_none_of_its_code(hostile, command):
    if command[0] == "space":
        pytest.importorskip("gradio")
    done = subprocess.run(
        [sys.executable, "-m", "difflm", *command],
        cwd=hostile.folder,
        # A line of one's own is all that is counted: libraries warn of what the machine has.
        env=os.environ
        | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not hostile.trace.exists()
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    if command[0] in ("sample", "push", "space"):
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
        assert "['pwn', 'X'] as autoencoder" in done.stderr
