"""Class labels of the denoiser: known bins, draws by share, what is chosen by default."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from difflm.pipelines.conditions import ColumnCondition, ConditionEncoder, ConditionError, check_condition
from difflm.pipelines.record_schema import RecordSchema


RECORDS = [
    {"kind": kind, "age": age, "weight": weight, "tame": tame}
    for kind, age, weight, tame in zip(
        ["cat", "dog"] * 8, range(1, 17), [None, 2.5, 3.5, 4.5] * 4, [True, False, True, True] * 4, strict=True
    )
]


@pytest.fixture(scope="module")
def schema() -> RecordSchema:
    return RecordSchema.infer(RECORDS)


@pytest.fixture(scope="module")
def encoder(schema) -> ConditionEncoder:
    return ConditionEncoder.fit(RECORDS, schema.columns, num_bins=4)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_labels_of_records(encoder, schema):
    assert encoder.names == ["kind", "age", "weight", "tame"]
    categories = schema.column("kind").categories
    # age 1..16 has quartiles 4.75, 8.5, 12.25; weight 2.5, 3.5, 4.5 has 2.5, 3.5, 4.5: a value on an edge goes up.
    assert encoder.labels([{"kind": "dog", "age": 5, "weight": 3.5, "tame": True}]).tolist() == [
        [categories.index("dog"), 1, 2, 1]
    ]
    assert encoder.class_sizes == [3, 5, 5, 3]
    assert encoder.labels([RECORDS[0]])[0, 2] == encoder.class_sizes[2] - 1  # missing is the last class
    assert encoder.labels([]).shape == (0, 4)


def test_absent_columns_get_the_null_class(encoder):
    assert encoder.partial_labels([{"age": 1}]).tolist() == [[3, 0, 5, 3]]


def test_alternatives_are_drawn_and_free_columns_dropped(encoder, schema):
    condition = check_condition({"kind": ["cat", "dog"]}, schema.columns)
    labels = encoder.condition_labels(condition, generators(200))
    assert set(labels[:, 0].tolist()) == {0, 1}
    assert 60 < (labels[:, 0] == 0).sum() < 140
    assert (labels[:, 1:] == torch.tensor([5, 5, 3])).all()


def test_ranges_are_drawn_by_overlap(encoder):
    labels = encoder.condition_labels({"age": ColumnCondition(minimum=1, maximum=8.5)}, generators(200))
    assert set(labels[:, 1].tolist()) == {0, 1}
    beyond = encoder.condition_labels({"age": ColumnCondition(minimum=90, maximum=99)}, generators(2))
    assert beyond[:, 1].tolist() == [3, 3]


def test_a_range_below_all_that_was_seen_is_the_first_bin(encoder):
    below = encoder.condition_labels({"age": ColumnCondition(minimum=-9, maximum=-5)}, generators(2))
    assert below[:, 1].tolist() == [0, 0]
    open_end = encoder.condition_labels({"age": ColumnCondition(maximum=-5)}, generators(2))
    assert open_end[:, 1].tolist() == [0, 0]


def test_one_number_is_a_range_too(encoder):
    inside = encoder.condition_labels({"age": ColumnCondition(minimum=6, maximum=6)}, generators(50))
    assert set(inside[:, 1].tolist()) == {1}
    on_the_edge = encoder.condition_labels({"age": ColumnCondition(minimum=8.5, maximum=8.5)}, generators(50))
    assert set(on_the_edge[:, 1].tolist()) == {1, 2}


def test_bins_without_a_width_can_be_drawn():
    """All equal, or so many equal that they are a bin: their share counts."""
    records = [{"n": 5}] * 9 + [{"n": 6}]
    encoder = ConditionEncoder([{"column": "n", "edges": [5.0], "shares": [0.0, 1.0], "range": [5.0, 5.0]}])
    labels = encoder.condition_labels({"n": ColumnCondition(minimum=0, maximum=9)}, generators(20))
    assert labels.tolist() == [[1]] * 20
    fitted = ConditionEncoder.fit(records, RecordSchema.infer(records).columns, ["n"], num_bins=4)
    labels = fitted.condition_labels({"n": ColumnCondition(minimum=5, maximum=6)}, generators(20))
    assert set(labels[:, 0].tolist()) <= set(fitted.labels(records)[:, 0].tolist())


def test_draws_are_the_generators(encoder, schema):
    condition = check_condition({"kind": ["cat", "dog"], "age": (2, 15)}, schema.columns)
    first, second = (encoder.condition_labels(condition, generators(40)) for _ in range(2))
    assert torch.equal(first, second)


def test_ranges_are_closed_and_none_is_in_no_range():
    condition = ColumnCondition(minimum=1, maximum=2)
    assert [condition.holds(value) for value in (0.9, 1, 1.5, 2, 2.1, None)] == [False, True, True, True, False, False]
    assert ColumnCondition(minimum=1).holds(1e9) and ColumnCondition(maximum=1).holds(-1e9)
    assert ColumnCondition(values=(None, "a")).holds(None)


@pytest.mark.parametrize("value", [math.inf, -math.inf, [math.inf], (math.nan, 3), (0, math.inf), True, (False, 1)])
def test_numbers_that_no_record_holds_are_refused(schema, value):
    for column in ("age", "weight"):
        with pytest.raises(ConditionError, match=f"'{column}'"):
            check_condition({column: value}, schema.columns)


@pytest.mark.parametrize("wanted", [{}, {"a": 1}, [[]], [["cat"]], [{"a": 1}], np.array([["cat"]]), slice(1, 2)])
def test_nested_values_are_refused_by_name(schema, wanted):
    for column in schema.columns:
        with pytest.raises(ConditionError, match=f"'{column.name}'"):
            check_condition({column.name: wanted}, schema.columns)


@pytest.mark.parametrize("wanted", [[], {}, [1], {"a": 1}, [[1]], np.array([1])])
def test_nested_columns_say_that_they_take_none(wanted):
    columns = RecordSchema.infer([{"notes": {"a": 1}, "list": [1]}, {"notes": None, "list": [2]}]).columns
    for name in ("notes", "list"):
        with pytest.raises(ConditionError, match=f"'{name}' holds nested JSON"):
            check_condition({name: wanted}, columns)


@pytest.mark.parametrize(
    "wanted",
    [["dog", "cat"], ("dog", "cat"), {"cat", "dog"}, frozenset({"cat", "dog"}), np.array(["dog", "cat"])]
    + [pd.Series(["dog", "cat"]), pd.Index(["dog", "cat"]), pd.Categorical(["dog", "cat"])],
)
def test_alternatives_come_as_any_collection(schema, wanted):
    values = check_condition({"kind": wanted}, schema.columns)["kind"].values
    assert sorted(values) == ["cat", "dog"]
    if isinstance(wanted, set | frozenset):  # the order of a set of texts is another in each process
        assert values == ("cat", "dog")
    with pytest.raises(ConditionError, match="'kind' allows no value"):
        check_condition({"kind": wanted[:0] if hasattr(wanted, "__getitem__") else set()}, schema.columns)


def test_nan_is_a_missing_value(schema):
    found = check_condition({"weight": math.nan}, schema.columns)["weight"]
    assert found == check_condition({"weight": None}, schema.columns)["weight"]
    assert found.holds(None) and not found.holds(2.5)
    with pytest.raises(ConditionError, match="'age'"):
        check_condition({"age": math.nan}, schema.columns)


def test_chosen_columns(schema):
    assert ConditionEncoder.fit(RECORDS, schema.columns, ["tame"]).names == ["tame"]
    assert ConditionEncoder.fit(RECORDS, schema.columns, ()).class_sizes == []
    with pytest.raises(ConditionError, match="'colour' is not a column"):
        ConditionEncoder.fit(RECORDS, schema.columns, ["colour"])


def test_true_is_not_one():
    assert not ColumnCondition(values=(1,)).holds(True)
    assert ColumnCondition(values=(True,)).holds(True)
    assert not ColumnCondition(minimum=0, maximum=2).holds(None)
