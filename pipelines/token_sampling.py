"""Drawing tokens: randomness that belongs to a row, so that batches, processes and decoding paths change nothing.

The reference path is transformers' `generate` with :class:`RecordLogitsProcessor`; a faster loop may use
:func:`choose_tokens` itself. A *constraint* here is anything with `eos_token_id` and `start(given_texts,
constrained=) -> state`, whose states have `forced()`, `choices()`, `advance(token)` and `done`: record_grammar.py's.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from .errors import DiffLMError


class SamplingError(DiffLMError, ValueError):
    """Tokens cannot be drawn: the message names the argument and the remedy."""


class RowRandom:
    """The random numbers of one row, a function of (seed, row, attempt) alone.

    Parameters
    ----------
    seed : int
        The run's seed; negative seeds are allowed.
    row : int
        Index of the row in the whole run, not in its batch.
    attempt : int, defaults to 0
        Counts how often the row was drawn anew after a rejection.

    Raises
    ------
    SamplingError
        If the seed is not an integer, or row or attempt is not an integer of at least zero.
    """

    def __init__(self, seed: int, row: int, attempt: int = 0) -> None:
        numbers = []
        for name, value in (("seed", seed), ("row", row), ("attempt", attempt)):
            try:
                numbers.append(operator.index(value))
            except TypeError:
                raise SamplingError(f"{name} must be an integer, not {value!r}.") from None
            if isinstance(value, bool) or (numbers[-1] < 0 and name != "seed"):
                raise SamplingError(f"{name} must be an integer of at least zero, not {value!r}.")
        self.seed, self.row, self.attempt = numbers
        self._ahead: deque[float] = deque()

    @cached_property
    def _tokens(self) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self._sequence(1)))

    def _sequence(self, stream: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed % 2**64, spawn_key=(self.row, self.attempt, stream))

    def latent_generator(self) -> torch.Generator:
        """A new CPU generator for the row's latent, in the same state at every call."""
        return self._generator(0)

    def label_generator(self) -> torch.Generator:
        """The same for the row's class labels, so that drawing one does not shift the latent's noise."""
        return self._generator(2)

    def _generator(self, stream: int) -> torch.Generator:
        state = self._sequence(stream).generate_state(1, np.uint64)[0]
        return torch.Generator("cpu").manual_seed(int(state) >> 1)

    def uniform(self) -> float:
        """The next number of the row's token stream, float64 in [0, 1)."""
        return self._ahead.popleft() if self._ahead else float(self._tokens.random())

    def look_ahead(self, place: int) -> float:
        """The number that comes after `place` others, all of which stay to be drawn."""
        while len(self._ahead) <= place:
            self._ahead.append(float(self._tokens.random()))
        return self._ahead[place]


def choose_tokens(
    logits: Tensor,
    choices: Sequence[np.ndarray],
    uniforms: Sequence[float],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    columns: np.ndarray | None = None,
) -> list[int]:
    """Draw one token per row from the model's distribution renormalised over the row's allowed tokens.

    A row's token is the inverse of its cumulative distribution, in vocabulary order, at a uniform number of its own,
    so it does not depend on the rows beside it.

    Parameters
    ----------
    logits : Tensor [rows, vocab_size] or [rows, len(columns)]
        The model's logits.
    choices : sequence of arrays
        Per row, what a state's `choices()` gives.
    uniforms : sequence of float
        Per row, a number in [0, 1).
    temperature : float, defaults to 1.0
        Divides the logits; 0 takes the most probable allowed token.
    top_k : int, optional
        Keep the k most probable allowed tokens (and their equals); None or 0 keeps all.
    top_p : float, optional
        Keep the smallest set of most probable allowed tokens with at least this probability; None or 1 keeps all.
    columns : int array [columns], optional
        Token ids, ascending, to which the columns of `logits` belong; they must hold every allowed token.

    Raises
    ------
    SamplingError
        If the logits of the allowed tokens are not finite.
    """
    check_sampling_options(temperature, top_k, top_p)
    numbers = torch.tensor(uniforms, dtype=torch.float64)
    chosen = [0] * len(choices)
    sparse = [row for row, allowed in enumerate(choices) if allowed.dtype != np.bool_]
    dense = [row for row, allowed in enumerate(choices) if allowed.dtype == np.bool_]
    if sparse:
        width = max(len(choices[row]) for row in sparse)
        index = np.zeros((len(sparse), width), dtype=np.int64)
        lengths = np.array([len(choices[row]) for row in sparse])
        for place, row in enumerate(sparse):
            allowed = choices[row]
            index[place, : len(allowed)] = allowed if columns is None else np.searchsorted(columns, allowed)
        rows = torch.tensor(sparse, device=logits.device)
        values = logits[rows[:, None], torch.from_numpy(index).to(logits.device)].float().cpu()
        values.masked_fill_(torch.from_numpy(np.arange(width)[None, :] >= lengths[:, None]), -math.inf)
        for row, place in zip(sparse, _draw(values, numbers[sparse], temperature, top_k, top_p), strict=True):
            chosen[row] = int(choices[row][place])
    for begin in range(0, len(dense), 64):  # bounds the memory of the full-vocabulary copies
        part = dense[begin : begin + 64]
        mask = torch.from_numpy(np.stack([choices[row] for row in part])).to(logits.device)
        rows = torch.tensor(part, device=logits.device)
        values = logits[rows].float().masked_fill_(~mask, -math.inf)
        for row, token in zip(part, _draw(values, numbers[part], temperature, top_k, top_p), strict=True):
            chosen[row] = int(token)
    return chosen


def _draw(values: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> list[int]:
    """Inverse-CDF draws, one per row of the logits `values` [rows, tokens] (-inf: not allowed)."""
    largest = values.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise SamplingError("the decoder gave logits that are not finite numbers: check its weights and dtype.")
    if temperature == 0:
        return values.argmax(dim=-1).tolist()
    values = (values - largest) / temperature
    if top_k:
        values = values.masked_fill(values < values.topk(min(int(top_k), values.shape[-1])).values[:, -1:], -math.inf)
    weights = values.exp()
    if top_p is not None and top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ordered.double().cumsum(dim=-1) - ordered
        dropped = before >= top_p * ordered.double().sum(dim=-1, keepdim=True)
        weights = weights.scatter(-1, order, ordered.masked_fill(dropped, 0.0))
    # Two levels, blocks and then tokens: a float64 cumulative sum over a whole vocabulary would cost far more.
    size = min(256, weights.shape[-1])
    weights = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % size)).unflatten(-1, (-1, size))
    totals = weights.sum(dim=-1).double().cpu().cumsum(dim=-1)
    target = uniforms[:, None] * totals[:, -1:]
    block = _first_above(totals, target)
    inner = weights[torch.arange(len(block), device=weights.device), block.to(weights.device)].double().cpu()
    target = target[:, 0] - torch.nn.functional.pad(totals, (1, 0)).gather(-1, block[:, None])[:, 0]
    return (block * size + _first_above(inner.cumsum(dim=-1), target[:, None])).tolist()


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index of the first entry above `target`; where rounding leaves none, of the last one that adds weight."""
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum((cumulative <= target).sum(dim=-1), last)


def check_sampling_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise a :class:`SamplingError` for options outside their range."""
    if not (_is_number(temperature, numbers.Real) and 0 <= temperature < math.inf):
        raise SamplingError(f"temperature must be a number of at least 0, not {temperature!r}.")
    if top_k is not None and not (_is_number(top_k, numbers.Integral) and top_k >= 0):
        raise SamplingError(f"top_k must be None or an integer of at least 0, not {top_k!r}.")
    if top_p is not None and not (_is_number(top_p, numbers.Real) and 0 < top_p <= 1):
        raise SamplingError(f"top_p must be None or a number in (0, 1], not {top_p!r}.")


def _is_number(value: Any, kind: type) -> bool:
    """Of this kind, numpy's types included, but no boolean."""
    return isinstance(value, kind) and not isinstance(value, (bool, np.bool_))


class RecordLogitsProcessor(LogitsProcessor):
    """The reference path: lets `generate(do_sample=False, num_beams=1)` write valid records with per-row randomness.

    It chooses every row's token itself and leaves only that one, so `generate` needs no sampling of its own, and
    finished rows get EOS. Use one instance per call of `generate`, with no other processor behind it.

    Parameters
    ----------
    constraint : RecordConstraint
        The compiled schema.
    row_randoms : sequence of RowRandom
        One per row of the batch.
    temperature, top_k, top_p
        See :func:`choose_tokens`.
    constrained : bool, defaults to True
        Without constraint every token is allowed, and the randomness still belongs to the row.
    given_texts : sequence of mappings, optional
        Per row the texts of its known cells by column name.
    """

    def __init__(
        self,
        constraint: Any,
        row_randoms: Sequence[RowRandom],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        constrained: bool = True,
        given_texts: Sequence[Mapping[str, str] | None] | None = None,
    ) -> None:
        check_sampling_options(temperature, top_k, top_p)
        self._constraint, self._row_randoms = constraint, list(row_randoms)
        self._options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        given = list(given_texts) if given_texts is not None else [None] * len(self._row_randoms)
        self._states = [constraint.start(cells, constrained=constrained) for cells in given]
        self._queues: list[Iterator[int]] = [iter(state.forced()) for state in self._states]
        self._length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Scores [rows, vocab_size] that are 0 at the chosen token and -inf elsewhere."""
        if len(scores) != len(self._states):
            raise SamplingError(f"{len(scores)} rows are generated, but random numbers for {len(self._states)} given.")
        if self._length is not None and input_ids.shape[1] != self._length + 1:
            raise SamplingError("a RecordLogitsProcessor serves one call of generate: make a new one.")
        self._length = input_ids.shape[1]
        tokens = [next(queue, None) for queue in self._queues]
        rows = [row for row, token in enumerate(tokens) if token is None and not self._states[row].done]
        if rows:
            drawn = choose_tokens(
                scores[torch.tensor(rows, device=scores.device)],
                [self._states[row].choices() for row in rows],
                [self._row_randoms[row].uniform() for row in rows],
                **self._options,
            )
            for row, token in zip(rows, drawn, strict=True):
                tokens[row] = token
                self._states[row].advance(token)
                self._queues[row] = iter(self._states[row].forced())
        kept = [self._constraint.eos_token_id if token is None else token for token in tokens]
        left = torch.full_like(scores, -math.inf)
        return left.scatter_(1, torch.tensor(kept, device=scores.device)[:, None], 0.0)
