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

import numpy as np
import torch
from torch import Tensor


NUMBER_KINDS = ("integer", "decimal")
FINITE_KINDS = ("category", "boolean")


class ConditionError(ValueError):
    """A condition that names no column, a value never seen, or nothing that can hold."""


@dataclass(frozen=True)
class ColumnCondition:
    """What must hold in one column of every record.

    Attributes
    ----------
    values : tuple, optional
        Allowed values (a missing value is ``None``).
    minimum, maximum : number, optional
        Closed range of a number; a missing value does not satisfy it.
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
        return value is not None and self.minimum <= value <= self.maximum


def check_condition(condition: Mapping[str, Any], columns: Sequence[Any]) -> dict[str, ColumnCondition]:
    """Check a user's condition against a schema's columns.

    Parameters
    ----------
    condition : mapping
        Column to a value, a list of allowed values, a ``(low, high)`` tuple (numbers: closed range), or ``None``
        (missing).
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
        column = by_name[name]
        if isinstance(wanted, tuple) and len(wanted) == 2 and column.kind in NUMBER_KINDS:
            checked[name] = _check_range(column, wanted)
            continue
        values = tuple(wanted) if isinstance(wanted, list | set | tuple) else (wanted,)
        if not values:
            raise ConditionError(f"The condition on {name!r} allows no value at all.")
        checked[name] = ColumnCondition(values=tuple(_check_value(column, value) for value in values))
    return checked


def _check_range(column: Any, wanted: tuple[Any, Any]) -> ColumnCondition:
    low, high = wanted
    if not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in wanted):
        raise ConditionError(f"The range of {column.name!r} must be two finite numbers, not {wanted!r}.")
    step = 10 ** -(column.decimals or 0)
    if low > high or math.floor(high / step + 1e-9) < math.ceil(low / step - 1e-9):
        kind = "integers" if column.kind == "integer" else f"numbers with {column.decimals} decimals"
        raise ConditionError(f"No value of {column.name!r} ({kind}) lies in the range {low} to {high}.")
    return ColumnCondition(minimum=low, maximum=high)


def _check_value(column: Any, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        if not column.nullable and column.kind != "null":
            raise ConditionError(f"{column.name!r} was never missing in the training data.")
        return None
    if column.kind == "category" and value not in column.categories:
        shown = ", ".join(repr(category) for category in column.categories[:10])
        more = f" and {len(column.categories) - 10} more" if len(column.categories) > 10 else ""
        raise ConditionError(f"{column.name!r} was never {value!r} in the training data; it was: {shown}{more}.")
    if column.kind == "boolean" and not isinstance(value, bool):
        raise ConditionError(f"{column.name!r} is a boolean: the condition must be True or False, not {value!r}.")
    if column.kind in NUMBER_KINDS:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConditionError(f"{column.name!r} is a number: {value!r} is none. A range is a tuple: (low, high).")
        if column.kind == "integer":
            if value != int(value):
                raise ConditionError(f"{column.name!r} holds integers: {value!r} is none.")
            return int(value)
        if column.decimals is not None and abs(round(value, column.decimals) - value) > 1e-9 * max(1.0, abs(value)):
            raise ConditionError(
                f"{column.name!r} has {column.decimals} decimals: {value!r} cannot be written with them."
            )
        return float(value)
    if column.kind == "text" and not isinstance(value, str):
        raise ConditionError(f"{column.name!r} is text: the condition must be a string, not {value!r}.")
    if column.kind == "json":
        raise ConditionError(f"{column.name!r} holds nested JSON: conditions on it are not supported; use accept=.")
    return value


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
            names = [
                column.name
                for column in columns
                if column.kind in (*NUMBER_KINDS, "boolean")
                or (column.kind == "category" and len(column.categories) <= max_categories)
            ]
        classes = []
        for name in names:
            if name not in by_name:
                raise ConditionError(f"Condition column {name!r} is not a column: {', '.join(by_name)}.")
            column = by_name[name]
            if column.kind in FINITE_KINDS:
                values = list(column.categories) if column.kind == "category" else [False, True]
                classes.append({"column": name, "values": values})
            elif column.kind in NUMBER_KINDS:
                numbers = np.array([r[name] for r in records if r[name] is not None], dtype=float)
                edges = numbers  # no bins where there are no numbers
                if len(numbers):
                    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, num_bins + 1)[1:-1]))
                shares = np.bincount(np.searchsorted(edges, numbers, side="right"), minlength=len(edges) + 1)
                classes.append(
                    {
                        "column": name,
                        "edges": [float(edge) for edge in edges],
                        "shares": [float(share) for share in shares / max(1, len(numbers))],
                        "range": [float(numbers.min()), float(numbers.max())] if len(numbers) else [0.0, 0.0],
                    }
                )
            else:
                raise ConditionError(
                    f"Condition column {name!r} is {column.kind}: the denoiser is conditioned on categories, booleans "
                    "and numbers."
                )
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
        return bisect.bisect_right(entry["edges"], float(value))

    def _weights(self, position: int, condition: ColumnCondition) -> Tensor:
        entry = self.classes[position]
        weights = torch.zeros(self.class_sizes[position])
        if condition.values is not None:
            for value in condition.values:
                weights[self._label(position, value)] += 1.0
            return weights
        low, high = entry["range"]
        bounds = [low, *entry["edges"], high]
        for label, share in enumerate(entry["shares"]):
            left, right = bounds[label], bounds[label + 1]
            overlap = min(right, condition.maximum) - max(left, condition.minimum)
            if overlap >= 0:
                weights[label] = share * max(overlap, 1e-6) / max(right - left, 1e-6)
        if weights.sum() == 0:  # outside what was seen: the nearest bin
            weights[0 if condition.maximum < low else len(entry["shares"]) - 1] = 1.0
        return weights


def _key(value: Any) -> tuple[bool, Any]:
    """Keys that keep True and 1 apart."""
    return isinstance(value, bool), value
