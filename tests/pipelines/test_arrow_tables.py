"""What is sampled can be written: parquet, shards, CSV and datasets, whatever the columns hold."""

from __future__ import annotations

import io
import json
import warnings

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from difflm.pipelines.arrow_tables import nested_type, output_notes, to_arrow
from difflm.pipelines.outputs import DiffLMPipelineOutput, SamplingReport
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.sharded_sampling import sample_shards
from difflm.pipelines.table_files import write_records
from difflm.training.data import read_table


RECORDS = [
    {"id": 10**20 + 1, "path": ["x", 7], "args": {"q": "a", "opts": {"tags": ["t"]}}, "empty": {}, "n": [0.5, 1]},
    {"id": -(10**20) - 3, "path": ["y"], "args": {"q": "b"}, "empty": {}, "n": []},
    {"id": None, "path": [], "args": {"q": "c"}, "empty": {}, "n": [2]},
]


@pytest.fixture(scope="module")
def output():
    schema = RecordSchema.infer(RECORDS)
    records = schema.to_records(RECORDS)
    return DiffLMPipelineOutput(records=records, report=SamplingReport(3, 3, 3, 3), seed=0, schema=schema)


def parquet(output, tmp_path, **options) -> pa.Table:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_records(output, tmp_path / "rows.parquet", **options)
    return pq.read_table(tmp_path / "rows.parquet")


def test_parquet_holds_big_integers_mixed_lists_and_empty_objects(output, tmp_path):
    table = parquet(output, tmp_path)
    assert table.schema.field("id").type == pa.decimal128(38, 0)
    assert [None if value is None else int(value) for value in table["id"].to_pylist()] == [
        record["id"] for record in RECORDS
    ]
    for name in ("path", "empty"):
        assert [json.loads(text) for text in table[name].to_pylist()] == [record[name] for record in RECORDS]
    assert table["args"].to_pylist()[0] == RECORDS[0]["args"]
    assert table["args"].to_pylist()[1] == {"q": "b", "opts": None}
    assert table["n"].to_pylist() == [record["n"] for record in RECORDS]


def test_big_integers_can_be_text(output, tmp_path):
    table = parquet(output, tmp_path, big_integers="string")
    assert table["id"].to_pylist() == [str(10**20 + 1), str(-(10**20) - 3), None]


def test_what_is_written_in_another_form_is_said_beforehand(output):
    notes = output_notes(output.schema, ".parquet")
    assert [note.split("'")[1] for note in notes] == ["path", "empty", "id"]
    assert "decimal128(38, 0)" in notes[-1]
    assert "--big-integers" in notes[-1]
    assert [note.split("'")[1] for note in output_notes(output.schema, ".csv")] == ["path", "args", "empty", "n"]
    assert output_notes(output.schema, ".jsonl") == []


def test_nested_cells_of_a_csv_are_json(output, tmp_path):
    write_records(output, tmp_path / "rows.csv")
    frame = pd.read_csv(tmp_path / "rows.csv", dtype={"id": "str"})
    for name in ("path", "args", "empty", "n"):
        assert [json.loads(cell) for cell in frame[name]] == [record[name] for record in RECORDS]
    assert frame["id"].tolist()[:2] == [str(10**20 + 1), str(-(10**20) - 3)]


@pytest.mark.parametrize("text", ["a\rb", "\r", "a\r\nb", 'say "a\rb", twice'])
def test_a_carriage_return_is_no_end_of_a_row_in_a_csv(tmp_path, text):
    frame = pd.DataFrame({"t": [text, "plain", None], "n": [1, 2, 3]})
    schema = RecordSchema.infer(frame)
    sampled = DiffLMPipelineOutput(records=schema.to_records(frame), schema=schema)
    write_records(sampled, tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "rows.csv"), frame, check_dtype=False)


def test_a_csv_has_quotes_only_where_they_must_be(tmp_path):
    frame = pd.DataFrame({"t": ["a", "b,c"], "n": [1, 2]})
    schema = RecordSchema.infer(frame)
    write_records(DiffLMPipelineOutput(records=schema.to_records(frame), schema=schema), tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == 't,n\na,1\n"b,c",2\n'


@pytest.mark.parametrize("dtype", ["uint64", "UInt64"])
def test_unsigned_integers_keep_their_type(tmp_path, dtype):
    frame = pd.DataFrame({"n": pd.array([2**64 - 1, 2**63, 5], dtype=dtype)})
    schema = RecordSchema.infer(frame)
    assert output_notes(schema, ".parquet") == []
    table = parquet(DiffLMPipelineOutput(records=schema.to_records(frame), schema=schema), tmp_path)
    assert table.schema.field("n").type == pa.uint64()
    assert table["n"].to_pylist() == [2**64 - 1, 2**63, 5]


def test_a_dataset_holds_them_too(output):
    dataset = output.to_dataset()
    assert json.loads(dataset[0]["path"]) == ["x", 7]
    assert int(dataset[0]["id"]) == 10**20 + 1


@pytest.mark.parametrize("part", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 0)])
def test_the_types_depend_on_the_schema_not_on_the_rows(output, part):
    whole = output.to_arrow().schema
    frame = output.to_pandas().iloc[part].reset_index(drop=True)
    assert to_arrow(frame, output.schema).schema.types == whole.types


class Pipe:
    """Returns the records that a test has."""

    def __init__(self, output):
        self.output = output

    def __call__(self, num_samples, *, seed, first_row, **options):
        records = self.output.records[first_row : first_row + num_samples]
        report = SamplingReport(num_samples, num_samples, num_samples, num_samples)
        return DiffLMPipelineOutput(records=records, report=report, seed=seed, schema=self.output.schema)


def test_shards_have_one_schema(output, tmp_path):
    paths = list(sample_shards(Pipe(output), tmp_path / "out", 3, seed=0, shard_size=1))
    assert len({tuple(map(str, pq.read_schema(path).types)) for path in paths}) == 1
    table = pa.concat_tables(map(pq.read_table, paths))
    assert [json.loads(text) for text in table["path"].to_pylist()] == [record["path"] for record in RECORDS]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["a"], []], "list<item: string>"),
        ([[1], [0.5]], "list<item: double>"),
        ([["a", 1]], None),
        ([{"a": 1, "b": True}, {"a": 2, "b": None}], "struct<a: int64, b: bool>"),
        ([{}], None),
        ([[]], None),
        ([[None]], None),
        ([{"a": {}}], None),
        ([{"a": 1}, [1]], None),
    ],
)
def test_types_of_nested_values(values, expected):
    schema = RecordSchema.infer(pd.DataFrame({"x": values})).column("x").json_schema
    found = nested_type(schema)
    assert expected == (None if found is None else str(found).replace("element", "item"))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"$ref": "#/$defs/a"},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}},
        {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
    ],
)
def test_values_of_any_keys_or_types_have_no_arrow_type(schema):
    assert nested_type(schema) is None


def test_a_value_that_does_not_fit_after_all_is_written_as_text_not_lost(tmp_path):
    schema = RecordSchema.infer([{"a": [1, 2]}, {"a": [3]}])
    output = DiffLMPipelineOutput(records=[{"a": [2**70]}, {"a": []}], schema=schema)
    with pytest.warns(UserWarning, match="column 'a' is written as text"):
        write_records(output, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["a"].to_pylist() == [f"[{2**70}]", "[]"]


def test_pandas_dtypes_survive_a_parquet_file():
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None], dtype="Int64"),
            "c": pd.Categorical(["a", "b"], ["b", "a"], ordered=True),
            "s": pd.array(["x", None], dtype="string"),
            "t": pd.to_datetime(["2024-01-01", "2024-02-01"]),
            "f": [0.5, 1.5],
        }
    )
    schema = RecordSchema.infer(frame)
    output = DiffLMPipelineOutput(records=schema.to_records(frame), schema=schema)
    file = io.BytesIO()
    pq.write_table(output.to_arrow(), file)
    pd.testing.assert_frame_equal(pd.read_parquet(file), output.to_pandas())
    assert output.to_dataset()["c"][:] == ["a", "b"]
