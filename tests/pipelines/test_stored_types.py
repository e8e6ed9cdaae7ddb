"""Types that a table stores come back as they were, in frames and in parquet files, or a warning names the column."""

from __future__ import annotations

import datetime
import io
import json
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from difflm.pipelines.outputs import DiffLMPipelineOutput
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.stored_types import arrow_type_of
from difflm.pipelines.values import in_utc


def arrow(values, kind) -> pd.Series:
    return pd.Series(values, dtype=pd.ArrowDtype(kind))


DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 0, 1, 5000)
SERIES = {
    "decimals": pd.Series([Decimal("1.50"), Decimal("-22.05"), None]),
    "whole decimals": pd.Series([Decimal("100.00"), Decimal("2.00"), Decimal("7.00")]),
    "long whole decimals": pd.Series([Decimal(10**25 + 1), Decimal(3), Decimal(4)]),
    "durations": pd.Series(pd.to_timedelta(["1h", "90s", None])),
    "short durations": pd.Series(pd.to_timedelta(["1ms", "5us", "3s"])).astype("timedelta64[us]"),
    "intervals": pd.Series(pd.arrays.IntervalArray.from_tuples([(0, 1.5), (1.5, 3), None], closed="left")),
    "periods": pd.Series(pd.PeriodIndex(["2024-01", "2024-02", None], freq="M")),
    "complex": pd.Series([1 + 2j, -0.5j, np.nan]),
    "bytes": pd.Series([b"a", "é".encode(), None]),
    "cut": pd.Series(pd.cut([1, 5, 9, 5], 3)),
    "cut dates": pd.Series(pd.cut(pd.to_datetime(["2024-01-01", "2024-06-01", "2024-12-31"]), 2)),
    "categories of dates": pd.Series(pd.Categorical(pd.to_datetime(["2024-01-01", "2024-06-01", None]))),
    "categories of periods": pd.Series(pd.Categorical(pd.PeriodIndex(["2024Q1", "2024Q2"], freq="Q"))),
    "categories of decimals": pd.Series(pd.Categorical([Decimal("0.10"), Decimal("2.5")])),
    "arrow bool": arrow([True, False, None], pa.bool_()),
    "arrow int32": arrow([1, None, 3], pa.int32()),
    "arrow uint8": arrow([1, 2, 255], pa.uint8()),
    "arrow double": arrow([0.25, None, 3], pa.float64()),
    "arrow float": arrow([0.1, None, 3], pa.float32()),
    "arrow string": arrow(["x", None, "y"], pa.string()),
    "arrow large_string": arrow(["x", None, "y"], pa.large_string()),
    "arrow timestamp": arrow([NOON, None, NOON], pa.timestamp("us", tz="UTC")),
    "arrow zone": arrow([NOON, None], pa.timestamp("ms", tz="Europe/Berlin")),
    "arrow naive": arrow([NOON, None, NOON], pa.timestamp("us")),
    "arrow date": arrow([DAY, None, DAY], pa.date32()),
    "arrow time": arrow([datetime.time(1, 2, 3), None], pa.time64("us")),
    "arrow duration": arrow([datetime.timedelta(hours=1), None], pa.duration("s")),
    "arrow decimal": arrow([Decimal("1.50"), None, Decimal("-3.25")], pa.decimal128(10, 2)),
    "arrow list": arrow([[1, 2], [], None], pa.list_(pa.int64())),
    "arrow struct": arrow([{"a": 1, "b": "x"}, {"a": 2, "b": None}], pa.struct({"a": pa.int64(), "b": pa.string()})),
    "arrow binary": arrow([b"ab", None], pa.binary()),
    "arrow dictionary": pd.Series(
        pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(["x", None, "y"]).dictionary_encode()]))
    ),
}


def again(series: pd.Series, **options) -> DiffLMPipelineOutput:
    """The series as it comes back from records, through a saved schema and the records' texts."""
    schema = RecordSchema.infer(series.to_frame("x"), **options)
    schema = RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    records = [schema.parse(schema.serialize(record)) for record in schema.to_records(series.to_frame("x"))]
    return DiffLMPipelineOutput(records=records, schema=schema)


@pytest.mark.parametrize("name", SERIES)
def test_a_stored_type_comes_back(name):
    series = SERIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = again(series).to_pandas()["x"]
    pd.testing.assert_series_equal(found, series, check_names=False)


@pytest.mark.parametrize("name", [name for name in SERIES if name.startswith("arrow")])
def test_an_arrow_type_is_that_of_the_parquet_file(name):
    table = again(SERIES[name]).to_arrow()
    file = io.BytesIO()
    pq.write_table(table, file)
    wanted = SERIES[name].dtype.pyarrow_dtype
    assert table.schema.field("x").type == wanted
    assert pq.read_table(file)["x"].to_pylist() == pa.array(SERIES[name].array).to_pylist()


def test_decimals_have_one_width_in_every_file():
    output = again(SERIES["decimals"])
    assert output.to_arrow().schema.field("x").type == pa.decimal128(38, 2)
    output.records = output.records[2:]
    assert output.to_arrow().schema.field("x").type == pa.decimal128(38, 2)


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (pd.Series([Decimal("1.123456789012345678"), Decimal("0.5")]), "19 digits, of which 15.*--text-columns x"),
        (pd.Series(pd.interval_range(0, 600)), "'x' .interval.int64, right.. .* comes back as text"),
        (arrow([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), "'x' .map<string, int64>.* comes back"),
    ],
)
def test_what_does_not_come_back_is_named(series, reason):
    with pytest.warns(UserWarning, match=reason):
        RecordSchema.infer(series.to_frame("x"))


def test_text_that_the_user_asked_for_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = again(SERIES["decimals"], text_columns=["x"]).to_pandas()["x"]
    assert found.tolist()[:2] == ["1.50", "-22.05"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.struct([pa.field("a b", pa.list_(pa.date32())), pa.field("c", pa.int8(), nullable=False)])),
        pa.large_list(pa.timestamp("ns", tz="America/New_York")),
        pa.dictionary(pa.int32(), pa.large_string(), ordered=True),
        pa.decimal256(50, 3),
        pa.duration("ms"),
        pa.time32("s"),
        pa.null(),
    ],
    ids=str,
)
def test_arrow_types_are_read_from_their_names(kind):
    assert arrow_type_of(f"{kind}[pyarrow]") == kind


@pytest.mark.parametrize("name", ["list<int64>", "nonsense", "int64>", "struct<a: int64"])
def test_names_of_no_arrow_type_are_refused(name):
    with pytest.raises(ValueError):
        arrow_type_of(name)


def test_tiny_numbers_keep_their_digits():
    values = [8.544448844578941e-15, 5.090620422514893e-15, 1.6466881911648177e-15]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = again(pd.Series(values)).to_pandas()["x"]
    assert np.allclose(found, values, rtol=1e-6, atol=0)
    # An ordinary column has the digits that it had before.
    assert RecordSchema.infer(pd.DataFrame({"x": [0.1, 0.123456789012345]})).column("x").decimals == 12


@pytest.mark.parametrize("hours", [-7, 0, 2])
def test_moments_in_a_file_are_those_of_the_data(hours, fitted):
    """Also in a process that has fitted and sampled, where pyarrow was seen to add the offsets of clocks twice."""
    fitted[0](2, seed=0)
    zone = datetime.timezone(datetime.timedelta(hours=hours))
    moments = [datetime.datetime(2024, 2, 29, hour, 30, tzinfo=zone) for hour in (0, 12, 23)]
    written = again(pd.Series(moments, dtype="object")).to_arrow()["x"].to_pylist()
    assert written == moments
    # Whatever the process: what pyarrow is given stands at offset zero, so that adding it twice changes nothing.
    given = in_utc([*moments, None, pd.NaT])
    assert given == [*moments, None, None]
    assert all(moment.utcoffset() == datetime.timedelta(0) for moment in given[:3])
