"""Compiled grammars, kept for the next call with the same schema and conditions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .record_grammar import RecordConstraint


class GrammarCache:
    """The grammars used last, by key; several threads may share one.

    A copy, and one that was pickled, starts empty: compiled grammars can be neither copied nor sent.

    Parameters
    ----------
    size : int, default 16
        Most grammars kept: one of many categories is large, and compiling one takes little time.
    """

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self._grammars: OrderedDict[Any, RecordConstraint] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, compile_grammar: Callable[[], RecordConstraint]) -> RecordConstraint:
        """The grammar of this key, compiled if it is not kept."""
        with self._lock:
            if key not in self._grammars:
                self._grammars[key] = compile_grammar()
            self._grammars.move_to_end(key)
            if len(self._grammars) > self.size:
                self._grammars.popitem(last=False)
            return self._grammars[key]

    def __len__(self) -> int:
        return len(self._grammars)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.size,)
