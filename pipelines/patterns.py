"""Regular expressions that others wrote (a checkpoint, a user's JSON Schema): none may hang the process.

They are matched in linear time by the engine of the grammar that writes the values: what it writes is what is found
valid.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from .errors import SchemaError


MAX_PATTERN_CHARACTERS = 2_000
#: Letters that may follow a backslash in the strings of nested values; the second only for control characters.
STRING_ESCAPES, CONTROL_ESCAPES = '"\\bfnrt', "u"


class PatternError(SchemaError):
    """A regular expression cannot be read, is too long, or needs more memory than the engine may take."""


class _Bytes:
    """A tokenizer of bytes, as the grammar library's wrapper wants it."""

    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def json_text(value: Any) -> str:
    """A nested value as a record holds it: JSON, with the control characters escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@lru_cache(maxsize=1)
def _engine() -> tuple[Any, Any]:
    try:
        import llguidance
    except ImportError as error:
        raise PatternError("patterns in a JSON Schema need llguidance: pip install llguidance") from error
    wrapper = llguidance.TokenizerWrapper(_Bytes())
    return llguidance.LLMatcher, llguidance.LLTokenizer(wrapper, n_vocab=257, eos_token=256, slices=[])


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """The matcher of the JSON strings in which the pattern occurs.

    Raises
    ------
    PatternError
        If it is no regular expression of the engine (it knows no look-around and no back-references) or longer than
        2,000 characters.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise PatternError(
            f"the pattern {_shown(pattern)} is not a text of at most {MAX_PATTERN_CHARACTERS:,} characters: shorten it"
        )
    matcher, vocabulary = _engine()
    grammar = matcher.grammar_from_json_schema(
        json.dumps({"type": "string", "pattern": pattern}),
        overrides={"json_allowed_escapes": STRING_ESCAPES + CONTROL_ESCAPES},
    )
    found = matcher(vocabulary, grammar, log_level=0)
    if found.is_error():
        reason = found.get_error().strip().splitlines()[-1].removeprefix("error: ")
        raise PatternError(f"the pattern {_shown(pattern)} cannot be read: {reason}")
    return found


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern occurs somewhere in ``text``, as JSON Schema means it (``^`` and ``$`` anchor it).

    Raises
    ------
    PatternError
        As [`compiled`], or if the engine's limits do not allow the search.
    """
    found = compiled(pattern).deep_copy()
    spelt = list(json_text(text).encode())
    taken = found.try_consume_tokens(spelt)
    if found.is_error():
        raise PatternError(
            f"the pattern {_shown(pattern)} needs too much memory on a text of {len(text):,} characters: write it "
            "without nested repeats"
        )
    return bool(taken == len(spelt) and found.is_accepting())


def _shown(pattern: Any) -> str:
    text = json.dumps(pattern, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
