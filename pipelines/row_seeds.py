"""Random numbers of many rows at once: those of each row are a function of (seed, row, attempt, stream) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch


if TYPE_CHECKING:
    from .token_sampling import RowRandom


# Streams of a row, as `RowRandom` has them: 1 is the tokens', 2 the class labels'.
_LATENT, _DRAFT = 0, 3
# numpy's SeedSequence (numpy/random/bit_generator.pyx): its pool, and the constants of its hash.
_POOL = 4
_INIT_A, _MULT_A, _INIT_B, _MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT, _WORD = np.uint32(16), 2**32
# SplitMix64 (Steele, Lea and Flood 2014).
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def row_seeds(seed: int, rows: Sequence[int], attempts: Sequence[int], stream: int) -> np.ndarray:
    """What ``SeedSequence(seed, spawn_key=(row, attempt, stream)).generate_state(1, uint64)`` gives for each row.

    Parameters
    ----------
    seed : int
        Of any size and sign; its lowest 64 bits count.
    rows, attempts : sequence of int
        Of at least 0.
    stream : int
        What the numbers are for, from 0 to 2**32 - 1.

    Returns
    -------
    uint64 array [rows]
    """
    if any(row >= _WORD for row in rows) or any(attempt >= _WORD for attempt in attempts):
        sequences = [
            np.random.SeedSequence(seed % 2**64, spawn_key=(row, attempt, stream))
            for row, attempt in zip(rows, attempts, strict=True)
        ]
        return np.array([sequence.generate_state(1, np.uint64)[0] for sequence in sequences], dtype=np.uint64)
    low, high = seed % 2**64 % _WORD, seed % 2**64 // _WORD
    of_seed = [np.full(len(rows), word, dtype=np.uint32) for word in (low, high, 0, 0)]
    of_row = [np.array(words, dtype=np.uint32) for words in (rows, attempts)]
    pool = _mixed([*of_seed, *of_row, np.full(len(rows), stream, dtype=np.uint32)])
    words, constant = [], _INIT_B
    for value in pool[:2]:
        value = value ^ np.uint32(constant)
        constant = constant * _MULT_B % _WORD
        value *= np.uint32(constant)
        words.append((value ^ value >> _SHIFT).astype(np.uint64))
    return words[0] | words[1] << np.uint64(32)


def _mixed(entropy: list[np.ndarray]) -> list[np.ndarray]:
    """The pool that the words, each [rows], make."""
    constant = _INIT_A

    def hashed(value: np.ndarray) -> np.ndarray:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * _MULT_A % _WORD
        value *= np.uint32(constant)
        return value ^ value >> _SHIFT

    def mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        value: np.ndarray = x * _MIX_LEFT - y * _MIX_RIGHT
        return value ^ value >> _SHIFT

    pool = [hashed(word) for word in entropy[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        for target in range(_POOL):
            pool[target] = mixed(pool[target], hashed(word))
    return pool


def row_uniforms(seed: int, rows: Sequence[int], attempts: Sequence[int], stream: int, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each row, float64 [rows, count]; parameters as in [`row_seeds`].

    The first numbers of a row are the same whatever the ``count``.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        values = row_seeds(seed, rows, attempts, stream)[:, None] + steps
        values = (values ^ values >> np.uint64(30)) * _MIX_1
        values = (values ^ values >> np.uint64(27)) * _MIX_2
        values ^= values >> np.uint64(31)
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def latent_generators(randoms: Sequence[RowRandom]) -> list[torch.Generator]:
    """``random.latent_generator()`` of each row of a run, sooner."""
    return [torch.Generator("cpu").manual_seed(int(start) >> 1) for start in row_seeds(*_rows(randoms), _LATENT)]


def draft_uniforms(randoms: Sequence[RowRandom], count: int) -> torch.Tensor:
    """What a draft writes the rows of a run by, float64 in [0, 1), ``[rows, count]``."""
    return torch.from_numpy(row_uniforms(*_rows(randoms), _DRAFT, count))


def _rows(randoms: Sequence[RowRandom]) -> tuple[int, list[int], list[int]]:
    seed = randoms[0].seed if randoms else 0
    return seed, [random.row for random in randoms], [random.attempt for random in randoms]
