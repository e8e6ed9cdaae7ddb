"""Figures on awkward tables: row order, copies, many classes, names and values that libraries trip over."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from difflm.__main__ import main
from difflm.training.evaluation.baselines import restore
from difflm.training.evaluation.closest_records import distance_to_closest_record
from difflm.training.evaluation.copies import copies
from difflm.training.evaluation.coverage import precision_recall
from difflm.training.evaluation.detection import detection
from difflm.training.evaluation.efficiency import machine_learning_efficiency
from difflm.training.evaluation.figures import evaluate_tables
from difflm.training.evaluation.privacy import privacy_risks
from difflm.training.evaluation.shapes import shape_errors, trend_errors
from difflm.training.evaluation.tables import (
    ColumnMismatchError,
    EvaluationError,
    TableSpec,
    TargetError,
    foreign_values,
    prepare,
)
from difflm.training.evaluation.validity import validity_rate


ONE = ({"max_depth": 3, "min_child_weight": 1},)


def table(rows=300, seed=0):
    """Two numbers, and a class of three that follows the first."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=rows)
    noisy = x + generator.normal(scale=0.2, size=rows)
    return pd.DataFrame({"x": x, "z": generator.normal(size=rows), "y": np.digitize(noisy, [-0.5, 0.5]).astype(str)})


@pytest.fixture(scope="module")
def spec():
    return TableSpec.infer(table(), target="y")


def shuffled(rows):
    return rows.sample(frac=1, random_state=7).reset_index(drop=True)


def test_efficiency_with_three_classes(spec):
    real = table()
    found = machine_learning_efficiency(real, real, table(seed=1), spec, seeds=1, grid=ONE)
    assert found.scores[0] > 0.9
    found = machine_learning_efficiency(real, real.assign(x=real["z"]), table(seed=1), spec, seeds=1, grid=ONE)
    assert found.scores[0] < 0.65


def test_figures_do_not_depend_on_the_order_of_copies(spec):
    train, holdout = table(1_200), table(400, seed=1)
    for measured in (
        lambda rows: distance_to_closest_record(train, holdout, rows, spec, max_rows=300).share_percent / 100,
        lambda rows: precision_recall(train, rows, spec, max_rows=300)[1],
    ):
        assert measured(train) == pytest.approx(measured(shuffled(train)), abs=0.08)


def test_privacy_does_not_depend_on_the_order_of_copies(spec):
    pytest.importorskip("anonymeter")
    train, holdout = table(1_200), table(400, seed=1)

    def risk(rows):
        found = privacy_risks(train, holdout, rows, spec, attacks=["linkability"], num_attacks=100, max_rows=300)
        return found["linkability"]["attack_rate"]

    assert risk(train) == pytest.approx(risk(shuffled(train)), abs=0.15)


def test_copies_reach_the_share_of_copies(spec):
    train, holdout = table(1_200), table(400, seed=1)
    found = distance_to_closest_record(train, holdout, shuffled(train), spec)
    # A third of the copies meet their row among those drawn, the others fall evenly.
    assert found.share_of_copies_percent == found.share_percent == pytest.approx(100 * (1 / 3 + 1 / 3), abs=4)
    fresh = distance_to_closest_record(train, holdout, table(800, seed=2), spec)
    assert fresh.share_percent == pytest.approx(50, abs=5)
    assert fresh.share_of_copies_percent > 60


def test_detection_beside_unseen_rows_is_not_misled_by_copies(spec):
    train, holdout = table(800), table(800, seed=1)
    bad = table(320, seed=2).assign(y="0")
    mixture = pd.concat([train.sample(480, random_state=0), bad], ignore_index=True)
    result = evaluate_tables(train, mixture, spec, holdout=holdout, seeds=1)
    beside_train, beside_unseen = (result.figures[f"detection_auc{end}"]["mean"] for end in ("", "_holdout"))
    assert beside_unseen > beside_train + 0.1 and beside_unseen > 0.6
    assert detection(train, shuffled(train), spec).auc < 0.3


AWKWARD = {
    "brackets": lambda rows: rows.rename(columns={"x": "age [years]", "z": "<b>"}),
    "whole numbers": lambda rows: rows.set_axis([0, 1, "y"], axis=1)[["y", 0, 1]],
    "all missing": lambda rows: rows.assign(nothing=pd.Series([None] * len(rows), dtype=object)),
    "dollars": lambda rows: rows.rename(columns={"x": r"cost $\bad$ x"}).assign(c="$0_{-$50,000}"),
    "huge": lambda rows: rows.assign(x=np.where(rows["x"] > 0, 1e30, -1e30)),
    "whole and huge": lambda rows: rows.assign(x=2**63 - 1 - np.arange(len(rows))),
    "identifiers": lambda rows: rows.assign(x=[f"id {value:.9f}" for value in rows["x"]]),
}


@pytest.mark.filterwarnings("ignore")  # of libraries, on such tables
@pytest.mark.parametrize("change", AWKWARD.values(), ids=AWKWARD)
def test_awkward_tables_are_measured_and_reported(change, tmp_path):
    files = []
    for seed, name in enumerate(("real", "synthetic", "holdout")):
        files += [f"--{name}", str(tmp_path / f"{name}.parquet")]
        # Parquet has text for column names.
        change(table(120, seed)).rename(columns=str).to_parquet(files[-1])
    assert main(["evaluate", *files, "--target", "y", "--seeds", "1", "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    assert found["skipped"] == {} and "mle" in found["figures"] and "detection_auc_logistic" in found["figures"]
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
    real, synthetic, holdout = (change(table(120, seed)) for seed in range(3))
    assert evaluate_tables(real, synthetic, TableSpec.infer(real, target="y"), holdout=holdout, seeds=1).skipped == {}


def test_many_categories_are_not_one_column_each():
    rows = table(1_000).assign(name=[f"n{i}" for i in range(1_000)])
    other = table(1_000, seed=1).assign(name=[f"m{i}" for i in range(1_000)])
    spec = TableSpec.infer(rows)
    same, disjoint = (precision_recall(rows, second, spec, max_categories=50) for second in (shuffled(rows), other))
    assert same[1] > disjoint[1] + 0.3  # invented ones stay far


def test_dates_are_points_in_time():
    real = pd.DataFrame({"t": pd.date_range("2021-01-01", periods=400, freq="h"), "k": ["a", "b"] * 200})
    spec = TableSpec.infer(real)
    assert spec.numerical == spec.dates == ("t",)
    assert prepare(real, spec)["t"].iloc[1] - prepare(real, spec)["t"].iloc[0] == 3600
    assert shape_errors(real.iloc[::2], real.iloc[1::2], spec)["t"] < 1
    # As text, as a CSV file has them, and with a time zone.
    assert shape_errors(real, real.assign(t=real["t"].astype(str)), spec)["t"] == 0
    assert shape_errors(real, real.assign(t=real["t"].dt.tz_localize("UTC")), spec)["t"] == 0
    assert prepare(real.assign(t=pd.NaT), spec)["t"].isna().all()
    assert max(trend_errors(real, real.iloc[:399], spec).values()) < 5
    with pytest.raises(ColumnMismatchError, match="'t' must hold dates"):
        prepare(real.assign(t="soon"), spec)


@pytest.mark.parametrize("kind", ["datetime", "date", "text", "arrow"])
def test_dates_of_other_types_are_points_in_time(kind):
    moments = pd.Series(pd.date_range("2021-01-01", periods=200))
    held = {
        "datetime": moments.astype(object),
        "date": moments.dt.date,
        "text": moments.dt.strftime("%Y-%m-%d"),
        "arrow": moments.astype("timestamp[ms][pyarrow]"),
    }[kind]
    real = pd.DataFrame({"t": held, "k": ["a", "b"] * 100})
    spec = TableSpec.infer(real, dates=["t"] if kind == "text" else [])
    assert spec.dates == spec.numerical == ("t",)
    assert prepare(real, spec)["t"].tolist() == [86_400.0 * (18_628 + day) for day in range(200)]
    rows = restore(pd.DataFrame({"t": [86_400.0 * 18_630] * 2, "k": ["b", "a"]}), real, spec)
    assert rows["t"].dtype == real["t"].dtype and prepare(rows, spec)["t"].tolist() == [86_400.0 * 18_630] * 2


def test_dates_of_several_precisions_are_read():
    texts = ["2024-01-01 00:00:01", "2024-01-01 00:00:01.5", "2024-01-02"]
    read = prepare(pd.DataFrame({"t": texts}), TableSpec(("t",), (), dates=("t",)))["t"]
    assert [value - read[0] for value in read] == [0.0, 0.5, 24 * 3600 - 1]


def test_columns_of_dates_that_are_none_are_named():
    rows = pd.DataFrame({"t": ["2021-01-01", "soon"], "n": [1, 2]})
    with pytest.raises(ColumnMismatchError, match="'t' must hold dates, as in the real table, not 'soon'"):
        prepare(rows, TableSpec.infer(rows, dates="t"))
    with pytest.raises(ColumnMismatchError, match="'n' holds numbers"):
        TableSpec.infer(rows, dates=["n"])
    with pytest.raises(ColumnMismatchError, match="dates: no column 'when'"):
        TableSpec.infer(rows, dates=["when"])


def test_decimals_are_numbers():
    real = pd.DataFrame({"price": [Decimal("1.50"), Decimal("10.00"), None] * 30})
    spec = TableSpec.infer(real)
    assert spec.numerical == ("price",)
    same = real.astype(float)
    assert shape_errors(real, same, spec) == {"price": 0.0} and copies(real, same, spec).copy_rate == 1.0
    codes = TableSpec.infer(real, categorical=["price"])
    assert shape_errors(real, same, codes) == {"price": 0.0}


def test_large_integers_that_differ_are_no_copies():
    real = pd.DataFrame({"id": 10**18 + 2 * np.arange(1_000)})
    spec = TableSpec.infer(real)
    assert copies(real, real + 1, spec).copy_rate == 0.0
    assert copies(real, real.astype("Int64"), spec).copy_rate == 1.0
    assert copies(real, real, spec).duplicate_rate == 0.0


def test_columns_that_occur_twice_are_named():
    twice = pd.DataFrame([[1, 2], [3, 4]], columns=["n", "n"])
    with pytest.raises(ColumnMismatchError, match="the real table: the column 'n' occurs more than once"):
        TableSpec.infer(twice)
    with pytest.raises(ColumnMismatchError, match="the synthetic table: the column 'n' occurs more than once"):
        prepare(twice, TableSpec(("n",), ()))


def test_a_table_equal_to_the_real_one_is_as_good_as_it(spec):
    real, test = table(), table(seed=1)
    scores = [
        machine_learning_efficiency(real, rows, test, spec, seeds=1, grid=ONE).scores for rows in (real, real.copy())
    ]
    assert scores[0] == scores[1]


def test_a_holdout_of_training_rows_is_said(spec):
    real = table()
    result = evaluate_tables(real, table(seed=1), spec, holdout=real.head(150), seeds=1)
    assert result.warnings == [
        "100% of the holdout's rows are training rows: distances, risks, efficiency and floors need rows that the "
        "generator has not seen"
    ]
    # Where a table has few different rows, unseen ones are among them.
    coarse = [table(seed=seed)[["y"]].assign(k=1) for seed in range(3)]
    assert evaluate_tables(*coarse[:2], TableSpec.infer(coarse[0]), holdout=coarse[2], seeds=1).warnings == []


def test_another_spelling_is_named(spec):
    real = table()
    other = real.assign(y=real["y"] + ".")
    assert foreign_values(real, other, spec) == {
        "y": f"no synthetic value of 'y' is in the real table: {other['y'][0]!r}, not {real['y'][0]!r}"
    }
    with pytest.raises(TargetError, match="no synthetic value of 'y' is in the real table"):
        machine_learning_efficiency(real, other, table(seed=1), spec, seeds=1, grid=ONE)
    result = evaluate_tables(real, other, spec, holdout=table(30, seed=1), seeds=1)
    assert "no synthetic value of 'y'" in result.warnings[0] and "holdout has 30 rows" in result.warnings[1]
    assert set(result.skipped) == {"machine_learning_efficiency"}


def test_a_rare_class_is_in_the_rows_set_aside():
    rows = table(500).assign(y=["rare"] * 8 + ["often"] * 492)
    spec = TableSpec.infer(rows, target="y")
    for seed in range(10):
        assert machine_learning_efficiency(rows, rows, rows, spec, seeds=1, seed=seed, grid=ONE).scores


def test_what_a_library_refuses_costs_its_own_figures_alone(spec, monkeypatch):
    def refuse(*arguments, **keywords):
        raise IndexError("list index out of range")

    monkeypatch.setattr("difflm.training.evaluation.detection.detection", refuse)
    result = evaluate_tables(table(), table(seed=1), spec, seeds=1)
    assert result.skipped["detection"] == "IndexError: list index out of range"
    assert "alpha_precision" in result.figures


def test_a_page_that_fails_does_not_cost_the_figures(tmp_path, monkeypatch):
    files = []
    for seed, name in enumerate(("real", "synthetic")):
        files += [f"--{name}", str(tmp_path / f"{name}.csv")]
        table(50, seed).to_csv(files[-1], index=False)

    def fail(*arguments, **keywords):
        raise OSError("no space left")

    monkeypatch.setattr("difflm.training.reports.evaluation_report.write_evaluation_report", fail)
    assert main(["evaluate", *files, "--seeds", "1", "-o", str(tmp_path / "out")]) != 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))["figures"]["shape_error"]


def test_what_cannot_be_compared_is_named(spec):
    with pytest.raises(ColumnMismatchError, match="'tags' holds lists or dicts"):
        prepare(pd.DataFrame({"tags": [["a"], ["b"]]}), TableSpec((), ("tags",)))
    lone = table()[["y"]]
    with pytest.raises(TargetError, match="another column than 'y'"):
        machine_learning_efficiency(lone, lone, lone, TableSpec.infer(lone, target="y"))
    assert TableSpec.infer(table().assign(code=1), categorical="code").categorical == ("y", "code")
    with pytest.raises(EvaluationError, match="a list of texts"):
        validity_rate("{}", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "/nowhere"], "no fitted pipeline"),
        (["-o", "{real}"], "a folder is written"),
        (["--synthetic", "{empty}"], "at least one is needed"),
        (["--pipeline", "{folder}"], "it has no model_index.json"),
        (["--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(arguments, message, tmp_path, capsys):
    real, empty = tmp_path / "real.csv", tmp_path / "empty.csv"
    table(50).to_csv(real, index=False)
    table(50).head(0).to_csv(empty, index=False)
    given = ["--real", real, "--synthetic", real, "-o", tmp_path / "out"]
    given += [part.format(real=real, empty=empty, folder=tmp_path) for part in arguments]
    assert main(["evaluate", *map(str, given)]) != 0
    captured = capsys.readouterr()
    assert message in captured.err and "measuring" not in captured.out


def test_a_package_that_is_missing_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys):
    table(50).to_csv(tmp_path / "real.csv", index=False)
    monkeypatch.setattr("difflm.cli.evaluate.find_spec", lambda package: None if package == "xgboost" else "installed")
    words = ["evaluate", "--real", str(tmp_path / "real.csv"), "--synthetic", str(tmp_path / "real.csv")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert "needs xgboost: pip install 'difflm[evaluation]'" in capsys.readouterr().err


def test_text_columns_keep_their_zeros(tmp_path):
    real = table(120).assign(zip=[f"{i % 7:05d}" for i in range(120)])
    real.to_csv(tmp_path / "real.csv", index=False)
    real.to_parquet(tmp_path / "rows.parquet")
    words = ["evaluate", "--real", str(tmp_path / "real.csv"), "--synthetic", str(tmp_path / "rows.parquet")]
    words += ["--seeds", "1", "-o", str(tmp_path / "out"), "--text-columns", "zip"]
    assert main(words) == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    assert found["columns"]["zip"] == 0.0 and found["figures"]["copy_rate"]["mean"] == 1.0
    assert "zip" in found["details"]["categorical"]
