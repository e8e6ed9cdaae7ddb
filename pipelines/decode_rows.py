"""Decoding many records at once: a loop over any causal LM's own forward pass, packed (see packed_attention.py).

Each row goes at its own pace. One forward pass takes, for every row in the batch, the token just drawn and all tokens
that are forced behind it (keys, punctuation, the rest of a category), so a row costs one pass per choice, not per
token. Rows that finish leave the batch and waiting rows take their places; tokens forced behind the last choice need
no pass at all.

The tokens are those of transformers' `generate` with the same constraint and the same row randomness, up to rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError
from .packed_attention import PackedDecoder, UnsupportedDecoderError, packed, probe
from .token_sampling import RowRandom, choose_tokens


@dataclass
class _Row:
    index: int
    state: Any
    random: RowRandom
    tokens: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)
    position: int = 0
    column: int = 0  # of the last token fed
    since: int = -1  # tokens from that column's first to the last fed

    def take(self, tokens: list[int], most: int) -> bool:
        """Append `tokens`, to be fed next; whether another choice follows."""
        self.tokens += tokens
        self.run = tokens
        return not self.state.done and len(self.tokens) < most

    def columns(self, separators: frozenset[int]) -> list[int]:
        """The columns of the run's tokens (see `locate`)."""
        found = []
        for token in self.run:
            if token in separators:
                self.column, self.since = self.column + 1, 0
            else:
                self.since += 1
            found.append(self.column)
        return found


class _Batch:
    """The rows in the decoder: row `active[slot]` has the cache's slot `slot`."""

    def __init__(
        self, inside: PackedDecoder, injection: Any, bos_token_id: int, most: int, options: Mapping[str, Any]
    ) -> None:
        self.inside, self.injection, self.options = inside, injection, options
        self.bos_token_id, self.most = bos_token_id, most
        self.separators = frozenset([] if injection.separator_ids is None else injection.separator_ids.tolist())
        inside.cache.memory = injection.past_key_values
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
        """One pass: feed every row's run, draw its next token."""
        output = self._forward()
        prefix = self.injection.prefix_embeds
        for slot, row in enumerate(self.active):
            row.position += len(row.run) + (self.injection.length if prefix is not None and slot in self.new else 0)
        choices = [row.state.choices() for row in self.active]
        logits, kept = self.inside.logits(output, choices)
        randoms = [row.random for row in self.active]
        drawn = choose_tokens(logits, choices, randoms, columns=kept, **self.options)
        going = []
        for row, token in zip(self.active, drawn, strict=True):
            row.state.advance(token)
            going.append(row.take([token, *row.state.forced()], self.most))
        for slot in reversed(range(len(self.active))):
            if not going[slot]:
                self._finish(slot)

    def _forward(self) -> Tensor:
        injection, active, inside = self.injection, self.active, self.inside
        token_bias = hidden_bias = None
        if injection.token_bias is not None or injection.draft_module is not None:
            columns = inside.tensor([column for row in active for column in row.columns(self.separators)])
        if injection.token_bias is not None:  # of these tokens alone: copying all would cost more than the pass
            of_rows = inside.tensor([row.index for row in active for _ in row.run])
            token_bias = injection.token_bias[of_rows, columns.clamp(max=injection.token_bias.shape[1] - 1)]
        if injection.draft_module is not None:
            of_rows, at, since = inside.tensor([(row.index, row.column, row.since) for row in active]).T
            hidden_bias = injection.hidden_bias(at, since, of_rows)
        prefix = injection.prefix_embeds
        return inside.forward(
            [row.run for row in active],
            [row.position for row in active],
            prefixes=None if prefix is None else {slot: prefix[active[slot].index] for slot in self.new},
            token_bias=token_bias,
            hidden_bias=hidden_bias,
            new=(self.new, [active[slot].index for slot in self.new]) if self.new else None,
        )

    def _finish(self, slot: int) -> None:
        """Take the row out; the last row gets its slot."""
        self.finished.append(self.active[slot])
        last = self.active.pop()
        if slot < len(self.active):
            self.inside.cache.move(len(self.active), slot)
            self.active[slot] = last


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
    with packed(decoder, min(batch_size, max(1, len(row_randoms))), plain_head) as inside:
        batch = _Batch(inside, injection, constraint.bos_token_id, max_new_tokens, options)
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
