"""The name of what a fit runs on."""

from __future__ import annotations

import platform

import torch


def hardware(device: torch.device) -> str:
    """Name what a fit ran on: the GPU, or the architecture and threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{platform.machine()} CPU, {threads} thread{'' if threads == 1 else 's'}"
    return device.type
