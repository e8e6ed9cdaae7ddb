"""Conditions on columns: what the user asks for, checked against the schema, and as class labels of the denoiser.

Columns become classes so that the latent agrees with what the grammar then enforces: a category is a class, a number
is one of a few quantile bins, a missing value is a class of its own.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .date_forms import instant
from .errors import ConditionError


@dataclass(frozen=True)
class ColumnCondition:
    """What must hold in one column of every record.

    Attributes
    ----------
    values : tuple, optional
        Allowed values (a missing value is ``None``).
    minimum, maximum : number, optional
        Closed range, None for an open end; a missing value does not satisfy it.
    """

    values: tuple[Any, ...] | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None

    def holds(self, value: Any) -> bool:
        """Whether a record's value satisfies the condition."""
        if self.values is not None:
            return any(
                value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in self.values
            )
        if value is None:
            return False
        return (self.minimum is None or self.minimum <= value) and (self.maximum is None or value <= self.maximum)


def check_condition(condition: Mapping[str, Any], columns: Sequence[Any]) -> dict[str, ColumnCondition]:
    """Check a user's condition against a schema's columns.

    Parameters
    ----------
    condition : mapping
        Column to a value, a list of allowed values, or ``None`` (missing). For columns of numbers, categories that
        are numbers included, a tuple is a closed range ``(low, high)``; None leaves an end open.
    columns : sequence
        The schema's columns.

    Returns
    -------
    dict of str to ColumnCondition

    Raises
    ------
    ConditionError
        Naming the column, the value, and what is possible.
    """
    by_name = {column.name: column for column in columns}
    checked = {}
    for name, wanted in condition.items():
        if name not in by_name:
            raise ConditionError(f"The condition names the column {name!r}; the columns are: {', '.join(by_name)}.")
        checked[name] = ColumnCondition(**by_name[name].check_condition(wanted))
    return checked


class ConditionEncoder:
    """Turns columns into class labels of the denoiser. JSON-able; stored in the checkpoint.

    Parameters
    ----------
    classes : list of dict
        Per conditioning column: ``column`` and either ``values`` (one class each) or ``edges`` (inner bin edges of a
        number) with ``shares`` of the training records; a missing value is the last class.
    """

    def __init__(self, classes: list[dict[str, Any]]) -> None:
        self.classes = classes
        self._index = [
            {_key(value): label for label, value in enumerate(entry["values"])} if "values" in entry else None
            for entry in classes
        ]

    @classmethod
    def fit(
        cls,
        records: Sequence[Mapping[str, Any]],
        columns: Sequence[Any],
        names: Sequence[str] | str = "auto",
        max_categories: int = 64,
        num_bins: int = 8,
    ) -> ConditionEncoder:
        """Choose classes from training records.

        ``names="auto"`` takes every boolean, every number, and every category of at most ``max_categories`` values.
        """
        by_name = {column.name: column for column in columns}
        if isinstance(names, str):
            names = [column.name for column in columns if column.rules.is_condition_column(max_categories)]
        classes = []
        for name in names:
            if name not in by_name:
                raise ConditionError(f"Condition column {name!r} is not a column: {', '.join(by_name)}.")
            known = [record[name] for record in records if record[name] is not None]
            found = by_name[name].rules.classes(known, num_bins)
            if found is None:
                raise ConditionError(
                    f"Condition column {name!r} is {by_name[name].kind}: the denoiser is conditioned on categories, "
                    "booleans and numbers."
                )
            classes.append({"column": name} | found)
        return cls(classes)

    @property
    def names(self) -> list[str]:
        return [entry["column"] for entry in self.classes]

    @property
    def class_sizes(self) -> list[int]:
        """Classes per column, the missing value's included, the denoiser's null class not."""
        return [len(entry["values"] if "values" in entry else entry["shares"]) + 1 for entry in self.classes]

    def labels(self, records: Sequence[Mapping[str, Any]]) -> Tensor:
        """Class labels of records, ``[records, columns]``."""
        return torch.tensor(
            [[self._label(position, record[name]) for position, name in enumerate(self.names)] for record in records],
            dtype=torch.long,
        ).reshape(len(records), len(self.classes))

    def partial_labels(self, records: Sequence[Mapping[str, Any]]) -> Tensor:
        """Class labels of records that lack some columns, which get the null class, ``[records, columns]``."""
        labels = torch.tensor(self.class_sizes).repeat(len(records), 1)
        for row, record in enumerate(records):
            for position, name in enumerate(self.names):
                if name in record:
                    labels[row, position] = self._label(position, record[name])
        return labels

    def condition_labels(
        self, condition: Mapping[str, ColumnCondition], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Labels that agree with a condition, one row per generator; free columns get the null class.

        Where a condition allows several classes, each row draws one by its share of the training records.
        """
        labels = torch.tensor(self.class_sizes).repeat(len(generators), 1)
        for position, name in enumerate(self.names):
            if name not in condition:
                continue
            weights = self._weights(position, condition[name])
            for row, generator in enumerate(generators):
                labels[row, position] = torch.multinomial(weights, 1, generator=generator)
        return labels

    def _label(self, position: int, value: Any) -> int:
        entry, index = self.classes[position], self._index[position]
        if value is None:
            return self.class_sizes[position] - 1
        if index is not None:
            return index[_key(value)]
        return bisect.bisect_right(entry["edges"], _number(value))

    def _weights(self, position: int, condition: ColumnCondition) -> Tensor:
        entry = self.classes[position]
        weights = torch.zeros(self.class_sizes[position])
        if condition.values is not None:
            for value in condition.values:
                weights[self._label(position, value)] += 1.0
            return weights
        low, high = entry["range"]
        wanted_low = -math.inf if condition.minimum is None else _number(condition.minimum)
        wanted_high = math.inf if condition.maximum is None else _number(condition.maximum)
        bounds = [low, *entry["edges"], high]
        for label, share in enumerate(entry["shares"]):
            left, right = bounds[label], bounds[label + 1]
            overlap = min(right, wanted_high) - max(left, wanted_low)
            if overlap >= 0:
                weights[label] = share * max(overlap, 1e-6) / max(right - left, 1e-6)
        if weights.sum() == 0:  # outside what was seen: the nearest bin
            weights[0 if wanted_high < low else len(entry["shares"]) - 1] = 1.0
        return weights


def _number(value: Any) -> float:
    """Where a number, or a date as text, lies among the edges of the bins."""
    return instant(value) if isinstance(value, str) else float(value)


def _key(value: Any) -> tuple[bool, Any]:
    """Keys that keep True and 1 apart."""
    return isinstance(value, bool), value
