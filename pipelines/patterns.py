"""Regular expressions that others wrote (a checkpoint, a user's JSON Schema): none may hang the process.

Python's ``re`` backtracks without a limit, and cannot be interrupted while it does. ``regex``, which transformers
needs anyway, stops at a time limit.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import regex

from .errors import SchemaError


MAX_PATTERN_CHARACTERS = 2_000
# Each value, so that a table of them ends, too; a pattern that does not backtrack takes microseconds.
MAX_SECONDS = 0.5


class PatternError(SchemaError):
    """A regular expression cannot be read, is too long, or takes too long on a text."""


@functools.lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """The compiled pattern.

    Raises
    ------
    PatternError
        If it is no regular expression or longer than 2,000 characters.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise PatternError(
            f"the pattern {_shown(pattern)} is not a text of at most {MAX_PATTERN_CHARACTERS:,} characters: shorten it"
        )
    try:
        return regex.compile(pattern)
    except (regex.error, re.error, ValueError, OverflowError, RecursionError) as error:
        raise PatternError(f"the pattern {_shown(pattern)} cannot be read: {error}") from None


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern occurs somewhere in ``text``, as JSON Schema means it (``^`` and ``$`` anchor it).

    Raises
    ------
    PatternError
        As [`compiled`], or if the search takes longer than half a second.
    """
    try:
        return compiled(pattern).search(text, timeout=MAX_SECONDS) is not None
    except TimeoutError:
        raise PatternError(
            f"the pattern {_shown(pattern)} takes more than {MAX_SECONDS} s on a text of {len(text):,} characters: "
            "it backtracks too much; write it without nested repeats"
        ) from None


def _shown(pattern: Any) -> str:
    text = json.dumps(pattern, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
