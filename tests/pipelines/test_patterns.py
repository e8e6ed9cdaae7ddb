"""Regular expressions from outside: read, bounded in time, refused by name."""

import time

import pytest

from difflm.pipelines.errors import SchemaError
from difflm.pipelines.patterns import PatternError, compiled, matches
from difflm.pipelines.record_schema import RecordSchema


# Keeps `re` busy for longer than the universe is old.
CATASTROPHE = ("^(a|a)*$", "a" * 90 + "b")


def test_pattern_that_backtracks_elsewhere_takes_linear_time():
    pattern, text = CATASTROPHE
    started = time.monotonic()
    assert not matches(pattern, text)
    assert matches(pattern, text[:-1])
    assert matches(pattern, "a" * 20_000)
    assert time.monotonic() - started < 10


def test_pattern_beyond_the_engine_ends_in_an_error():
    started = time.monotonic()
    with pytest.raises(PatternError, match="nested repeats"):
        matches("((a{1,50}){1,50}){1,50}$", "a" * 200 + "b")
    assert time.monotonic() - started < 10


def test_nested_column_with_a_pattern_that_backtracks_elsewhere_does_not_hang():
    inner = {"type": "object", "properties": {"b": {"type": "string", "pattern": CATASTROPHE[0]}}}
    schema = RecordSchema.from_json_schema({"type": "object", "properties": {"a": inner}, "required": ["a"]})
    with pytest.raises(SchemaError, match="pattern"):
        schema.normalize({"a": {"b": CATASTROPHE[1]}})


def test_pattern_is_searched_as_json_schema_means_it():
    assert matches("b+", "abbc") and not matches("^b", "ab") and matches(r"^\p{L}$", "é")
    assert not matches("^a$", "a\n") and matches("^.$", "日") and matches(r"^[\s\S]$", "\x00")


@pytest.mark.parametrize("pattern", ["(", "a" * 2_001, 5, "(?=a)b", r"(a)\1"])
def test_pattern_that_is_none_is_refused_by_name(pattern):
    with pytest.raises(PatternError, match="the pattern"):
        compiled(pattern)
