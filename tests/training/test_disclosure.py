"""What is kept back of single records before anything is learnt."""

import json

import numpy as np
import pandas as pd
import pytest

from difflm import RecordSchema, fit
from difflm.training.disclosure import Disclosure, DisclosureError
from tests.conftest import tiny_preset


def table(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": rng.choice(["Ulm", "Bonn"], rows),
            "code": pd.Categorical(rng.choice([10, 20], rows)),
            "age": rng.integers(18, 80, rows).astype("uint8"),
            "pay": rng.normal(3000, 400, rows).round(2),
            "note": [f"free text {row}" for row in range(rows)],
        }
    )
    frame["code"] = frame["code"].astype("int64").astype("category")
    frame.loc[0, ["city", "age", "pay"]] = ["Nowhere-on-Sea", 117, 991234.56]
    frame["code"] = frame["code"].cat.add_categories([99])
    frame.loc[0, "code"] = 99
    return frame


def apply(frame: pd.DataFrame, **choices):
    schema = RecordSchema.infer(frame)
    records = schema.to_records(frame)
    published, change = Disclosure(**choices).apply(schema, records)
    changed = [change(record) for record in records]
    return schema, published, records, [record for record in changed if record is not None]


def test_by_default_nothing_changes():
    schema, published, before, after = apply(table())
    assert published == schema and after == before


@pytest.mark.parametrize("choice", ["merge", "missing", "drop"])
def test_rare_category_is_nowhere_in_schema_or_records(choice):
    _, published, before, after = apply(table(), rare_categories=choice)
    assert "Nowhere" not in str(published.to_dict()) and "Nowhere" not in str(after)
    assert 99 not in published.column("code").categories and 99 not in published.column("code").dtype_categories
    assert len(after) == len(before) - (choice == "drop")
    for record in after:
        assert published.parse(published.serialize(record)) == record
    assert len(published.to_pandas(after)) == len(after)
    if choice == "merge":
        assert after[0]["city"] == "other" and published.column("city").categories[-1] == "other"
        assert after[0]["code"] is None  # no number means "other"
    if choice == "missing":
        assert after[0]["city"] is None and published.column("city").nullable
    if choice == "drop":
        assert not published.column("city").nullable


def test_merging_takes_the_category_other_that_is_there():
    frame = table()
    frame.loc[1:20, "city"] = "other"
    _, published, _, after = apply(frame, rare_categories="merge")
    assert published.column("city").categories.count("other") == 1 and after[0]["city"] == "other"


def test_column_of_rare_categories_alone():
    frame = pd.DataFrame({"a": pd.Categorical(list("abcd")), "b": [1, 2, 3, 4]})
    _, published, _, after = apply(frame, rare_categories="missing")
    assert published.column("a").kind == "null" and [record["a"] for record in after] == [None] * 4
    with pytest.raises(DisclosureError, match="rare_below"):
        apply(frame, rare_categories="drop")


def test_threshold_can_be_chosen():
    assert "Nowhere-on-Sea" in apply(table(), rare_categories="merge", rare_below=1)[1].column("city").categories


def test_rounded_range_holds_all_values_and_no_exact_one():
    _, published, before, after = apply(table(), ranges="rounded")
    assert after == before
    age, pay = published.column("age"), published.column("pay")
    assert (age.minimum, age.maximum) == (15, 120)
    assert pay.maximum == 1_000_000.0 and pay.minimum <= min(record["pay"] for record in before)
    for record in after:
        assert published.parse(published.serialize(record)) == record


def test_rounding_keeps_to_the_dtype():
    frame = pd.DataFrame({"a": np.array([3, 254, 9] * 4, dtype="uint8"), "b": [7, 7, 7] * 4})
    _, published, _, _ = apply(frame, ranges="rounded")
    assert 0 <= published.column("a").minimum <= 3 and 254 <= published.column("a").maximum <= 255
    assert (published.column("b").minimum, published.column("b").maximum) == (7, 7)


def test_each_end_of_a_clipped_range_is_shared():
    _, published, before, after = apply(table(), ranges="clipped")
    for name in ("age", "pay"):
        column, values = published.column(name), [record[name] for record in after]
        assert (min(values), max(values)) == (column.minimum, column.maximum)
        assert values.count(column.minimum) >= 5 and values.count(column.maximum) >= 5
    assert max(record["pay"] for record in after) < 10_000 < max(record["pay"] for record in before)


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_clipping_a_few_values_keeps_a_range(rows):
    frame = pd.DataFrame({"a": list(range(rows)), "b": [0.5 + row for row in range(rows)]})
    _, published, _, after = apply(frame, ranges="clipped")
    assert all(published.column("a").minimum <= record["a"] <= published.column("a").maximum for record in after)


@pytest.mark.parametrize("wrong", [{"rare_categories": "hide"}, {"ranges": "none"}, {"rare_below": 0}])
def test_unknown_choice_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Disclosure(**wrong)


def test_what_is_logged_for_the_card():
    frame = table()
    schema = RecordSchema.infer(frame)
    told = Disclosure().describe(schema, schema.to_records(frame))
    assert told == {"rare_categories": "keep", "rare_below": 5, "rare_categories_listed": 2, "ranges": "exact"}


def test_fit_keeps_back_what_it_was_told_to(model_folders, tmp_path):
    frame = table(60).drop(columns="note")
    fit(
        frame,
        tmp_path / "out",
        preset=tiny_preset(model_folders),
        rare_categories="merge",
        ranges="clipped",
        show_progress=False,
    )
    told = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.json"))
    assert "Ulm" in told
    for secret in ("Nowhere", "991234.56"):
        assert secret not in told
    log = json.loads((tmp_path / "out" / "training_log.json").read_text(encoding="utf-8"))
    expected = {"rare_categories": "merge", "rare_below": 5, "rare_categories_listed": 1, "ranges": "clipped"}
    assert log["disclosure"] == expected  # the one that is listed is "other" itself


@pytest.mark.parametrize("choices", [{"ranges": "rounded"}, {"ranges": "clipped"}, {"rare_categories": "missing"}])
@pytest.mark.parametrize("distinct", [4, 200])
def test_first_and_last_date_of_single_records_are_kept_back(choices, distinct):
    days = pd.Timestamp("2021-03-01") + pd.to_timedelta(np.arange(300) % distinct, unit="D")
    frame = pd.DataFrame({"day": days, "at": days + pd.Timedelta(hours=5, minutes=7)})
    frame.loc[0] = [pd.Timestamp("1987-06-05"), pd.Timestamp("2031-08-09 10:11:12")]
    schema, published, before, after = apply(frame, **choices)
    if "rare_categories" in choices and not schema.column("day").categories:
        return  # dates that are listed nowhere are no categories
    told = str(published.to_dict())
    listed = "ranges" in choices and choices["ranges"] == "rounded" and schema.column("day").categories
    assert listed or "1987-06-05" not in told and "2031-08-09" not in told
    for record in after:
        assert published.parse(published.serialize(record)) == record
