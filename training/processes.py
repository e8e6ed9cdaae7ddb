"""Several processes of one fit (``torchrun``, ``accelerate launch``): one owns the files, the others wait for it."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast, reduce

from difflm.devices import choose_device


def are_several() -> bool:
    """Whether a launcher started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def are_several_on_cpus() -> bool:
    """Whether they have to talk by gloo: accelerate joins processes without a GPU only when it is told so."""
    return are_several() and choose_device(None).type != "cuda"


def _state() -> PartialState | None:
    return PartialState(cpu=are_several_on_cpus()) if are_several() else None


def is_main_process() -> bool:
    """Whether this process owns the fit's files; so does the only one."""
    state = _state()
    return state is None or state.is_main_process


def process_index() -> int:
    """Number of this process, from 0."""
    state = _state()
    return 0 if state is None else state.process_index


def num_processes() -> int:
    """Processes that fit together."""
    state = _state()
    return 1 if state is None else state.num_processes


def wait_for_everyone() -> None:
    """Go on when every process has come so far."""
    if (state := _state()) is not None:
        state.wait_for_everyone()


def from_main(*values: float) -> tuple[float, ...]:
    """The main process's values, in all processes: what a clock decides is decided once."""
    if (state := _state()) is None:
        return values
    # MPS has no float64, and gloo no device but the CPU.
    shared = torch.tensor(values, dtype=torch.float64, device=_device(state))
    return tuple(broadcast(shared).tolist())


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors, in all processes alike."""
    if (state := _state()) is None:
        return tensor
    return reduce(tensor.to(_device(state)), reduction="sum").to(tensor.device)


def _device(state: PartialState) -> torch.device:
    return state.device if dist.get_backend() == "nccl" else torch.device("cpu")
