"""What is kept back of single records before anything is learnt."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

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


def test_end_of_few_records_is_not_the_end_of_a_rounded_range():
    frame = pd.DataFrame({"stars": [1, 2, 3, 4, 5] * 40, "children": [0, 1, 2, 3] * 50, "one": [7] * 200})
    frame["once"] = [7.25, *[None] * 199]
    frame["day"] = pd.Timestamp("2020-05-05")
    frame.loc[0, ["children", "day"]] = [13, pd.Timestamp("2020-01-01")]
    _, published, _, _ = apply(frame, ranges="rounded")
    ranges = {column.name: (column.minimum, column.maximum) for column in published.columns}
    assert ranges["stars"] == (1, 5) and ranges["one"] == (7, 7)  # of many records
    assert ranges["children"] == (0, 14) and ranges["once"] == (7.0, 8.0)
    assert ranges["day"] == ("2019-01-01", "2020-12-31") and published.column("day").categories is None


@pytest.mark.parametrize("ranges", ["rounded", "clipped"])
def test_records_fit_the_schema_of_rounded_nested_values(ranges):
    frame = lonely_ends(60)
    frame["map"] = [{f"k{row}{'z' * (row % 7)}": [row] * 3} for row in range(60)]
    frame["pair"] = [["b" * (row % 2), row] for row in range(60)]
    _, published, _, after = apply(frame, ranges=ranges, rare_categories="merge", rare_below=8)
    for record in after:
        assert published.parse(published.serialize(record)) == record
    more = published.column("more").json_schema["properties"]
    assert (more["n"]["minimum"], more["n"]["maximum"]) == (-100_000, 750_000)
    assert (more["f"]["minimum"], more["f"]["maximum"]) == (-1000.0, 9000.0)
    assert more["tag"] == {"type": "string", "maxLength": 2}  # "a" and "b" are listed where each is of 8 records
    pair = published.column("pair").json_schema
    assert pair["minItems"] == len(pair["prefixItems"]) == 2


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
    assert "1987-06-05" not in told and "2031-08-09" not in told
    for record in after:
        assert published.parse(published.serialize(record)) == record


# Of one record: the smallest and the largest of each column, and what is in no other nested value.
FIRST = {"pay": -3817.29, "count": -7351, "day": "1913-07-23", "at": "1913-07-23T04:17:39"}
LAST = {"pay": 996431.73, "count": 918273, "day": "2087-04-19", "at": "2087-04-19T21:43:07"}
NESTED = {"n": -90817, "f": -771.375, "s": "w" * 97, "l": [7] * 31, "tag": "a"}, {"n": 706193, "f": 8812.625, "s": ""}


def lonely_ends(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    days = pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 9, rows), unit="D")
    frame = pd.DataFrame(
        {
            "pay": rng.normal(3000, 400, rows).round(2),
            "count": rng.integers(1, 5, rows),
            "day": days,  # few different ones: listed
            "at": days + pd.to_timedelta(rng.integers(0, 86400, rows), unit="s"),
            "more": [{"n": n, "f": n / 8, "s": "x" * (n % 20), "l": [n % 3], "tag": "b"} for n in range(1, rows + 1)],
            "city": rng.choice(["Ulm", "Bonn"], rows),
        }
    )
    for row, (ends, nested) in enumerate(zip((FIRST, LAST), NESTED, strict=True)):
        for name in ("pay", "count"):
            frame.loc[row, name] = ends[name]
        for name in ("day", "at"):
            frame.loc[row, name] = pd.Timestamp(ends[name])
        frame.at[row, "more"] = dict(frame["more"][2]) | nested
    frame.loc[2, "city"] = "Nowhere-on-Sea"
    return frame


def scalars(value):
    """Every key, text and number of a JSON value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from scalars(item)
    else:
        yield value


def everything(folder):
    """Every text and number of every file of a checkpoint."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            yield from scalars(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".safetensors":
            for tensor in load_file(path).values():
                yield from tensor.double().flatten().tolist()


@pytest.mark.parametrize("drafted", [True, False])
@pytest.mark.parametrize("ranges", ["exact", "rounded", "clipped"])
def test_no_file_tells_the_ends_of_a_range(ranges, drafted, model_folders, tmp_path):
    pipeline = fit(
        lonely_ends(60),
        tmp_path / "out",
        preset=tiny_preset(model_folders, column_draft=drafted),
        ranges=ranges,
        rare_categories="keep" if ranges == "exact" else "merge",
        show_progress=False,
    )
    found = list(everything(tmp_path / "out"))
    texts = " ".join(value for value in found if isinstance(value, str))
    numbers = np.array([float(value) for value in found if isinstance(value, int | float)])
    secret: set[float] = {-90817.0, 706193.0, -771.375, 8812.625}
    places: set[float] = set()
    for ends in (FIRST, LAST):
        for name, end in ends.items():
            column = pipeline.schema.column(name)
            number = end
            if isinstance(end, str):
                assert (end in texts or end[:10] in texts) == (ranges == "exact"), end
                number = pd.Timestamp(end).timestamp()
            secret.add(float(number))
            if drafted and column.categories is None:
                secret.add(float(column.rules.code(column.normalize(end))[0]))
            if ranges == "rounded":
                places.add(column.feature_places(column.normalize(end))[0])
    lengths = set(scalars(pipeline.schema.column("more").json_schema)) & {97, 31}
    assert len(lengths) == (2 if ranges == "exact" else 0)
    assert ("Nowhere" in texts) == (ranges == "exact")
    told = {value for value in secret if np.isclose(numbers, value, rtol=1e-9, atol=1e-9).any()}
    assert bool(told) == (ranges == "exact"), told
    if not drafted:
        quantiles = pipeline.autoencoder.column_features.quantiles.double().numpy()
        assert all(not np.isclose(quantiles, place, atol=1e-6).any() for place in places if 0 < place < 1), places
    assert pipeline(4, seed=0, max_attempts=1).report is not None
