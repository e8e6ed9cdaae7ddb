"""What a checkpoint tells of its training data beyond its distribution, and how to tell less: rare values, ranges.

A schema lists every category and every column's exact range, and both are published with a model. The choices here
are made before anything is learnt: what is kept back is in no file of the checkpoint. What the networks' weights have
memorised is another matter, for which there is no guarantee.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from difflm.errors import DiffLMError
from difflm.pipelines.column_kinds import Column
from difflm.pipelines.json_schemas import OBSERVED
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.rounding import rounded_length, rounded_range, rounded_schema, without_rare_strings


RARE_CATEGORIES = ("keep", "merge", "missing", "drop")
RANGES = ("exact", "rounded", "clipped")
OTHER = "other"
# Of the values of a column, at either end, that "clipped" takes away.
CLIPPED_SHARE = 0.01


class DisclosureError(DiffLMError, ValueError):
    """Nothing is left to learn from once rare records are dropped."""


@dataclass(frozen=True)
class Disclosure:
    """What may be told of single records.

    Parameters
    ----------
    rare_categories : {"keep", "merge", "missing", "drop"}, default "keep"
        A category of fewer records than ``rare_below`` stays as it is; becomes the category "other" (in columns of
        numbers and dates, where that is none, a missing value); becomes a missing value; or its records are not
        learnt from. Strings inside nested values are learnt as they are; but with any choice but "keep" the schema
        lists none at a place where one of them is in fewer records.
    rare_below : int, default 5
        How many records a category needs not to be rare. Also how many share each end of a "clipped" range, and how
        many make an end of a "rounded" one no secret.
    ranges : {"exact", "rounded", "clipped"}, default "exact"
        Numbers and dates are sampled between the smallest and the largest seen; between these, rounded outwards to
        steps of about a twentieth of the range (dates to whole years, times to hours); or between the 1st and the
        99th percentile, to which records beyond are moved before anything is learnt (at least ``rare_below`` records
        lie at each end). If rounded, a column of a few different dates is one of all dates in its range. With both,
        lengths of texts, and ranges and lengths inside nested values, are rounded outwards, and the weights' quantiles
        of a column leave out the ``rare_below`` smallest and largest values.
    """

    rare_categories: str = "keep"
    rare_below: int = 5
    ranges: str = "exact"

    def __post_init__(self) -> None:
        for name, allowed in (("rare_categories", RARE_CATEGORIES), ("ranges", RANGES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if isinstance(self.rare_below, bool) or not isinstance(self.rare_below, int) or self.rare_below < 1:
            raise ValueError(f"rare_below must be an integer of at least 1, not {self.rare_below!r}.")

    def apply(
        self, schema: RecordSchema, records: Sequence[dict[str, Any]]
    ) -> tuple[RecordSchema, Callable[[dict[str, Any]], dict[str, Any] | None]]:
        """The schema that is published, and what makes a record of it from one of ``schema``; None: it is dropped.

        Parameters
        ----------
        schema : RecordSchema
        records : list of dict
            Normalised records, by which values are counted: all that are learnt from or validated on.

        Raises
        ------
        DisclosureError
            If fewer than 2 records would be left.
        """
        columns: list[Column] = []
        changes: dict[str, Callable[[Any], Any]] = {}
        for column in schema.columns:
            values = [record[column.name] for record in records if record[column.name] is not None]
            steps = []
            for step in (self._categories, self._range, self._observed):
                column, found = step(column, values)
                if found is not None:
                    steps.append(found)
                    values = [value for value in map(found, values) if value is not None and value is not _DROP]
            columns.append(column)
            if steps:
                changes[column.name] = _chained(steps)

        def change(record: dict[str, Any]) -> dict[str, Any] | None:
            return _changed(record, changes)

        if sum(change(record) is not None for record in records) < min(2, len(records)):
            raise DisclosureError(
                f"Of {len(records)} records fewer than 2 hold no category of fewer than {self.rare_below} records: "
                'take rare_categories="merge" or "missing", or a smaller rare_below.'
            )
        return RecordSchema(tuple(columns), schema.record_format), change

    def _categories(self, column: Column, values: Sequence[Any]) -> tuple[Column, Callable[[Any], Any] | None]:
        counts = Counter(values) if column.categories else Counter()
        rare = {value for value in column.categories or () if counts[value] < self.rare_below}
        if self.rare_categories == "keep" or not rare:
            return column, None
        kept = tuple(value for value in column.categories or () if value not in rare)
        is_text = column.kind == "category" and all(isinstance(value, str) for value in column.categories or ())
        merged = OTHER if self.rare_categories == "merge" and is_text else None
        if self.rare_categories != "drop":
            kept = (*kept, *([merged] if merged is not None and merged not in kept else []))
            column = replace(column, nullable=column.nullable or merged is None)
        column = _with_categories(column, kept)
        if column.minimum is not None:  # a date's
            column = replace(column, minimum=min(kept), maximum=max(kept))
        if self.rare_categories == "drop":
            return column, lambda value: _DROP if value in rare else value
        return column, lambda value: merged if value in rare else value

    def _range(self, column: Column, values: Sequence[Any]) -> tuple[Column, Callable[[Any], Any] | None]:
        if self.ranges == "exact" or column.minimum is None or column.maximum is None or column.bounded or not values:
            return column, None
        if self.ranges == "rounded":
            low, high = rounded_range(column, values, self.rare_below)
            return replace(column, minimum=low, maximum=high, categories=None), None  # a date's, too
        ordered = sorted(values)
        beyond = min(max(self.rare_below, math.ceil(CLIPPED_SHARE * len(ordered))), (len(ordered) + 1) // 2) - 1
        low, high = ordered[beyond], ordered[-1 - beyond]
        if column.categories:  # a date's
            column = replace(column, categories=tuple(value for value in column.categories if low <= value <= high))
        return replace(column, minimum=low, maximum=high), lambda value: min(max(value, low), high)

    def _observed(self, column: Column, values: Sequence[Any]) -> tuple[Column, None]:
        """The column with less of what was observed of its texts, or inside its nested values."""
        if self.ranges != "exact" and column.max_length is not None and not column.bounded:
            column = replace(column, max_length=rounded_length(column.max_length))
        schema = column.json_schema or {}
        if OBSERVED in schema and self.rare_categories != "keep":
            schema = without_rare_strings(schema, values, self.rare_below)
        if OBSERVED in schema and self.ranges != "exact":
            schema = rounded_schema(schema)
        return replace(column, json_schema=schema or None), None

    def describe(self, schema: RecordSchema, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For the training log, and from there the card: the choices, and how many listed categories are rare."""
        listed = [column for column in schema.columns if column.categories]
        rare = 0
        for column in listed:
            counts = Counter(record[column.name] for record in records)
            rare += sum(counts[value] < self.rare_below for value in column.categories or ())
        return {
            "rare_categories": self.rare_categories,
            "rare_below": self.rare_below,
            "rare_categories_listed": rare,
            "ranges": self.ranges,
        }


_DROP = object()


def _chained(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        for step in steps:
            if value is None or value is _DROP:
                break
            value = step(value)
        return value

    return change


def _changed(record: Mapping[str, Any], changes: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any] | None:
    changed = dict(record)
    for name, change in changes.items():
        if changed[name] is not None and (value := change(changed[name])) is not _DROP:
            changed[name] = value
        elif changed[name] is not None:
            return None
    return changed


def _with_categories(column: Column, kept: tuple[Any, ...]) -> Column:
    """The column with these categories; one without any holds nothing but missing values."""
    if not kept:
        return Column(column.name, "null", nullable=True, dtype="object")
    listed = column.dtype_categories
    if listed is not None:
        listed = (*(value for value in listed if value in kept), *(value for value in kept if value not in listed))
    dtype = column.dtype
    if column.nullable and not isinstance(kept[0], str) and dtype.lower().startswith(("int", "uint")):
        dtype = dtype.replace("int", "Int").replace("uInt", "UInt")  # pandas' integers with missing values
    return replace(column, categories=kept, dtype_categories=listed, dtype=dtype)
