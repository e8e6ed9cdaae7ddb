"""The grammar of one value: which tokens may come next in it.

Three kinds of grammar serve the values:

* literals (categories, booleans, null, conditions): a trie over the canonical tokens, those seen in training;
* numbers and dates: a token automaton over the few tokens made of digits and signs, exact for any range;
* JSON strings, raw text and nested JSON: a byte-level grammar of the `llguidance` library.

Why this library: see ``examples/benchmarks/grammar_library.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .errors import DecodingError
from .patterns import CONTROL_ESCAPES, STRING_ESCAPES
from .vocabulary import Vocabulary, tokenize_segment


# One character of a JSON string as `json.dumps(..., ensure_ascii=False)` writes it.
_JSON_CHARACTER = r'([^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f])'
# Above the library's defaults: an object of many optional keys has as many states at once.
_PARSER_LIMITS = {"max_items_in_row": 50_000, "step_max_items": 1_000_000}
_NUMBER_PREFIX = re.compile(r"(-?)(0|[1-9][0-9]*|)(?:(\.)([0-9]*))?")


@dataclass(frozen=True)
class ValueSpec:
    """What one column's value may look like in the serialised record.

    Parameters
    ----------
    name : str
        The column, for messages and for per-row given values.
    kind : str
        "integer", "decimal", "category", "boolean", "null", "text" (a JSON string), "raw" (bare text up to the end of
        the record), "json" (anything that `json_schema` allows) or "language" (the texts of `language`).
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
    exclusive_minimum, exclusive_maximum : bool, defaults to False
        For "decimal" with ``bounded``: whether the bound itself is excluded.
    json_schema : dict, optional
        For "json": what the grammar library takes.
    controls : bool, defaults to False
        For "json": whether strings may hold control characters that have no short escape.
    language : DateLanguage, optional
        For "language": says by its ``state`` and ``is_complete`` which prefixes go on and which are whole; ``shape``
        is a text of it.
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
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    json_schema: Mapping[str, Any] | None = None
    controls: bool = False
    language: Any = None
    forced_text: str | None = None


class Node:
    """A state of a token automaton: the tokens allowed next, ascending, and whether the value may end here."""

    def __init__(self, children: Mapping[int, Any], complete: bool, boundary: int) -> None:
        self.children = children
        self.complete = complete
        # The first token after the value is allowed wherever the value is complete.
        self.tokens = np.array(sorted({*children, *([boundary] if complete else [])}), dtype=np.int64)

    def step(self, token: int) -> Node:
        return self.children[token]


class _PrefixNode(Node):
    """A state of an :class:`_Automaton`; the states behind it are built when they are first reached."""

    def __init__(self, automaton: _Automaton, prefix: str) -> None:
        longer = ((token, prefix + text) for token, text in automaton.tokens)
        prefixes = {token: text for token, text in longer if automaton.state(text) is not None}
        super().__init__(prefixes, automaton.is_complete(prefix), automaton.boundary)
        self._automaton = automaton

    def step(self, token: int) -> Node:
        return self._automaton.node(self.children[token])


class _Automaton:
    """What a language of short texts allows, token by token.

    Prefixes with the same future share a node.
    """

    def __init__(self, tokens: list[tuple[int, str]], boundary: int) -> None:
        self.tokens, self.boundary = tokens, boundary
        self._nodes: dict[Any, Node] = {}

    def node(self, prefix: str) -> Node:
        state = self.state(prefix)
        if state not in self._nodes:
            self._nodes[state] = _PrefixNode(self, prefix)
        return self._nodes[state]

    def state(self, prefix: str) -> Any:
        """A name for what may follow `prefix`, equal for prefixes with the same future; None if nothing may."""
        raise NotImplementedError

    def is_complete(self, prefix: str) -> bool:
        """Whether `prefix` is a whole text."""
        raise NotImplementedError

    def _require(self, name: str, characters: str) -> None:
        known = {text for _, text in self.tokens}
        if missing := sorted(set(characters) - known):
            raise DecodingError(
                f"column {name!r}: the decoder's vocabulary has no token for {missing[0]!r}, which its values need; "
                "use another decoder or make the column a category."
            )


class _Dates(_Automaton):
    """Automaton of a :class:`DateLanguage`."""

    def __init__(self, spec: ValueSpec, vocabulary: Vocabulary, boundary: int) -> None:
        self._language = spec.language
        alphabet = "0123456789" + spec.language.shape
        super().__init__(vocabulary.spelt_in(alphabet), boundary)
        self.max_tokens = len(spec.language.shape)
        self._require(spec.name, alphabet)

    def state(self, prefix: str) -> Any:
        return self._language.state(prefix)

    def is_complete(self, prefix: str) -> bool:
        return self._language.is_complete(prefix)


class _EitherNode(Node):
    """The start of a number or of `null`; no first token belongs to both."""

    def __init__(self, literals: Node, numbers: Node, boundary: int) -> None:
        super().__init__({**numbers.children, **literals.children}, False, boundary)
        self._literals, self._numbers = literals, numbers

    def step(self, token: int) -> Node:
        return (self._literals if token in self._literals.children else self._numbers).step(token)


class _Numbers(_Automaton):
    """Automaton of the numbers with exactly `decimals` decimals in a range: no leading zero, exponent or minus zero.

    Trimmed numbers have 1 to `decimals` decimals and no zero at the end, unless it is the only one. A prefix is
    followed only while some number within the range begins with it, so the range holds exactly. Prefixes with the same
    future share a state: numbers that no bound cuts through are told apart by their lengths only.
    """

    def __init__(self, spec: ValueSpec, vocabulary: Vocabulary, boundary: int) -> None:
        self.decimals = (spec.decimals or 0) if spec.kind == "decimal" else 0
        self.trimmed = spec.trimmed and self.decimals > 0
        super().__init__(vocabulary.number_tokens, boundary)
        low, high = (self._scaled(spec, bound) for bound in ("minimum", "maximum"))
        if low is not None and high is not None and low > high:
            raise DecodingError(
                f"column {spec.name!r}: no number with {self.decimals} decimals lies between {spec.minimum} and "
                f"{spec.maximum}; widen the range."
            )
        known = [abs(bound) // 10**self.decimals for bound in (low, high) if bound is not None]
        open_digits = max(1, 15 - self.decimals) if self.decimals else 18  # a float holds 15 digits exactly
        self.digits = max([len(str(number)) for number in known] + [open_digits] * (len(known) < 2))
        largest = 10 ** (self.digits + self.decimals) - 1
        smallest = 0 if low is not None and low >= 0 else -largest
        self.low = low if spec.bounded and low is not None else smallest
        self.high = high if spec.bounded and high is not None else largest
        self.max_tokens = self.digits + self.decimals + 2
        self._require(spec.name, "0123456789" + ("." if self.decimals else "") + ("-" if self.low < 0 else ""))

    def _scaled(self, spec: ValueSpec, bound: str) -> int | None:
        value = getattr(spec, bound)
        if value is None:
            return None
        try:
            scaled = Decimal(str(value)).scaleb(self.decimals)
            whole = int(scaled.to_integral_value(ROUND_CEILING if bound == "minimum" else ROUND_FLOOR))
        except (InvalidOperation, ValueError, OverflowError):
            raise DecodingError(f"column {spec.name!r}: {bound} {value!r} is not a finite number.") from None
        if spec.bounded and getattr(spec, f"exclusive_{bound}") and whole == scaled:
            return whole + 1 if bound == "minimum" else whole - 1
        return whole

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
        return sign, point, len(fraction), within, self.trimmed and self.is_complete(prefix)

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


_AUTOMATA: dict[str, Any] = {"integer": _Numbers, "decimal": _Numbers, "language": _Dates}


class ValueGrammar:
    """One column's compiled grammar: literals and numbers start at `root`, library grammars at `matcher`."""

    def __init__(
        self, spec: ValueSpec, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, boundary: int
    ) -> None:
        self.spec, self.boundary = spec, boundary
        self.matcher: Any = None
        self.max_tokens: int | None = 0
        literals = {"category": spec.texts, "boolean": spec.texts or ("true", "false"), "null": ("null",)}
        texts = literals.get(spec.kind, ())
        numbers: Node | None = None
        if spec.forced_text is not None:
            texts = (spec.forced_text,)
        elif spec.kind in literals:
            if not texts:
                raise DecodingError(f"column {spec.name!r}: a category needs at least one value.")
        elif spec.kind in _AUTOMATA:
            automaton = _AUTOMATA[spec.kind](spec, vocabulary, boundary)
            numbers, self.max_tokens = automaton.node(""), automaton.max_tokens
            if not len(numbers.tokens):
                raise DecodingError(f"column {spec.name!r}: its range holds no value; widen it.")
        else:
            library = vocabulary.library
            grammar, limits = _library_grammar(spec, library.LLMatcher), library.LLParserLimits(**_PARSER_LIMITS)
            self.matcher = library.LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=limits)
            if self.matcher.is_error():
                reason = library_error(self.matcher)
                raise DecodingError(f"column {spec.name!r}: it has no grammar: {reason}")
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

    def _trie(self, spelt: list[list[int]]) -> Node:
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
        return Node({first: self._trie(rest) for first, rest in by_first.items()}, complete, self.boundary)


def library_error(matcher: Any) -> str:
    """What the grammar library has against a grammar or a token, in one line."""
    lines = [line.strip() for line in matcher.get_error().split("<state>")[0].splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "unknown").rstrip(".")


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
        "json_allowed_escapes": STRING_ESCAPES + (CONTROL_ESCAPES if spec.controls else ""),
        "coerce_one_of": True,  # that exactly one fits is checked afterwards
    }
    try:
        return matcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except (TypeError, ValueError) as error:
        raise DecodingError(f"column {spec.name!r}: its JSON schema cannot be used: {error}") from None
