"""Constrained decoding: which tokens may come next in a record.

A record is a chain of fixed texts (keys, punctuation) and values. Training and sampling tokenise it segment by
segment with :func:`tokenize_segment`, so that in a fixed text exactly one token sequence is right and is forced, and
in a value the tokens that its grammar allows compete under the model's own distribution, renormalised token by token.
Three kinds of grammar serve the values:

* literals (categories, booleans, null, conditions): a trie over the canonical tokens, those seen in training;
* numbers: a token automaton over the few tokens made of digits, minus and point, exact for any range;
* JSON strings, raw text and nested JSON: a byte-level grammar of the `llguidance` library.

Why llguidance: measured on one core of an AMD EPYC (Zen 4) with SmolLM2's vocabulary of 49,152 tokens, xgrammar 0.2.8
against llguidance 1.9.1, compile time / mean time of a token mask on its first use / later:

===========================  ==============================  =============================
grammar                      xgrammar                        llguidance
===========================  ==============================  =============================
decimal number               0.5 ms / 11 us / 1.2 us         0.9 ms / 22 us / 5.0 us
category, 9 values           0.6 ms / 2.5 us / 0.9 us        0.8 ms / 219 us / 6.7 us
category, 500 values         8.3 ms / 3.0 us / 0.8 us        3.0 ms / 42 us / 5.4 us
JSON string, <= 64 chars     438 ms / 60 us / -              1.1 ms / 55 us / 21 us
JSON string, <= 1000 chars   (own rule) 163 ms a mask        1.1 ms / 44 us / 6.6 us
raw text, <= 500 chars       1320 ms / 8.4 us / 2.0 us       1.0 ms / 33 us / 7.3 us
nested object                4.2 ms / 3.3 us / 2.8 us        0.6 ms / 24 us / 6.8 us
===========================  ==============================  =============================

xgrammar is a little faster where the automata above need no library at all; with bounded strings it is unusable.

This file is published beside the weights and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase


#: A grammar's mask with fewer tokens than this is handled as a list of token ids.
SPARSE_LIMIT = 1024

# One character of a JSON string as `json.dumps(..., ensure_ascii=False)` writes it.
_JSON_CHARACTER = r'([^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f])'
_NUMBER_PREFIX = re.compile(r"(-?)(0|[1-9][0-9]*|)(?:(\.)([0-9]*))?")
_ANCHORS = ("\n", ":", "a", "0", "_", '"')
_SEGMENT_CACHE_SIZE = 65536
_segment_caches: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, tuple[int, ...]]] = WeakKeyDictionary()
_vocabularies: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], Vocabulary]] = WeakKeyDictionary()


class DecodingError(ValueError):
    """A record cannot be decoded: the message names the column or argument and the remedy."""


# -------------------------------------------------------------------------------------------------------- tokenisation


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
        return tokenizer.encode(string, add_special_tokens=False, split_special_tokens=True)

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
        self.number_tokens: list[tuple[int, str]] = []
        for token in range(min(vocab_size, len(tokenizer))):
            text = self.tokens.decode_bytes([token])
            if text and token not in special and not text.strip(b"-.0123456789"):
                self.number_tokens.append((token, text.decode("ascii")))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_id: int) -> Vocabulary:
        """The vocabulary of `tokenizer`, built once (a quarter of a second for 49,152 tokens)."""
        known = _vocabularies.setdefault(tokenizer, {})
        key = (vocab_size, eos_token_id)
        if key not in known:
            known[key] = cls(tokenizer, vocab_size, eos_token_id)
        return known[key]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` as it stands in the middle of a text; broken UTF-8 becomes U+FFFD."""
        return self.tokens.decode_bytes(list(tokens)).decode("utf-8", errors="replace")


# -------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class ValueSpec:
    """What one column's value may look like in the serialised record.

    Parameters
    ----------
    name : str
        The column, for messages and for per-row given values.
    kind : str
        "integer", "decimal", "category", "boolean", "null", "text" (a JSON string), "raw" (bare text up to the end of
        the record) or "json" (anything that `json_schema` allows).
    texts : tuple of str
        For the literal kinds: the allowed texts exactly as serialised (strings with their quotes).
    decimals : int, optional
        For "decimal": digits after the point, always printed.
    trimmed : bool, defaults to False
        For "decimal": zeros at the end are not printed, but for one digit after the point.
    minimum, maximum : number, optional
        Range seen in training: it bounds the number of integer digits and whether a minus is allowed.
    bounded : bool, defaults to False
        Whether every value must lie within [minimum, maximum] (a bound that is None is no bound).
    nullable : bool, defaults to False
        Whether `null` is allowed as well.
    max_length : int, optional
        For "text" and "raw": most characters (Unicode code points after unescaping); None for no bound.
    json_schema : dict, optional
        For "json".
    forced_text : str, optional
        The one text allowed, whatever the kind: a condition that holds in every record.
    """

    name: str
    kind: str
    texts: tuple[str, ...] = ()
    decimals: int | None = None
    trimmed: bool = False
    minimum: Any = None
    maximum: Any = None
    bounded: bool = False
    nullable: bool = False
    max_length: int | None = None
    json_schema: Mapping[str, Any] | None = None
    forced_text: str | None = None


class _Node:
    """A state of a token automaton: the tokens allowed next, ascending, and whether the value may end here."""

    def __init__(self, children: Mapping[int, Any], complete: bool, boundary: int) -> None:
        self.children = children
        self.complete = complete
        # The first token after the value is allowed wherever the value is complete.
        self.tokens = np.array(sorted({*children, *([boundary] if complete else [])}), dtype=np.int64)

    def step(self, token: int) -> _Node:
        return self.children[token]


class _NumberNode(_Node):
    """A state of :class:`_Numbers`; the states behind it are built when they are first reached."""

    def __init__(self, numbers: _Numbers, prefix: str) -> None:
        longer = ((token, prefix + text) for token, text in numbers.vocabulary.number_tokens)
        prefixes = {token: text for token, text in longer if numbers.state(text) is not None}
        super().__init__(prefixes, numbers.is_complete(prefix), numbers.boundary)
        self._numbers = numbers

    def step(self, token: int) -> _Node:
        return self._numbers.node(self.children[token])


class _EitherNode(_Node):
    """The start of a number or of `null`; no first token belongs to both."""

    def __init__(self, literals: _Node, numbers: _Node, boundary: int) -> None:
        super().__init__({**numbers.children, **literals.children}, False, boundary)
        self._literals, self._numbers = literals, numbers

    def step(self, token: int) -> _Node:
        return (self._literals if token in self._literals.children else self._numbers).step(token)


class _Numbers:
    """Automaton of the numbers with exactly `decimals` decimals in a range: no leading zero, exponent or minus zero.

    Trimmed numbers have 1 to `decimals` decimals and no zero at the end, unless it is the only one. A prefix is
    followed only while some number within the range begins with it, so the range holds exactly. Prefixes with the same
    future share a state: numbers that no bound cuts through are told apart by their lengths only.
    """

    def __init__(self, spec: ValueSpec, vocabulary: Vocabulary, boundary: int) -> None:
        self.decimals = (spec.decimals or 0) if spec.kind == "decimal" else 0
        self.trimmed = spec.trimmed and self.decimals > 0
        self.vocabulary, self.boundary = vocabulary, boundary
        low, high = (self._scaled(spec, bound) for bound in ("minimum", "maximum"))
        if low is not None and high is not None and low > high:
            raise DecodingError(
                f"column {spec.name!r}: no number with {self.decimals} decimals lies between {spec.minimum} and "
                f"{spec.maximum}; widen the range."
            )
        known = [abs(bound) // 10**self.decimals for bound in (low, high) if bound is not None]
        self.digits = (
            max(len(str(number)) for number in known) if len(known) == 2 else 18 + sum(len(str(n)) for n in known)
        )
        largest = 10 ** (self.digits + self.decimals) - 1
        smallest = 0 if low is not None and low >= 0 else -largest
        self.low = low if spec.bounded and low is not None else smallest
        self.high = high if spec.bounded and high is not None else largest
        self.max_tokens = self.digits + self.decimals + 2
        self._nodes: dict[Any, _Node] = {}
        needed = "0123456789" + ("." if self.decimals else "") + ("-" if self.low < 0 else "")
        missing = sorted(set(needed) - {text for _, text in vocabulary.number_tokens})
        if missing:
            raise DecodingError(
                f"column {spec.name!r}: the decoder's vocabulary has no token for {missing[0]!r}, which its numbers "
                "need; use another decoder or make the column a category."
            )

    def _scaled(self, spec: ValueSpec, bound: str) -> int | None:
        value = getattr(spec, bound)
        if value is None:
            return None
        try:
            scaled = Decimal(str(value)).scaleb(self.decimals)
            return int(scaled.to_integral_value(ROUND_CEILING if bound == "minimum" else ROUND_FLOOR))
        except (InvalidOperation, ValueError, OverflowError):
            raise DecodingError(f"column {spec.name!r}: {bound} {value!r} is not a finite number.") from None

    def node(self, prefix: str) -> _Node:
        state = self.state(prefix)
        if state not in self._nodes:
            self._nodes[state] = _NumberNode(self, prefix)
        return self._nodes[state]

    def is_complete(self, prefix: str) -> bool:
        fraction = prefix.partition(".")[2]
        if self.trimmed:
            if not fraction or (len(fraction) > 1 and fraction.endswith("0")):
                return False
            # The number itself, its missing zeros filled in, not those that go on from it.
            return self._within(prefix + "0" * (self.decimals - len(fraction)), written=True)[0] != "out"
        return prefix[-1:].isdigit() and len(fraction) == self.decimals and self._within(prefix)[0] != "out"

    def state(self, prefix: str) -> Any:
        """A name for what may follow `prefix`, equal for prefixes with the same future; None if nothing may."""
        match = _NUMBER_PREFIX.fullmatch(prefix)
        if match is None:
            return None
        sign, whole, point, fraction = match.groups(default="")
        if point and (not self.decimals or not whole or len(fraction) > self.decimals) or len(whole) > self.digits:
            return None
        if not prefix:
            return "start"
        within = self._within(prefix)
        if all(place == "out" for place in within):
            return None
        if "cut" in within:
            return prefix
        return sign, point, len(fraction), whole == "0", within, self.trimmed and self.is_complete(prefix)

    def _within(self, prefix: str, written: bool = False) -> tuple[str, ...]:
        """Whether the numbers that begin with `prefix` lie "in", "out" of or are "cut" by the range, per length.

        `written`: the prefix is a whole number, even if it ends with zeros that are not written.
        """
        sign, whole, point, fraction = _NUMBER_PREFIX.fullmatch(prefix).groups(default="")  # type: ignore[union-attr]
        low, high = (max(1, -self.high), -self.low) if sign else (max(0, self.low), self.high)
        if not whole:
            return ("out" if low > high else "cut",)
        more = 0 if point or whole == "0" else self.digits - len(whole)
        places = []
        for free in (extra + self.decimals - len(fraction) for extra in range(more + 1)):
            first = int(whole + fraction) * 10**free
            last = first + 10**free - 1
            if self.trimmed and not written and len(fraction) > 1 and fraction.endswith("0"):
                first += 1  # nothing but zeros behind these is no way to write a number
            none = first > last or last < low or first > high
            places.append("out" if none else "in" if low <= first and last <= high else "cut")
        return tuple(places)


class _Value:
    """One column's compiled grammar: literals and numbers start at `root`, library grammars at `matcher`."""

    def __init__(
        self, spec: ValueSpec, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, boundary: int
    ) -> None:
        self.spec, self.boundary = spec, boundary
        self.matcher: Any = None
        self.max_tokens: int | None = 0
        literals = {"category": spec.texts, "boolean": spec.texts or ("true", "false"), "null": ("null",)}
        texts = literals.get(spec.kind, ())
        numbers: _Node | None = None
        if spec.forced_text is not None:
            texts = (spec.forced_text,)
        elif spec.kind in literals:
            if not texts:
                raise DecodingError(f"column {spec.name!r}: a category needs at least one value.")
        elif spec.kind in ("integer", "decimal"):
            automaton = _Numbers(spec, vocabulary, boundary)
            numbers, self.max_tokens = automaton.node(""), automaton.max_tokens
            if not len(numbers.tokens):
                raise DecodingError(f"column {spec.name!r}: its range holds no number; widen it.")
        else:
            self.matcher = vocabulary.library.LLMatcher(
                vocabulary.tokens, _library_grammar(spec, vocabulary.library.LLMatcher)
            )
            if self.matcher.is_error():
                raise DecodingError(
                    f"column {spec.name!r}: it has no grammar: {self.matcher.get_error().splitlines()[0]}"
                )
            # The longest spelling of a character is six tokens (an escape); two quotes surround a string.
            bounded = spec.max_length is not None and spec.kind != "json"
            self.max_tokens = 6 * (spec.max_length or 0) + 2 if bounded else None
        # In nested JSON and in raw text the library's grammar itself decides about null.
        if spec.nullable and spec.forced_text is None and spec.kind not in ("json", "raw"):
            texts = (*texts, "null")
        spelt = []
        for text in dict.fromkeys(texts):
            try:
                spelt.append(tokenize_segment(tokenizer, text))
            except DecodingError as error:
                raise DecodingError(f"column {spec.name!r}: {error}") from None
            if not spelt[-1] or max(spelt[-1]) >= vocabulary.vocab_size:
                raise DecodingError(f"column {spec.name!r}: the decoder's vocabulary cannot spell {text!r}.")
        if self.max_tokens is not None:
            self.max_tokens = max([self.max_tokens, *map(len, spelt)])
        root = self._trie(spelt)
        self.root = root if numbers is None else _EitherNode(root, numbers, boundary) if spelt else numbers

    def _trie(self, spelt: list[list[int]]) -> _Node:
        by_first: dict[int, list[list[int]]] = {}
        for tokens in spelt:
            if tokens:
                by_first.setdefault(tokens[0], []).append(tokens[1:])
        complete = [] in spelt
        if complete and self.boundary in by_first:
            raise DecodingError(
                f"column {self.spec.name!r}: one value followed by the separator begins another value; "
                "use the JSON record format."
            )
        return _Node({first: self._trie(rest) for first, rest in by_first.items()}, complete, self.boundary)


def _library_grammar(spec: ValueSpec, matcher: Any) -> str:
    repeat = "*" if spec.max_length is None else f"{{0,{int(spec.max_length)}}}"
    if spec.kind == "text":
        return matcher.grammar_from_regex(f'"{_JSON_CHARACTER}{repeat}"')
    if spec.kind == "raw":
        return matcher.grammar_from_regex(f"(?s:.){repeat}")
    if spec.kind != "json" or spec.json_schema is None:
        raise DecodingError(f"column {spec.name!r}: kind {spec.kind!r} is unknown or lacks its json_schema.")
    schema: dict[str, Any] = dict(spec.json_schema)
    if spec.nullable:
        nullable: dict[str, Any] = {"anyOf": [schema, {"type": "null"}]}
        schema = nullable | {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    # The form of json.dumps; without \\u escapes, whose lone surrogates no UTF-8 file can hold.
    options = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "json_allowed_escapes": '"\\bfnrt',
    }
    try:
        return matcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except (TypeError, ValueError) as error:
        raise DecodingError(f"column {spec.name!r}: its JSON schema cannot be used: {error}") from None


# ---------------------------------------------------------------------------------------------------------- constraint


class RecordConstraint:
    """The grammar of a whole record over one decoder's tokens; compile it once per schema and use it for all rows.

    Attributes
    ----------
    bos_token_id, eos_token_id : int
        The tokens that stand before and after a record.
    vocab_size : int
        Number of logits of the decoder.
    max_new_tokens : int or None
        An upper bound on a record's tokens, EOS included; None if a value is unbounded.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        fixed: list[list[int]],
        values: list[_Value],
        bos_token_id: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.fixed, self.values = fixed, values
        self.columns = {value.spec.name: index for index, value in enumerate(values)}
        self.bos_token_id = bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.vocab_size = vocabulary.vocab_size
        self._everything = np.ones(self.vocab_size, dtype=np.bool_)
        most = [value.max_tokens for value in values]
        bounded = [number for number in most if number is not None]
        total = sum(map(len, fixed)) + sum(bounded)
        self.max_new_tokens = total if len(bounded) == len(most) else None

    @classmethod
    def compile(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int,
        bos_token_id: int,
        eos_token_id: int,
        fixed_segments: Sequence[str],
        values: Sequence[ValueSpec],
    ) -> RecordConstraint:
        """Compile a schema.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The decoder's tokenizer.
        vocab_size : int
            Size of the decoder's last dimension of logits.
        bos_token_id, eos_token_id : int
            The tokens before and after a record.
        fixed_segments : sequence of str
            The n + 1 texts around n values; only the first and the last may be empty.
        values : sequence of ValueSpec
            One per column, in order.

        Raises
        ------
        DecodingError
            Naming the column and the text, if the vocabulary cannot spell the schema.
        """
        if len(fixed_segments) != len(values) + 1 or not values:
            raise DecodingError(f"{len(values)} values need one fixed segment more, not {len(fixed_segments)}.")
        if not all(fixed_segments[1:-1]):
            raise DecodingError("a fixed segment between two values is empty: their border could not be told.")
        vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_id)
        fixed = []
        for index, text in enumerate(fixed_segments):
            try:
                fixed.append(tokenize_segment(tokenizer, text))
            except DecodingError as error:
                name = values[min(index, len(values) - 1)].name
                raise DecodingError(f"column {name!r}: {error}") from None
        fixed[-1].append(eos_token_id)
        compiled = [_Value(spec, tokenizer, vocabulary, fixed[index + 1][0]) for index, spec in enumerate(values)]
        return cls(tokenizer, vocabulary, fixed, compiled, bos_token_id)

    def start(self, given_texts: Mapping[str, str] | None = None, *, constrained: bool = True) -> RowState | FreeState:
        """The state before a row's first token.

        Parameters
        ----------
        given_texts : mapping of str to str, optional
            Texts of this row's known cells, as serialised, by column name: they are forced.
        constrained : bool, defaults to True
            Without constraint every token is allowed and EOS ends the record.

        Raises
        ------
        DecodingError
            For an unknown column, a text that cannot be spelt, or known cells without constraint.
        """
        if not constrained:
            if given_texts:
                raise DecodingError("known cells can only be kept with constrained=True.")
            return FreeState(self._everything, self.eos_token_id)
        tokens = {}
        for name, text in (given_texts or {}).items():
            if name not in self.columns:
                raise DecodingError(f"unknown column {name!r}; the columns are {', '.join(map(repr, self.columns))}.")
            try:
                tokens[self.columns[name]] = tokenize_segment(self._tokenizer, text)
            except DecodingError as error:
                raise DecodingError(f"column {name!r}: {error}") from None
        return RowState(self, tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """The record's text: what stands before the first EOS."""
        kept = [int(token) for token in tokens]
        return self.vocabulary.decode(kept[: kept.index(self.eos_token_id)] if self.eos_token_id in kept else kept)


_NOWHERE = _Node({}, False, -1)


class RowState:
    """Where one row stands in its record. Alternate :meth:`forced` and, unless `done`, :meth:`advance`."""

    def __init__(self, constraint: RecordConstraint, given: Mapping[int, list[int]]) -> None:
        self._constraint = constraint
        self._given = given
        self._index = 0
        self._node = _NOWHERE
        self._matcher: Any = None
        self._run: list[int] = []
        self._choices: np.ndarray | None = None
        self._may_end = False
        self.done = False
        self._enter_fixed(0, 0)

    def _enter_fixed(self, index: int, offset: int) -> None:
        """Force the fixed text before value `index` from its token `offset` on, then enter the value."""
        values = self._constraint.values
        while True:
            self._run += self._constraint.fixed[index][offset:]
            if index == len(values):
                self.done = True
                return
            if index not in self._given:
                break
            self._run += self._given[index]
            index, offset = index + 1, 0
        self._index = index
        value = values[index]
        self._node = value.root
        self._matcher = None if value.matcher is None else value.matcher.deep_copy()
        self._choices = None

    def forced(self) -> list[int]:
        """The tokens up to the next choice or the record's end (EOS included), each the only one allowed."""
        while not self.done:
            choices = self.choices()
            if choices.dtype == np.bool_ or len(choices) > 1:
                break
            token = int(choices[0])
            self._run.append(token)
            self.advance(token)
        run, self._run = self._run, []
        return run

    def choices(self) -> np.ndarray:
        """The tokens allowed next: ascending ids (int64), or a boolean mask [vocab_size] where they are many."""
        if self._choices is None:
            self._choices = self._compute_choices()
        return self._choices

    def _compute_choices(self) -> np.ndarray:
        constraint, value = self._constraint, self._constraint.values[self._index]
        if self._matcher is None:
            return self._node.tokens
        bits = np.zeros((constraint.vocabulary.size + 31) // 32, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            raise DecodingError(f"column {value.spec.name!r}: {self._matcher.get_error().splitlines()[0]}")
        mask = np.unpackbits(bits.view(np.uint8), bitorder="little")[: constraint.vocab_size].view(np.bool_)
        # The library says "complete" by allowing EOS: here the first token after the value stands for it.
        complete = bool(mask[constraint.eos_token_id])
        mask[constraint.eos_token_id] = False
        self._may_end = complete and not mask[value.boundary]
        mask[value.boundary] |= complete
        mask[self._node.tokens] = True
        count = int(np.count_nonzero(mask))
        if count == 0:
            raise DecodingError(
                f"column {value.spec.name!r}: the decoder's vocabulary has no token for what must follow."
            )
        return mask if count > SPARSE_LIMIT else np.flatnonzero(mask)

    def advance(self, token: int) -> None:
        """Take `token`, one of :meth:`choices`."""
        value = self._constraint.values[self._index]
        may_end = self._node.complete if self._matcher is None else self._may_end
        self._choices = None
        if token in self._node.children:
            self._node, self._matcher = self._node.step(token), None
        elif token == value.boundary and may_end:
            self._enter_fixed(self._index + 1, 1)
        elif self._matcher is not None and self._matcher.consume_token(token):
            self._node = _NOWHERE
        else:
            raise DecodingError(f"column {value.spec.name!r}: token {token} is not allowed here.")


class FreeState:
    """:class:`RowState` without a grammar."""

    def __init__(self, everything: np.ndarray, eos_token_id: int) -> None:
        self._everything, self._eos_token_id = everything, eos_token_id
        self.done = False

    def forced(self) -> list[int]:
        return []

    def choices(self) -> np.ndarray:
        return self._everything

    def advance(self, token: int) -> None:
        self.done = token == self._eos_token_id
