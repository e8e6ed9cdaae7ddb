"""Decoding many records at once: a loop over any causal LM's own forward pass, packed (see packed_attention.py).

Each row goes at its own pace. One forward pass takes, for every row in the batch, the token just drawn and all tokens
that are forced behind it (keys, punctuation, the rest of a category), so a row costs one pass per choice at most, not
per token; where choices can be guessed (see proposals.py), one pass judges several. Rows that finish leave the batch
and waiting rows take their places; tokens forced behind the last choice need no pass at all.

The tokens are those of transformers' `generate` with the same constraint and the same row randomness, up to rounding.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentError, DecodingError
from .packed_attention import PackedDecoder, UnsupportedDecoderError, packed, probe
from .packed_linear import fast_linears
from .proposals import DraftProposals
from .token_sampling import RowRandom, choose_tokens


#: Of one row in one pass.
MOST_GUESSES = 32


@dataclass
class _Guess:
    """A choice that is taken for granted until the decoder has its say."""

    place: int  # of the draft
    token: int
    run: list[int]  # the token and those forced behind it
    state: Any  # behind them


@dataclass
class _Choice:
    """A token that the decoder is to draw."""

    row: _Row
    end: int  # of the row's tokens fed, the one that it follows
    after: tuple[int, int]  # where that one is: see `locate`
    allowed: np.ndarray
    uniform: float


@dataclass
class _Row:
    index: int
    state: Any
    random: RowRandom
    tokens: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)  # tokens to be fed, up to the next choice
    guesses: list[_Guess] = field(default_factory=list)
    located: list[tuple[int, int]] = field(default_factory=list)  # of `fed`: see `locate`
    position: int = 0
    column: int = 0  # of the last token fed for good
    since: int = -1  # tokens from that column's first to the last fed for good

    def take(self, tokens: list[int], most: int) -> bool:
        """Append `tokens`, to be fed next; whether another choice follows."""
        self.tokens += tokens
        self.run = tokens
        return not self.state.done and len(self.tokens) < most

    def locate(self, tokens: list[int], separators: frozenset[int]) -> None:
        """Find the columns of further tokens that are to be fed."""
        column, since = self.located[-1] if self.located else (self.column, self.since)
        for token in tokens:
            column, since = (column + 1, 0) if token in separators else (column, since + 1)
            self.located.append((column, since))

    @property
    def fed_runs(self) -> list[list[int]]:
        """The run and the guesses behind it, but for one that ends the record: nothing is drawn after it."""
        return [self.run, *(guess.run for guess in self.guesses if not guess.state.done)]

    def choices(self) -> list[_Choice]:
        """What is to be drawn, one token after each of the runs that are fed."""
        states = [self.state, *(guess.state for guess in self.guesses if not guess.state.done)]
        ends = (np.cumsum([len(run) for run in self.fed_runs]) - 1).tolist()
        return [
            _Choice(self, end, self.located[end], state.choices(), self.random.look_ahead(number))
            for number, (state, end) in enumerate(zip(states, ends, strict=True))
        ]

    def settle(self, drawn: list[int], most: int) -> bool:
        """Keep the guesses that were drawn too, then take the next token drawn; whether another choice follows."""
        stood = 0
        while stood < len(self.guesses) and self.guesses[stood].token == drawn[stood]:
            stood += 1
        kept = self.guesses[:stood]
        fed = sum(map(len, self.fed_runs[: stood + 1]))
        # What was fed in vain is overwritten: of the cache, nothing behind a row's position is seen.
        self.position += fed
        self.column, self.since = self.located[fed - 1]
        for guess in kept:
            self.random.uniform()
            self.tokens += guess.run
            self.state = guess.state
        self.guesses, self.located = [], []
        if stood == len(drawn):
            return False
        self.random.uniform()
        self.state.advance(drawn[stood])
        return self.take([drawn[stood], *self.state.forced()], most)


class _Batch:
    """The rows in the decoder: row `active[slot]` has the cache's slot `slot`."""

    def __init__(
        self,
        inside: PackedDecoder,
        injection: Any,
        bos_token_id: int,
        most: int,
        options: Mapping[str, Any],
        most_guesses: int,
    ) -> None:
        self.inside, self.injection, self.options = inside, injection, options
        self.bos_token_id, self.most, self.most_guesses = bos_token_id, most, most_guesses
        self.separators = frozenset([] if injection.separator_ids is None else injection.separator_ids.tolist())
        inside.cache.memory = injection.past_key_values
        head = inside.decoder.get_output_embeddings()
        self.proposals = DraftProposals.of(injection, head, options) if most_guesses else None
        self.active: list[_Row] = []
        self.new: list[int] = []  # slots of the rows that have not been fed yet
        self.finished: list[_Row] = []

    def fill(self, waiting: deque[int], start: Callable[[int], _Row]) -> None:
        """Give free slots to waiting rows."""
        self.new = []
        # In bulk, so that rows stay in step: their passes are then about equally long.
        refill = len(self.active) <= self.inside.cache.slots // 2
        while refill and waiting and len(self.active) < self.inside.cache.slots:
            row = start(waiting.popleft())
            going = row.take(row.state.forced(), self.most)
            row.run = [self.bos_token_id, *row.run]
            # Memory tokens take positions without being fed; a soft prompt is fed in the row's first pass.
            row.position = self.injection.length if self.injection.prefix_embeds is None else 0
            if going:
                self.new.append(len(self.active))
                self.active.append(row)
            else:
                self.finished.append(row)

    def step(self) -> None:
        """One pass: feed every row's run and the guesses behind it, draw the tokens that follow."""
        for row in self.active:
            row.locate(row.run, self.separators)
        if self.proposals is not None:
            self._guess(self.proposals)
        choices = [row.choices() for row in self.active]
        drawn = iter(self._draw(self._forward(choices), [choice for of_row in choices for choice in of_row]))
        prefix = self.injection.prefix_embeds
        going = []
        for slot, (row, of_row) in enumerate(zip(self.active, choices, strict=True)):
            row.position += self.injection.length if prefix is not None and slot in self.new else 0
            tokens = [next(drawn) for _ in of_row]
            if self.proposals is not None:
                for guess, token in zip(row.guesses, tokens, strict=False):
                    self.proposals.learn(guess.place, guess.token == token)
                    if guess.token != token:
                        break
            going.append(row.settle(tokens, self.most))
        for slot in reversed(range(len(self.active))):
            if not going[slot]:
                self._finish(slot)

    def _guess(self, proposals: DraftProposals) -> None:
        """Look ahead in every row as far as it pays."""
        ahead = [(row, row.state, 1.0) for row in self.active]
        for number in range(self.most_guesses):
            places = proposals.places([row.located[-1] for row, _, _ in ahead])
            asked = [
                (row, state, chance * proposals.chance(place), place)
                for (row, state, chance), place in zip(ahead, places, strict=True)
                if place >= 0
            ]
            asked = [one for one in asked if proposals.pays(one[2], 1, len(self.active))]
            tokens = proposals.guess(
                [row.index for row, *_ in asked],
                [place for *_, place in asked],
                [state.choices() for _, state, _, _ in asked],
                [row.random.look_ahead(number) for row, *_ in asked],
            )
            further = []
            for (row, state, chance, place), token in zip(asked, tokens, strict=True):
                guess = None if token is None else _advanced(state, token, place)
                if guess is None or not proposals.pays(chance, len(guess.run), len(self.active)):
                    continue
                row.guesses.append(guess)
                if not guess.state.done:
                    row.locate(guess.run, self.separators)
                    further.append((row, guess.state, chance))
            ahead = further
            if not ahead:
                return

    def _forward(self, choices: list[list[_Choice]]) -> Tensor:
        """The decoder's output at every choice, row after row."""
        injection, active, inside = self.injection, self.active, self.inside
        token_bias = hidden_bias = None
        if injection.token_bias is not None:  # of these tokens alone: copying all would cost more than the pass
            of_rows = inside.tensor([row.index for row in active for _ in row.located])
            columns = inside.tensor([column for row in active for column, _ in row.located])
            token_bias = injection.token_bias[of_rows, columns.clamp(max=injection.token_bias.shape[1] - 1)]
        if injection.draft_module is not None:
            places = [(choice.row.index, *choice.after) for of_row in choices for choice in of_row]
            of_rows, at, since = inside.tensor(places).T
            hidden_bias = injection.hidden_bias(at, since, of_rows)
        prefix = injection.prefix_embeds
        return inside.forward(
            [[token for run in row.fed_runs for token in run] for row in active],
            [row.position for row in active],
            wanted=[[choice.end for choice in of_row] for of_row in choices],
            prefixes=None if prefix is None else {slot: prefix[active[slot].index] for slot in self.new},
            token_bias=token_bias,
            hidden_bias=hidden_bias,
            new=(self.new, [active[slot].index for slot in self.new]) if self.new else None,
        )

    def _draw(self, output: Tensor, choices: list[_Choice]) -> list[int]:
        """A token for each choice. Those among few tokens need few rows of the output layer."""
        drawn = [0] * len(choices)
        many = np.array([choice.allowed.dtype == np.bool_ for choice in choices])
        for part in (np.flatnonzero(~many), np.flatnonzero(many)):
            if not len(part):
                continue
            of_part = [choices[at] for at in part]
            allowed = [choice.allowed for choice in of_part]
            outputs = output if len(part) == len(choices) else output[self.inside.tensor(part)]
            logits, columns = self.inside.logits(outputs, allowed)
            tokens = choose_tokens(
                logits, allowed, [choice.uniform for choice in of_part], columns=columns, **self.options
            )
            for at, token in zip(part, tokens, strict=True):
                drawn[at] = token
            if self.proposals is not None and not many[part[0]]:
                places = self.proposals.places([choice.after for choice in of_part])
                self.proposals.hear([choice.row.index for choice in of_part], places, allowed, logits, columns)
        return drawn

    def _finish(self, slot: int) -> None:
        """Take the row out; the last row gets its slot."""
        self.finished.append(self.active[slot])
        last = self.active.pop()
        if slot < len(self.active):
            self.inside.cache.move(len(self.active), slot)
            self.active[slot] = last


def _advanced(state: Any, token: int, place: int) -> _Guess | None:
    """The guess that `token` is drawn next; None if the grammar is stuck behind it."""
    state = state.copy()
    try:
        state.advance(token)
        return _Guess(place, token, [token, *state.forced()], state)
    except DecodingError:
        return None


@torch.inference_mode()
def decode_rows(
    decoder: Any,
    injection: Any,
    constraint: Any,
    row_randoms: Sequence[RowRandom],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    constrained: bool = True,
    given_texts: Sequence[Mapping[str, str] | None] | None = None,
    batch_size: int = 256,
    max_new_tokens: int = 1024,
    most_guesses: int = MOST_GUESSES,
    on_rows_done: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Write one record per row.

    Parameters
    ----------
    decoder : PreTrainedModel
        A causal LM in eval mode; it is left as it was. No other thread may use it meanwhile.
    injection : Injection
        What the rows are conditioned on: `prefix_embeds` [rows, tokens, hidden], `past_key_values` (a key and a value
        [rows, kv_heads, tokens, head_dim] per layer), `token_bias` [rows, columns, hidden] with `separator_ids`,
        `draft` [rows, places, size] with `draft_module`.
    constraint : RecordConstraint
        The compiled schema.
    row_randoms : sequence of RowRandom
        One per row.
    temperature, top_k, top_p
        See `choose_tokens`.
    constrained : bool, defaults to True
        Whether the constraint's grammar is used.
    given_texts : sequence of mappings, optional
        Per row the texts of its known cells by column name.
    batch_size : int, defaults to 256
        Most rows in the decoder at a time.
    max_new_tokens : int, defaults to 1024
        A record longer than this is cut.
    most_guesses : int, defaults to 32
        Most choices of a row that are guessed ahead in a pass, where that pays (see proposals.py); 0 for none. The
        tokens are the same, up to rounding.
    on_rows_done : callable, optional
        Called with the number of rows that have just been finished.

    Returns
    -------
    list of list of int
        The rows' tokens in order, with EOS unless cut, without BOS.

    Raises
    ------
    UnsupportedDecoderError
        If :func:`supports` is false for the decoder.
    """
    runs_packed, plain_head = probe(decoder)
    if not runs_packed:
        raise UnsupportedDecoderError(
            f"{type(decoder).__name__} cannot be run packed: sample with fast=False (its own generate)."
        )
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, not {batch_size}.")
    given = list(given_texts) if given_texts is not None else [None] * len(row_randoms)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    def start(index: int) -> _Row:
        return _Row(index, constraint.start(given[index], constrained=constrained), row_randoms[index])

    results: list[list[int]] = [[] for _ in row_randoms]
    waiting = deque(range(len(row_randoms)))
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(packed(decoder, min(batch_size, max(1, len(row_randoms))), plain_head))
        if injection.draft_module is not None:
            stack.enter_context(fast_linears(injection.draft_module.to_hidden))
        batch = _Batch(inside, injection, constraint.bos_token_id, max_new_tokens, options, most_guesses)
        while waiting or batch.active:
            batch.fill(waiting, start)
            if batch.active:
                batch.step()
            for row in batch.finished:
                results[row.index] = row.tokens[:max_new_tokens]
            if batch.finished and on_rows_done is not None:
                on_rows_done(len(batch.finished))
            batch.finished.clear()
    return results
