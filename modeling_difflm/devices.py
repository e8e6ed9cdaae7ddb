"""Where models run: the one place that decides a device and a dtype, for the command, fits and measurements."""

from __future__ import annotations

import os

import torch

from difflm.errors import ArgumentError
from difflm.modeling_difflm import compute_device, multiplies_bf16


DTYPES = ("float32", "bfloat16", "float16")


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device to run on.

    Parameters
    ----------
    device : str or torch.device, optional
        None or "auto": CUDA, else MPS, else the CPU. Of several processes on a machine (``torchrun``), each takes the
        CUDA device of its local rank, unless an index is given ("cuda:1").

    Raises
    ------
    ArgumentError
        If there is no such device here.
    """
    chosen = compute_device() if device in (None, "auto") else _parsed(str(device))
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(f"device {str(chosen)!r}: torch finds no CUDA device here; use 'cpu' or 'auto'")
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if chosen.index is None and local_rank:
            chosen = torch.device("cuda", local_rank)
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise ArgumentError(f"device {str(chosen)!r}: there are {torch.cuda.device_count()} CUDA devices here")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError("device 'mps': torch finds none here; use 'cpu' or 'auto'")
    return chosen


def decoder_options(device: torch.device, dtype: str | None = None) -> dict[str, str]:
    """Keywords of loading or building a model: the dtype of its decoder, where it is not the decoder's own choice.

    Parameters
    ----------
    device : torch.device
        Where the decoder will run.
    dtype : str, optional
        One of ``DTYPES``. None or "auto": the one it was fitted with, or else what suits the hardware.

    Raises
    ------
    ArgumentError
        If it is none of these.
    """
    if dtype not in (None, "auto", *DTYPES):
        raise ArgumentError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    if dtype not in (None, "auto"):
        return {"decoder_dtype": dtype}
    if device.type == compute_device().type:
        return {}
    # The decoder's own choice looks at the best device here; this is another one.
    return {"decoder_dtype": "bfloat16" if multiplies_bf16(device) else "float32"}


def _parsed(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"device {name!r} is none that torch knows: use auto, cpu, cuda, cuda:0, mps") from None
