"""What a fit runs on: its name, and the memory taken."""

from __future__ import annotations

import platform
import sys

import torch

from difflm.modeling_difflm import multiplies_bf16


def hardware(device: torch.device) -> str:
    """Name what a fit ran on: the GPU, or a CPU with its threads; without bf16 products its language model is slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        cpu = f"{platform.machine()} CPU{'' if multiplies_bf16(device) else ' without bf16'}"
        return f"{cpu}, {threads} thread{'' if threads == 1 else 's'}"
    return device.type


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process in MiB, or None where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
