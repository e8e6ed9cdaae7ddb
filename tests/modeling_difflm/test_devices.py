"""One place decides where models run. No GPU is needed: what torch says of this machine is replaced."""

from __future__ import annotations

import pytest
import torch

from difflm import cli, devices
from difflm.devices import choose_device, decoder_options


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_the_best_device_is_taken_without_asking(two_gpus):
    assert choose_device() == choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_mps_comes_second_and_the_cpu_last(no_gpu, monkeypatch):
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")


def test_under_torchrun_each_process_takes_its_own_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="there are 2 CUDA devices"):
        choose_device()


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "toaster"])
def test_a_device_that_is_not_here_is_refused(no_gpu, name):
    with pytest.raises(ValueError, match=f"device '{name}'"):
        choose_device(name)


def test_a_dtype_suits_the_chosen_device_not_the_best_one(two_gpus, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: device.type == "cuda")
    assert decoder_options(torch.device("cuda", 1)) == {}  # the decoder's own choice
    assert decoder_options(torch.device("cpu")) == {"decoder_dtype": "float32"}
    assert decoder_options(torch.device("cpu"), "bfloat16") == {"decoder_dtype": "bfloat16"}
    with pytest.raises(ValueError, match="not one of auto, float32"):
        decoder_options(torch.device("cpu"), "int8")


class Spy:
    """Stands in for a pipeline: remembers how it was loaded and where it was moved; its samples are another matter."""

    loaded: dict
    moved: torch.device

    @classmethod
    def from_pretrained(cls, source, **options):
        cls.loaded = options
        return cls()

    def to(self, device):
        type(self).moved = device
        raise ValueError("far enough")


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setattr("difflm.pipelines.pipeline_difflm.DiffLMPipeline", Spy)
    return Spy


@pytest.mark.parametrize(
    ("words", "device", "options"),
    [
        ([], "cuda", {}),
        (["--device", "cuda:1"], "cuda:1", {}),
        (["--dtype", "float32"], "cuda", {"decoder_dtype": "float32"}),
    ],
)
def test_sample_runs_on_the_gpu(spy, two_gpus, tmp_path, words, device, options):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="far enough"):
        cli.main(["--traceback", "sample", str(tmp_path), "-o", str(tmp_path / "r.csv"), *words])
    assert spy.moved == torch.device(device)
    assert spy.loaded == options


def test_evaluate_encodes_on_the_gpu(spy, two_gpus):
    from difflm.cli.command import build_parser
    from difflm.cli.options import load_pipeline

    words = ["evaluate", "--real", "a.csv", "--synthetic", "b.csv", "-o", "out"]
    words += ["--pipeline", "x", "--device", "cuda:0"]
    with pytest.raises(ValueError, match="far enough"):
        load_pipeline(build_parser().parse_args(words))
    assert spy.moved == torch.device("cuda:0")
