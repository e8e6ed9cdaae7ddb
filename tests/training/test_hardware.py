"""What a fit runs on."""

import platform

import pytest
import torch

from difflm.training import hardware as hardware_module
from difflm.training.hardware import hardware


def test_a_cpu_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_module, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware(torch.device("cpu")) == f"{platform.machine()} CPU, 1 thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert hardware(torch.device("cpu")) == f"{platform.machine()} CPU, 12 threads"


def test_a_cpu_that_has_no_bf16_products_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_module, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware(torch.device("cpu")) == f"{platform.machine()} CPU without bf16, 1 thread"


def test_a_gpu_is_named_as_its_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert hardware(torch.device("cuda")) == "NVIDIA H200"
