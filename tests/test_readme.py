"""The README's code and commands, and the examples, run: with tiny models instead of the default ones."""

import itertools
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from difflm.cli.command import build_parser


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = re.findall(rf"^    ({program} .*)$", README, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def tiny_fit(monkeypatch, model_folders):
    """Give ``fit`` tiny models and few steps, whatever it is called with; the calls are returned."""
    from difflm.training import fitting

    real_fit, calls = fitting.fit, []

    def fit(data, output_dir, **keywords):
        calls.append(keywords)
        tiny = {
            "encoder": model_folders["encoder"],
            "decoder": model_folders["decoder"],
            "epochs": 1,
            "show_progress": False,
            "model_kwargs": {
                "decoder_dtype": "float32",
                "latent_size": 8,
                "num_injection_tokens": 2,
                "injection_hidden_size": 16,
                "injection_token_size": 16,
            },
            "denoiser_kwargs": {"max_steps": 5},
            "policy": {"column_min_steps": 20, "column_max_epochs": 20, "warm_up_max_epochs": 10},
        }
        return real_fit(data, output_dir, **keywords | tiny)

    monkeypatch.setattr(fitting, "fit", fit)
    return calls


def test_python_blocks_run_in_order(tiny_fit, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(20, 60, 40), "city": random.choice(["Ulm", "Bonn", "Köln"], 40)})
    table.to_csv(tmp_path / "data.csv", index=False)
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks()
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["output"].to_pandas()) == 100
    assert len(names["adults"].records) == 20
    for record in names["adults"].records:
        assert 30 <= record["age"] <= 40
        assert record["city"] in ("Ulm", "Bonn")
    assert "age" in capsys.readouterr().out
    assert [len(names[name].records) for name in ("similar", "between", "again", "filled")] == [2, 5, 2, 1]
    assert names["filled"].records[0]["age"] == 30


def test_figures_are_the_benchmarks():
    """The table of Adult says what the committed JSONs say, and so does the line on GReaT's number of rows."""

    def entry(method: str) -> dict:
        return json.loads((ROOT / f"examples/benchmarks/results/adult-{method}-0.json").read_text(encoding="utf-8"))

    def cells(figures: dict) -> list[str]:
        percent = [f"{figures[name]['mean']:.2f} %" for name in ("shape_error", "trend_error")]
        return percent + [f"{figures[name]['mean']:.3f}" for name in ("mle", "detection_auc")]

    titles = {
        "DiffLM": "difflm",
        "GReaT, SmolLM2-135M": "great",
        "CTGAN": "ctgan",
        "TVAE": "tvae",
        "SMOTE": "smote",
    }
    for title, method in titles.items():
        found = entry(method)
        assert f"{found['train_rows']:,} training rows), at most 45 minutes" in README
        if method != "great":
            assert found["budget_minutes"] == (20 if method == "difflm" else 45)
        figures = [*cells(found["figures"]), f"{found['figures']['dcr_share']['mean']:.1f} %"]
        assert f"| {title} | {found['sampled_rows']:,} | {' | '.join(figures)} |" in README
    real = entry("real")
    assert f"| real rows | {real['train_rows']:,} | | | {real['figures']['mle']['mean']:.3f} | | |" in README
    great = entry("great")
    given = f"{great['budget_minutes']:.0f} minutes to fit and {great['sample_minutes']:.0f} to write"
    floors = [f"{great['figures'][f'{name}_error_of_holdout']['mean']:.2f} %" for name in ("shape", "trend")]
    fewer = entry("difflm")["at_rows_of"]["great"]
    assert fewer["rows"] == great["sampled_rows"]
    shape, trend, mle, detection = cells(fewer["figures"])
    line = f"the first {fewer['rows']} of DiffLM at {shape}, {trend}, {mle} and {detection}."
    text = " ".join(README.split())
    assert line in text and given in text
    assert f"as many unseen real rows are at {floors[0]} and {floors[1]}" in text
    ours, smote = (entry(method)["figures"] for method in ("difflm", "smote"))
    assert f"would have {ours['dcr_share_of_copies']['mean']:.1f} %, as SMOTE's rows do" in text
    linked = [
        [f"{100 * figures['linkability_risk'][name]:.1f}" for name in ("mean", "low", "high")]
        for figures in (ours, smote)
    ]
    assert "gains {} % from DiffLM's (95 %: {} to {})".format(*linked[0]) in text
    assert f"and {linked[1][0]} % from SMOTE's" in text
    folder = ROOT / "examples/benchmarks/results"
    tables = ("adult", "default", "magic", "shoppers", "beijing")
    every = {
        (table, method): json.loads((folder / f"{table}-{method}-0.json").read_text(encoding="utf-8"))["figures"]
        for table in tables
        for method in ("difflm", "great", "icl")
    }
    errors = [every[table, "difflm"]["shape_error"]["mean"] for table in tables]
    assert f"its shape error is {min(errors):.1f} to {max(errors):.1f} %" in text
    told = [every[table, "difflm"]["detection_auc"]["mean"] for table in tables]
    assert f"with an AUC of {min(told):.2f} to {max(told):.2f}." in text
    fits = [json.loads((folder / f"{table}-difflm-0.json").read_text(encoding="utf-8"))["fit"] for table in tables]
    seconds = [fit["fit_cpu_seconds"] for fit in fits]
    assert f"A fit took {min(seconds):.0f} to {max(seconds):.0f} CPU seconds" in text
    for table, other in itertools.product(tables, ("great", "icl")):
        found, theirs = every[table, "difflm"], every[table, other]
        sign = -1 if table == "beijing" else 1  # an RMSE
        assert sign * found["mle"]["mean"] > sign * theirs["mle"]["mean"]
        for name in ("trend_error", "detection_auc"):
            assert found[name]["mean"] < theirs[name]["mean"]


def test_commands_are_accepted():
    found = commands("difflm")
    assert [words[1] for words in found] == ["fit", "sample", "sample", "info", "card", "push", "space", "evaluate"]
    for words in found:
        build_parser().parse_args(words[1:])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {words[1] for words in commands("make")}
    assert targets == {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_presets_and_extras_are_all_named():
    from difflm.training.presets import PRESETS

    for name in PRESETS:
        assert re.search(rf"^\| `{name}`", README, flags=re.MULTILINE), f"README does not describe the preset {name}"
    sections = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2].partition("[options.entry")[0]
    for extra in re.findall(r"^(\w+) =$", sections, flags=re.MULTILINE):
        assert f"`{extra}`" in README, f"README does not name the extra {extra}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_fit_and_sample_example(tiny_fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fit_and_sample.py", "--output-dir", str(tmp_path / "iris")])
    runpy.run_path(str(ROOT / "examples" / "fit_and_sample.py"), run_name="__main__")
    assert "mean shape error" in capsys.readouterr().out
    assert (tmp_path / "iris" / "model_index.json").is_file()
    assert tiny_fit[0]["max_minutes"] <= 5
