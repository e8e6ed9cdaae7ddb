"""Ctrl-C between steps instead of within one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it cannot fall between two halves of a step."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only.
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        # None: a handler that was not installed from Python, which Python cannot put back.
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
