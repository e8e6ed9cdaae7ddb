"""Dates and times as kinds of columns: forms, grammar, round trips, conditions, what counts as dates."""

from __future__ import annotations

import datetime
import json
import random
import warnings
import zoneinfo

import dateutil.tz
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.pipelines.column_kinds import Column
from difflm.pipelines.conditions import ColumnCondition, ConditionEncoder, ConditionError, check_condition
from difflm.pipelines.date_forms import DateForm, DateLanguage, instant
from difflm.pipelines.errors import RecordParseError, SchemaError
from difflm.pipelines.record_grammar import RecordConstraint
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.value_grammars import ValueSpec


DAY = DateForm("%Y-%m-%d")
MOMENT = DateForm("%Y-%m-%dT%H:%M:%S.%f+02:00", 3)
HOURS = pd.date_range("2023-01-01", periods=60, freq="37h")


def named(values) -> str:
    series = pd.Series(values)
    return f"{series.dtype} {series[1]!r}".replace("datetime.", "")


def infer(values, **options) -> RecordSchema:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RecordSchema.infer(pd.DataFrame({"x": values}), **options)


def column_of(values, **options) -> Column:
    return infer(values, **options).column("x")


def compiled(
    tokenizer, column: Column, *, record_format="json", within_range=True, condition=None
) -> RecordConstraint:
    schema = RecordSchema((column, Column("n", "integer", minimum=0, maximum=9)), record_format)
    specs = [
        column.rules.grammar(lambda value: schema.value_text("x", value), within_range, condition),
        schema.columns[1].rules.grammar(str, within_range),
    ]
    return RecordConstraint.compile(
        tokenizer,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        fixed_segments=schema.fixed_segments(),
        values=[ValueSpec(**spec) for spec in specs],
    )


def walked(constraint: RecordConstraint, seed: int) -> str:
    """A record whose every choice is uniform over the allowed tokens: it goes where no model would."""
    rng = random.Random(seed)
    state = constraint.start()
    tokens = state.forced()
    while not state.done:
        token = int(rng.choice(state.choices()))
        state.advance(token)
        tokens += [token, *state.forced()]
    return constraint.text(tokens)


# ---- forms and their grammar


@given(st.dates(), st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d"]))
def test_every_date_has_a_text_and_back(date, layout):
    form = DateForm(layout)
    text = form.write(DAY.fields(date.isoformat()))
    assert DAY.write(form.fields(text)) == date.isoformat()


@pytest.mark.parametrize(
    "text",
    ["2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01", "2023-00-01", "0000-01-01", "2023-1-01", "٢٠٢٣-01-01"],
)
def test_what_is_no_date(text):
    assert DAY.fields(text) is None


def test_the_date_after():
    following = {"2023-02-28": "2023-03-01", "2024-02-28": "2024-02-29", "1999-12-31": "2000-01-01"}
    assert DAY.follower("9999-12-31") is None
    assert {text: DAY.follower(text) for text in following} == following
    assert MOMENT.follower("2023-12-31T23:59:59.999+02:00") == "2024-01-01T00:00:00.000+02:00"


@settings(max_examples=50, deadline=None)
@given(st.dates(), st.integers(0, 500))
def test_a_range_of_dates_is_exact(low, days):
    high = datetime.date.fromordinal(min(low.toordinal() + days, datetime.date.max.toordinal()))
    language = DateLanguage(DAY, low.isoformat(), high.isoformat(), '"')
    found, stack = set(), [""]
    while stack:
        prefix = stack.pop()
        if language.is_complete(prefix):
            found.add(prefix.strip('"'))
            continue
        stack += [prefix + char for char in '0123456789-"' if language.state(prefix + char) is not None]
    expected = range(low.toordinal(), high.toordinal() + 1)
    assert found == {datetime.date.fromordinal(day).isoformat() for day in expected}


@settings(max_examples=300)
@given(st.datetimes(), st.datetimes(), st.datetimes(), st.data())
def test_prefixes_with_one_name_have_one_future(first, second, third, data):
    """The automaton shares states by name: where names agree, the same characters must be able to follow."""
    low, middle, high = (
        f"{moment.isoformat(timespec='milliseconds')}+02:00" for moment in sorted([first, second, third])
    )
    language = DateLanguage(MOMENT, low, high)
    cut = data.draw(st.integers(0, len(middle)))
    other = data.draw(st.sampled_from([low, high, middle.replace(middle[:4], "2024")]))[:cut]
    assert language.state(middle[:cut]) is not None
    assert language.is_complete(middle)
    if language.state(other) is not None and language.state(other) == language.state(middle[:cut]):
        for char in "0123456789-:T.+":
            assert (language.state(other + char) is None) == (language.state(middle[:cut] + char) is None)


@settings(max_examples=40, deadline=None)
@given(moments=st.sets(st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)), min_size=2))
def test_seconds_tell_times_apart_as_they_are(moments):
    texts = [moment.isoformat(timespec="microseconds") for moment in sorted(moments)]
    expected = [(moment - datetime.datetime(1700, 1, 1)).total_seconds() for moment in sorted(moments)]
    origin = instant("1700-01-01T00:00:00")
    assert [instant(text) - origin for text in texts] == pytest.approx(expected, abs=1e-4)


COLUMNS = [
    HOURS,
    pd.date_range("2024-02-01", periods=60),
    HOURS.tz_localize(pytz.FixedOffset(-150)),
    HOURS.tz_localize("UTC"),
    HOURS + pd.to_timedelta(range(60), unit="ns"),
    [time.time() for time in HOURS + pd.to_timedelta(range(60), unit="s")],
    [f"{date:%d.%m.%Y}" for date in HOURS],
]


@pytest.mark.parametrize("values", COLUMNS, ids=named)
@pytest.mark.parametrize("record_format", ["json", "values"])
@pytest.mark.parametrize("within_range", [True, False])
def test_every_written_date_is_read(decoder_tokenizer, values, record_format, within_range):
    column = column_of(values)
    assert column.categories is None
    constraint = compiled(decoder_tokenizer, column, record_format=record_format, within_range=within_range)
    schema = RecordSchema((column, Column("n", "integer", minimum=0, maximum=9)), record_format)
    for seed in range(40):
        record = schema.parse(walked(constraint, seed))
        assert not within_range or column.minimum <= record["x"] <= column.maximum
        assert len(schema.to_pandas([record])) == 1  # the dtype holds it, too


def test_few_dates_that_repeat_are_a_list(decoder_tokenizer):
    values = pd.to_datetime(["2023-03-31", "2023-06-30", "2023-06-30"] * 20)
    column = column_of(values)
    assert (column.kind, column.categories) == ("date", ("2023-06-30", "2023-03-31"))
    assert {json.loads(walked(compiled(decoder_tokenizer, column), seed))["x"] for seed in range(20)} == {
        "2023-06-30",
        "2023-03-31",
    }
    with pytest.raises(SchemaError, match="2023-05-01 is not one of its 2 values"):
        column.normalize("2023-05-01")


# ---- back to a table


def aware(zone) -> pd.DatetimeIndex:
    return HOURS.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")


@pytest.mark.parametrize(
    "values",
    [
        *COLUMNS,
        HOURS.astype("datetime64[s]"),
        HOURS.astype("datetime64[ms]") + pd.Timedelta("250ms"),
        HOURS.astype("datetime64[us]"),
        np.array([f"{year:04d}-05-06" for year in range(1, 9999, 99)], dtype="datetime64[s]"),
        aware("UTC"),
        aware("Europe/Berlin"),
        aware(pytz.FixedOffset(120)),
        aware(datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))),
        aware(dateutil.tz.tzoffset(None, 7200)),
        aware(dateutil.tz.tzutc()),
        aware(zoneinfo.ZoneInfo("Etc/GMT-2")),
        [date.date() for date in HOURS],
        pd.Series([*HOURS.date[:30], None]),
        pd.Series([*HOURS[:30], pd.NaT]),
        pd.Series(HOURS.to_pydatetime(), dtype="object"),
        pd.Series(HOURS.date, dtype="date32[day][pyarrow]"),
        pd.Series(HOURS, dtype=pd.ArrowDtype(pa.timestamp("us"))),
        pd.Series(aware("Europe/Berlin"), dtype=pd.ArrowDtype(pa.timestamp("ns", "Europe/Berlin"))),
        pd.Series([f"{date:%Y-%m-%d}" for date in HOURS], dtype="string"),
        *(
            [date.strftime(layout) for date in HOURS]
            for layout in (
                "%Y/%m/%d",
                "%d/%m/%Y",
                "%Y-%m-%dT%H:%M:%SZ",
                "%Y-%m-%d %H:%M",
                "%H:%M:%S",
                "%d.%m.%Y %H:%M+0200",
            )
        ),
    ],
    ids=named,
)
def test_a_table_comes_back_as_it_was(values):
    frame = pd.DataFrame({"x": values})
    schema = infer(values)
    assert schema.column("x").kind in ("date", "datetime", "zoned", "time")
    schema = RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    records = schema.to_records(frame)
    for record_format in ("json", "values"):
        form = schema.with_format(record_format)
        assert [form.parse(form.serialize(record)) for record in records] == records
    back = schema.to_pandas(records)
    if frame.x.dtype == "datetime64[ns, Etc/GMT-2]":  # a name is a name, by whichever library
        assert (back.x == frame.x).all() and str(back.x.dtype) == str(frame.x.dtype)
    else:
        pd.testing.assert_frame_equal(back, frame)


def test_years_beyond_four_digits_are_refused():
    with pytest.raises(SchemaError, match="'x' holds 12023-01-01.*--text-columns x"):
        infer(np.array(["12023-01-01", "2023-01-01"], dtype="datetime64[s]"))


def test_times_with_and_without_a_zone_are_not_mixed():
    with pytest.raises(SchemaError, match="'x' mixes times with and without a time zone"):
        infer(pd.Series([HOURS[0].to_pydatetime(), HOURS[0].tz_localize("UTC").to_pydatetime()], dtype="object"))
    column = column_of(aware("UTC"))
    with pytest.raises(SchemaError, match="no time zone"):
        column.normalize(HOURS[0])
    assert column_of(HOURS).normalize(np.datetime64("2023-01-02T03:04:05", "s")) == "2023-01-02T03:04"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["20230131", "20230201"], "category"),
        (["1.2.3", "1.2.4"], "category"),
        (["2023.01.31", "2023.02.01"], "category"),
        (["01/02/2023", "03/04/2023"], "category"),  # which of the two is the day?
        (["01/02/2023", "31/04/2023"], "category"),
        (["2023-01-31", "2023-02-30"], "category"),
        (["2023-01-31", "2023/02/03"], "category"),
        (["2023-01-31", "unknown"], "category"),
        (["2023-01-31T10:00:00+01:00", "2023-07-31T10:00:00+02:00"], "category"),
        (["1:30", "2:45"], "category"),
        (["25:00", "26:30"], "category"),
        (["13/02/2023", "03/04/2023"], "date"),
        (["02-13-2023", "03-04-2023"], "date"),
        (["23:59", "00:00"], "time"),
        ([20230131, 20230201], "integer"),
    ],
)
def test_what_counts_as_dates(values, kind):
    assert column_of(values * 3).kind == kind


def test_text_columns_stay_text_and_dates_are_announced():
    frame = pd.DataFrame({"day": [f"{date:%d.%m.%Y}" for date in HOURS]})
    with pytest.warns(UserWarning, match=r"'day' is read as dates.*%d\.%m\.%Y.*--text-columns day"):
        assert RecordSchema.infer(frame).column("day").kind == "date"
    assert RecordSchema.infer(frame, text_columns=["day"]).column("day").kind == "text"
    assert infer(HOURS, text_columns=["x"]).to_pandas([{"x": "any"}]).x.tolist() == ["any"]


def test_json_schema_and_refusals():
    column = column_of(HOURS)
    assert column.to_json_schema() == {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}$"}
    zoned = column_of(aware("UTC")).to_json_schema()
    assert zoned["format"] == "date-time" and zoned["pattern"].endswith("[+]00:00$")
    with pytest.raises(RecordParseError, match="2023-02-30T10:00.* is no.*of the form .YYYY-MM-DDThh:mm"):
        column.read('"2023-02-30T10:00", ', 0)
    with pytest.raises(SchemaError, match="a zoned column needs an offset"):
        Column("x", "zoned")


# ---- features


def test_features_are_the_place_and_the_cycles_of_the_range():
    column = column_of(pd.date_range("2020-01-01", "2022-12-31"))
    assert column.feature_names == ("x", "x (weekday)", "x (day)", "x (year)")
    assert column.feature_places("2020-01-01") == [0.0, 2 / 7, 0.0, 0.0]
    assert column.feature_places("2022-12-31") == [1.0, 5 / 7, 30 / 31, 364 / 366]
    assert column.feature_places("2031-01-01")[0] == 1.0  # held-out records may leave the range
    assert np.isnan(column.feature_places(None)).all()
    clock = column_of(HOURS)
    assert clock.feature_names == ("x", "x (minute)", "x (hour)", "x (weekday)", "x (day)")
    assert clock.feature_places("2023-01-05T18:30")[1:3] == [0.5, 18.5 / 24]
    assert column_of([date.time() for date in HOURS]).feature_places("12:00")[0] == pytest.approx(12 / 23)


# ---- conditions


def check(column: Column, wanted) -> ColumnCondition:
    return check_condition({"x": wanted}, [column])["x"]


@pytest.mark.parametrize("kind", [str, datetime.date.fromisoformat, pd.Timestamp, np.datetime64])
def test_ranges_of_dates(kind):
    column = column_of(pd.date_range("2023-01-01", periods=60))
    condition = check(column, (kind("2023-01-10"), kind("2023-01-20")))
    assert condition == ColumnCondition(minimum="2023-01-10", maximum="2023-01-20")
    assert condition.holds("2023-01-15") and not condition.holds("2023-01-21") and not condition.holds(None)
    assert check(column, kind("2023-01-10")).values == ("2023-01-10",)
    assert check(column, [kind("2023-01-10"), "2023-01-12"]).values == ("2023-01-10", "2023-01-12")


def test_ranges_of_times():
    column = column_of(HOURS)
    assert check(column, (None, "2023-01-10")) == ColumnCondition(maximum="2023-01-10T23:59")  # the whole day
    assert check(column, (datetime.datetime(2023, 1, 1, 5, 0, 1), None)) == ColumnCondition(minimum="2023-01-01T05:01")
    days = column_of(pd.date_range("2023-01-01", periods=60))
    assert check(days, (pd.Timestamp("2023-01-10 12:00"), None)).minimum == "2023-01-11"
    zoned = column_of(aware(pytz.FixedOffset(120)))
    assert check(zoned, ("2023-01-10T10:00", "2023-01-10T10:00Z")) == ColumnCondition(
        minimum="2023-01-10T10:00+02:00", maximum="2023-01-10T12:00+02:00"
    )
    berlin = column_of(aware("Europe/Berlin"))
    assert check(berlin, (datetime.date(2023, 1, 10), None)).minimum == "2023-01-09T23:00+00:00"
    text = column_of([f"{date:%d.%m.%Y}" for date in HOURS])
    assert check(text, ("31.01.2023", "2023-02-05")) == ColumnCondition(minimum="2023-01-31", maximum="2023-02-05")


def test_ranges_of_lists_are_what_lies_in_them():
    quarters = column_of(pd.to_datetime(["2023-03-31", "2023-06-30", "2023-09-30"] * 20))
    assert set(check(quarters, ("2023-05-01", None)).values) == {"2023-06-30", "2023-09-30"}
    with pytest.raises(ConditionError, match="lies in the range 2023-04-01 to 2023-05-01; it was"):
        check(quarters, ("2023-04-01", "2023-05-01"))
    with pytest.raises(ConditionError, match="was never '2023-04-01'"):
        check(quarters, "2023-04-01")
    numbers = Column("x", "category", categories=(3, 1, 8))
    assert check(numbers, (1, 3)).values == (3, 1)
    assert check(numbers, [1, 8]).values == (1, 8)
    assert check(Column("x", "category", categories=("a", "b")), ("a", "b")).values == ("a", "b")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("2023-02-01", "2023-01-01"), "No value of 'x'"),
        ((pd.NaT, "2023-01-01"), "no end NaT: None leaves it open"),
        ((None, None), "open at both ends"),
        (("soon", None), "'soon' is not a date"),
        ("soon", "'soon' is not a date"),
        (3, "3 is not a date"),
        (pd.Timestamp("2023-01-10 12:00"), "finer than its values"),
        (pd.NaT, "never missing"),
    ],
)
def test_bad_conditions_on_dates(wanted, message):
    with pytest.raises(ConditionError, match=message):
        check(column_of(pd.date_range("2023-01-01", periods=60)), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_a_range_holds_in_every_record(decoder_tokenizer, seed):
    column = column_of(HOURS)
    ranges = [("2023-01-30", "2023-02-02"), (None, "2023-01-02"), ("2023-03-30", None), ("2024-01-01", "2024-02-29")]
    for wanted in ranges:
        condition = check(column, wanted)
        constraint = compiled(decoder_tokenizer, column, condition=condition)
        for number in range(20):
            value = json.loads(walked(constraint, 100 * seed + number))["x"]
            assert condition.holds(value)
            if None in wanted:  # an open end is that of the data
                assert column.minimum <= value <= column.maximum


def test_classes_of_the_denoiser_are_bins_of_time():
    values = pd.date_range("2023-01-01", periods=80)
    schema = infer(values)
    records = schema.to_records(pd.DataFrame({"x": values}))
    encoder = ConditionEncoder.fit(records, schema.columns, num_bins=4)
    encoder = ConditionEncoder(json.loads(json.dumps(encoder.classes)))
    assert np.bincount(encoder.labels(records)[:, 0]).tolist() == [20, 20, 20, 20]
    import torch

    wanted = check_condition({"x": ("2023-01-01", "2023-01-20")}, schema.columns)
    generators = [torch.Generator().manual_seed(seed) for seed in range(50)]
    assert set(encoder.condition_labels(wanted, generators)[:, 0].tolist()) == {0}
    late = check_condition({"x": ("2023-03-05", None)}, schema.columns)
    assert set(encoder.condition_labels(late, generators)[:, 0].tolist()) == {3}


def test_format_of_a_json_schema_is_a_column_of_dates():
    types = {"day": "string", "maybe": ["string", "null"]}
    properties = {name: {"type": kind, "format": "date"} for name, kind in types.items()}
    properties |= {name: {"type": "string", "format": name} for name in ("date-time", "time")}
    schema = RecordSchema.from_json_schema({"type": "object", "properties": properties, "required": list(properties)})
    assert [column.kind for column in schema.columns] == ["date", "date", "json", "json"]
    record = {"day": "2024-02-29", "maybe": None, "date-time": "2024-02-29T10:00:00.5+02:00", "time": "10:00:00Z"}
    assert schema.parse(schema.serialize(record)) == record == schema.in_data(record)
    assert schema.to_pandas([record])["day"].tolist() == ["2024-02-29"]
    for wrong in ("2023-02-29", "someday"):
        with pytest.raises(SchemaError):
            schema.normalize(record | {"day": wrong})
