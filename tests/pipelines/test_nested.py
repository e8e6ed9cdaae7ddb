"""Nested values: what a JSON Schema holds, what is inferred of data, and that grammar, check and data agree."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import datasets
import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.pipelines.conditions import ConditionError, check_condition
from difflm.pipelines.errors import DecodingError, RecordParseError, SchemaError
from difflm.pipelines.json_schemas import HELD, OBSERVED, NestedSchema, grammar_schema, structure
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.pipelines.record_grammar import RecordConstraint
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.schema_inference.nested import infer_json_schema
from difflm.pipelines.tables import as_dataframe
from difflm.training.data import read_table
from difflm.training.nested_check import check_nested_columns

from .test_record_grammar import bpe_tokenizer, walk


TOKENIZER = bpe_tokenizer()


def constraint_of(schema: RecordSchema, condition: dict[str, Any] | None = None, **options: Any) -> RecordConstraint:
    conditions = check_condition(condition or {}, schema.columns)
    values = [
        DiffLMPipeline._value_spec(schema, column, conditions.get(column.name), options.get("within_range", True))
        for column in schema.columns
    ]
    return RecordConstraint.compile(
        TOKENIZER,
        vocab_size=len(TOKENIZER),
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        fixed_segments=schema.fixed_segments(),
        values=values,
    )


def of_property(schema: Any, **record: Any) -> RecordSchema:
    return RecordSchema.from_json_schema(
        {"type": "object", "properties": {"x": schema}, "required": ["x"], **record}
    )


def drawn(schema: RecordSchema, number: int = 40, condition: dict[str, Any] | None = None) -> list[Any]:
    """Values of column x that uniform walks through the grammar write."""
    constraint = constraint_of(schema, condition)
    return [schema.parse(constraint.text(walk(constraint, seed)))["x"] for seed in range(number)]


# ------------------------------------------------------------------------------------------- keywords of a JSON Schema


@pytest.mark.parametrize(
    ("other", "value", "fits"),
    [
        (False, {"a": 1, "x_1": "s", "y_1": True}, True),
        (False, {"b": 1}, False),
        ({"type": "boolean"}, {"a": 1, "x_1": "s"}, True),
        ({"type": "boolean"}, {"b": True}, True),
        ({"type": "boolean"}, {"b": 1}, False),
        ({"type": "boolean"}, {"a": True}, False),
        ({"type": "boolean"}, {"x_1": True}, False),
    ],
)
def test_other_keys_are_those_of_no_property_and_of_no_pattern(other: Any, value: Any, fits: bool) -> None:
    """Each of several patterns takes keys away, and a key that is known is not asked to be like the others."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": other}
    schema["patternProperties"] = {"^x_": {"type": "string"}, "^y_": {"type": "boolean"}}
    problem = NestedSchema(schema).violation(value)
    assert (problem is None) == fits
    if other is False and not fits:
        assert "the key 'b' is not allowed" in str(problem)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 57, (0, 99)), (3, 57, (0, 99)), (-3, 57, (-99, 99)), (-570, 8, (-999, 999)), (0, 9.5, (0, 99))],
)
def test_beyond_an_observed_range_are_numbers_of_as_many_digits(low: float, high: float, expected: Any) -> None:
    schema = {OBSERVED: True, "type": "number", "minimum": low, "maximum": high}
    made = grammar_schema(schema, within_range=False)
    assert (made["minimum"], made["maximum"]) == expected
    assert {"minimum": low, "maximum": high}.items() <= grammar_schema(schema).items()
    for bound in ("minimum", "maximum"):
        one_end = {OBSERVED: True, "type": "number", bound: 5}
        assert grammar_schema(one_end, within_range=False) == {"type": "number", bound: 5}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "object", "patternProperties": {"^n_": {"type": "integer"}}}, {"n_a": 1}, {"n_a": "x"}),
        (
            {"type": "object", "patternProperties": {"^n_": {}}, "additionalProperties": False},
            {"n_a": 1},
            {"other": 1},
        ),
        ({"type": "array", "items": {"multipleOf": 0.1}}, [0.3, 0.7], [0.35]),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], [1, 1]),
        ({"type": "object", "not": {"required": ["a"]}}, {"b": 1}, {"a": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "type": "object"}, {"a": 1, "b": 2}, {"a": 1}),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
        ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
        ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1]),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}),
        ({"type": "object", "minProperties": 1, "maxProperties": 1}, {"a": 1}, {}),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, 1, 3),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": False}, ["a"], ["a", 1]),
    ],
)
def test_keywords_hold_in_values_given_and_read(schema: Any, valid: Any, invalid: Any) -> None:
    table = of_property(schema)
    assert table.column("x").kind == "json"
    assert table.parse(table.serialize({"x": valid})) == {"x": valid}
    with pytest.raises(SchemaError, match="column 'x'"):
        table.normalize({"x": invalid})
    with pytest.raises(RecordParseError, match="column 'x'"):
        table.parse(json.dumps({"x": invalid}))
    constraint_of(table)  # what the grammar cannot hold is left out of it, not refused by the library


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$dynamicRef": "#node"}, r"\$dynamicRef"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties.*additionalProperties"),
        ({"type": "array", "items": {"unevaluatedItems": False}}, "items/unevaluatedItems"),
        ({"dependencies": {"a": ["b"]}}, "dependencies.*dependentRequired"),
        ({"$ref": "https://example.com/schema.json"}, "points out of the schema"),
        ({"$ref": "file:///etc/passwd"}, "points out of the schema"),
        ({"$ref": "#/$defs/absent"}, "points to nothing"),
        ({"$ref": "#absent"}, r"no \$anchor"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "object", "patternProperties": {"(a)\\1": {}}}, "back"),
        ({"type": "nonsense"}, "draft 2020-12.*nonsense"),
        ({"minimum": 1, "exclusiveMinimum": True}, "draft 2020-12.*exclusiveMinimum"),
        ({"items": [{"type": "integer"}]}, "draft 2020-12"),
        (False, "no value fits"),
    ],
)
def test_what_cannot_hold_is_named_at_once(schema: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        of_property(schema)


@pytest.mark.parametrize("keyword", ["allOf", "if", "dependentRequired", "patternProperties", "minProperties"])
def test_keywords_between_columns_are_named(keyword: str) -> None:
    item = {"allOf": [{}], "minProperties": 1}.get(keyword, {})
    with pytest.raises(SchemaError, match=f"{keyword}.*accept="):
        of_property({"type": "integer"}, **{keyword: item})


def test_a_required_key_that_is_no_property_is_named() -> None:
    with pytest.raises(SchemaError, match="requires 'y'"):
        RecordSchema.from_json_schema({"properties": {"x": {}}, "required": ["x", "y"]})


def test_what_the_library_cannot_hold_is_named_when_the_grammar_is_made() -> None:
    table = of_property({"type": "object", "patternProperties": {"^a": {}, "b$": {}}})
    with pytest.raises(DecodingError, match="column 'x'.*disjoint"):
        constraint_of(table)


def test_a_schema_that_refers_to_itself() -> None:
    node = {"type": "object", "properties": {"v": {"enum": ["a", "b"]}, "next": {"$ref": "#/properties/x"}}}
    table = of_property(node | {"required": ["v"], "additionalProperties": False})
    value = {"v": "a", "next": {"v": "b", "next": {"v": "a"}}}
    assert table.normalize({"x": value}) == {"x": value}
    with pytest.raises(SchemaError, match="next.next"):
        table.normalize({"x": {"v": "a", "next": {"v": "b", "next": {"v": 1}}}})
    for found in drawn(table, 20):
        jsonschema.validate({"x": found}, table.json_schema())


def test_a_record_that_refers_to_itself() -> None:
    """As pydantic writes a recursive model: the record itself is a definition."""
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "child": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["v"],
    }
    table = RecordSchema.from_json_schema({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    record = {"v": 1, "child": {"v": 2, "child": None}}
    assert table.parse(table.serialize(record)) == record
    whole = RecordSchema.from_json_schema({"properties": {"v": {"type": "integer"}, "child": {"$ref": "#"}}})
    assert whole.normalize({"v": 1, "child": {"v": 2, "child": {"v": 3}}})["child"]["child"] == {"v": 3}
    with pytest.raises(SchemaError, match="child"):
        whole.normalize({"v": 1, "child": {"v": "x"}})


def test_a_schema_that_no_finite_value_fits_is_refused() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    with pytest.raises(SchemaError, match="requires itself"):
        of_property({"$ref": "#/$defs/node"}, **{"$defs": {"node": node}})


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(SchemaError, match="points out of the schema"):
        NestedSchema({"properties": {"a": {"$ref": "http://localhost:1/x"}}}).violation({"a": 1})


def test_checked_keywords_and_observations_do_not_reach_the_grammar() -> None:
    schema = {"type": "array", "items": {"type": "string", "format": "x-y"}, "uniqueItems": True, "not": {"const": []}}
    assert grammar_schema(schema) == {"type": "array", "items": {"type": "string"}}
    old = {"type": "object", "properties": {"a": {"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]}}}
    assert grammar_schema(old) == old and structure(old) == old
    assert set(schema) - HELD == {"uniqueItems", "not"}


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "minimum": -2.5},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "exclusiveMinimum": -1, "minimum": -3, "maximum": 0},
        {"type": "number", "minimum": 1e-9, "maximum": 3e-9},
        {"type": "number", "minimum": 0.123456789, "maximum": 0.123456789},
        {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
        {"type": "number", "multipleOf": 0.01, "exclusiveMaximum": 5, "minimum": 0},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4},
        {"type": "number", "format": "double"},
    ],
)
def test_numbers_without_stated_decimals_keep_their_bounds(schema: dict[str, Any]) -> None:
    table = of_property(schema)
    values = drawn(table)
    exact = NestedSchema(schema)  # jsonschema's own multipleOf rounds
    assert [exact.violation(value) for value in values] == [None] * len(values)
    assert all(table.parse(table.serialize({"x": value})) == {"x": value} for value in values)
    if "multipleOf" not in schema:
        assert all(jsonschema.Draft202012Validator(table.json_schema()).is_valid({"x": value}) for value in values)
    if schema["type"] == "number" and schema.get("minimum") != schema.get("maximum"):
        assert any(value != int(value) for value in values)


def test_ranges_of_numbers_without_stated_decimals() -> None:
    table = of_property({"type": "number", "exclusiveMinimum": 0, "maximum": 10})
    values = drawn(table, 60, {"x": (0.2, 0.4)})
    assert all(0.2 <= value <= 0.4 for value in values) and len(set(values)) > 20
    assert all(0 < value <= 0.001 for value in drawn(table, 60, {"x": (0, 0.001)}))
    assert drawn(table, 2, {"x": 2.5}) == [2.5, 2.5]
    for impossible in ((11, 12), (-2, -1), (-1, 0), 10.5, 0):
        with pytest.raises(ConditionError, match="'x'"):
            check_condition({"x": impossible}, table.columns)


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5])
def test_bounds_of_numbers_are_enforced_in_what_is_given_and_read(value: float) -> None:
    table = of_property({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
    with pytest.raises(SchemaError, match="'x'"):
        table.normalize({"x": value})
    with pytest.raises(RecordParseError, match="'x'"):
        table.parse(f'{{"x": {value}}}')


# ----------------------------------------------------------------------------------------------------------- inference


def tool(rng: random.Random, names: int) -> dict[str, Any]:
    """A tool definition whose parameters have names of their own."""
    properties = {
        f"{rng.choice(['city', 'page', 'id', 'user'])}_{rng.randrange(names)}": {
            "type": rng.choice(["string", "number"]),
            "description": "word " * rng.randrange(8),
            **({"default": rng.choice(["a", 1, True, 0.25])} if rng.random() < 0.7 else {}),
        }
        for _ in range(rng.randrange(5))
    }
    return {"name": f"t{rng.random()}", "parameters": {"type": "object", "properties": properties}}


def test_an_object_used_as_a_map_is_inferred_as_one() -> None:
    rng = random.Random(0)
    records, more = ([tool(rng, 10_000) for _ in range(number)] for number in (400, 200))
    schema = RecordSchema.infer(records)
    nested = schema.column("parameters").json_schema["properties"]["properties"]
    assert "properties" not in nested
    assert nested["additionalProperties"]["required"] == ["type", "description"]
    assert nested["propertyNames"] == {"pattern": "^[a-z][a-z0-9_]{4,8}$"}
    assert len(json.dumps(schema.column("parameters").json_schema)) < 1500
    assert schema.to_records(more) == more  # names that nobody has seen
    check_nested_columns(schema.to_records(records), schema, TOKENIZER, TOKENIZER.eos_token_id)
    constraint = constraint_of(schema)
    reasons: set[str] = set()
    for seed in range(10):
        record = None
        for attempt in range(20):  # a map's grammar does not tell whether a key occurs twice
            try:
                record = schema.parse(constraint.text(walk(constraint, 100 * seed + attempt)))
                break
            except RecordParseError as error:
                reasons.add(error.reason[-12:])
        jsonschema.validate(record, schema.json_schema(bounded=True))
    assert reasons <= {"occurs twice"}


def test_the_size_of_a_schema_does_not_grow_with_the_records() -> None:
    sizes = []
    for number in (300, 3000):
        rng = random.Random(1)
        schema = infer_json_schema((tool(rng, 10**6)["parameters"] for _ in range(number)), "p")
        sizes.append(len(json.dumps(schema)))
    assert sizes[1] < sizes[0] + 20


def test_objects_with_optional_keys_stay_closed() -> None:
    rng = random.Random(2)
    keys = [f"field_{number}" for number in range(40)]
    for number in (1, 2, 5, 20, 500):
        values = [{key: 1 for key in keys if rng.random() < 0.2} | {"id": row} for row in range(number)]
        schema = infer_json_schema(values, "x")
        assert schema["additionalProperties"] is False, number
        assert schema["required"][-1:] == ["id"] or number == 1


def test_small_data_does_not_become_a_map() -> None:
    schema = infer_json_schema([{f"key_{row}": "a"} for row in range(10)], "x")
    assert schema["additionalProperties"] is False


def test_a_map_keeps_the_keys_that_most_have() -> None:
    rng = random.Random(3)
    values = [{"id": row, "name": "x", **{f"tag{rng.random()}": "t" for _ in range(2)}} for row in range(200)]
    schema = infer_json_schema(values, "x")
    assert list(schema["properties"]) == schema["required"] == ["id", "name"]
    assert schema["additionalProperties"]["type"] == "string"
    loose = NestedSchema(structure(schema))
    assert loose.violation({"id": 1, "name": "y", "tag0.5": "z"}) is None
    assert loose.violation({"id": 1, "name": "y", "tag0.5": 1}) is not None


def test_a_key_of_everybodys_own_bounds_memory() -> None:
    started = time.monotonic()
    values = ({f"user{row}x{part}": {f"day{row}y{part}": part} for part in range(20)} for row in range(5000))
    schema = infer_json_schema(values, "x")
    assert len(json.dumps(schema)) < 1000
    assert time.monotonic() - started < 60


def test_many_optional_keys_are_written() -> None:
    rng = random.Random(4)
    rows = [{"x": {f"k{key}": key for key in sorted(rng.sample(range(250), 120))}} for _ in range(60)]
    schema = RecordSchema.infer(rows)
    assert schema.column("x").json_schema["additionalProperties"] is False
    check_nested_columns(schema.to_records(rows), schema, TOKENIZER, TOKENIZER.eos_token_id)
    wide = of_property({"type": "object", "properties": {f"k{key}": {"type": "integer"} for key in range(600)}})
    constraint_of(wide).start().forced()


def test_lists_are_bounded_mixed_or_tuples() -> None:
    assert infer_json_schema([[1, "a"], ["b"], [2, 3, 4]], "x") == {
        "type": "array",
        "items": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 4}, {"type": "string", "maxLength": 1}]
        },
        "minItems": 1,
        "maxItems": 3,
        OBSERVED: True,
    }
    pairs = infer_json_schema([["a", 1], ["b", 2]], "x")
    assert [part["type"] for part in pairs["prefixItems"]] == ["string", "integer"]
    assert NestedSchema(pairs).violation(["a", "b"]) is not None
    assert infer_json_schema([[], []], "x") == {"type": "array", "maxItems": 0, OBSERVED: True}


def test_frequent_strings_are_a_list_and_rare_ones_are_nobodys_business() -> None:
    values = [{"unit": "km" if row % 2 else "mi", "who": f"person {row}"} for row in range(100)]
    properties = infer_json_schema(values, "x")["properties"]
    assert properties["unit"]["enum"] == ["km", "mi"]
    assert properties["who"] == {"type": "string", "maxLength": 9}
    rare = infer_json_schema([*values, {"unit": "league", "who": "x"}], "x")["properties"]["unit"]
    assert "enum" not in rare


def test_what_was_observed_bounds_the_grammar_but_not_the_type() -> None:
    schema = RecordSchema.infer([{"x": {"n": row, "s": "ab", "l": [0.5]}} for row in range(40)])
    beyond = {"x": {"n": 99, "s": "abc", "l": [0.25, 7.0]}}
    assert schema.normalize(beyond) == beyond
    assert jsonschema.Draft202012Validator(schema.json_schema()).is_valid(beyond)
    assert not jsonschema.Draft202012Validator(schema.json_schema(bounded=True)).is_valid(beyond)
    for within in (True, False):
        constraint = constraint_of(schema, within_range=within)
        records = [schema.parse(constraint.text(walk(constraint, seed))) for seed in range(20)]
        assert all(0 <= record["x"]["n"] <= (39 if within else 99) for record in records)


def test_nesting_without_end_is_refused_by_name() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(SchemaError, match="column 'x'.*levels deep.*text_columns"):
        RecordSchema.infer([{"x": deep}])
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(SchemaError, match="column 'x'.*too deeply"):
        RecordSchema.infer([{"x": deep}])


def test_a_column_that_its_grammar_does_not_take_is_refused_before_training() -> None:
    schema = RecordSchema.infer([{"x": ["a"]}] * 3)
    with pytest.raises(SchemaError, match=r"column 'x'.*row 1.*\['b c'\]|column 'x'.*row 1.*text_columns"):
        check_nested_columns([{"x": ["a"]}, {"x": ["b c"]}], schema, TOKENIZER, TOKENIZER.eos_token_id)


# ------------------------------------------------------------------------------------------------------------- values


def test_values_that_differ_in_form_only() -> None:
    schema = RecordSchema.infer([{"x": {"n": 1, "f": 0.5, "a": [1, 2], "e": {}, "l": []}}])
    given_value = {
        "e": {},
        "l": np.array([]),
        "a": np.array([3, 4]),
        "f": np.float32(-0.0),
        "n": np.float64(2.0),
    }
    record = schema.normalize({"x": given_value})
    assert schema.serialize(record) == '{"x": {"n": 2, "f": 0.0, "a": [3, 4], "e": {}, "l": []}}'
    assert schema.parse(schema.serialize(record)) == record


SURROGATES = dict.fromkeys(map(chr, (0xD800, 0xDFFF)), 1)


@pytest.mark.parametrize("value", [{1: "a"}, SURROGATES, [10**500], [float("inf")], [object()]])
def test_what_is_not_json_is_refused_by_name(value: Any) -> None:
    with pytest.raises(SchemaError, match="column 'x'"):
        RecordSchema.infer([{"x": value}])


def test_strange_strings_numbers_and_keys_survive(tmp_path: Any) -> None:
    strange = {"": "\x00\x7f\u2028", 'quo"te\\': "\ud800", "\x01": [10**25, 1e-7, 1e300, None, True], "日本": "😀"}
    rows = [{"x": strange}] * 3
    schema = RecordSchema.infer(rows)
    records = schema.to_records(rows)
    assert records[0]["x"]['quo"te\\'] == "\ufffd"
    assert [schema.parse(schema.serialize(record)) for record in records] == records
    check_nested_columns(records, schema, TOKENIZER, TOKENIZER.eos_token_id)


def test_absent_fields_of_arrow_structs_are_absent(tmp_path: Any) -> None:
    rows = [{"x": {"a": 1}, "y": [{"k": 1}]}, {"x": {"b": "s"}, "y": [{"m": "t"}, {"k": 2}]}]
    table = datasets.Dataset.from_list(rows)
    assert table[0]["x"] == {"a": 1, "b": None}
    assert RecordSchema.infer(table).to_records(table) == rows
    table.to_parquet(tmp_path / "rows.parquet")
    frame = read_table(tmp_path / "rows.parquet")
    assert RecordSchema.infer(frame).to_records(frame) == rows
    kept = pd.DataFrame({"x": [{"a": None}, {"a": 1}]})  # Python's own None is a value
    assert as_dataframe(kept)["x"][0] == {"a": None}


# ---------------------------------------------------------------------------------------------- all of it, on any data


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(-1000, 1000, places=2).map(float),
    st.text(max_size=8),
)
keys = st.characters(exclude_characters="\x7f", exclude_categories=("Cs",))
nested_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from("abc"), st.text(keys, max_size=4)), inner, max_size=4),
    ),
    max_leaves=12,
)
tables = st.lists(st.fixed_dictionaries({"x": st.lists(nested_values, max_size=3)}), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tables)
def test_inferred_schemas_fit_their_data_and_their_grammar(rows: list[dict[str, Any]]) -> None:
    schema = RecordSchema.infer(rows)
    records = schema.to_records(rows)
    loose, tight = (jsonschema.Draft202012Validator(schema.json_schema(bounded=each)) for each in (False, True))
    for record in records:
        loose.validate(record)
        tight.validate(record)
        assert schema.parse(schema.serialize(record)) == record
    check_nested_columns(records, schema, TOKENIZER, TOKENIZER.eos_token_id)
    assert RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    constraint = constraint_of(schema)
    for seed in range(3):
        reason = ""
        try:
            tight.validate(schema.parse(constraint.text(walk(constraint, seed))))
        except RecordParseError as error:  # drawn again: a map's key twice, an exponent of a hundred digits
            reason = error.reason
        assert not reason or "twice" in reason or "inf" in reason
