"""Digests of the training records, by which exact copies among the samples are known.

Whoever holds them can test whether a record that he guesses was in the training data. So they lie in a file of their
own beside the weights, which is read only when copies are to be excluded, and is published only if asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .checkpoint_safety import read_json, write_json
from .errors import ArgumentError, DamagedPipelineError


DIGESTS_FILE = "training_digests.safetensors"
DIGEST_BYTES = 16
# In the file, and in the denoiser's weights of layout 1.
TENSOR = "record_digests"


def record_digest(text: str) -> bytes:
    """128-bit digest of a serialised record.

    Keyed, so that it matches no digest made for another purpose; it hides no secret: who holds the file can test
    whether a guessed record was in the training data.
    """
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES, key=b"difflm record v1").digest()


def write_digests(folder: Path, digests: Iterable[bytes]) -> None:
    """Write the digests into a saved pipeline's folder; sorted: their order is not that of the records."""
    rows = sorted(set(digests))
    tensor = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)
    save_file({TENSOR: tensor}, folder / DIGESTS_FILE)


def read_digests(folder: Path) -> frozenset[bytes] | None:
    """The digests in a saved pipeline's folder, of whatever layout; None if it holds none.

    Raises
    ------
    DamagedPipelineError
        If the file cannot be read.
    """
    path = folder / DIGESTS_FILE
    for candidate in [path] if path.is_file() else sorted((folder / "denoiser").glob("*.safetensors")):
        try:
            with safe_open(candidate, "pt") as stream:
                if TENSOR not in stream.keys():  # noqa: SIM118 - not a mapping
                    continue
                rows = stream.get_tensor(TENSOR)
        except SafetensorError as error:
            raise DamagedPipelineError(f"{candidate} cannot be read ({error}): copy the pipeline anew.") from error
        if rows.dtype != torch.uint8 or rows.ndim != 2 or rows.shape[1] != DIGEST_BYTES:
            raise DamagedPipelineError(f"{candidate} holds no digests: copy the pipeline anew.")
        return frozenset(bytes(row) for row in rows.numpy()) or None
    return None


def strip_digests(folder: Path) -> None:
    """Take the digests out of a saved denoiser of layout 1: its weights and its configuration."""
    denoiser = folder / "denoiser"
    for path in sorted(denoiser.glob("*.safetensors")):
        weights = load_file(path)
        if weights.pop(TENSOR, None) is not None:
            save_file(weights, path, metadata={"format": "pt"})
    for path in sorted(denoiser.glob("*.index.json")):
        table = read_json(path)
        table.get("weight_map", {}).pop(TENSOR, None)
        write_json(path, table)
    config = read_json(denoiser / "config.json")
    if config.pop("num_record_digests", None) is not None:
        write_json(denoiser / "config.json", config)


class TrainingDigestsMixin:
    """What a [`DiffLMPipeline`] knows of its training records: nothing until it is asked."""

    _digests: frozenset[bytes] | None
    _digests_folder: Path | None

    def set_training_digests(self, digests: Iterable[bytes] | Any) -> None:
        """Remember the digests of the training records (see [`record_digest`]), to be saved with the pipeline."""
        self._digests, self._digests_folder = frozenset(digests) or None, None

    def _find_digests(self) -> frozenset[bytes] | None:
        if self._digests is None and self._digests_folder is not None:
            self._digests, self._digests_folder = read_digests(self._digests_folder), None
        return self._digests

    def training_digests(self) -> frozenset[bytes]:
        """The digests of the training records, read on first use.

        Raises
        ------
        ArgumentError
            If there are none.
        """
        found = self._find_digests()
        if found is None:
            raise ArgumentError(
                f"This pipeline has no digests of its training records ({DIGESTS_FILE}): a published one has "
                "none unless it was pushed with digests. Sample from the fitted folder, or fit again."
            )
        return found
