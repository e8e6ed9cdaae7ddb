"""The benchmark script: loading, one entry per method, the table made of entries."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from difflm.pipelines import DiffLMPipeline
from difflm.training.evaluation.baselines import BaselineUnavailableError
from difflm.training.presets import PRESETS
from tests.conftest import tiny_preset


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tabular():
    return importlib.import_module("tabular")


@pytest.fixture
def data_dir(tmp_path):
    """A table of the paper's layout: the class follows the number, "?" is a category, a cell is missing."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "adult"
    folder.mkdir(parents=True)
    for name, rows in (("train", 240), ("validation", 60), ("test", 80)):
        number = rng.normal(size=rows).round(2)
        table = pd.DataFrame(
            {
                "number": number,
                "group": rng.choice(["?", "NA", "x"], rows),
                "class": np.where(number + rng.normal(scale=0.3, size=rows) > 0, "yes", "no"),
            }
        )
        table.loc[3, "number"] = None
        table.to_csv(folder / f"{name}.csv", index=False)
    spec = {"task": "binary_classification", "target": "class", "categorical": ["group", "class"]}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return tmp_path / "data"


def run(tabular, monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tabular.py", *map(str, arguments)])
    return tabular.main()


def test_methods_leave_entries_and_the_table_shows_them(tabular, data_dir, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results, "--seeds", 1, "--quantity"]
    assert run(tabular, monkeypatch, *options, "--methods", "independent", "--rows", 200) == 0
    entry = json.loads((results / "adult-independent-0.json").read_text(encoding="utf-8"))
    assert (entry["train_rows"], entry["sampled_rows"]) == (240, 200)
    # Without dependence there is nothing to learn, and the real rows say so.
    learnt = {name: figure["mean"] for name, figure in entry["quantity"]["figures"].items()}
    assert learnt["real"] > 0.85 and learnt["real_and_1x"] > 0.7
    assert abs(learnt["2x"] - 0.5) < 0.25
    assert learnt["real_1x"] == learnt["real"]  # 1x is as many rows as the table has
    assert entry["quantity"]["rows"] == 240
    assert entry["figures"]["shape_error"]["mean"] < 10
    assert not (results / "rows").exists()  # made in a moment
    assert run(tabular, monkeypatch, "--render", "--results", results) == 0
    table = (results / "README.md").read_text(encoding="utf-8")
    assert "| independent | 1 |" in table and "| adult | independent | 240 |" in table
    assert run(tabular, monkeypatch, "--render", "--check", "--results", results) == 0
    (results / "README.md").write_text(table.replace("200", "300"), encoding="utf-8")
    assert run(tabular, monkeypatch, "--render", "--check", "--results", results) == 1
    assert "differs from" in capsys.readouterr().out


def test_rows_that_took_long_are_kept_and_judged_again(tabular, data_dir, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results, "--seeds", 1]
    options += ["--methods", "independent", "--rows", 200]
    with pytest.raises(SystemExit, match="no rows of independent on adult are kept"):
        run(tabular, monkeypatch, *options, "--judge")
    monkeypatch.setattr(tabular, "KEPT_SECONDS", -1)
    assert run(tabular, monkeypatch, *options) == 0
    path = results / "adult-independent-0.json"
    first = json.loads(path.read_text(encoding="utf-8"))
    altered = json.loads(json.dumps(first))
    altered["figures"]["shape_error"]["mean"] = 50.0
    altered["fit"]["fit_seconds"] = 12.5
    path.write_text(json.dumps(altered), encoding="utf-8")
    assert run(tabular, monkeypatch, *options, "--judge") == 0
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["figures"] == first["figures"] and again["sampled_rows"] == 200
    assert again["fit"]["fit_seconds"] == 12.5 and again["seconds"] == first["seconds"]
    assert again["judged_with"]["pandas"] == pd.__version__
    assert run(tabular, monkeypatch, *options, "--judge", "--quantity") == 0
    found = json.loads(path.read_text(encoding="utf-8"))["quantity"]
    assert found["rows"] == 100
    learnt = {name: figure["mean"] for name, figure in found["figures"].items()}
    assert 0.85 < learnt["real_1x"] != learnt["real"]  # 100 real rows, not all 240
    with pytest.raises(SystemExit, match="holds 200 rows, not 202"):
        run(tabular, monkeypatch, *options, "--judge", "--quantity", "--quantity-rows", 101)
    # What was fitted is not lost where measuring it fails.
    with monkeypatch.context() as broken:
        broken.setattr(tabular, "judge", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tabular, monkeypatch, *options)
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert "--judge" in entry["not_run"] and entry["sampled_rows"] == 200 and "fit_seconds" in entry["fit"]
    assert run(tabular, monkeypatch, *options, "--judge") == 0
    assert json.loads(path.read_text(encoding="utf-8"))["figures"] == first["figures"]
    # What could not be run leaves what was measured.
    with monkeypatch.context() as broken:

        def unavailable(*arguments):
            raise BaselineUnavailableError("it needs another library")

        broken.setattr(tabular, "run_baseline", unavailable)
        assert run(tabular, monkeypatch, *options) == 0
    assert "stays as it was: it needs another library" in capsys.readouterr().err
    assert json.loads(path.read_text(encoding="utf-8"))["figures"] == first["figures"]
    # An attack is made again, if not told otherwise.
    entry = json.loads(path.read_text(encoding="utf-8"))
    entry["details"]["attacks"] = {"linkability": {}}
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert run(tabular, monkeypatch, *options, "--judge") == 0
    assert "linkability_risk" in json.loads(path.read_text(encoding="utf-8"))["figures"]
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "anonymeter", None)
        with pytest.raises(SystemExit, match="pip install --no-deps anonymeter"):
            run(tabular, monkeypatch, *options, "--judge")
    # It is the rows that are measured: others have other figures.
    rows = pd.read_parquet(results / "rows" / "adult-independent-0.parquet")
    rows.assign(number=5.0).to_parquet(results / "rows" / "adult-independent-0.parquet")
    assert run(tabular, monkeypatch, *options, "--judge") == 0
    assert json.loads(path.read_text(encoding="utf-8"))["figures"]["shape_error"]["mean"] > 30


def test_real_rows_that_were_not_measured_are_left_out(tabular, data_dir, tmp_path, monkeypatch):
    results = tmp_path / "results"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results, "--seeds", 1, "--methods", "real"]
    monkeypatch.setattr(tabular, "judge", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tabular, monkeypatch, *options)
    assert run(tabular, monkeypatch, "--render", "--results", results) == 0
    assert "| real | not run: fitted, but not measured" in (results / "README.md").read_text(encoding="utf-8")


def test_other_splits_and_the_published_settings(tabular, data_dir, tmp_path, monkeypatch):
    results = tmp_path / "results"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results]
    assert run(tabular, monkeypatch, *options, "--seeds", 1, "--methods", "real") == 0
    script = importlib.import_module("real_rows")
    # No leaf may hold as many rows as the first asks for: it predicts one value.
    good = script.PUBLISHED_GRID[-1] | {"max_depth": 3}
    monkeypatch.setattr(script, "PUBLISHED_GRID", [good | {"min_child_weight": 1000}, good])
    monkeypatch.setattr(sys, "argv", ["real_rows.py", *map(str, options), "--random-splits", "2"])
    script.main()
    found = json.loads((results / "real_splits.json").read_text(encoding="utf-8"))["adult"]
    assert len(found["random_splits"]) == 2 and found["min"] > 0.85 and found["published_grid"]["runs"] == 2
    scores = found["published_grid"]
    assert scores["worst"] == 0.5 and scores["chosen_on_validation"] == scores["best_on_test"] > 0.85
    # Of a regression the error is measured, and less of it is better.
    tables, _ = tabular.load(tabular.argparse.Namespace(dataset="adult", data_dir=str(data_dir)), "adult")
    tables = {name: table.assign(amount=np.exp(3 + table["number"].fillna(0))) for name, table in tables.items()}
    spec = script.TableSpec(("number", "amount"), ("group", "class"), "amount", "regression", log_target=True)
    scores = script.published_grid(tables, spec, 1)
    assert scores["best_on_test"] == scores["chosen_on_validation"] < scores["worst"]
    assert run(tabular, monkeypatch, "--render", "--results", results) == 0
    assert f"| {found['mean']:.3f} ± " in (results / "README.md").read_text(encoding="utf-8")


def test_tables_come_from_datasets_too(tabular, data_dir, tmp_path, monkeypatch):
    # load_dataset reads a folder as it reads a repository of that layout.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = data_dir / "adult"
    arguments = tabular.argparse.Namespace(
        dataset="adult", data_dir=None, hub_dataset=str(folder), spec=str(folder / "spec.json")
    )
    tables, spec = tabular.load(arguments, "adult")
    assert {name: len(table) for name, table in tables.items()} == {"train": 240, "validation": 60, "test": 80}
    assert spec.target == "class" and "group" in spec.categorical
    arguments.data_dir = str(data_dir)
    from_files, _ = tabular.load(arguments, "adult")
    pd.testing.assert_frame_equal(tables["train"][["number"]], from_files["train"][["number"]])
    arguments.data_dir, arguments.dataset = None, "all"
    with pytest.raises(SystemExit, match="one table"):
        tabular.load(arguments, "adult")
    arguments.hub_dataset = None
    with pytest.raises(SystemExit, match="--hub-dataset"):
        tabular.load(arguments, "adult")


def test_difflm_is_fitted_once_and_sampled_from_every_prior(tabular, data_dir, tmp_path, monkeypatch, model_folders):
    monkeypatch.setitem(PRESETS, "tiny", tiny_preset(model_folders))
    results, fits = tmp_path / "results", tmp_path / "fits"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results, "--seeds", 1, "--fit-dir", fits]
    options += ["--preset", "tiny"]
    options += ["--rows", 60, "--methods", "difflm,difflm_gaussian,difflm_gmm,difflm_encode"]
    assert run(tabular, monkeypatch, *options) == 0
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("adult-*.json"))]
    assert {entry["fit"]["prior"] for entry in entries} == {"diffusion", "gaussian", "gmm", "encode"}
    assert len({entry["fit"]["fit_seconds"] for entry in entries}) == 1  # one fit for all of them
    assert all(entry["figures"]["validity_rate"]["mean"] == 1.0 for entry in entries)
    before = (fits / "adult-0/rows-diffusion-60.parquet").stat().st_mtime_ns
    assert run(tabular, monkeypatch, *options[:-1], "difflm") == 0
    assert (fits / "adult-0/rows-diffusion-60.parquet").stat().st_mtime_ns == before
    # More rows: those that are there are the first of them, as if all were sampled at once.
    options[options.index(60)] = 70
    assert run(tabular, monkeypatch, *options[:-1], "difflm") == 0
    added = pd.read_parquet(fits / "adult-0/rows-diffusion-70.parquet")
    for rows in (60, 70):
        (fits / f"adult-0/rows-diffusion-{rows}.parquet").unlink()
    assert run(tabular, monkeypatch, *options[:-1], "difflm") == 0
    for changed in (("--budget-minutes", 7), ("--train-rows", 100)):
        with pytest.raises(SystemExit, match="holds a fit with (max_minutes 45.0, not 7.0|rows 240, not 100)"):
            run(tabular, monkeypatch, *options[:-1], "difflm", *changed)
    pd.testing.assert_frame_equal(added, pd.read_parquet(fits / "adult-0/rows-diffusion-70.parquet"))
    # Where time runs out, the rows of whole parts remain, and no further run gets more time.
    for path in (fits / "adult-0").glob("rows-diffusion-*"):
        path.unlink()
    monkeypatch.setattr(sys.modules["tabular_difflm"], "ROWS_AT_ONCE", 20)
    for _ in range(2):
        assert run(tabular, monkeypatch, *options[:-1], "difflm", "--sample-minutes", 1e-6) == 0
        entry = json.loads((results / "adult-difflm-0.json").read_text(encoding="utf-8"))
        assert entry["sampled_rows"] == 20
    assert pd.read_parquet(fits / "adult-0/rows-diffusion-20.parquet").equals(added.head(20))


def test_the_language_model_writes_the_same_latents_and_the_fit_without_a_draft_is_another(
    tabular, data_dir, tmp_path, monkeypatch, model_folders
):
    monkeypatch.setitem(PRESETS, "tiny", tiny_preset(model_folders))
    results, fits = tmp_path / "results", tmp_path / "fits"
    options = ["--dataset", "adult", "--data-dir", data_dir, "--results", results, "--seeds", 1, "--fit-dir", fits]
    options += ["--preset", "tiny", "--rows", 40, "--methods", "difflm,difflm_lm,difflm_no_draft"]
    assert run(tabular, monkeypatch, *options) == 0
    entries = {
        method: json.loads((results / f"adult-{method}-0.json").read_text(encoding="utf-8"))["fit"]
        for method in ("difflm", "difflm_lm", "difflm_no_draft")
    }
    assert entries["difflm"]["fit_seconds"] == entries["difflm_lm"]["fit_seconds"]
    assert entries["difflm"]["writer"] == "draft" and entries["difflm"]["draft_seconds"] > 0
    assert entries["difflm_no_draft"]["writer"] == "lm" and "draft_nats" not in entries["difflm_no_draft"]
    rows = {name: pd.read_parquet(fits / f"adult-0/rows-diffusion{name}-40.parquet") for name in ("", "-lm")}
    assert len(rows["-lm"]) == 40 and not rows[""].equals(rows["-lm"])
    pipe = DiffLMPipeline.from_pretrained(fits / "adult-0")
    pd.testing.assert_frame_equal(pipe(num_samples=40, seed=0).to_pandas(), rows[""])


def test_unknown_method(tabular, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(tabular, monkeypatch, "--methods", "magic")
    assert "no method 'magic'" in capsys.readouterr().err


def test_attacks_that_cannot_be_made_are_refused_before_the_fit(tabular, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "anonymeter", None)
    with pytest.raises(SystemExit):
        run(tabular, monkeypatch, "--methods", "independent", "--attacks", "linkability")
    assert "pip install --no-deps anonymeter" in capsys.readouterr().err
