"""Texts of times that are read as no dates: found among other texts, and named."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest

from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.schema_inference.time_texts import meaning


HOURS = pd.date_range("2024-01-01", periods=700, freq="2233min")
ZONED = HOURS.tz_localize("UTC").tz_convert("Europe/Berlin")
COLUMNS = {
    "mixed offsets": ([stamp.isoformat() for stamp in ZONED], "utc=True"),
    "mixed zones": ([f"{stamp:%Y-%m-%d %H:%M:%S %Z}" for stamp in ZONED], "utc=True"),
    "AM and PM": ([f"{stamp:%I:%M %p}" for stamp in HOURS], "dt.time"),
    "date with AM": ([f"{stamp:%m/%d/%Y %I:%M:%S %p}" for stamp in HOURS], "to_datetime"),
    "names of months": ([f"{stamp:%d %b %Y}" for stamp in HOURS], "to_datetime"),
    "no zeros": ([f"{stamp.day}/{stamp.month}/{stamp.year}" for stamp in HOURS], "to_datetime"),
    "two forms": ([f"{stamp:%Y-%m-%d}" if stamp.day % 2 else f"{stamp:%d.%m.%Y}" for stamp in HOURS], "one form"),
    "which is the day": ([f"{1 + i % 12:02}/{1 + i // 12 % 12:02}/{2000 + i}" for i in range(700)], "one form"),
    "some unknown": ([f"{stamp:%I:%M %p}" if i % 20 else f"unknown {i}" for i, stamp in enumerate(HOURS)], "dt.time"),
    "clocks of durations": ([f"{i} days {i % 24:02}:{i % 60:02}:09" for i in range(700)], "total_seconds"),
    "ISO durations": ([f"PT{i}H{i % 60}M" for i in range(700)], "total_seconds"),
    "units": ([f"{i}.5 min" for i in range(700)], "total_seconds"),
    "long clocks": ([f"{100 + i}:{i % 60:02}:09" for i in range(700)], "total_seconds"),
}


def told(values: list[str], **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schema = RecordSchema.infer(pd.DataFrame({"when": values}), **options)
    assert schema.columns[0].kind == "text"
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("form", COLUMNS)
def test_times_that_become_text_are_named(form):
    values, remedy = COLUMNS[form]
    (message,) = told(values)
    assert "column 'when'" in message and remedy in message
    assert "--text-columns when" in message
    assert not told(values, text_columns=["when"])


@pytest.mark.parametrize(
    "write",
    [
        lambda i: f"note {i} at 12:30",
        lambda i: f"{i % 256}.{i % 7}.0.{i % 11}",
        lambda i: f"1.{i}.{i % 9}",
        lambda i: f"555-{i:04}",
        lambda i: f"{i:02}-{i % 60:02}-{i % 7:02}x",
        lambda i: f"P{i}",
        lambda i: f"May {i}",
        lambda i: f"{i} m",
        lambda i: f"12:{i % 60:02}:{i // 60:02} PM" if i % 5 else f"closed on day {i}",
    ],
)
def test_other_texts_are_not(write):
    assert not told([write(i) for i in range(700)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2024-06-01T10:00:00+02:00[Europe/Berlin]", "date"),
        ("Mon, 31 Jan 2024 10:00:00 GMT", "date"),
        ("Mon Jan 31 10:00:00 2024", "date"),
        ("January 31st, 2024", "date"),
        ("20240131", "date"),
        ("3pm", "clock"),
        ("10:00:00.5 +02:00", "clock"),
        ("2h 30m", "duration"),
        ("-P1DT12H", "duration"),
        ("31 January", None),
        ("12", None),
        ("2024", None),
        ("Sunday", None),
        ("", None),
    ],
)
def test_what_a_text_says(text, said):
    assert meaning(text) == said
