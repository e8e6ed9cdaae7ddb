"""A tiny pipeline fitted on dates and nested values: what it samples, fills and restricts."""

from __future__ import annotations

import datetime
import decimal
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytz

from difflm.pipelines.conditions import ConditionError
from difflm.pipelines.nested_kind import _smallest
from difflm.pipelines.table_files import write_records
from difflm.training.fitting import fit
from tests.conftest import tiny_preset


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 699, 60), unit="D")
    hours = pd.Timestamp("2024-05-01") + pd.to_timedelta(97 * np.arange(60), unit="min")
    return pd.DataFrame(
        {
            "visit": days,
            "when": hours.tz_localize(pytz.FixedOffset(120)),
            "due": [f"{day:%d.%m.%Y}" for day in days + pd.Timedelta("30D")],
            "born": [day.date() for day in days - pd.Timedelta("9000D")],
            "ward": pd.Categorical(rng.choice([1, 2, 5], 60)),
            "notes": [{"n": int(number), "tags": ["a"] * int(number % 3)} for number in rng.integers(0, 9, 60)],
            "age": rng.integers(18, 90, 60),
        }
    )


@pytest.fixture(scope="module", params=["draft", "lm"])
def pipe(request, table, tmp_path_factory, model_folders):
    preset = tiny_preset(model_folders, column_draft=request.param == "draft")
    folder = tmp_path_factory.mktemp("dates") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = fit(table, folder, preset=preset, show_progress=False)
    pipeline.set_progress_bar_config(disable=True)
    return type(pipeline).from_pretrained(folder)


def test_dates_are_sampled_in_their_range_and_dtype(pipe, table):
    if pipe.config["writer"] == "lm":
        assert pipe.autoencoder.config.num_feature_columns == len(pipe.schema.feature_columns) > len(table.columns)
    assert {"visit", "when", "due", "born"} <= set(pipe.condition_encoder.names)
    output = pipe(30, seed=0)
    assert output.valid_first_attempt == 1.0
    frame = output.to_pandas()
    assert (frame.dtypes == table.dtypes).all()
    for name in ("visit", "when", "born"):
        assert frame[name].between(table[name].min(), table[name].max()).all()
    assert pd.to_datetime(frame.due, format="%d.%m.%Y").notna().all()
    assert all(isinstance(day, datetime.date) for day in frame.born)


def test_conditions_on_dates_hold(pipe):
    condition = {
        "visit": (datetime.date(2023, 2, 1), np.datetime64("2023-03-31")),
        "when": ("2024-05-02", None),
        "due": "31.12.2023",
        "ward": (2, 5),
        "age": (np.int64(30), decimal.Decimal(40)),
    }
    frame = pipe(20, seed=1, condition=condition).to_pandas()
    assert frame.visit.between("2023-02-01", "2023-03-31").all()
    assert (frame.when >= pd.Timestamp("2024-05-02", tz="+02:00")).all()
    assert set(frame.due) == {"31.12.2023"}
    assert set(frame.ward) <= {2, 5}
    assert frame.age.between(30, 40).all()
    for bound in (math_nan := float("nan"), np.float64("nan"), pd.NA, pd.NaT, decimal.Decimal("NaN"), np.inf):
        with pytest.raises(ConditionError, match="range of 'age' must be two finite numbers"):
            pipe(1, condition={"age": (bound, 40)})
        with pytest.raises(ConditionError):
            pipe(1, condition={"visit": (bound, "2023-03-31")})
    assert math_nan != math_nan


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, pd.NaT, decimal.Decimal("NaN"), np.datetime64("NaT")])
def test_every_kind_is_imputed(pipe, gap, table):
    given = {"visit": pd.Timestamp("2023-05-06"), "age": np.int64(33)}
    for record in (given, given | {name: gap for name in table.columns if name not in given}):
        frame = pipe.impute([record], seed=0).to_pandas()
        assert frame.visit[0] == given["visit"] and frame.age[0] == 33
    for name in table.columns:
        row = table.iloc[0].to_dict() | {name: gap}
        filled = pipe.impute([row], seed=0).to_pandas().iloc[0]
        assert all(filled[other] == row[other] for other in table.columns if other != name)


def test_given_and_varied_records_take_any_scalars(pipe, table):
    row = table.iloc[0].to_dict() | {"visit": np.datetime64("2023-05-06"), "age": decimal.Decimal(33)}
    assert len(pipe.vary([row], seed=0).records) == len(pipe.reconstruct([row]).records) == 1
    record = pipe(1, seed=0, given=[{"when": pd.Timestamp("2024-05-01T10:00Z"), "age": np.float64(20)}]).records[0]
    assert (record["when"], record["age"]) == ("2024-05-01T12:00+02:00", 20)


def test_files_hold_dates_as_the_data_did(pipe, table, tmp_path):
    output = pipe(5, seed=0)
    write_records(output, tmp_path / "out.parquet")
    read = pq.read_table(tmp_path / "out.parquet")
    assert read.schema.field("when").type == pa.timestamp("ns", tz="+02:00")
    assert read.schema.field("born").type == pa.date32()
    assert read.schema.field("due").type == pa.string()
    write_records(output, tmp_path / "out.jsonl")
    write_records(output, tmp_path / "out.csv")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = output.to_pandas().due.tolist()
    assert [line["due"] for line in lines] == pd.read_csv(tmp_path / "out.csv").due.tolist() == expected


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {}}}, {"a": ""}),
        (
            {
                "type": "array",
                "minItems": 2,
                "items": {"$ref": "#/$defs/n"},
                "$defs": {"n": {"minimum": 3, "type": "integer"}},
            },
            [3, 3],
        ),
        ({"anyOf": [{"type": ["null", "string"]}, {"type": "array"}]}, None),
        ({"type": "number", "exclusiveMaximum": -1}, -1.5),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "array"}, []),
    ],
)
def test_a_smallest_value_stands_for_a_gap(schema, value):
    assert _smallest(schema, schema) == value
