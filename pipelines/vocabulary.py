"""A tokenizer's view of a record: segments as tokens, tokens as bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from .errors import DecodingError


_ANCHORS = ("\n", ":", "a", "0", "_", '"')
_SEGMENT_CACHE_SIZE = 65536
_segment_caches: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, tuple[int, ...]]] = WeakKeyDictionary()
_vocabularies: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], Vocabulary]] = WeakKeyDictionary()


def tokenize_segment(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise one segment of a record as it stands in the middle of a text; training and sampling both use this.

    Text that looks like a special token is spelt out in ordinary tokens. A tokenizer that puts a space before every
    text is handled by tokenising behind an anchor whose tokens are removed; each result is checked by decoding it.

    Raises
    ------
    DecodingError
        If no tokenisation of `text` decodes to `text`.
    """
    cache = _segment_caches.setdefault(tokenizer, {})
    found = cache.get(text)
    if found is None:
        found = tuple(_tokenize_checked(tokenizer, text))
        if len(cache) >= _SEGMENT_CACHE_SIZE:
            cache.clear()
        cache[text] = found
    return list(found)


def _tokenize_checked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    def encode(string: str) -> list[int]:
        # Not verbose: the length is checked where it matters, against what the decoder takes.
        return tokenizer.encode(string, add_special_tokens=False, split_special_tokens=True, verbose=False)

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    if not text:
        return []
    plain = encode(text)
    for anchor in _ANCHORS:
        before = encode(anchor)
        behind = encode(anchor + text)
        candidates = [plain] + ([behind[len(before) :]] if behind[: len(before)] == before else [])
        for candidate in candidates:
            # Decoded behind the anchor, because a decoder may drop the first space of a text.
            if candidate and before and decode(before + candidate) == decode(before) + text:
                return candidate
    raise DecodingError(f"the tokenizer cannot spell {text!r}: no tokenisation of it decodes to the same text.")


# What numbers, dates and times are written in, the quotes around them included.
_SIGNS = b'-+.:TZ"0123456789'


class _WrappedTokenizer:
    """A tokenizer as the grammar library's wrapper wants it, for those that the library does not read rightly."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_id: int, native: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos_token_id, tokenizer.bos_token_id
        self.special_token_ids = sorted({*tokenizer.all_special_ids, eos_token_id})
        if native is not None:
            self.tokens = [native.decode_bytes([token]) for token in range(len(tokenizer))]
            return
        anchor = tokenize_segment(tokenizer, "0")  # a token is what it adds to a decoded text
        start = len(tokenizer.decode(anchor))
        texts = [str(tokenizer.decode([*anchor, token]))[start:] for token in range(len(tokenizer))]
        self.tokens = [text.encode() if "\ufffd" not in text else b"" for text in texts]

    def __call__(self, text: str) -> list[int]:
        return tokenize_segment(self._tokenizer, text)


class Vocabulary:
    """A tokenizer's tokens as bytes, and the grammar library's view of them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The decoder's tokenizer.
    vocab_size : int
        Number of logits of the decoder; it may exceed the tokenizer's vocabulary.
    eos_token_id : int
        The token that ends a record.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_id: int) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise DecodingError("constrained decoding needs llguidance: pip install llguidance") from error
        self.library = llguidance
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id
        self.size = max(vocab_size, len(tokenizer))
        self.tokens: Any = None
        # A ValueError: not of the `tokenizers` library, or with a decoder that the grammar library cannot read.
        with contextlib.suppress(ValueError):
            self.tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=self.size, eos_token=eos_token_id)
        # The library's own tokenisation of forced text fails (a panic) where the tokenizer adds a space before it.
        if self.tokens is None or self.tokens.decode_bytes(self.tokens.tokenize_str('"')) != b'"':
            wrapper = llguidance.TokenizerWrapper(_WrappedTokenizer(tokenizer, eos_token_id, self.tokens))
            self.tokens = llguidance.LLTokenizer(wrapper, n_vocab=self.size, eos_token=eos_token_id)
        special = set(tokenizer.all_special_ids) | {eos_token_id}
        self._signs: list[tuple[int, str]] = []
        for token in range(min(vocab_size, len(tokenizer))):
            text = self.tokens.decode_bytes([token])
            if text and token not in special and not text.strip(_SIGNS):
                self._signs.append((token, text.decode("ascii")))
        self.number_tokens = self.spelt_in("-.0123456789")

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_id: int) -> Vocabulary:
        """The vocabulary of `tokenizer`, built once: that reads every token."""
        known = _vocabularies.setdefault(tokenizer, {})
        key = (vocab_size, eos_token_id)
        if key not in known:
            known[key] = cls(tokenizer, vocab_size, eos_token_id)
        return known[key]

    def spelt_in(self, alphabet: str) -> list[tuple[int, str]]:
        """The tokens, ascending, whose texts need no other characters; those of numbers, dates and times."""
        return [(token, text) for token, text in self._signs if not text.strip(alphabet)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` as it stands in the middle of a text; broken UTF-8 becomes U+FFFD."""
        return self.tokens.decode_bytes(list(tokens)).decode("utf-8", errors="replace")
