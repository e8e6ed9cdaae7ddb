"""Ranges and lengths rounded outwards, so that none of their ends is a single record's: of columns, and within the
inferred JSON Schema of nested values."""

from __future__ import annotations

import decimal
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from difflm.pipelines.column_kinds import Column
from difflm.pipelines.date_kinds import DateKind, DatetimeKind, TimeKind, ZonedKind
from difflm.pipelines.json_schemas import DECIMALS, LARGEST_INTEGER, LARGEST_NUMBER, rewritten
from difflm.pipelines.number_kinds import DecimalKind, IntegerKind


DATES = (DateKind, DatetimeKind, TimeKind, ZonedKind)
# At most so many steps of a rounded range.
STEPS = 20
_EXACT = decimal.Context(prec=60)
_REPEATS = re.compile(r"\{(\d+),(\d+)\}\$$")


def rounded_range(column: Column, values: Sequence[Any], rare_below: int) -> tuple[Any, Any]:
    """The range of a column, rounded outwards as far as its dtype goes.

    Parameters
    ----------
    column : Column
        Of numbers, dates or times, with its range.
    values : sequence
        Its values in the records, without missing ones.
    rare_below : int
        An end that fewer records hold is never the end of the rounded range, but where that is 0 or the dtype's last.
    """
    low, high = column.minimum, column.maximum
    lone = (values.count(low) < rare_below, values.count(high) < rare_below)
    if low == high and not lone[0]:
        return low, high
    if isinstance(column.rules, DATES):
        return _rounded_dates(column.rules, low, high, lone)
    if not isinstance(column.rules, IntegerKind | DecimalKind):
        return low, high
    least, most = column.rules.dtype_range
    kind = int if isinstance(column.rules, IntegerKind) else float
    ends = (kind(end) for end in rounded_numbers(low, high, column.decimals or 0, lone))
    first, last = (column.normalize(min(max(end, least), most)) for end in ends)
    return first, last


def _rounded_dates(rules: Any, low: str, high: str, lone: tuple[bool, bool]) -> tuple[str, str]:
    """Whole years, or hours of times."""
    form, (earliest, latest) = rules.form, rules.limits
    width = 4 if rules.has_date else 2
    ends = []
    for end, alone, limit, last in ((low, lone[0], earliest, False), (high, lone[1], latest, True)):
        rounded = form.end(end[:width], last=last)
        if alone and rounded == end:
            rounded = form.end(f"{int(end[:width]) + (1 if last else -1):0{width}d}", last=last)
        ends.append(limit if rounded is None else rounded)
    return max(ends[0], earliest), min(ends[1], latest)


def rounded_numbers(
    low: int | float, high: int | float, decimals: int, lone: tuple[bool, bool] = (True, True)
) -> tuple[decimal.Decimal, decimal.Decimal]:
    """A range rounded outwards to steps of 1, 2 or 5, about a twentieth of it, with so many digits after the point.

    An end that is ``lone`` moves a step further where it is round itself, but not past 0.
    """
    first, last = (decimal.Decimal(str(end)) for end in (low, high))
    span = _EXACT.subtract(last, first)
    if span:
        power = decimal.Decimal(1).scaleb(span.adjusted() - 1)
        step = next(n * power for n in (1, 2, 5, 10) if n * power * STEPS >= span)
    else:
        step = decimal.Decimal(1).scaleb(first.adjusted())
    step = max(step, decimal.Decimal(1).scaleb(-decimals))
    ends = []
    for end, alone, way, rounding in (
        (first, lone[0], -1, decimal.ROUND_FLOOR),
        (last, lone[1], 1, decimal.ROUND_CEILING),
    ):
        rounded = _EXACT.multiply(_EXACT.divide(end, step).to_integral_value(rounding), step)
        if alone and rounded == end != 0:
            rounded = _EXACT.add(rounded, way * step)
            if rounded * end < 0:
                rounded = decimal.Decimal(0)
        ends.append(rounded)
    return ends[0], ends[1]


def rounded_length(length: int) -> int:
    """A greatest length, or count, rounded up to another one; nothing stays nothing."""
    return int(rounded_numbers(0, length, 0)[1]) if length else 0


def _shorter(length: int) -> int:
    """A least length, or count, rounded down to another one; 1 stays, which says no more than "some"."""
    return length if length < 2 else max(1, length - max(1, length // 10))


def rounded_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An inferred JSON Schema of nested values with its ranges and lengths rounded outwards."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        changed = dict(part)
        if "minimum" in part or "maximum" in part:
            for bound in ("minimum", "maximum"):
                changed.pop(bound, None)
            changed |= _rounded_bounds(part)
        for name in ("maxLength", "maxItems", "maxProperties"):
            if name in part:
                changed[name] = rounded_length(part[name])
        for name in ("minItems", "minProperties"):
            if name in part and "prefixItems" not in part:
                changed[name] = _shorter(part[name])
        names = part.get("propertyNames")
        if isinstance(names, Mapping) and isinstance(names.get("pattern"), str):
            changed["propertyNames"] = {**names, "pattern": _REPEATS.sub(_rounded_repeats, names["pattern"])}
        return changed

    rounded: dict[str, Any] = rewritten(schema, change)
    return rounded


def _rounded_repeats(found: re.Match[str]) -> str:
    return f"{{{_shorter(int(found[1]))},{rounded_length(int(found[2]))}}}$"


def _rounded_bounds(part: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds of a nested number, rounded; those that the grammar cannot hold are left out."""
    low, high = part.get("minimum", part.get("maximum")), part.get("maximum", part.get("minimum"))
    whole = part["type"] == "integer"
    decimals = 0 if whole else part.get(DECIMALS, _EXACT.prec)
    ends: list[Any] = [(int if whole else float)(end) for end in rounded_numbers(low, high, decimals)]
    if not whole and ends[1] == 0:  # a zero at the end has no point in the grammar
        ends[1] = float(f"1e-{min(decimals, 15)}")
    largest = LARGEST_INTEGER if whole else LARGEST_NUMBER
    named = zip(("minimum", "maximum"), ends, strict=True)
    return {name: end for name, end in named if name in part and abs(end) <= largest}


def without_rare_strings(schema: Mapping[str, Any], values: Iterable[Any], rare_below: int) -> dict[str, Any]:
    """An inferred JSON Schema that lists no strings at places where one of them is in fewer than so many values."""
    counts: Counter[str] = Counter()
    for value in values:
        counts.update(set(_strings(value)))

    def change(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("type") != "string" or all(counts[text] >= rare_below for text in part.get("enum", ())):
            return part
        rest = {key: item for key, item in part.items() if key != "enum"}
        return rest | {"maxLength": rounded_length(max(map(len, part["enum"])))}

    listed: dict[str, Any] = rewritten(schema, change)
    return listed


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)
