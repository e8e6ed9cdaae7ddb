"""Running a causal LM on many rows packed into one sequence, each with its own keys and values.

The tokens of all rows stand in one sequence without padding: the linear layers, which are nearly all of the work, see
real tokens only, and an attention of our own reads each row's keys and values from a preallocated cache. The output
layer is evaluated for the allowed tokens only, where they are few.

All state belongs to the decoder at hand: while it is packed, its modules hold the attention and a configuration that
names it. Two decoders, or two copies of this file, know nothing of each other. A decoder serves one thread at a time:
hold its lock (`DiffLMModel.decoder_lock`). One whose attention cannot be exchanged is refused (:func:`supports`).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from .errors import DiffLMError
from .packed_linear import fast_linears, linear


#: What transformers knows our attention by. The function behind it has no state and is the same in every copy of this
#: file: whichever was registered last serves all.
ATTENTION_NAME = "difflm_by_module"
#: Cache positions are added in steps of this many.
_GROWTH = 64
#: Rows see a multiple of so many positions, the last ones masked, and have a query more than one: sums are then taken
#: in the same order whatever rows and queries stand beside them.
_LANES, _LEAST_WIDTH = 16, 2
_probed: WeakKeyDictionary[nn.Module, tuple[bool, bool]] = WeakKeyDictionary()


class UnsupportedDecoderError(DiffLMError, ValueError):
    """The decoder cannot be run packed; sample through its own `generate` instead."""


def _attend_by_module(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return module.difflm_attention(module, *args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attend_by_module)


# --------------------------------------------------------------------------------------------------------------- cache


@dataclass
class _Group:
    """Rows whose queries are padded to one width."""

    rows: Tensor | None  # [rows] their slots; None: all of them, in order
    padded: Tensor  # [rows * width] index of the packed token at each place
    visible: Tensor  # [rows, 1, 1, width, length] additive mask, 0 or -inf


@dataclass
class _Step:
    """One forward pass over packed tokens: where each token's keys go and which keys each token sees."""

    slots: Tensor  # [tokens] each token's slot
    positions: Tensor  # [tokens] its place in the slot
    groups: list[_Group]
    unpadded: Tensor  # [tokens] index of each token in the groups' padded places, one group after the other
    new_slots: Tensor | None = None
    new_rows: Tensor | None = None


class PackedCache(Cache):
    """Keys and values of the rows of a batch, per layer [slots, kv_heads, capacity, head_dim], written in place."""

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots, self.capacity = slots, 0
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.memory: list[tuple[Tensor, Tensor]] | None = None
        self.step: _Step

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
        step = self.step
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

    def attend(
        self,
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
        step = self.step
        keys, values = self.buffers[module.layer_idx]  # type: ignore[index]
        heads, kv_heads, size = query.shape[1], keys.shape[1], query.shape[-1]
        group_size = heads // kv_heads
        scale = size**-0.5 if scaling is None else scaling
        packed = (query[0] * scale).transpose(0, 1)
        outputs = []
        for group in step.groups:
            rows, _, _, width, length = group.visible.shape
            # The query heads that share a key head are queries at the same position: no key is copied for them. Two
            # plain products are faster here than the fused kernel, which is made for long sequences.
            queries = packed[group.padded].view(rows, width, kv_heads, group_size, size).permute(0, 2, 3, 1, 4)
            near = [part[:rows] if group.rows is None else part[group.rows, :, :length] for part in (keys, values)]
            near = [part.flatten(0, 1)[:, :length] for part in near]
            scores = torch.bmm(queries.reshape(rows * kv_heads, group_size * width, size), near[0].transpose(1, 2))
            scores = scores.view(rows, kv_heads, group_size, width, length).add_(group.visible)
            weights = scores.softmax(dim=-1).view(rows * kv_heads, group_size * width, length)
            mixed = torch.bmm(weights, near[1]).view(rows, kv_heads, group_size, width, -1)
            outputs.append(mixed.permute(0, 3, 1, 2, 4).reshape(rows * width, heads, -1))
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[step.unpadded][None], None


def _width(lengths: np.ndarray) -> int:
    return max(_LEAST_WIDTH, int(lengths.max()))


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


# ------------------------------------------------------------------------------------------------------------- decoder


class PackedDecoder:
    """A decoder with its cache: rows hold slots 0..n-1, and one call of :meth:`forward` serves them all.

    Made by :func:`packed`.
    """

    def __init__(self, decoder: Any, slots: int, plain_head: bool) -> None:
        self.decoder, self.plain_head = decoder, plain_head
        self.cache = PackedCache(slots)
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
        wanted: Sequence[Sequence[int]] | None = None,
        prefixes: Mapping[int, Tensor] | None = None,
        token_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
        new: tuple[list[int], list[int]] | None = None,
    ) -> Tensor:
        """Feed the tokens `runs[slot]` at positions `starts[slot]`...; return hidden states or logits [wanted, ...].

        `wanted` names the tokens of each run whose output is returned, slot after slot (default: each run's last).
        `prefixes` are embeddings [tokens, hidden] that stand before a slot's run, `token_bias` [tokens, hidden] is
        added to the embeddings of the runs' tokens, `hidden_bias` [wanted, hidden] to the hidden states wanted; `new`
        are slots and rows of the cache's memory to be copied to them.
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
            width = _width(lengths[rows])
            places[rows] = taken + np.arange(len(rows)) * width
            taken += len(rows) * width
        self.cache.step = _Step(
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
            pieces, done = [], 0
            for slot, run in enumerate(runs):
                pieces += [prefixes[slot].to(embeds)] if slot in prefixes else []
                pieces.append(embeds[done : done + len(run)])
                done += len(run)
            embeds = torch.cat(pieces)
        if wanted is None:
            at = self.tensor(begins + lengths - 1)
        else:
            of_run = zip(begins, extra, wanted, strict=True)
            at = self.tensor([begin + more + place for begin, more, places in of_run for place in places])
        arguments: dict[str, Any] = {
            "inputs_embeds": embeds[None],
            "position_ids": self.tensor(positions)[None],
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.plain_head:
            hidden = self.decoder.base_model(**arguments).last_hidden_state[0, at]
            return hidden if hidden_bias is None else hidden + hidden_bias.to(hidden)
        if self._keeps:
            with self._biased_head(hidden_bias):
                return self.decoder(**arguments, logits_to_keep=at).logits[0]
        with self._biased_head(hidden_bias, at):
            return self.decoder(**arguments).logits[0, at]

    @contextlib.contextmanager
    def _biased_head(self, bias: Tensor | None, at: Tensor | None = None) -> Iterator[None]:
        """While open, the head's inputs (those `at` these places alone) have `bias` [wanted, hidden] added."""
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
        within = np.minimum(np.arange(_width(lengths[rows])), lengths[rows, None] - 1)  # [rows, width]
        last_seen = first[rows, None] + within
        length = -(-(int(last_seen.max()) + 1) // _LANES) * _LANES
        hidden = np.arange(length) > last_seen[:, None, None, :, None]
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
                return linear(output, head.weight[index], bias), columns
        return head(output), None


@contextlib.contextmanager
def packed(decoder: Any, slots: int, plain_head: bool = False) -> Iterator[PackedDecoder]:
    """While open, the decoder's layers use the packed attention; afterwards it is as it was.

    Parameters
    ----------
    decoder : PreTrainedModel
        A causal LM in eval mode; no other thread may use it meanwhile.
    slots : int
        Most rows at a time.
    plain_head : bool, defaults to False
        Whether its output layer may be evaluated on its own (see :func:`probe`).

    Raises
    ------
    RuntimeError
        If the decoder is packed already.
    """
    inside = PackedDecoder(decoder, slots, plain_head)
    before = [(module, module.config) for module in decoder.modules() if "config" in vars(module)]
    if any("difflm_attention" in vars(module) for module, _ in before):
        raise RuntimeError("this decoder is decoding already: hold its lock (DiffLMModel.decoder_lock).")
    copies: dict[int, Any] = {}  # modules that share a configuration share its copy; other models keep the original
    try:
        for module, config in before:
            module.config = copy.deepcopy(config, copies)
            module.config._attn_implementation = ATTENTION_NAME
            module.difflm_attention = inside.cache.attend
        with fast_linears(decoder):
            yield inside
    finally:
        for module, config in before:
            module.config = config
            vars(module).pop("difflm_attention", None)


def supports(decoder: Any) -> bool:
    """Whether `decoder` gives the same logits when run packed; tried once per decoder on a few tokens."""
    return probe(decoder)[0]


@torch.inference_mode()
def probe(decoder: Any) -> tuple[bool, bool]:
    """(runs packed, output layer is one plain linear map); the decoder's lock is held by the caller."""
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
        with packed(decoder, 2) as inside:
            inside.forward([texts[0][:5], texts[1][:1]], [0, 0])
            runs = close(inside.forward([texts[0][5:], texts[1][1:]], [5, 1]), expected)
    except Exception:  # whatever breaks here, the decoder is not one that can be run packed
        runs = False
    head = decoder.get_output_embeddings()
    if runs and isinstance(head, nn.Linear) and decoder.base_model is not decoder:
        with packed(decoder, 2, plain_head=True) as inside:
            hidden = inside.forward(texts, [0, 0])
        plain = hidden.shape[-1] == head.weight.shape[1] and close(head(hidden), expected)
    _probed[decoder] = (runs, plain)
    return runs, plain
