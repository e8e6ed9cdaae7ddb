"""Class labels of the denoiser: known bins, draws by share, what is chosen by default."""

from __future__ import annotations

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


def test_chosen_columns(schema):
    assert ConditionEncoder.fit(RECORDS, schema.columns, ["tame"]).names == ["tame"]
    assert ConditionEncoder.fit(RECORDS, schema.columns, ()).class_sizes == []
    with pytest.raises(ConditionError, match="'colour' is not a column"):
        ConditionEncoder.fit(RECORDS, schema.columns, ["colour"])


def test_true_is_not_one():
    assert not ColumnCondition(values=(1,)).holds(True)
    assert ColumnCondition(values=(True,)).holds(True)
    assert not ColumnCondition(minimum=0, maximum=2).holds(None)
