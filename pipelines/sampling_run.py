"""One call of the pipeline: which rows are still to be written, what becomes of each text, and the account of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .conditions import ColumnCondition
from .errors import RecordParseError
from .outputs import DiffLMPipelineOutput, SamplingReport
from .record_schema import RecordSchema
from .token_sampling import RowRandom


@dataclass(frozen=True)
class RecordJudge:
    """Reads texts as records and says which are kept.

    Attributes
    ----------
    schema : RecordSchema
    conditions : mapping
        Column to what must hold in it.
    checks : mapping
        Name to a callable on a record that returns whether to keep it.
    is_copy : callable, optional
        On a text: whether it is one of the training records', which are to be left out.
    """

    schema: RecordSchema
    conditions: Mapping[str, ColumnCondition]
    checks: Mapping[str, Callable[[dict[str, Any]], bool]]
    is_copy: Callable[[str], bool] | None = None

    def __call__(self, text: str) -> tuple[dict[str, Any], str | None]:
        """The record, and why it is rejected: None if it is kept."""
        try:
            record = self.schema.parse(text)
        except RecordParseError as error:
            return {}, f"invalid: {error.column or 'record'}: {error.reason}"
        if any(not condition.holds(record[name]) for name, condition in self.conditions.items()):
            return record, "condition"
        for name, check in self.checks.items():
            if not check(record):
                return record, f"accept: {name}"
        if self.is_copy is not None and self.is_copy(text):
            return record, "training copy"
        return record, None


@dataclass
class SamplingRun:
    """The rows of a call: each is written until it is kept or has had ``max_attempts``.

    Attributes
    ----------
    num_samples, seed, first_row, max_attempts, unique
        Of the pipeline's call.
    judge : RecordJudge
    """

    num_samples: int
    seed: int
    first_row: int
    max_attempts: int
    unique: bool
    judge: RecordJudge
    report: SamplingReport = field(init=False)

    def __post_init__(self) -> None:
        self.report = SamplingReport(requested=self.num_samples)
        self._attempts = [0] * self.num_samples
        self._kept: dict[int, tuple[dict[str, Any], str, Tensor]] = {}
        self._owners: dict[str, int] = {}

    def pending(self) -> list[int]:
        """The rows to be written next, counted from 0."""
        return [
            row for row, count in enumerate(self._attempts) if row not in self._kept and count < self.max_attempts
        ]

    def randoms(self, rows: Sequence[int]) -> list[RowRandom]:
        """Their random numbers, of this attempt."""
        return [RowRandom(self.seed, self.first_row + row, self._attempts[row]) for row in rows]

    def take(self, rows: Sequence[int], texts: Sequence[str], latents: Tensor) -> None:
        """Keep or reject what was written for these rows from ``latents``, ``[rows, latent_size]``."""
        for row, text, latent in zip(rows, texts, latents.cpu(), strict=True):
            self.report.attempts += 1
            record, reason = self.judge(text)
            if self._attempts[row] == 0 and not (reason or "").startswith("invalid"):
                self.report.first_attempt_parsed += 1
            if self.unique and reason is None and not self._claim(text, row):
                reason = "duplicate"
            if reason is None:
                self._kept[row] = (record, text, latent)
            else:
                self.report.rejected[reason] += 1
            self._attempts[row] += 1

    def _claim(self, text: str, row: int) -> bool:
        """Of equal records the lowest row keeps its own, whatever was drawn first: batches do not show."""
        other = self._owners.get(text)
        if other is not None and other < row:
            return False
        self._owners[text] = row
        if other is not None:
            del self._kept[other]
            self.report.rejected["duplicate"] += 1
        return True

    def output(self) -> DiffLMPipelineOutput:
        """What was kept; a warning says how many rows were given up."""
        self.report.returned = len(self._kept)
        if self.report.returned < self.num_samples:
            warnings.warn(
                f"{self.num_samples - self.report.returned} of {self.num_samples} rows were given up after "
                f"{self.max_attempts} attempts each.\n{self.report}\n"
                "Relax the condition or accept=, or raise max_attempts.",
                stacklevel=4,  # past the call and its no_grad
            )
        rows = sorted(self._kept)
        return DiffLMPipelineOutput(
            records=[self._kept[row][0] for row in rows],
            texts=[self._kept[row][1] for row in rows],
            latents=torch.stack([self._kept[row][2] for row in rows]) if rows else torch.empty(0),
            rows=[self.first_row + row for row in rows],
            report=self.report,
            seed=self.seed,
            schema=self.judge.schema,
        )
