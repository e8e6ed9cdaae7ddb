"""Columns of numbers at the ends of their ranges: types, bounds, signs and the numbers that conditions may name."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from difflm.pipelines.conditions import ConditionEncoder, check_condition
from difflm.pipelines.errors import ConditionError, RecordParseError, SchemaError
from difflm.pipelines.record_schema import RecordSchema


def column(values: list, dtype: str | None = None, **options):
    return RecordSchema.infer(pd.DataFrame({"x": pd.Series(values, dtype=dtype)}), **options).column("x")


def typed(**schema) -> RecordSchema:
    return RecordSchema.from_json_schema({"type": "object", "properties": {"x": schema}, "required": ["x"]})


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int8", -128, 127), ("uint8", 0, 255), ("Int16", -(2**15), 2**15 - 1), ("UInt64", 0, 2**64 - 1)],
)
def test_a_dtype_holds_its_whole_range_and_no_more(dtype: str, low: int, high: int) -> None:
    rules = column([1, 2], dtype).rules
    assert [rules.normalize(low), rules.normalize(high)] == [low, high]
    for value in (low - 1, high + 1):
        with pytest.raises(SchemaError, match="out of the range"):
            rules.normalize(value)


def test_decimals_are_bounded_by_their_dtype() -> None:
    assert column([0.5, 1.5]).rules.normalize(1e30) == 1e30
    with pytest.raises(SchemaError, match="out of the range of float32"):
        column([0.5, 1.5], "float32").rules.normalize(1e39)
    with pytest.raises(RecordParseError, match="too large|out of the range"):
        column([0.5, 1.5]).rules.read("9" * 400 + ".0", 0, "json")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_value_of_the_column_is_the_condition_it_asks_for(dtype: str) -> None:
    """A value taken from the table or from a sample, in whatever type, is met by the record that holds it."""
    schema = RecordSchema.infer(pd.DataFrame({"x": pd.Series([0.1, 2.3, 7.7, 100.25], dtype=dtype)}))
    for value in pd.Series([0.1, 2.3, 7.7], dtype=dtype):
        held = schema.parse(schema.serialize({"x": value}))["x"]
        for asked in (value, float(value), np.dtype(dtype).type(value), held):
            assert check_condition({"x": asked}, schema.columns)["x"].holds(held)


def test_excluded_ends_of_a_type_are_excluded() -> None:
    schema = typed(type="number", exclusiveMinimum=0, exclusiveMaximum=2)
    rules = schema.column("x").rules
    assert rules.normalize(1.0) == 1.0
    with pytest.raises(SchemaError, match="not more than 0"):
        rules.normalize(0.0)
    with pytest.raises(SchemaError, match="not less than 2"):
        rules.normalize(2.0)
    for value in (0.0, 2.0, -1.0, 2.5):
        with pytest.raises(ConditionError, match="'x'"):
            check_condition({"x": value}, schema.columns)
    for bounds in ((0, 0), (2, 2), (2, 3)):
        with pytest.raises(ConditionError, match="No value of 'x'"):
            check_condition({"x": bounds}, schema.columns)
    assert check_condition({"x": (0, 0.5)}, schema.columns)["x"].maximum == 0.5


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [({"minimum": -5}, 0), ({"minimum": 5}, 5), ({"maximum": 5}, 0), ({"maximum": -5}, -5), ({}, 0)],
)
def test_a_gap_in_an_open_range_is_encoded_as_its_number_nearest_to_zero(bounds: dict, expected: int) -> None:
    assert typed(type="integer", **bounds).column("x").rules.typical() == expected


def test_zero_has_no_sign() -> None:
    rules = column([0.5, -0.5]).rules
    for value in (rules.normalize(-0.0), rules.normalize(-0.04), rules.read("-0.0", 0, "json")[0]):
        assert value == 0.0 and math.copysign(1, value) == 1
    assert rules.text(-0.04, "json") == "0.0"
    assert rules.text(-0.06, "json") == "-0.1"


def test_a_range_of_a_condition_holds_a_number_of_the_columns_decimals() -> None:
    columns = RecordSchema.infer([{"x": 0.1}, {"x": 2.5}]).columns
    for bounds in ((0.3, 0.3), (1.1, 1.1), (0.7, 0.7), (0.25, 0.35), (0.29, 0.3), (0.3, 0.31)):
        found = check_condition({"x": bounds}, columns)["x"]
        assert (found.minimum, found.maximum) == bounds
    for bounds in ((0.31, 0.39), (0.4, 0.3)):
        with pytest.raises(ConditionError, match="No value of 'x'"):
            check_condition({"x": bounds}, columns)
    with pytest.raises(ConditionError, match="open at both ends"):
        check_condition({"x": (None, None)}, columns)


def test_a_condition_is_a_number_of_the_columns_decimals_up_to_rounding() -> None:
    columns = RecordSchema.infer([{"x": 0.1}, {"x": 2.5}]).columns
    for value in (0.1 + 0.2, 1234567.1 + 1e-7, np.float64(0.3), Decimal("0.3")):
        (found,) = check_condition({"x": value}, columns)["x"].values
        assert found == pytest.approx(float(value))
    for value in (0.35, 0.300001):
        with pytest.raises(ConditionError, match="1 decimals"):
            check_condition({"x": value}, columns)


@pytest.mark.parametrize("bound", [Decimal("Infinity"), Decimal("NaN"), np.float64("inf"), np.bool_(True), "1"])
def test_ends_of_a_range_are_finite_numbers(bound) -> None:
    with pytest.raises(ConditionError, match="must be two finite numbers"):
        check_condition({"x": (bound, 5)}, RecordSchema.infer([{"x": 1}, {"x": 9}]).columns)


def test_places_lie_between_the_ends() -> None:
    rules = column([10, 20, 30]).rules
    assert [rules.feature_places(value) for value in (-99, 10, 25, 30, 99)] == [[0.0], [0.0], [0.75], [1.0], [1.0]]
    assert column([7, 7]).rules.feature_places(7) == [0.0]
    # Too large for a difference of floats: no place at all.
    assert column([10**301, -(10**301), 5], "object").rules.feature_names == ()


def test_bins_of_a_column_without_known_numbers() -> None:
    columns = RecordSchema.infer([{"x": 1}, {"x": None}]).columns
    encoder = ConditionEncoder.fit([{"x": None}], columns, ["x"])
    assert encoder.labels([{"x": None}]).tolist() == [[encoder.class_sizes[0] - 1]]


def test_equal_quantiles_are_one_edge() -> None:
    columns = RecordSchema.infer([{"x": 1}, {"x": 2}]).columns
    encoder = ConditionEncoder.fit([{"x": 1}] * 9 + [{"x": 2}], columns, ["x"], num_bins=8)
    assert encoder.classes[0]["edges"] == sorted(set(encoder.classes[0]["edges"]))
    assert sum(encoder.classes[0]["shares"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("low", "high", "decimals"), [(0, 1, 6), (0, 1e-7, 10), (0, 1e-40, 30), (1e-8, 1e-8, 8), (0.12345678, 5, 8)]
)
def test_free_decimals_tell_a_ranges_ends_apart(low: float, high: float, decimals: int) -> None:
    rules = typed(type="number", minimum=low, maximum=high).column("x").rules
    assert rules.grammar(str, False)["decimals"] == decimals


def test_a_condition_within_an_open_range_is_closed() -> None:
    schema = typed(type="number", exclusiveMinimum=0, exclusiveMaximum=9)
    for bounds, expected in (((0.5, 8), (False, False)), ((0, 9), (True, True)), ((-5, 20), (True, True))):
        condition = check_condition({"x": bounds}, schema.columns)["x"]
        spec = schema.column("x").rules.grammar(str, False, condition)
        assert (spec["exclusive_minimum"], spec["exclusive_maximum"]) == expected
        assert (spec["minimum"], spec["maximum"]) == (max(0, bounds[0]), min(9, bounds[1]))
