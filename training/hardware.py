"""The name of what a fit runs on."""

from __future__ import annotations

import platform

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
