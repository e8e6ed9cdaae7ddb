"""Several processes of one fit (``torchrun``, ``accelerate launch``): one owns the files, the others wait for it."""

from __future__ import annotations

import os

from accelerate import PartialState


def _state() -> PartialState | None:
    return PartialState() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def is_main_process() -> bool:
    """Whether this process owns the fit's files; so does the only one."""
    state = _state()
    return state is None or state.is_main_process


def wait_for_everyone() -> None:
    """Go on when every process has come so far."""
    if (state := _state()) is not None:
        state.wait_for_everyone()
