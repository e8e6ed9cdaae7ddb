"""Columns whose values are a list: ranges of their numbers, and which of them the denoiser is conditioned on."""

from __future__ import annotations

import pytest

from difflm.pipelines.conditions import ConditionEncoder, check_condition
from difflm.pipelines.errors import ConditionError, RecordParseError, SchemaError
from difflm.pipelines.record_schema import RecordSchema


RECORDS = [{"size": size, "kind": "ab"[size % 2], "tame": size > 2} for size in [1, 2, 3, 4] * 5]


@pytest.fixture(scope="module")
def schema() -> RecordSchema:
    return RecordSchema.infer(RECORDS, category_columns=["size"])


def test_a_range_of_numbers_to_choose_from_is_closed(schema: RecordSchema) -> None:
    def within(*bounds):
        return set(check_condition({"size": bounds}, schema.columns)["size"].values)

    assert within(2, 3) == {2, 3}
    assert within(None, 2) == {1, 2}
    assert within(3, None) == {3, 4}
    for bounds in ((5, 9), (2.1, 2.9), (3, 2)):
        with pytest.raises(ConditionError, match="No value of 'size' lies in the range"):
            within(*bounds)


def test_values_never_seen_and_truth_values_are_refused(schema: RecordSchema) -> None:
    with pytest.raises(ConditionError, match="'kind' was never 'z'"):
        check_condition({"kind": "z"}, schema.columns)
    for value in (1, 0, "true"):
        with pytest.raises(ConditionError, match="must be True or False"):
            check_condition({"tame": value}, schema.columns)
        with pytest.raises(SchemaError, match="is not a boolean"):
            schema.column("tame").rules.normalize(value)


@pytest.mark.parametrize(("most", "names"), [(4, ["size", "kind", "tame"]), (3, ["kind", "tame"]), (1, [])])
def test_lists_of_so_many_values_are_conditioned_on(schema: RecordSchema, most: int, names: list[str]) -> None:
    assert ConditionEncoder.fit(RECORDS, schema.columns, max_categories=most).names == names


def test_numbers_too_large_for_a_difference_of_floats_have_places_by_their_order() -> None:
    values = [10**301, -(10**301), 5]
    rules = RecordSchema.infer([{"x": value} for value in values * 4], category_columns=["x"]).column("x").rules
    assert rules.feature_names == ("x",)
    assert sorted(rules.feature_places(value)[0] for value in values) == [0.0, 0.5, 1.0]


def test_a_word_ends_at_the_next_comma_or_the_text(schema: RecordSchema) -> None:
    rules = schema.column("kind").rules
    assert rules.read("a,b", 0, "values") == ("a", 1)
    assert rules.read("a,b", 2, "values") == ("b", 3)
    for text, start in ((",a", 0), ("a,", 2)):
        with pytest.raises(RecordParseError, match="'' is not one of its 2 categories"):
            rules.read(text, start, "values")
    with pytest.raises(RecordParseError, match="'ab' is not one of"):
        rules.read("ab,a", 0, "values")


def test_a_boolean_writes_and_reads_both_words(schema: RecordSchema) -> None:
    rules = schema.column("tame").rules
    assert [rules.read(rules.text(value, "values"), 0, "values")[0] for value in (True, False)] == [True, False]
