"""`difflm sample` into a folder: shards, kill and resume, two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from difflm.__main__ import main


def command(pipeline, output, *options: str) -> list[str]:
    return ["sample", str(pipeline), "-o", f"{output}/", "-n", "24", "--shard-size", "4", "--seed", "3", *options]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "whole"
    assert main(command(fitted[1], folder)) == 0
    return folder


def test_a_folder_gets_shards(fitted, whole):
    fitted[0].set_progress_bar_config(disable=True)
    rows = pd.concat([pd.read_parquet(path) for path in sorted(whole.glob("*.parquet"))], ignore_index=True)
    pd.testing.assert_frame_equal(rows, fitted[0](24, seed=3).to_pandas())
    assert len(contents(whole)) == 7


def test_other_options_are_refused(fitted, whole, capsys):
    assert main(command(fitted[1], whole, "--temperature", "0.5")) == 2
    assert "sampled with other temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("colour=red", "no column 'colour'"), ("kind=cow", "never 'cow'"), ("age=old", "give a number")],
)
def test_conditions_are_checked_before_anything_is_loaded(fitted, tmp_path, monkeypatch, condition, reason, capsys):
    monkeypatch.setattr("difflm.cli.sample.load_pipeline", lambda arguments: pytest.fail("the decoder was loaded"))
    assert main(["sample", str(fitted[1]), "-o", str(tmp_path / "rows.csv"), "--condition", condition]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("option", "reason"), [("--unique", "drop duplicates"), ("--overwrite", "name a new one")])
def test_what_a_folder_cannot_have(fitted, tmp_path, option, reason, capsys):
    assert main(command(fitted[1], tmp_path / "out", option)) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_done_stays_as_it_is(fitted, whole, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert main(command(fitted[1], whole)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    assert "24 records in 6 shards" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "who"), [([], "draft"), (["--writer", "lm"], "language model")])
def test_who_writes_is_said(drafting, drafting_folder, tmp_path, options, who, capsys):
    drafting.set_progress_bar_config(disable=True)
    output = tmp_path / "rows.parquet"
    assert main(["sample", str(drafting_folder), "-o", str(output), "-n", "5", "--steps", "4", *options]) == 0
    assert f"5 records in {output}, written by the {who} (" in capsys.readouterr().out
    expected = drafting(5, seed=0, num_inference_steps=4, writer="lm" if options else "auto").to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(output), expected)


def test_a_writer_that_cannot_is_named(fitted, drafting_folder, tmp_path, capsys):
    assert main(["sample", str(fitted[1]), "-o", str(tmp_path / "rows.csv"), "--writer", "draft"]) == 2
    assert "this pipeline has no draft. The language model can" in capsys.readouterr().err
    command = ["sample", str(drafting_folder), "-o", str(tmp_path / "rows.csv"), "--no-constrained"]
    assert main([*command, "--writer", "draft"]) == 2
    assert "constrained=False is about texts" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_files(fitted, whole, tmp_path):
    program = [sys.executable, "-m", "difflm", *command(fitted[1], tmp_path / "killed")]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(command(fitted[1], tmp_path / "killed")) == 0
    assert contents(tmp_path / "killed") == contents(whole)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(fitted, whole, tmp_path):
    # `--cpu` starts one process whatever their number; the launcher for several is named after GPUs but needs none.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "difflm"]
    finished = subprocess.run(
        [sys.executable, *launch, *command(fitted[1], tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert "process 2 of 2" in finished.stderr
    assert contents(tmp_path / "two") == contents(whole)
