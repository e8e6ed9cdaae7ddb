import datetime
import decimal
import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difflm.pipelines import record_schema
from difflm.pipelines.column_kinds import Column
from difflm.pipelines.errors import RecordParseError, SchemaError
from difflm.pipelines.record_schema import RecordSchema, Segment
from difflm.pipelines.tables import as_dataframe


FORMATS = ("json", "values")
HOSTILE = [
    "",
    " ",
    "null",
    "true",
    "false",
    "NaN",
    "-1.5",
    "1e5",
    "٣",
    '"',
    "a,b",
    'say "hi", twice',
    "line\nbreak",
    "tab\there",
    "back\\slash",
    "{}",
    '{"a": 1}',
    "}",
    '", "b": 2}',
    "\u2028",
    "\x00",
    "naïve 🐧",
    "\ud83d",
    "[1, 2]",
    "'",
]
hostile_text = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=8))
column_name = st.one_of(
    st.sampled_from([name for name in HOSTILE if name != "\ud83d"]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
)
integers = st.one_of(st.integers(-(10**25), 10**25), st.integers(-(2**53) - 3, 2**53 + 3), st.integers(-9, 9))
decimals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12),
    st.sampled_from([1e-7, -2.5e-9, 0.1 + 0.2, -0.0, 1e22, 123456789.1, 5e-324, 1.7e308]),
    st.decimals(-1000, 1000, places=3).map(float),
)


@st.composite
def tables(draw):
    """A list of records with hostile names and values of every kind, missing values included."""
    names = draw(st.lists(column_name, min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(1, 6))
    nested = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-5, 5), hostile_text),
        lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(hostile_text, inner, max_size=2)),
        max_leaves=4,
    )
    columns = {}
    for name in names:
        values = draw(
            st.sampled_from([integers, decimals, hostile_text, st.booleans(), st.lists(nested, max_size=2), st.none()])
        )
        values = draw(st.sampled_from([values, st.one_of(st.none(), values)]))
        columns[name] = draw(st.lists(values, min_size=rows, max_size=rows))
    return [{name: columns[name][row] for name in names} for row in range(rows)]


def infer_quietly(data, **options):
    """Infer where warnings (columns without values, decimals lost) are expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RecordSchema.infer(data, **options)


# ---- properties


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.sampled_from(FORMATS))
def test_parsing_what_was_written_gives_the_normalized_record(rows, record_format):
    schema = infer_quietly(rows, record_format=record_format)
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    bounded = jsonschema.Draft202012Validator(schema.json_schema(bounded=True))
    for row in rows:
        normal = schema.normalize(row)
        text = schema.serialize(row)
        assert schema.parse(text) == normal
        assert list(normal) == list(schema.names)
        assert schema.normalize(normal) == normal
        assert schema.serialize(normal) == text
        text.encode("utf-8")
        validator.validate(normal)
        bounded.validate(normal)
        if record_format == "json":
            assert json.loads(text) == normal


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tables(), st.sampled_from(FORMATS))
def test_segments_alternate_fixed_texts_and_values(rows, record_format):
    schema = infer_quietly(rows, record_format=record_format)
    segments = schema.segments(rows[0])
    assert "".join(segment.text for segment in segments) == schema.serialize(rows[0])
    assert [segment.text for segment in segments[::2]] == schema.fixed_segments()
    assert [segment.column for segment in segments[1::2]] == list(schema.names)
    for segment in segments[1::2]:
        assert segment.text == schema.value_text(segment.column, rows[0][segment.column])
        if record_format == "values" and schema.column(segment.column).kind != "json" and segment.text[:1] != '"':
            assert "," not in segment.text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tables(), st.sampled_from(FORMATS))
def test_a_schema_survives_json(rows, record_format):
    schema = infer_quietly(rows, record_format=record_format)
    again = RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert again.serialize(rows[0]) == schema.serialize(rows[0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), st.sampled_from(FORMATS), st.data())
def test_a_damaged_text_is_refused_or_is_a_record(rows, record_format, data):
    schema = infer_quietly(rows, record_format=record_format)
    text = schema.serialize(rows[0])
    position = data.draw(st.integers(0, len(text)))
    damaged = text[:position] + data.draw(st.text(max_size=2)) + text[data.draw(st.integers(position, len(text))) :]
    try:
        record = schema.parse(damaged)
    except RecordParseError:
        return
    assert schema.normalize(record) == record
    jsonschema.validate(record, schema.json_schema())


# ---- forms


def penguins():
    return pd.DataFrame(
        {
            "species": ["Adelie", "Gentoo", "Adelie"],
            "bill": [39.1, 47.25, np.nan],
            "mass": [3750.0, np.nan, 4100.0],
            "tagged": [True, False, True],
        }
    )


def test_json_form():
    schema = RecordSchema.infer(penguins())
    assert schema.segments(penguins().iloc[0].to_dict()) == [
        Segment('{"species": ', None),
        Segment('"Adelie"', "species"),
        Segment(', "bill": ', None),
        Segment("39.10", "bill"),
        Segment(', "mass": ', None),
        Segment("3750", "mass"),
        Segment(', "tagged": ', None),
        Segment("true", "tagged"),
        Segment("}", None),
    ]
    assert schema.serialize(schema.to_records(penguins())[2]) == (
        '{"species": "Adelie", "bill": null, "mass": 4100, "tagged": true}'
    )


def test_values_form():
    schema = RecordSchema.infer(penguins(), record_format="values")
    assert schema.fixed_segments() == ["", ",", ",", ",", ""]
    assert [schema.serialize(record) for record in schema.to_records(penguins())] == [
        "Adelie,39.10,3750,true",
        "Gentoo,47.25,null,false",
        "Adelie,null,4100,true",
    ]


@pytest.mark.parametrize(
    "category", [text for text in HOSTILE if text not in ("back\\slash", "{}", "}", "[1, 2]", "'")]
)
def test_one_category_that_is_not_plain_puts_the_whole_column_in_quotes(category):
    rows = [{"a": "plain"}, {"a": category}]
    schema = RecordSchema.infer(rows, record_format="values")
    if category in ("naïve 🐧", "\ud83d"):  # a lone surrogate becomes the replacement character
        assert schema.column("a").is_bare
        assert schema.serialize(rows[0]) == "plain"
    else:
        assert not schema.column("a").is_bare
        assert schema.serialize(rows[0]) == '"plain"'
    assert [schema.parse(schema.serialize(row)) for row in rows] == schema.to_records(rows)


def test_text_form_is_the_text_itself():
    schema = RecordSchema.for_text(max_length=99)
    code = 'def f():\n    return "x, y"\n'
    assert schema.segments({"text": code}) == [Segment(code, "text")]
    assert schema.fixed_segments() == ["", ""]
    assert schema.parse(code) == {"text": code}
    assert RecordSchema.from_dict(schema.to_dict()) == schema


def test_the_same_columns_in_another_form():
    schema = RecordSchema.infer(penguins())
    assert schema.with_format("values") == RecordSchema.infer(penguins(), record_format="values")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "0.00001"), (-0.0, "0.00000"), (1234.5, "1234.50000"), (-1e20, "-100000000000000000000.00000")],
)
def test_decimals_are_written_without_exponent(value, text):
    schema = RecordSchema.infer([{"x": 0.12345}, {"x": 1e-05}])
    assert schema.value_text("x", value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "0.00001"), (-0.0, "0.0"), (1234.5, "1234.5"), (-1e20, "-100000000000000000000.0"), (10.0, "10.0")],
)
def test_decimals_that_are_mostly_zeros_are_trimmed(value, text):
    schema = RecordSchema.infer([{"x": 0.0}, {"x": 25.0}, {"x": 1e-05}])
    (column,) = schema.columns
    assert column.trimmed and column.decimals == 5
    assert schema.value_text("x", value) == text
    assert schema.parse(schema.serialize({"x": value})) == {"x": value}
    assert RecordSchema.from_dict(schema.to_dict()) == schema
    with pytest.raises(RecordParseError, match="6 decimals, expected 1 to 5"):
        schema.parse('{"x": 0.123456}')
    with pytest.raises(RecordParseError, match="0 decimals, expected 1 to 5"):
        schema.parse('{"x": 3}')


def test_free_decimals_keep_the_digits_they_have():
    schema = RecordSchema.from_json_schema(
        {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    )
    assert [schema.value_text("x", value) for value in (0.1, 5, 1e22, 1e-7)] == [
        "0.1",
        "5.0",
        "10000000000000000000000.0",
        "0.0000001",
    ]
    assert schema.parse('{"x": 2.50}') == {"x": 2.5}
    assert isinstance(schema.parse('{"x": 2}')["x"], float)


# ---- inference


def kind_of(values, dtype=None, **options):
    return infer_quietly(pd.DataFrame({"a": pd.Series(values, dtype=dtype)}), **options).column("a")


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        (list(range(900)), None, "integer"),
        ([1, None, 3], None, "integer"),
        ([1, None, 3], "Int64", "integer"),
        ([2**60 + 1, None], "Int64", "integer"),
        ([10**30, 5], "object", "integer"),
        ([1.0, 2.5], None, "decimal"),
        ([decimal.Decimal("1.50"), decimal.Decimal("2.25")], "object", "decimal"),
        ([0.1, 0.7], "float32", "decimal"),
        (["a", "b", "a"], None, "category"),
        (["1", "2", "1"], None, "category"),
        (["True", "False"], None, "category"),
        ([f"name {i}" for i in range(21)], None, "text"),
        ([f"name {i}" for i in range(20)], None, "category"),
        ([f"name {i % 600}" for i in range(1800)], None, "text"),
        ([f"name {i % 500}" for i in range(1500)], None, "category"),
        ([f"name {i}" for i in range(30)], "category", "category"),
        ([3, 1, 3], "category", "category"),
        ([True, False], None, "boolean"),
        ([True, None], "object", "boolean"),
        ([True, None], "boolean", "boolean"),
        ([None, None], None, "null"),
        ([math.nan, math.nan], None, "null"),
        (["same", "same"], None, "category"),
        ([7, 7], None, "integer"),
        ([[1], []], None, "json"),
        ([{"k": 1}, None], None, "json"),
        ([datetime.date(2024, 1, 2), datetime.date(2024, 1, 2)], None, "date"),
        (pd.date_range("2024-01-01", periods=40), None, "date"),
    ],
)
def test_kinds(values, dtype, kind):
    column = kind_of(values, dtype)
    assert column.kind == kind
    assert column.nullable == pd.Series(values, dtype=dtype).isna().any()


@pytest.mark.parametrize(
    ("values", "dtype", "decimals"),
    [
        ([0.5, 2.25], None, 2),
        ([1e-5, 1.0], None, 5),
        ([0.1 + 0.2, 1.5], None, 1),
        ([1 / 3], None, 12),
        ([0.1, 0.25], "float32", 2),
        ([123456789.1, 0.5], None, 1),
        ([1e-300, 1e300], None, 1),
        ([1.5, None], "Float64", 1),
    ],
)
def test_number_of_decimals(values, dtype, decimals):
    assert kind_of(values, dtype).decimals == decimals


def test_categories_are_sorted_by_frequency_then_value():
    assert kind_of(["b", "c", "a", "c"]).categories == ("c", "a", "b")
    assert kind_of([2, 1, 3, 3], category_columns=["a"]).categories == (3, 1, 2)
    assert kind_of([2.0, None, 3.0], category_columns=["a"]).categories == (2, 3)


def test_values_have_places_in_their_ranges_and_lists():
    rows = [{"n": 10, "x": -1.5, "code": 3, "same": 7, "word": "a", "flag": True}] * 3
    rows += [{"n": 20, "x": 0.5, "code": 1, "same": 7, "word": "b", "flag": False}] * 3
    rows += [{"n": 30, "x": None, "code": 2, "same": 7, "word": "c", "flag": True}]
    schema = RecordSchema.infer(rows)
    assert list(schema.feature_columns) == ["n", "x", "code", "same", "word", "flag"]
    assert schema.feature_values(rows[0]) == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    last = schema.feature_values(rows[-1])
    assert math.isnan(last[1]) and [last[0], *last[2:]] == [1.0, 0.5, 0.0, 1.0, 1.0]
    # Held-out records may leave the range.
    assert schema.feature_values(rows[0] | {"n": 99, "x": -9.0}) == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert Column("n", "integer", minimum=1, maximum=10**400).feature_names == ()


def test_range_and_length_are_those_of_the_data():
    column = kind_of([3, -5, 8])
    assert (column.minimum, column.maximum) == (-5, 8)
    column = kind_of([0.5, -1.25])
    assert (column.minimum, column.maximum) == (-1.25, 0.5)
    assert kind_of(["ab", "abcd"], text_columns=["a"]).max_length == 4


def test_text_columns_are_cast():
    schema = RecordSchema.infer([{"a": 1}, {"a": 2}], text_columns=["a"])
    assert schema.column("a").kind == "text"
    mixed = pd.DataFrame({"a": [1, "x"]})
    schema = RecordSchema.infer(mixed, text_columns=["a"])
    assert [schema.serialize(record) for record in schema.to_records(mixed)] == ['{"a": "1"}', '{"a": "x"}']


def test_column_order_is_kept_and_missing_keys_are_null():
    schema = RecordSchema.infer([{"z": 1, "a": "x"}, {"a": "y", "m": 2}])
    assert schema.names == ("z", "a", "m")
    assert schema.serialize({"a": "y"}) == '{"z": null, "a": "y", "m": null}'


def test_integers_beyond_doubles_survive_beside_missing_values():
    schema = RecordSchema.infer([{"a": 2**60 + 1}, {"a": None}])
    assert schema.serialize({"a": 2**60 + 1}) == '{"a": 1152921504606846977}'
    assert schema.to_pandas([{"a": 2**60 + 1}, {"a": None}])["a"].tolist() == [2**60 + 1, pd.NA]


def test_datasets():
    features = Features({"x": Value("int64"), "label": ClassLabel(names=["cat", "dog"])})
    dataset = Dataset.from_dict({"x": [1, None, 3], "label": [0, 1, 1]}, features=features)
    schema = RecordSchema.infer(dataset, record_format="values")
    assert [schema.serialize(record) for record in schema.to_records(dataset)] == ["1,cat", "null,dog", "3,dog"]


# ---- dtypes


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([1, 2], dtype="int64"),
        pd.Series([1, 2], dtype="int8"),
        pd.Series([2**64 - 1, 2], dtype="uint64"),
        pd.Series([2**63 - 1, None], dtype="Int64"),
        pd.Series([1.0, None], dtype="float64"),
        pd.Series([1.5, None], dtype="float64"),
        pd.Series([1.5, None], dtype="Float64"),
        pd.Series([0.1, 1234.1], dtype="float32"),
        pd.Series([1e20, 3.0], dtype="float64"),
        pd.Series([True, False], dtype="bool"),
        pd.Series([True, None], dtype="boolean"),
        pd.Series([True, np.nan], dtype="object"),
        pd.Series(["x", None], dtype="string"),
        pd.Series(["x", np.nan], dtype="object"),
        pd.Series([10**30, 1], dtype="object"),
        pd.Series([np.nan, np.nan], dtype="float64"),
        pd.Series(["b", None, "a"], dtype=pd.CategoricalDtype(["b", "unused", "a"], ordered=True)),
        pd.Series([3, 1, 3], dtype="category"),
        pd.Series([0.5, 1.0], dtype="category"),
        pd.Series([True, False, None], dtype="category"),
        pd.Series([f"name {i}" for i in range(30)], dtype="category"),
        pd.Series(pd.to_datetime(["2024-02-29", None])),
        pd.Series(pd.to_datetime(["2024-02-29T10:00:01", "1999-12-31T00:00:00"])),
        pd.Series(pd.to_datetime(["2024-02-29T10:00:01.5", "1999-12-31T00:00:00.0"])),
        pd.Series(pd.to_datetime(["2024-02-29T10:00:01.000000005", "1999-12-31T00:00:00.0"], format="ISO8601")),
        pd.Series(pd.to_datetime(["2024-02-29T10:00", "1999-12-31T00:00"])).dt.tz_localize("Europe/Paris"),
        pd.Series(pd.date_range("2024-01-01", periods=50)),
        pd.Series(pd.date_range("2024-01-01", periods=50, unit="s")),
        pd.Series([{"k": [1, None]}, None], dtype="object"),
        pd.Series([1, 2], dtype="int64[pyarrow]"),
    ],
    ids=lambda series: f"{series.dtype}-{series.iloc[0]}",
)
@pytest.mark.parametrize("record_format", FORMATS)
def test_a_table_comes_back_with_its_dtypes(series, record_format):
    frame = pd.DataFrame({"a": series, "b": range(len(series))})
    schema = infer_quietly(frame, record_format=record_format)
    records = schema.to_records(frame)
    parsed = [schema.parse(schema.serialize(record)) for record in records]
    assert parsed == records
    pd.testing.assert_frame_equal(schema.to_pandas(parsed), frame)
    empty = schema.to_pandas([])
    assert len(empty) == 0
    assert empty.dtypes.astype(str).tolist() == frame.dtypes.astype(str).tolist()


def test_intervals_are_written_as_strings_and_come_back():
    frame = pd.DataFrame({"a": pd.cut(pd.Series([1, 5, 9]), [0, 4, 10])})
    schema = RecordSchema.infer(frame)
    assert schema.column("a").categories == ("(4, 10]", "(0, 4]")
    assert [record["a"] for record in schema.to_records(frame)] == ["(0, 4]", "(4, 10]", "(4, 10]"]
    pd.testing.assert_frame_equal(schema.to_pandas(schema.to_records(frame)), frame)


# ---- refused data


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"a": []}), ["no rows"]),
        (pd.DataFrame(index=range(3)), ["no columns"]),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["'a'", "more than once"]),
        (pd.DataFrame([[1, 2]]), ["0", "int", "rename"]),
        (pd.DataFrame({"a": [1, "x"]}), ["'a'", "1 (int)", "'x' (str)", "--text-columns a"]),
        (pd.DataFrame({"a": [True, 2]}, dtype="object"), ["'a'", "True (bool)", "2 (int)"]),
        (pd.DataFrame({"a": [1.0, math.inf]}), ["'a'", "inf", "row 1"]),
        (pd.DataFrame({"a": [b"x", b"\xff"]}), ["'a'", "bytes", "text_columns"]),
        (pd.DataFrame({"a": [object]}), ["'a'", "type"]),
        (pd.DataFrame({"a": [[math.inf]]}), ["'a'", "inf"]),
        (pd.DataFrame({"a": [{1: 2}]}), ["'a'", "key 1"]),
        (pd.DataFrame({"\ud83d": [1]}), ["surrogate"]),
        ([{"a": 1}, 5], ["row 1", "int"]),
        ("rows.csv", ["str", "read_table"]),
    ],
)
def test_data_that_cannot_be_described_is_refused(frame, words):
    with pytest.raises(SchemaError) as error:
        RecordSchema.infer(frame)
    for word in words:
        assert word in str(error.value)


def test_options_that_name_no_column_or_disagree():
    with pytest.raises(SchemaError, match="text_columns: no column 'b'"):
        RecordSchema.infer(penguins(), text_columns=["b"])
    with pytest.raises(SchemaError, match="'mass' is in text_columns and in category_columns"):
        RecordSchema.infer(penguins(), text_columns=["mass"], category_columns=["mass"])
    with pytest.raises(SchemaError, match="record_format 'xml'"):
        RecordSchema.infer(penguins(), record_format="xml")


def test_an_empty_column_warns_and_stays_null():
    with pytest.warns(UserWarning, match="column 'a' has no values"):
        schema = RecordSchema.infer(pd.DataFrame({"a": [None, None], "b": [1, 2]}))
    assert schema.serialize({"b": 1}) == '{"a": null, "b": 1}'
    with pytest.raises(SchemaError, match="'a'"):
        schema.normalize({"a": 1, "b": 1})


def test_decimals_that_would_vanish_warn():
    with pytest.warns(UserWarning, match="column 'a'.*1e-20"):
        RecordSchema.infer([{"a": 1e-20}, {"a": 0.5}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = RecordSchema.infer([{"a": 1e-20}, {"a": 0.5}], max_decimals=20)
    assert schema.normalize({"a": 1e-20}) == {"a": 1e-20}


# ---- refused values and texts


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"species": "Ostrich"}, ["'species'", "'Ostrich'", "2 categories"]),
        ({"mass": 1.5}, ["'mass'", "1.5", "not an integer"]),
        ({"mass": True}, ["'mass'", "not an integer"]),
        ({"bill": "wide"}, ["'bill'", "'wide'", "not a number"]),
        ({"bill": math.inf}, ["'bill'", "not finite"]),
        ({"tagged": 1}, ["'tagged'", "not a boolean"]),
        ({"tagged": None}, ["'tagged'", "missing"]),
        ({"colour": "red"}, ["'colour'", "'species', 'bill', 'mass', 'tagged'"]),
    ],
)
def test_values_that_do_not_fit_are_refused(record, words):
    schema = RecordSchema.infer(penguins())
    with pytest.raises(SchemaError) as error:
        schema.to_records([{"species": "Adelie", "tagged": True} | record])
    for word in ["row 0", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ('{"species": "Adelie", "bill": 39.10, "mass": 3750, "tagged": true} ', None, "expected '}'"),
        (' {"species": "Adelie", "bill": 39.10, "mass": 3750, "tagged": true}', "species", "character 0"),
        ('{"species": "Adelie", "bill": 39.10, "mass": 3750, "tagged": true', None, "the end"),
        ('{"species": "Adelie", "bill": 39.10, "mass": 3750}', "tagged", "expected"),
        ('{"species": "Adelie", "mass": 3750, "bill": 39.10, "tagged": true}', "bill", "expected"),
        ('{"species": "Ostrich", "bill": 39.10, "mass": 3750, "tagged": true}', "species", "categories"),
        ('{"species": Adelie, "bill": 39.10, "mass": 3750, "tagged": true}', "species", "expected a category"),
        ('{"species": null, "bill": 39.10, "mass": 3750, "tagged": true}', "species", "null"),
        ('{"species": "Adelie", "bill": 39.1, "mass": 3750, "tagged": true}', "bill", "1 decimals, expected 2"),
        ('{"species": "Adelie", "bill": 39, "mass": 3750, "tagged": true}', "bill", "0 decimals"),
        ('{"species": "Adelie", "bill": 039.10, "mass": 3750, "tagged": true}', "bill", "decimals"),
        ('{"species": "Adelie", "bill": "wide", "mass": 3750, "tagged": true}', "bill", "expected a number"),
        ('{"species": "Adelie", "bill": 39.10, "mass": 3750.5, "tagged": true}', "tagged", "expected"),
        ('{"species": "Adelie", "bill": 39.10, "mass": 3750, "tagged": "true"}', "tagged", "true or false"),
        ('{"species": "Adel', "species", "not JSON"),
        ("", "species", "the end"),
    ],
)
def test_texts_that_are_no_record_are_refused(text, column, words):
    with pytest.raises(RecordParseError, match=words) as error:
        RecordSchema.infer(penguins()).parse(text)
    assert error.value.column == column
    assert column is None or repr(column) in str(error.value)


@pytest.mark.parametrize("text", ["Adelie,39.10,3750", "Adelie,39.10,3750,true,", "Ostrich,39.10,3750,true", "a" * 99])
def test_values_that_are_no_record_are_refused(text):
    with pytest.raises(RecordParseError):
        RecordSchema.infer(penguins(), record_format="values").parse(text)


@pytest.mark.parametrize(
    ("rows", "text", "reason"),
    [
        ([{"a": 1}], f'{{"a": {2**63}}}', "out of the range of int64"),
        ([{"a": 1}], '{"a": ' + "9" * 5000 + "}", "5000 characters"),
        ([{"a": 1.5}], '{"a": ' + "9" * 400 + ".5}", "too large"),
        ([{"a": [1]}], '{"a": [1, "x"]}', "not of type integer"),
        ([{"a": {"k": 1}}], '{"a": {"k": 1, "k": 2}}', "twice"),
        ([{"a": {"k": 1}}], '{"a": {"k": 1, "other": 2}}', "not allowed"),
        ([{"a": {"k": 1}}], '{"a": {}}', "required"),
        ([{"a": {"k": 1.5}}], '{"a": {"k": NaN}}', "NaN"),
    ],
)
def test_values_out_of_their_type_are_refused(rows, text, reason):
    with pytest.raises(RecordParseError, match=reason):
        RecordSchema.infer(rows).parse(text)


@pytest.mark.parametrize("date", ["2024-02-30", "2024-2-03", "tomorrow", "9999-01-01", "2024-01-01\\n"])
def test_dates_that_do_not_exist_are_refused(date):
    schema = RecordSchema.infer(pd.DataFrame({"day": pd.date_range("2024-01-01", periods=40)}))
    assert schema.parse('{"day": "2024-02-29"}') == {"day": "2024-02-29"}
    with pytest.raises(RecordParseError, match="not a date"):
        schema.parse(f'{{"day": "{date}"}}')


# ---- JSON Schema


TOOL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8, "description": "what it is called"},
        "unit": {"enum": ["m", "s", None]},
        "size": {"enum": [1, 2.5]},
        "count": {"type": "integer", "minimum": 0, "maximum": 10},
        "score": {"type": ["number", "null"], "minimum": 0},
        "flag": {"type": "boolean"},
        "nothing": {"type": "null"},
        "code": {"type": "string", "pattern": "^[A-Z]+$"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "argument": {"$ref": "#/$defs/argument"},
        "note": {"type": "string"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "Limit"},
    },
    "required": ["name", "unit", "size", "count", "score", "flag", "nothing", "code", "tags", "argument", "limit"],
    "$defs": {
        "argument": {
            "type": "object",
            "properties": {"of": {"anyOf": [{"$ref": "#/$defs/argument"}, {"type": "null"}]}, "kind": {"const": "x"}},
            "required": ["of", "kind"],
            "additionalProperties": False,
        }
    },
}
TOOL_RECORD = {
    "name": "length",
    "unit": None,
    "size": 2.5,
    "count": 3,
    "score": 0.125,
    "flag": True,
    "nothing": None,
    "code": "ABC",
    "tags": ["a", "b"],
    "argument": {"of": {"of": None, "kind": "x"}, "kind": "x"},
    "note": None,
    "limit": 5,
}


@pytest.mark.parametrize("record_format", FORMATS)
def test_a_json_schema_becomes_columns(record_format):
    schema = RecordSchema.from_json_schema(TOOL, record_format=record_format)
    scalars = ["text", "category", "category", "integer", "decimal", "boolean", "null"]
    assert [column.kind for column in schema.columns] == [*scalars, "json", "json", "json", "text", "integer"]
    nullable = [column.name for column in schema.columns if column.nullable]
    assert nullable == ["unit", "score", "nothing", "note", "limit"]
    assert schema.parse(schema.serialize(TOOL_RECORD)) == TOOL_RECORD
    jsonschema.validate(TOOL_RECORD, schema.json_schema())
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())
    assert RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    schema.to_pandas([TOOL_RECORD])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "much too long"),
        ("unit", "kg"),
        ("size", True),
        ("count", 11),
        ("count", -1),
        ("score", -0.5),
        ("code", "abc"),
        ("tags", ["a", "b", "c"]),
        ("tags", [1]),
        ("argument", {"of": {"of": 1, "kind": "x"}, "kind": "x"}),
        ("argument", {"of": None, "kind": "y"}),
        ("argument", {"of": None, "kind": "x", "more": 1}),
        ("argument", {"kind": "x"}),
    ],
)
def test_a_json_schema_is_enforced_as_the_jsonschema_library_does(column, value):
    schema = RecordSchema.from_json_schema(TOOL)
    record = TOOL_RECORD | {column: value}
    assert not jsonschema.Draft202012Validator(TOOL | {"required": []}).is_valid({column: value})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, schema.json_schema())
    with pytest.raises(SchemaError, match=column):
        schema.serialize(record)
    with pytest.raises(RecordParseError) as error:
        schema.parse(json.dumps(record, ensure_ascii=False))
    assert error.value.column == column


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0]), st.sampled_from(["", "a", "bb"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("kl"), inner, max_size=2)),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    json_values,
    st.sampled_from(
        [
            {"type": ["integer", "string"], "minimum": 1, "maxLength": 1},
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
            {"enum": [1, "a", None, [True]]},
            {"const": [1]},
            {"const": {"k": True}},
            {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            {"prefixItems": [{"type": "string"}], "items": False},
            {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"]},
            {"properties": {"k": {}}, "additionalProperties": {"type": "null"}},
            {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
            {"allOf": [{"minLength": 1}, {"maxLength": 1}]},
            {"pattern": "a$"},
            {"type": ["array", "null"], "items": {"enum": ["a", 1, 0.5]}},
            {"type": "array", "items": {"$ref": "#/definitions/x~1y"}, "definitions": {"x/y": {"type": "string"}}},
        ]
    ),
)
def test_nested_validation_agrees_with_the_jsonschema_library(value, nested):
    column = Column("a", "json", json_schema=nested)
    expected = value is not None and jsonschema.Draft202012Validator(nested).is_valid(value)
    try:
        column.normalize(value)
    except SchemaError:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize(
    ("value", "constant", "equal"),
    [([1.0], [1], True), ([True], [1], False), ({"k": 0}, {"k": False}, False), ({"k": 1.0}, {"k": 1}, True)],
)
def test_json_equality_of_constants(value, constant, equal):
    column = Column("a", "json", json_schema={"const": constant})
    assert jsonschema.Draft202012Validator({"const": constant}).is_valid(value) == equal
    if equal:
        assert column.normalize(value) == value
    else:
        with pytest.raises(SchemaError, match="is not"):
            column.normalize(value)


def test_nested_keys_are_written_in_the_order_of_the_schema():
    schema = RecordSchema.infer([{"a": {"x": 1, "y": "s"}}, {"a": {"y": "t", "x": 2}}])
    assert schema.serialize({"a": {"y": "t", "x": 2}}) == '{"a": {"x": 2, "y": "t"}}'


@pytest.mark.parametrize("schema", [{"type": "array"}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_json_schema_without_columns_is_refused(schema):
    with pytest.raises(SchemaError, match="properties"):
        RecordSchema.from_json_schema(schema)


# ---- the object itself


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"version": 99, "columns": []}, "version 99"),
        ({"version": 1, "record_format": "json"}, "damaged"),
        ({"version": 1, "record_format": "json", "columns": [{"nome": "a"}]}, "damaged"),
        ({"version": 1, "record_format": "json", "columns": []}, "at least one column"),
        (
            {"version": 1, "record_format": "json", "columns": [{"name": "a", "kind": "matrix"}]},
            "unknown kind 'matrix'",
        ),
        (
            {"version": 1, "record_format": "json", "columns": [{"name": "a", "kind": "category"}]},
            "at least one category",
        ),
    ],
)
def test_a_damaged_schema_is_refused(data, words):
    with pytest.raises(SchemaError, match=words):
        RecordSchema.from_dict(data)


def test_a_pattern_that_python_does_not_know_is_left_to_the_grammar():
    column = Column("a", "json", json_schema={"type": "string", "pattern": r"^\p{Lu}$"})
    assert column.normalize("A") == "A"


@pytest.mark.parametrize("rows", [[5], ["a"], [None]])
def test_rows_that_are_no_dicts_are_refused(rows):
    with pytest.raises(SchemaError, match="row 0.*not a dict"):
        RecordSchema.infer(penguins()).to_records(rows)


def test_nesting_without_end_is_refused():
    schema = RecordSchema.infer([{"a": [[1]]}])
    with pytest.raises(RecordParseError):
        schema.parse('{"a": ' + "[" * 100_000)


def test_an_unknown_column_is_named_with_the_known_ones():
    with pytest.raises(SchemaError, match="no column 'x'; the columns are 'species'"):
        RecordSchema.infer(penguins()).column_json_schema("x")


def test_two_hundred_columns():
    rows = [{f"column {i}": i * row for i in range(200)} for row in range(3)]
    for record_format in FORMATS:
        schema = RecordSchema.infer(rows, record_format=record_format)
        assert len(schema.fixed_segments()) == 201
        assert [schema.parse(schema.serialize(row)) for row in rows] == rows


def test_as_dataframe_drops_the_index():
    frame = as_dataframe(pd.DataFrame({"a": [1, 2]}, index=["x", "y"]))
    assert frame.index.tolist() == [0, 1]


def test_the_schema_works_alone(tmp_path):
    """Code loaded from the Hub runs where difflm is not installed; only inferring needs it, and says so."""
    package = tmp_path / "alone"
    package.mkdir()
    for path in Path(record_schema.__file__).parent.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copy(path, package)
    (package / "__init__.py").touch()
    program = """
import sys
sys.modules["difflm"] = None
from alone import errors, record_schema
assert "pandas" not in sys.modules and "torch" not in sys.modules
schema = record_schema.RecordSchema.from_json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
assert schema.parse(schema.serialize({"a": 5})) == {"a": 5}
try:
    record_schema.RecordSchema.infer([{"a": 1}])
except errors.SchemaError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "pip install difflm" in done.stdout
