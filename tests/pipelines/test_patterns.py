"""Regular expressions from outside: read, bounded in time, refused by name."""

import time

import pytest

from difflm.pipelines.patterns import PatternError, compiled, matches
from difflm.pipelines.record_schema import RecordSchema


# Each of them keeps `re` busy for longer than the universe is old.
CATASTROPHES = (
    ("^(a|a)*$", "a" * 90 + "b"),
    ("((a{1,50}){1,50}){1,50}$", "a" * 200 + "b"),
)


@pytest.mark.parametrize(("pattern", "text"), CATASTROPHES)
def test_pattern_that_backtracks_ends_in_an_error(pattern, text):
    started = time.monotonic()
    with pytest.raises(PatternError, match="backtracks too much"):
        matches(pattern, text)
    assert time.monotonic() - started < 30


def test_nested_column_with_a_pattern_that_backtracks_does_not_hang():
    inner = {"type": "object", "properties": {"b": {"type": "string", "pattern": CATASTROPHES[0][0]}}}
    schema = RecordSchema.from_json_schema({"type": "object", "properties": {"a": inner}, "required": ["a"]})
    with pytest.raises(PatternError):
        schema.normalize({"a": {"b": CATASTROPHES[0][1]}})


def test_pattern_is_searched_as_json_schema_means_it():
    assert matches("b+", "abbc") and not matches("^b", "ab") and matches(r"^\p{L}$", "é")


@pytest.mark.parametrize("pattern", ["(", "a" * 2_001, 5])
def test_pattern_that_is_none_is_refused_by_name(pattern):
    with pytest.raises(PatternError, match="the pattern"):
        compiled(pattern)
