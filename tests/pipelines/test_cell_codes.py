"""Cells as codes: every value of a table comes back from its codes, in order, whatever its kind."""

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.pipelines.cell_codes import MISSING, MOST_CODE, CellCodes
from difflm.pipelines.column_kinds import Column
from difflm.pipelines.conditions import check_condition
from difflm.pipelines.record_schema import RecordSchema


def table() -> pd.DataFrame:
    count = 60
    days = pd.date_range("2019-12-28", periods=count, freq="41D")
    moments = pd.date_range("2020-02-27 23:58", periods=count, freq="17h13min")
    frame = pd.DataFrame(
        {
            "integer": np.arange(count) * 7 - 100,
            "huge": np.arange(count, dtype=np.int64) * 10**17,
            "decimal": np.arange(count) / 8 - 3,
            "tiny": np.arange(count) * 1.25e-9,
            "narrow": (np.arange(count) / 3).astype("float32"),
            "gap": [None if i % 5 == 0 else i / 4 for i in range(count)],
            "word": [f"w{i % 3}" for i in range(count)],
            "flag": [i % 2 == 0 for i in range(count)],
            "none": [None] * count,
            "day": [d.date() for d in days],
            "moment": moments,
            "fine": pd.date_range("2021-03-04", periods=count, freq="1234567us"),
            "zoned": moments.tz_localize("+02:00"),
            "clock": [datetime.time(23 * i // 60, 23 * i % 60) for i in range(count)],
            "text": [f"some free text {i}" for i in range(count)],
        }
    )
    frame.loc[3, "moment"] = pd.NaT
    return frame


def test_values_of_all_kinds_come_back_from_their_codes():
    schema = RecordSchema.infer(table(), text_columns=["text"])
    codes, records = CellCodes(schema), schema.to_records(table())
    assert codes.names == tuple(name for name in schema.names if name != "text")
    assert not codes.complete
    encoded = codes.encode(records)
    assert encoded.shape == (60, len(codes.columns))
    assert np.abs(encoded[encoded != MISSING]).max() < MOST_CODE
    values = codes.values(encoded)
    for name in codes.names:
        wanted = [record[name] for record in records]
        if name == "huge":  # more digits than a code has room for
            assert values[name] == pytest.approx(wanted, rel=1e-14)
            assert all(type(value) is int for value in values[name])
        else:
            assert values[name] == wanted, name


def test_a_date_has_its_cycles_as_parts_and_only_real_parts_are_finer():
    codes = CellCodes(RecordSchema.infer(table(), text_columns=["text"]))
    parts = {column.name: (column.kind, column.ordered) for column in codes.columns}
    assert parts["moment (week)"] == ("number", False)
    assert parts["moment (weekday)"] == ("choice", True)
    assert parts["moment (clock)"] == ("number", True)
    assert parts["clock (clock)"] == ("number", False)
    assert "day (clock)" not in parts


@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30)), st.sampled_from((0, 3, 6)))
def test_any_moment_comes_back_and_codes_sort_as_moments(moment, digits):
    column = Column(
        "t",
        "datetime",
        decimals=digits or None,
        timespec="seconds",
        minimum="0001-01-02T00:00:00",
        maximum="9999-12-30T00:00:00",
    )
    kind = column.rules
    text = kind.normalize(moment)
    assert kind.coded_value(*kind.code(text)) == text
    later = kind.normalize(min(moment + datetime.timedelta(hours=31), datetime.datetime(9999, 12, 31)))
    assert kind.code(text) < kind.code(later)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(0, 9))
def test_any_decimal_comes_back(digits, decimals):
    value = round(digits / 10**decimals, decimals) + 0.0
    column = Column("x", "decimal", decimals=decimals, minimum=-1e6, maximum=1e6)
    value = column.normalize(value)
    assert column.rules.coded_value(*column.rules.code(value)) == value


def test_absent_cells_are_told_from_gaps():
    schema = RecordSchema.infer(pd.DataFrame({"a": [1, 2, None], "b": ["x", "y", "y"]}))
    codes = CellCodes(schema).encode([{"b": "y"}, {"a": None, "b": "x"}], absent=-7)
    assert codes.tolist() == [[-7, 0], [MISSING, 1]]


def test_conditions_become_limits():
    schema = RecordSchema.infer(table(), text_columns=["text"])
    codes = CellCodes(schema)
    at = {column.name: place for place, column in enumerate(codes.columns)}
    wanted = {
        "integer": (0, None),
        "decimal": (-1.01, 1.01),
        "gap": [None, 0.25],
        "word": ["w2", "w0"],
        "day": (datetime.date(2020, 1, 1), datetime.date(2020, 2, 1)),
        "moment": ["2020-02-27T23:58:00"],
    }
    conditions = check_condition(wanted, schema.columns)
    limits = codes.limits(conditions)
    assert limits[at["integer"]] == (0, 59 * 7 - 100)
    low, high = limits[at["decimal"]]
    assert (low, high) == (-1010, 1010)
    assert limits[at["gap"]].tolist()[0] == MISSING
    assert limits[at["word"]].tolist() == [2, 0]
    (week, weekday), (last_week, last_weekday) = limits[at["day (week)"]]
    assert 7 * (last_week - week) + last_weekday - weekday == 31
    assert codes.listed_dates(conditions) == {"moment": ["2020-02-27T23:58"]}
    assert at["moment (week)"] not in limits
    # Without a condition a date stays between the first and the last one; gaps are allowed where there were some.
    assert limits[at["zoned (week)"]][2] is False
    assert codes.limits({})[at["moment (week)"]][2] is True
    assert codes.limits({}, within_range=False) == {}
    open_end = codes.limits(check_condition({"integer": (0, None)}, schema.columns), within_range=False)
    assert open_end[at["integer"]] == (0, MOST_CODE)
