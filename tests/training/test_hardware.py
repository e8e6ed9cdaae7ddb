"""What a fit runs on."""

import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from difflm.training import hardware as hardware_module
from difflm.training.hardware import hardware, peak_memory_mib


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


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel does not say it in another way")
def test_peak_memory_is_in_mebibytes() -> None:
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert kibibytes is not None
    assert peak_memory_mib() == pytest.approx(int(kibibytes[1]) / 1024, rel=0.02)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mib() is None
