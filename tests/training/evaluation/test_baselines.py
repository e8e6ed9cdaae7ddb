"""Baselines, the results table, and the command that evaluates."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from difflm import cli
from difflm.training.evaluation import baselines as module
from difflm.training.evaluation.shapes import shape_errors, trend_errors
from difflm.training.evaluation.tables import EvaluationError, TableSpec


ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    x = generator.normal(size=400).round(2)
    return pd.DataFrame(
        {
            "x": x,
            "count": generator.poisson(3, size=400),
            "side": np.where(x > 0, "right", "left"),
            "y": np.where(x + generator.normal(scale=0.4, size=400) > 0, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def spec(table):
    return TableSpec.infer(table, target="y")


@pytest.mark.parametrize(
    ("name", "package"),
    [("real", None), ("independent", None), ("gaussian_copula", "copulas"), ("smote", "imblearn")],
)
def test_cheap_baselines(name, package, table, spec):
    if package:
        pytest.importorskip(package)
    rows = module.baselines()[name]().fit(table, spec, seed=1).sample(500)
    assert list(rows.columns) == list(table.columns) and len(rows) == 500
    assert not rows.isna().any().any()
    assert set(rows["side"]) <= {"left", "right"}
    # As many decimals as the table has, and no number beyond its range.
    assert (rows["x"].round(2) == rows["x"]).all() and (rows["count"] % 1 == 0).all()
    assert rows["x"].between(table["x"].min(), table["x"].max()).all()
    assert np.mean(list(shape_errors(table, rows, spec).values())) < 8
    again = module.baselines()[name]().fit(table, spec, seed=1).sample(500)
    pd.testing.assert_frame_equal(rows, again)


@pytest.mark.parametrize(("name", "package"), [("gaussian_copula", "copulas"), ("smote", "imblearn")])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_sampled_columns_have_the_types_of_the_training_table(name, package, zone, table):
    pytest.importorskip(package)
    table = table.assign(
        flag=table["x"] > 1, code=np.where(table["x"] > 0, 10, 20), at=pd.date_range("2024", periods=400, tz=zone)
    )
    spec = TableSpec.infer(table, target="y", categorical=["code"])
    rows = module.baselines()[name]().fit(table, spec, seed=0).sample(100)
    assert rows.dtypes.astype(str).to_dict() == table.dtypes.astype(str).to_dict()
    assert rows["at"].between(table["at"].min(), table["at"].max()).all() and rows["at"].nunique() > 20


def test_mostlyai_learns_within_the_budget(table):
    pytest.importorskip("mostlyai.engine")
    table = table.assign(
        **{"count [n]": table["count"].where(table["x"] > -1), "code": np.where(table["x"] > 0, 10, 20)},
        side=table["side"].where(table.index > 40).where(table.index != 200, "rare"),
        at=pd.date_range("2024", periods=400),
    )
    spec = TableSpec.infer(table, target="y", categorical=["code"])
    model = module.MostlyAI(0.1).fit(table, spec, seed=0)
    assert model.details["steps"] > 0 and 0 < model.details["epochs"] < 100
    assert sys.float_info.min / 2 > 0  # what others of the process compute stays as it was
    rows = model.sample(300)
    assert rows.dtypes.astype(str).to_dict() == table.dtypes.astype(str).to_dict()
    # A protected category is drawn again among the others; a missing cell is none.
    assert set(rows["side"].dropna()) == {"left", "right"} and set(rows["code"]) == {10, 20}
    assert rows[["side", "count [n]"]].isna().mean().between(0.03, 0.4).all()
    assert (rows["count [n]"].dropna() % 1 == 0).all()
    assert rows["at"].between(table["at"].min(), table["at"].max()).all()
    pd.testing.assert_frame_equal(model.sample(300), rows)


def test_decimals_of_a_sorted_column_are_kept():
    table = pd.DataFrame({"x": np.concatenate([np.zeros(3_000), np.arange(3_000) / 4])})
    spec = TableSpec.infer(table)
    rows = module.restore(pd.DataFrame({"x": [1.26, 7.5, 1e9]}), table, spec)
    assert rows["x"].tolist() == [1.26, 7.5, 749.75]


def test_independent_columns_have_no_trends(table, spec):
    rows = module.Independent().fit(table, spec).sample(400)
    assert trend_errors(table, rows, spec)["side", "y"] > 15


def test_gaussian_copula_keeps_trends(table, spec):
    pytest.importorskip("copulas")
    kept, lost = (model().fit(table, spec).sample(2000) for model in (module.GaussianCopula, module.Independent))
    kept, lost = trend_errors(table, kept, spec), trend_errors(table, lost, spec)
    assert lost["side", "y"] > 30 and kept["side", "y"] < 10
    assert lost["x", "side"] > 30 and kept["x", "side"] < 10


def test_gaussian_copula_invents_no_trend_among_ties():
    pytest.importorskip("copulas")
    # Two independent columns that are mostly zero: their zeros stand in no order that could agree.
    generator = np.random.default_rng(0)
    table = pd.DataFrame({name: generator.poisson(0.1, size=3000) for name in "ab"})
    rows = module.GaussianCopula().fit(table, TableSpec.infer(table)).sample(3000)
    assert abs(rows["a"].corr(rows["b"])) < 0.05


def test_smote_keeps_zeros_and_category_shares():
    pytest.importorskip("imblearn")
    generator = np.random.default_rng(0)
    zero = generator.random(1000) < 0.8
    table = pd.DataFrame(
        {
            "large": generator.normal(scale=1e6, size=1000).round(),
            "duration": np.where(zero, 0.0, generator.uniform(100, 200, size=1000)),
            "step": generator.choice([0.0, 0.2, 0.9], size=1000),
            "kind": generator.choice(list("abcd"), size=1000, p=[0.55, 0.15, 0.15, 0.15]),
            "y": np.where(zero, "no", "yes"),
        }
    )
    rows = module.Smote().fit(table, TableSpec.infer(table, target="y")).sample(1000)
    # No row lies between 0 and 100, where none does in the table.
    assert not rows["duration"].between(0, 100, inclusive="neither").any()
    assert set(rows["step"]) == {0.0, 0.2, 0.9}
    shares = [one["kind"].value_counts(normalize=True) for one in (table, rows)]
    assert (shares[0] - shares[1]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "package"), [("gaussian_copula", "copulas"), ("smote", "imblearn"), ("tvae", "ctgan"), ("ctgan", "ctgan")]
)
def test_missing_cells_stay_missing_where_they_were(name, package):
    pytest.importorskip(package)
    generator = np.random.default_rng(0)
    kind = generator.choice(["known", "unknown"], size=600)
    table = pd.DataFrame(
        {
            "number": np.where(kind == "known", generator.normal(size=600).round(1), np.nan),
            "text": np.where(kind == "known", "here", None),
            "kind": kind,
            "y": generator.normal(size=600).round(2),
        }
    )
    table.loc[:59, "y"] = np.nan
    # Seconds of training are too few for CTGAN to learn what depends on what: only that cells are missing.
    model = module.baselines()[name](0.05).fit(table, TableSpec.infer(table, target="y", task="regression"), seed=1)
    rows = model.sample(600)
    assert len(rows) == 600 and rows.columns.tolist() == table.columns.tolist()
    assert rows["number"].isna().any() and rows["number"].notna().any() and rows["text"].isna().any()
    if name in ("smote", "gaussian_copula"):
        assert abs(rows["y"].isna().mean() - 0.1) < 0.05
        unknown = rows["kind"] == "unknown"
        assert rows["number"].isna()[unknown].mean() > 0.9 and rows["number"].isna()[~unknown].mean() < 0.1


@pytest.mark.parametrize("name", ["ctgan", "tvae"])
def test_adversarial_and_variational_baselines_stop_in_time(name, table, spec):
    pytest.importorskip("ctgan")
    model = module.baselines()[name](0.0).fit(table, spec, seed=1)
    # At the end of the first batch, which is the whole of this small table.
    assert model.details["epochs"] == 1
    rows = model.sample(30)
    assert len(rows) == 30 and not rows.isna().any().any() and set(rows["side"]) <= {"left", "right"}
    assert (rows["count"] % 1 == 0).all()


def test_baselines_refuse_what_they_cannot_learn(table, spec):
    with pytest.raises(module.NotFittedError, match="call fit first"):
        module.Real().sample(1)
    with pytest.raises(EvaluationError, match="without rows"):
        module.Real().fit(table.head(0), spec)
    pytest.importorskip("imblearn")
    with pytest.raises(EvaluationError, match="fewer rows than 5 neighbours"):
        module.Smote().fit(table.head(4), spec)


def test_a_missing_package_is_named():
    with pytest.raises(
        module.BaselineUnavailableError, match=r"needs nothing-at-all .*pip install difflm\[baselines\]"
    ):
        module.require("nothing_at_all", "nothing-at-all")


@pytest.fixture
def renderer(monkeypatch):
    # A script finds the files beside it.
    monkeypatch.syspath_prepend(ROOT / "examples/benchmarks")
    return importlib.import_module("tabular_table")


def test_the_committed_table_comes_from_its_figures(renderer):
    results = ROOT / "examples/benchmarks/results"
    assert (results / "README.md").read_text(encoding="utf-8") == renderer.render(results)


def test_a_figure_without_its_json_cannot_appear(renderer, tmp_path):
    entry = {"dataset": "magic", "method": "ctgan", "train_rows": 10, "budget_minutes": 45.0, "sampled_rows": 1234}
    entry["fit"] = {"fit_seconds": 3, "fit_cpu_seconds": 2.5, "epochs": 17.25, "sample_seconds": 6.2}
    entry["hardware"] = "x86_64 CPU, 1 thread"
    entry["figures"] = {
        "shape_error": {"mean": 7.25},
        "shape_error_of_holdout": {"mean": 1.5},
        "mle": {"mean": 0.91, "std": 0.002},
    }
    (tmp_path / "magic-ctgan-0.json").write_text(json.dumps(entry))
    failed = {"dataset": "magic", "method": "great", "train_rows": 10, "not_run": "no such package"}
    (tmp_path / "magic-great-0.json").write_text(json.dumps(failed))
    text = renderer.render(tmp_path)
    assert "| ctgan | 1 | 45 | x86_64 CPU, 1 thread | 10 | 3 | 2 | 17.25 | 1,234 | 6 | 199.0 | 7.25 | 1.50 |" in text
    assert "0.910 ± 0.002" in text
    assert "| great | not run: no such package |" in text
    summary = text[text.index("## In short") : text.index("## magic")]
    assert "| ctgan |  |  | 7.25 |  |  |\n" in summary
    assert "| ctgan |  |  | 0.910 ± 0.002 |  |  |\n" in summary
    assert "great" not in summary
    # Runs that differ are not passed off as equal ones, and one that failed is counted.
    (tmp_path / "magic-ctgan-1.json").write_text(json.dumps(entry | {"train_rows": 8}))
    (tmp_path / "magic-ctgan-2.json").write_text(json.dumps(entry | {"not_run": "no memory"}))
    other = entry | {"budget_minutes": 5.5, "figures": {"shape_error": {"mean": 9.0}}}
    (tmp_path / "magic-ctgan-3.json").write_text(json.dumps(other))
    text = renderer.render(tmp_path)
    assert "| ctgan | 2 of 3 | 45 | x86_64 CPU, 1 thread | 10 / 8 |" in text
    assert "| ctgan, 5.5 min | 1 | 5.5 |" in text
    assert "| ctgan |  |  | 7.25 ± 0.00 |  |  |\n| ctgan, 5.5 min |  |  | 9.00 |  |  |\n" in text
    for seed in (1, 2, 3):
        (tmp_path / f"magic-ctgan-{seed}.json").unlink()
    # A fit made elsewhere than it is judged says so itself.
    entry["fit"]["hardware"] = "NVIDIA H200"
    (tmp_path / "magic-ctgan-0.json").write_text(json.dumps(entry))
    assert "| ctgan | 1 | 45 | NVIDIA H200 | 10 |" in renderer.render(tmp_path)
    (tmp_path / "magic-ctgan-0.json").unlink()
    assert "7.25" not in renderer.render(tmp_path)


def test_difflm_is_counted_beside_methods_of_the_same_language_model(renderer, tmp_path):
    def figures(trend, mle, auc):
        return {"trend_error": {"mean": trend}, "mle": {"mean": mle}, "detection_auc": {"mean": auc}}

    def entry(dataset, method, found, **more):
        common = {"dataset": dataset, "method": method, "train_rows": 9, "sampled_rows": 9, "hardware": "CPU"}
        text = json.dumps(common | {"fit": {"fit_seconds": 1}, "figures": found} | more)
        (tmp_path / f"{dataset}-{method}-0.json").write_text(text)

    entry("adult", "great", figures(9.0, 0.85, 0.80))
    entry("beijing", "great", figures(9.0, 0.60, 0.40))
    fewer = {"at_rows_of": {"great": {"rows": 3, "figures": figures(9.5, 0.86, 0.70)}}}
    entry("adult", "difflm", figures(4.0, 0.90, 0.70), **fewer)
    # A regression's error: more is worse. A detector that errs by 0.2 is as far from chance as one that is right.
    entry("beijing", "difflm", figures(4.0, 0.70, 0.70))
    text = renderer.render(tmp_path)
    assert "| great | on 2 of 2 tables | on 1 of 2 tables | on 1 of 2 tables |" in text
    assert "| great, at its number of rows | on 0 of 1 tables | on 1 of 1 tables | on 1 of 1 tables |" in text
    assert "| icl" not in text
    (tmp_path / "adult-great-0.json").unlink()
    (tmp_path / "beijing-great-0.json").unlink()
    assert "DiffLM is better" not in renderer.render(tmp_path)
    # The priors stand beside as many rows of the diffusion.
    entry("adult", "difflm_gmm", figures(7.0, 0.80, 0.75))
    entry("adult", "difflm", figures(4.0, 0.9, 0.7), at_rows_of={"difflm_gmm": fewer["at_rows_of"]["great"]})
    text = renderer.render(tmp_path)
    assert "| adult | difflm_gmm | 9 |  | 7.00 | 0.800 | 0.750 |\n| adult | difflm | 3 |  | 9.50 | 0.860 |" in text


def test_the_command_writes_figures_and_a_page(table, tmp_path, capsys):
    for name, rows in {"train": table.head(200), "test": table.tail(100), "rows": table.iloc[100:300]}.items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    words = ["evaluate", "--real", f"{tmp_path}/train.csv", "--holdout", f"{tmp_path}/test.csv"]
    words += ["--synthetic", f"{tmp_path}/rows.csv", "--target", "y", "--seeds", "1", "-o", f"{tmp_path}/report"]
    assert cli.main(words) == 0
    content = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert content["figures"]["copy_rate"]["mean"] >= 0.5 and content["skipped"] == {}
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<img") == 4 + 3 and "http" not in page.replace("http://www.w3.org", "")
    assert "copy_rate" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite", "--target", "nothing"]) == 2
    assert "no column 'nothing'" in capsys.readouterr().err


def test_help_costs_nothing():
    code = (
        "import sys\nfrom difflm import cli\n"
        "try:\n    cli.main(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(' '.join({'torch', 'pandas', 'sklearn', 'xgboost'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--synthetic" in done.stdout
