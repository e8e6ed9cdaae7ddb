"""What a fit runs on: its name, and what it is good at."""

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


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products; elsewhere they are emulated and slow."""
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of torch
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
