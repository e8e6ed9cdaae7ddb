"""What a fit runs on."""

import platform

import pytest
import torch

from difflm.training.hardware import hardware, multiplies_bf16


def test_a_cpu_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware(torch.device("cpu")) == f"{platform.machine()} CPU, 1 thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert hardware(torch.device("cpu")) == f"{platform.machine()} CPU, 12 threads"


def test_a_gpu_is_named_as_its_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert hardware(torch.device("cuda")) == "NVIDIA H200"


@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_multiplies_bf16_if_it_has_the_instructions(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: supported, raising=False)
    assert multiplies_bf16(torch.device("cpu")) is supported
    assert not multiplies_bf16(torch.device("mps"))
