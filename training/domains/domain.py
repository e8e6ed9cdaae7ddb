"""The base class of domains, and what they give."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from difflm.errors import ArgumentError
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.policy import Policy


@dataclass(frozen=True)
class CardWords:
    """Words for a model card.

    Attributes
    ----------
    source, record : str
        What is learned from, and one of what is made: "table" and "row".
    tags : tuple of str
        Of the Hub.
    """

    source: str
    record: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Records of a source with their schema.

    Attributes
    ----------
    records : list of dict
        As the schema normalises them, in the source's order.
    schema : RecordSchema
    places : sequence of int
        Where each record stands in the source, from 0; errors name it.
    groups : sequence, optional
        The group of each record (its file, its service): records of one group stay on one side of a split.
    left_out : dict of str to int
        Reason to number of records that reading left out ("near duplicates"); a fit logs and warns of them.
    source : object
        Whatever the domain needs to infer the schema anew from fewer records.
    """

    records: list[dict[str, Any]]
    schema: RecordSchema
    places: Sequence[int]
    groups: Sequence[Hashable] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    source: Any = None


class Domain(abc.ABC):
    """A kind of structured data.

    Attributes
    ----------
    name : str
    record_formats : tuple of str
        How its records can be written. A preset's format counts if it is one of them, else the first.
    words : CardWords
    """

    name: ClassVar[str]
    record_formats: ClassVar[tuple[str, ...]]
    words: ClassVar[CardWords]

    @abc.abstractmethod
    def read(self, source: Any, *, record_format: str, **options: Any) -> Reading:
        """Read a source and infer its schema.

        Parameters
        ----------
        source : path or object in memory
        record_format : str
            One of ``record_formats``.
        options
            The domain's own, ``read_options`` of a fit.

        Raises
        ------
        DiffLMError
            If there is nothing to learn from; names the place and the remedy.
        """

    @abc.abstractmethod
    def read_held_out(self, source: Any, schema: RecordSchema, **options: Any) -> list[dict[str, Any]]:
        """Read a source of held-out records under the schema of the training records."""

    def select(self, reading: Reading, rows: Sequence[int]) -> Reading:
        """The reading of these records alone. Domains whose schema follows from the records infer it anew."""
        return dataclasses.replace(
            reading,
            records=[reading.records[row] for row in rows],
            places=[reading.places[row] for row in rows],
            groups=None if reading.groups is None else [reading.groups[row] for row in rows],
        )

    def problem(self, record: Mapping[str, Any]) -> str | None:
        """What is wrong with a record that fits its schema ("does not parse"); None: nothing.

        A fit leaves such records out, with a warning.
        """
        return None

    def split(self, reading: Reading, seed: int, policy: Policy) -> tuple[list[int], list[int]]:
        """Rows to learn from and rows to hold out, both ascending: a share of them, whole groups, by the seed."""
        count = len(reading.records)
        wanted = min(policy.max_validation_records, max(1, int(count * policy.validation_share)))
        random = np.random.default_rng(seed)
        if reading.groups is None:
            order = [int(row) for row in random.permutation(count)]
            return sorted(order[wanted:]), sorted(order[:wanted])
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(reading.groups):
            members.setdefault(group, []).append(row)
        groups = list(members)
        if len(groups) < 2:
            raise ArgumentError(
                f"All {count} records belong to one {self.words.source}: pass held-out ones (validation=...), or a "
                "second source."
            )
        held_out: list[int] = []
        for position in random.permutation(len(groups))[:-1]:  # one group at least to learn from
            held_out += members[groups[position]]
            if len(held_out) >= wanted:
                break
        kept = set(held_out)
        return [row for row in range(count) if row not in kept], sorted(held_out)
