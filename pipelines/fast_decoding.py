"""Decoding many records at once: a packed loop over any causal LM's own forward pass.

Each row goes at its own pace. One forward pass takes, for every row in the batch, the token just drawn and all tokens
that are forced behind it (keys, punctuation, the rest of a category), so a row costs one pass per choice, not per
token. The tokens of all rows are packed into one sequence without padding: the linear layers, which are nearly all of
the work, see real tokens only, and an attention function of our own reads each row's keys and values from a
preallocated cache. Rows that finish leave the batch and waiting rows take their places; tokens forced behind the last
choice need no pass at all; the output layer is evaluated for the allowed tokens only, where they are few.

The tokens are those of transformers' `generate` with the same constraint and the same row randomness, up to rounding.
A decoder whose attention cannot be exchanged is refused (:func:`supports`); use `generate` for it.

This file is published beside the weights and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache


ATTENTION_NAME = "difflm_packed"
#: Cache positions are added in steps of this many.
_GROWTH = 64
_step: ContextVar[_Step] = ContextVar("difflm_packed_step")
_probed: WeakKeyDictionary[nn.Module, tuple[bool, bool]] = WeakKeyDictionary()


class UnsupportedDecoderError(ValueError):
    """The decoder cannot be run packed; sample through its own `generate` instead."""


# ---------------------------------------------------------------------------------------------------- packed attention


class _PackedCache(Cache):
    """Keys and values of the rows of a batch, per layer [slots, kv_heads, capacity, head_dim], written in place."""

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots, self.capacity = slots, 0
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.memory: list[tuple[Tensor, Tensor]] | None = None

    def reserve(self, length: int) -> None:
        """Make room for rows of `length` positions."""
        if length > self.capacity:
            old, self.capacity = self.capacity, -(-length // _GROWTH) * _GROWTH
            for layer, pair in self.buffers.items():
                grown = [self._empty(part) for part in pair]
                for new, part in zip(grown, pair, strict=True):
                    new[:, :, :old] = part
                self.buffers[layer] = (grown[0], grown[1])

    def _empty(self, like: Tensor) -> Tensor:
        # Zeros, as the places behind a row's end are masked but still multiplied: NaN times zero would be NaN.
        return like.new_zeros(self.slots, like.shape[1], self.capacity, like.shape[3])

    def move(self, source: int, target: int) -> None:
        """Give row `source` the slot `target`."""
        for pair in self.buffers.values():
            for part in pair:
                part[target] = part[source]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store this pass's keys and values [1, kv_heads, tokens, head_dim] at the places the step names."""
        step = _step.get()
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = (self._empty(key_states), self._empty(value_states))
        memory = None if self.memory is None else self.memory[layer_idx]
        for which, (buffer, new) in enumerate(zip(self.buffers[layer_idx], (key_states, value_states), strict=True)):
            if memory is not None and step.new_slots is not None:
                rows = memory[which][step.new_rows].to(buffer)
                buffer[step.new_slots, :, : rows.shape[2]] = rows
            heads = torch.arange(buffer.shape[1], device=buffer.device)[:, None] * self.capacity
            slots, positions = step.slots * (buffer.shape[1] * self.capacity), step.positions
            buffer.view(-1, buffer.shape[3]).index_copy_(0, (slots + positions + heads).ravel(), new[0].flatten(0, 1))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@dataclass
class _Group:
    """Rows whose queries are padded to one width."""

    rows: Tensor | None  # [rows] their slots; None: all of them, in order
    padded: Tensor  # [rows * width] index of the packed token at each place
    visible: Tensor  # [rows, 1, 1, width, length] additive mask, 0 or -inf


@dataclass
class _Step:
    """One forward pass over packed tokens: where each token's keys go and which keys each token sees."""

    cache: _PackedCache
    slots: Tensor  # [tokens] each token's slot
    positions: Tensor  # [tokens] its place in the slot
    groups: list[_Group]
    unpadded: Tensor  # [tokens] index of each token in the groups' padded places, one group after the other
    new_slots: Tensor | None = None
    new_rows: Tensor | None = None


def _split(lengths: np.ndarray) -> list[np.ndarray]:
    """The rows in one group, or in a short and a long one where that saves a fifth of the padded work.

    A group that is not the whole batch must copy its keys, which costs about as much as two places more per row.
    """
    order = np.argsort(lengths, kind="stable")
    ascending, count = lengths[order], np.arange(len(lengths))
    cost = count * (np.concatenate([[0], ascending[:-1]]) + 2) + (len(lengths) - count) * (ascending[-1] + 2)
    best = int(cost[1:].argmin()) + 1 if len(lengths) > 1 else 0
    if not best or cost[best] >= 0.8 * len(lengths) * ascending[-1]:
        return [np.arange(len(lengths))]
    return [np.sort(order[:best]), np.sort(order[best:])]


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed queries [1, heads, tokens, head_dim] over each row's cached keys."""
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if kwargs.get(name) is not None:
            raise UnsupportedDecoderError(f"the decoder's attention uses {name}")
    step = _step.get()
    keys, values = step.cache.buffers[module.layer_idx]  # type: ignore[index]
    heads, kv_heads, size = query.shape[1], keys.shape[1], query.shape[-1]
    group_size = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    packed = (query[0] * scale).transpose(0, 1)
    outputs = []
    for group in step.groups:
        rows, _, _, width, length = group.visible.shape
        # The query heads that share a key head are queries at the same position: no key is copied for them. Two plain
        # products are twice as fast here as the fused kernel, which is made for long sequences.
        queries = packed[group.padded].view(rows, width, kv_heads, group_size, size).permute(0, 2, 3, 1, 4)
        near = [part[:rows] if group.rows is None else part[group.rows, :, :length] for part in (keys, values)]
        near = [part.flatten(0, 1)[:, :length] for part in near]
        scores = torch.bmm(queries.reshape(rows * kv_heads, group_size * width, size), near[0].transpose(1, 2))
        scores = scores.view(rows, kv_heads, group_size, width, length).add_(group.visible)
        weights = scores.softmax(dim=-1).view(rows * kv_heads, group_size * width, length)
        mixed = torch.bmm(weights, near[1]).view(rows, kv_heads, group_size, width, -1)
        outputs.append(mixed.permute(0, 3, 1, 2, 4).reshape(rows * width, heads, -1))
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[step.unpadded][None], None


AttentionInterface.register(ATTENTION_NAME, _packed_attention)


@contextlib.contextmanager
def _packed(decoder: Any) -> Iterator[None]:
    """While open, the decoder's layers use the packed attention."""
    configs = {id(module.config): module.config for module in decoder.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


# ------------------------------------------------------------------------------------------------------------- decoder


class _PackedDecoder:
    """A decoder with its cache: rows hold slots 0..n-1, and one call of :meth:`forward` serves them all."""

    def __init__(self, decoder: Any, slots: int, plain_head: bool) -> None:
        self.decoder, self.plain_head = decoder, plain_head
        self.cache = _PackedCache(slots)
        self.embeddings = decoder.get_input_embeddings()
        self.device = self.embeddings.weight.device
        self._keeps = "logits_to_keep" in inspect.signature(decoder.forward).parameters

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array, dtype=np.int64)).to(self.device)

    def forward(
        self,
        runs: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        prefixes: Mapping[int, Tensor] | None = None,
        token_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
        new: tuple[list[int], list[int]] | None = None,
    ) -> Tensor:
        """Feed the tokens `runs[slot]` at positions `starts[slot]`...; return the last hidden or logits [slots, ...].

        `prefixes` are embeddings [tokens, hidden] that stand before a slot's run, `token_bias` [tokens, hidden] is
        added to the embeddings of the runs' tokens, `hidden_bias` [slots, hidden] to the hidden states of their last
        ones; `new` are slots and rows of the cache's memory to be copied to them.
        """
        prefixes = prefixes or {}
        extra = [len(prefixes[slot]) if slot in prefixes else 0 for slot in range(len(runs))]
        lengths = np.array([len(run) + more for run, more in zip(runs, extra, strict=True)])
        tokens, first = int(lengths.sum()), np.asarray(starts)
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        slots = np.repeat(np.arange(len(runs)), lengths)
        offsets = np.arange(tokens) - begins[slots]
        positions = first[slots] + offsets
        self.cache.reserve(int(positions.max()) + 1)
        groups, places, taken = _split(lengths), np.zeros(len(runs), dtype=np.int64), 0
        for rows in groups:
            width = int(lengths[rows].max())
            places[rows] = taken + np.arange(len(rows)) * width
            taken += len(rows) * width
        step = _Step(
            cache=self.cache,
            slots=self.tensor(slots),
            positions=self.tensor(positions),
            groups=[self._group(rows, begins, lengths, first) for rows in groups],
            unpadded=self.tensor(places[slots] + offsets),
            new_slots=self.tensor(new[0]) if new else None,
            new_rows=self.tensor(new[1]) if new else None,
        )
        embeds = self.embeddings(self.tensor([token for run in runs for token in run]))
        if token_bias is not None:
            embeds = embeds + token_bias.to(embeds)
        if prefixes:
            pieces, at = [], 0
            for slot, run in enumerate(runs):
                pieces += [prefixes[slot].to(embeds)] if slot in prefixes else []
                pieces.append(embeds[at : at + len(run)])
                at += len(run)
            embeds = torch.cat(pieces)
        last = self.tensor(begins + lengths - 1)
        arguments: dict[str, Any] = {
            "inputs_embeds": embeds[None],
            "position_ids": self.tensor(positions)[None],
            "past_key_values": self.cache,
            "use_cache": True,
        }
        token = _step.set(step)
        try:
            if self.plain_head:
                hidden = self.decoder.base_model(**arguments).last_hidden_state[0, last]
                return hidden if hidden_bias is None else hidden + hidden_bias.to(hidden)
            if self._keeps:
                with self._biased_head(hidden_bias):
                    return self.decoder(**arguments, logits_to_keep=last).logits[0]
            with self._biased_head(hidden_bias, last):
                return self.decoder(**arguments).logits[0, last]
        finally:
            _step.reset(token)

    @contextlib.contextmanager
    def _biased_head(self, bias: Tensor | None, at: Tensor | None = None) -> Iterator[None]:
        """While open, the head's inputs (those `at` these places alone) have `bias` [slots, hidden] added."""
        if bias is None:
            yield
            return

        def add(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            added = bias.to(args[0])[None]
            return (args[0] + added if at is None else args[0].index_add(1, at, added),)

        handle = self.decoder.get_output_embeddings().register_forward_pre_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def _group(self, rows: np.ndarray, begins: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> _Group:
        # A padded query repeats its row's last token, so it sees something; its result is not read.
        within = np.minimum(np.arange(int(lengths[rows].max())), lengths[rows, None] - 1)  # [rows, width]
        last_seen = first[rows, None] + within
        hidden = np.arange(int(last_seen.max()) + 1) > last_seen[:, None, None, :, None]
        visible = torch.zeros(hidden.shape, dtype=self.embeddings.weight.dtype)
        return _Group(
            rows=None if len(rows) == len(lengths) else self.tensor(rows),
            padded=self.tensor((begins[rows, None] + within).ravel()),
            visible=visible.masked_fill_(torch.from_numpy(hidden), -math.inf).to(self.device),
        )

    def logits(self, output: Tensor, choices: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray | None]:
        """Logits [rows, columns] and the token ids of the columns (None: the whole vocabulary)."""
        if not self.plain_head:
            return output, None
        head = self.decoder.get_output_embeddings()
        if all(allowed.dtype != np.bool_ for allowed in choices):
            columns = np.unique(np.concatenate(choices))
            if len(columns) * 4 < head.weight.shape[0]:
                index = self.tensor(columns)
                bias = None if head.bias is None else head.bias[index]
                return nn.functional.linear(output, head.weight[index], bias), columns
        return head(output), None


def supports(decoder: Any) -> bool:
    """Whether `decoder` gives the same logits when run packed; tried once per decoder on a few tokens."""
    return _probe(decoder)[0]


@torch.inference_mode()
def _probe(decoder: Any) -> tuple[bool, bool]:
    """(runs packed, output layer is one plain linear map)."""
    if decoder in _probed:
        return _probed[decoder]
    weight = decoder.get_input_embeddings().weight
    rng = np.random.default_rng(0)
    texts = [rng.integers(weight.shape[0], size=length).tolist() for length in (7, 4)]
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2

    def close(found: Tensor, expected: Tensor) -> bool:
        return bool((found.float() - expected.float()).norm() <= tolerance * expected.float().norm())

    whole = [decoder(input_ids=torch.as_tensor(text)[None].to(weight.device)) for text in texts]
    expected = torch.stack([output.logits[0, -1] for output in whole])
    runs, plain = True, False
    try:
        packed = _PackedDecoder(decoder, 2, plain_head=False)
        with _packed(decoder):
            packed.forward([texts[0][:5], texts[1][:1]], [0, 0])
            runs = close(packed.forward([texts[0][5:], texts[1][1:]], [5, 1]), expected)
    except Exception:  # whatever breaks here, the decoder is not one that can be run packed
        runs = False
    head = decoder.get_output_embeddings()
    if runs and isinstance(head, nn.Linear) and decoder.base_model is not decoder:
        packed = _PackedDecoder(decoder, 2, plain_head=True)
        with _packed(decoder):
            hidden = packed.forward(texts, [0, 0])
        plain = hidden.shape[-1] == head.weight.shape[1] and close(head(hidden), expected)
    _probed[decoder] = (runs, plain)
    return runs, plain


# ---------------------------------------------------------------------------------------------------------------- loop


@dataclass
class _Row:
    index: int
    state: Any
    tokens: list[int]
    run: list[int]
    position: int
    column: int = 0  # of the last token fed
    since: int = -1  # tokens from that column's first to the last fed

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


@torch.inference_mode()
def decode_rows(
    decoder: Any,
    injection: Any,
    constraint: Any,
    row_randoms: Sequence[Any],
    *,
    choose: Callable[..., list[int]],
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
        A causal LM in eval mode; it is left as it was.
    injection : Injection
        What the rows are conditioned on: `prefix_embeds` [rows, tokens, hidden], `past_key_values` (a key and a value
        [rows, kv_heads, tokens, head_dim] per layer), `token_bias` [rows, columns, hidden] with `separator_ids`,
        `draft` [rows, places, size] with `draft_module`.
    constraint : RecordConstraint
        The compiled schema.
    row_randoms : sequence of RowRandom
        One per row.
    choose : callable
        `choose_tokens` of token_sampling.py.
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
    runs_packed, plain_head = _probe(decoder)
    if not runs_packed:
        raise UnsupportedDecoderError(
            f"{type(decoder).__name__} cannot be run packed: sample with fast=False (its own generate)."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    given = list(given_texts) if given_texts is not None else [None] * len(row_randoms)
    prefix, bias = injection.prefix_embeds, injection.token_bias
    offset = injection.length
    separators = frozenset([] if injection.separator_ids is None else injection.separator_ids.tolist())
    packed = _PackedDecoder(decoder, min(batch_size, max(1, len(row_randoms))), plain_head)
    packed.cache.memory = injection.past_key_values
    results: list[list[int]] = [[] for _ in row_randoms]
    waiting = deque(range(len(row_randoms)))
    active: list[_Row] = []

    def take(row: _Row, tokens: list[int]) -> bool:
        """Append `tokens` to the row; whether another choice follows."""
        row.tokens += tokens
        row.run = tokens
        return not row.state.done and len(row.tokens) < max_new_tokens

    with _packed(decoder):
        while waiting or active:
            finished = 0
            slots: list[int] = []
            # In bulk, so that rows stay in step: their passes are then about equally long.
            refill = len(active) <= packed.cache.slots // 2
            while refill and waiting and len(active) < packed.cache.slots:
                index = waiting.popleft()
                row = _Row(index, constraint.start(given[index], constrained=constrained), [], [], 0)
                going = take(row, row.state.forced())
                row.run = [constraint.bos_token_id, *row.run]
                # Memory tokens take positions without being fed; a soft prompt is fed in the row's first pass.
                row.position = offset if prefix is None else 0
                if going:
                    slots.append(len(active))
                    active.append(row)
                else:
                    results[index] = row.tokens[:max_new_tokens]
                    finished += 1
            if active:
                token_bias = hidden_bias = None
                if bias is not None or injection.draft_module is not None:
                    columns = packed.tensor([column for row in active for column in row.columns(separators)])
                if bias is not None:  # of these tokens alone: all columns of all rows would be copied at every pass
                    of_rows = packed.tensor([row.index for row in active for _ in row.run])
                    token_bias = bias[of_rows, columns.clamp(max=bias.shape[1] - 1)]
                if injection.draft_module is not None:
                    of_rows, at, since = packed.tensor([(row.index, row.column, row.since) for row in active]).T
                    hidden_bias = injection.hidden_bias(at, since, of_rows)
                output = packed.forward(
                    [row.run for row in active],
                    [row.position for row in active],
                    prefixes=None if prefix is None else {slot: prefix[active[slot].index] for slot in slots},
                    token_bias=token_bias,
                    hidden_bias=hidden_bias,
                    new=(slots, [active[slot].index for slot in slots]) if slots else None,
                )
                for slot, row in enumerate(active):
                    row.position += len(row.run) + (offset if prefix is not None and slot in slots else 0)
                choices = [row.state.choices() for row in active]
                logits, kept = packed.logits(output, choices)
                drawn = choose(
                    logits,
                    choices,
                    [row_randoms[row.index] for row in active],
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    columns=kept,
                )
                going_on = []
                for row, token in zip(active, drawn, strict=True):
                    row.state.advance(token)
                    going_on.append(take(row, [token, *row.state.forced()]))
                for slot in reversed(range(len(active))):
                    if not going_on[slot]:
                        row = active[slot]
                        results[row.index] = row.tokens[:max_new_tokens]
                        finished += 1
                        if slot < len(active) - 1:  # the last row takes the free slot
                            packed.cache.move(len(active) - 1, slot)
                            active[slot] = active[-1]
                        active.pop()
            if finished and on_rows_done is not None:
                on_rows_done(finished)
    return results
