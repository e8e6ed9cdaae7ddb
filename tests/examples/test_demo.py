"""The demo's data, promises and files; the fit itself is replaced by the real records under noise."""

import json
import types

import demo
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from difflm.pipelines.outputs import DiffLMPipelineOutput, SamplingReport
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.data import read_table
from difflm.training.reports.table_comparison import compare_columns


@pytest.fixture(scope="module")
def penguins():
    return read_table(demo.penguins_csv())


def bars(real, synthetic, **changes):
    keywords = {
        "valid_first_attempt": 1.0,
        "valid_by_language_model": 1.0,
        "reconstruction_own": 10.0,
        "reconstruction_shuffled": 30.0,
        "identical_after_reload": True,
    }
    checks = demo.check_bars(real, synthetic, compare_columns(real, synthetic), **(keywords | changes))
    return {check.name: check for check in checks}


def failed(checks):
    return [name for name, check in checks.items() if not check.passed]


def test_the_table_is_the_penguins(penguins):
    assert penguins.shape == (344, 8)
    assert penguins["sex"].isna().sum() == 11
    assert set(penguins["species"]) == {"Adelie", "Chinstrap", "Gentoo"}


def test_a_missing_table_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        demo.penguins_csv()


def test_real_records_pass_every_promise(penguins):
    assert failed(bars(penguins, penguins.sample(300, random_state=0))) == []


def test_each_promise_can_break(penguins):
    def broken(synthetic=penguins, **changes):
        return failed(bars(penguins, synthetic, **changes))

    def chinstrap(**columns):
        rows = penguins["species"] == "Chinstrap"
        return penguins.assign(**{name: penguins[name].where(~rows, value) for name, value in columns.items()})

    assert broken(valid_first_attempt=0.94) == ["records valid on the first attempt"]
    assert broken(valid_by_language_model=0.94) == ["the language model's records valid on the first attempt"]
    assert broken(identical_after_reload=False) == ["the reloaded pipeline gives the same bytes"]
    assert broken(reconstruction_own=30.0) == [
        "a record is reconstructed better from its own latent than from another's"
    ]
    assert broken(chinstrap(body_mass_g=3300)) == ["mean body mass of Chinstrap"]
    assert broken(chinstrap(flipper_length_mm=185)) == ["species in the real order of flipper length"]
    assert broken(penguins.assign(sex=penguins["sex"].where(penguins["year"] != 2007))) == [
        "missing values at the real rate in every column"
    ]
    shifted = {name: penguins[name] + 5 for name in ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "year")}
    assert broken(penguins.assign(**shifted)) == ["mean shape error per column"]


def test_a_species_that_never_comes_is_no_success(penguins):
    names = failed(bars(penguins, penguins[penguins["species"] != "Gentoo"]))
    assert "mean body mass of Gentoo" in names
    assert "species in the real order of flipper length" in names


def sampled_output(frame, latents):
    """What a pipeline returns that has sampled these rows, a hundredth of them at a second attempt."""
    schema = RecordSchema.infer(frame)
    report = SamplingReport(requested=100, returned=100, attempts=101, first_attempt_parsed=99)
    return DiffLMPipelineOutput(
        records=schema.to_records(frame), latents=torch.as_tensor(latents), report=report, schema=schema
    )


@pytest.fixture
def stand_ins(monkeypatch, penguins):
    """A fit that writes what a fit leaves, and a pipeline that returns real penguins."""
    sampled = []

    def pipe(num_samples, seed, batch_size, writer="auto", constrained=True, max_attempts=10):
        sampled.append((num_samples, seed, writer, constrained))
        frame = penguins.sample(num_samples, replace=True, random_state=seed).reset_index(drop=True)
        return sampled_output(frame, np.random.default_rng(seed).normal(size=(num_samples, 4)))

    def fit(data, output_dir, *, preset, policy, **keywords):
        assert preset.max_minutes is None and preset.policy.changed(policy).floor_steps == 40
        folder = demo.Path(output_dir)
        folder.mkdir(parents=True)
        log = {
            "reconstruction_own_latent": 10.0,
            "reconstruction_shuffled_latent": 30.0,
            "fit_seconds": 61.0,
            "rows_seen": 1234,
            "writer": "draft",
            "writer_reason": "it is cheaper",
            "autoencoder_history": [{"step": 1, "loss": 3.0, "reconstruction": 2.0}],
            "denoiser_history": [{"step": 1, "train_loss": 1.0}],
        }
        (folder / "training_log.json").write_text(json.dumps(log))
        latents = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        save_file({"mean": latents, "log_variance": latents}, folder / "latents.safetensors")
        return pipe

    def resample(pipeline, num_samples, seed, output):
        demo.write_records(pipe(num_samples, seed, demo.BATCH_SIZE), output)
        return output.read_bytes()

    module = types.ModuleType("difflm.training.fitting")
    module.fit = fit
    monkeypatch.setitem(demo.sys.modules, "difflm.training.fitting", module)
    monkeypatch.setattr(demo, "sample_in_new_process", resample)
    return sampled


def test_writes_everything_it_promises(stand_ins, tmp_path, capsys):
    assert demo.main(["--output-dir", str(tmp_path / "demo"), "--num-samples", "300"]) == 0
    folder = tmp_path / "demo"
    summary = json.loads((folder / "summary.json").read_text())
    promised = {
        "valid_first_attempt",
        "valid_by_language_model",
        "valid_by_language_model_unconstrained",
        "writer_reason",
        "shape_error_percent",
        "reconstruction_own_latent",
        "reconstruction_shuffled_latent",
        "fit_seconds",
        "rows_seen",
        "sample_rows_per_second",
        "peak_memory_mib",
        "versions",
    }
    assert promised <= set(summary)
    assert len(summary["shape_error_percent"]["per_column"]) == 8
    assert summary["versions"]["torch"]
    assert len(pd.read_parquet(folder / "synthetic.parquet")) == 300
    assert (folder / "report.html").read_text(encoding="utf-8").count("<img") == 11
    assert stand_ins == [
        (300, 0, "auto", True),
        (50, 0, "lm", True),
        (50, 1, "lm", False),
        (300, 0, "auto", True),
    ]
    printed = capsys.readouterr().out
    assert "mean shape error" in printed
    assert "FAILED" not in printed


def test_a_broken_promise_is_an_error(stand_ins, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "sample_in_new_process", lambda *arguments: b"something else")
    assert demo.main(["--output-dir", str(tmp_path / "demo"), "--num-samples", "300"]) == 1
    assert "FAILED  the reloaded pipeline gives the same bytes: different" in capsys.readouterr().out


def test_the_new_process_runs_the_command(monkeypatch, tmp_path):
    commands = []

    def run(command, check):
        commands.append(command)
        (tmp_path / "r.jsonl").write_bytes(b"{}\n")

    monkeypatch.setattr(demo.subprocess, "run", run)
    assert demo.sample_in_new_process(tmp_path, 7, 3, tmp_path / "r.jsonl") == b"{}\n"
    words = " ".join(commands[0][1:])
    assert words.startswith(f"-m difflm sample {tmp_path} -o {tmp_path / 'r.jsonl'}")
    assert "-n 7 --seed 3" in words
