"""Randomness that depends on a seed, a purpose and a step alone: no generator's state has to be stored or shared."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """Return a seed, 63 bits, that depends on the arguments only."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that depends on its arguments only: resuming needs no stored generator state."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, index))
