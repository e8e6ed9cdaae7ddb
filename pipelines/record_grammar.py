"""Constrained decoding: which tokens may come next in a record.

A record is a chain of fixed texts (keys, punctuation) and values. Training and sampling tokenise it segment by
segment with :func:`~difflm.pipelines.vocabulary.tokenize_segment`, so that in a fixed text exactly one token sequence
is right and is forced, and in a value the tokens that its grammar allows compete under the model's own distribution,
renormalised token by token.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .errors import DecodingError
from .value_grammars import Node, ValueGrammar, ValueSpec, library_error
from .vocabulary import Vocabulary, tokenize_segment


#: A grammar's mask with fewer tokens than this is handled as a list of token ids.
SPARSE_LIMIT = 1024


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
        values: list[ValueGrammar],
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
        compiled = [
            ValueGrammar(spec, tokenizer, vocabulary, fixed[index + 1][0]) for index, spec in enumerate(values)
        ]
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


_NOWHERE = Node({}, False, -1)


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

    def copy(self) -> RowState:
        """A state of its own at the same place."""
        other = copy.copy(self)
        other._run = list(self._run)
        other._matcher = None if self._matcher is None else self._matcher.deep_copy()
        return other

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
            raise DecodingError(f"column {value.spec.name!r}: {library_error(self._matcher)}.")
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
            stopped = self._matcher is not None and self._matcher.is_error()
            reason = f": {library_error(self._matcher)}" if stopped else ""
            raise DecodingError(f"column {value.spec.name!r}: token {token} is not allowed here{reason}.")


class FreeState:
    """:class:`RowState` without a grammar."""

    def __init__(self, everything: np.ndarray, eos_token_id: int) -> None:
        self._everything, self._eos_token_id = everything, eos_token_id
        self.done = False

    def copy(self) -> FreeState:
        return copy.copy(self)

    def forced(self) -> list[int]:
        return []

    def choices(self) -> np.ndarray:
        return self._everything

    def advance(self, token: int) -> None:
        self.done = token == self._eos_token_id
