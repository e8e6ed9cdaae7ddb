"""The output folder: the old pipeline is whole until the new one is, whatever happens, and nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.training import draft_stage, fit_folder
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.fit_folder import FitFolder, FolderInUseError
from difflm.training.fitting import fit
from difflm.training.script_results import save_result
from tests.conftest import tiny_preset


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def preset(model_folders):
    return tiny_preset(model_folders)


def write_pipeline(text: str, *more: str):
    """A stand-in for saving a pipeline: an index, a folder, a file of code, and ``more`` files."""

    def save(folder: Path) -> None:
        (folder / "denoiser").mkdir()
        for name in ("model_index.json", "denoiser/weights", "pipeline.py", "training_log.json", *more):
            (folder / name).write_text(text)

    return save


def run(path: Path, text: str, *more: str, overwrite: bool = False) -> FitFolder:
    """A fit in short."""
    folder = FitFolder(path)
    folder.check(overwrite=overwrite)
    with folder.opened({"seed": text, "versions": {}}, resume=False):
        save_result(folder.autoencoder, lambda stage: (stage / "stage.json").write_text(text))
        folder.save_pipeline(write_pipeline(text, *more))
    return folder


def is_whole(path: Path, text: str) -> bool:
    names = ("model_index.json", "denoiser/weights", "pipeline.py", "training_log.json")
    return all((path / name).is_file() and (path / name).read_text() == text for name in names)


class TestWhatIsThere:
    def test_a_folder_that_is_not_ours_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FileExistsError, match="was not written by a fit; nothing in it is touched"):
                fit("nowhere.csv", tmp_path, **options)
        assert content(tmp_path).keys() == {"thesis.txt"}

    def test_a_file(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(NotADirectoryError, match="name a folder"):
            fit("nowhere.csv", tmp_path / "out")

    def test_a_finished_fit(self, fitted):
        with pytest.raises(FileExistsError, match=r"a fitted pipeline: overwrite it \(--overwrite\)"):
            fit("nowhere.csv", fitted[1])
        with pytest.raises(FileExistsError, match="nothing to resume"):
            fit("nowhere.csv", fitted[1], resume=True)

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no fit to resume"):
            fit("nowhere.csv", tmp_path / "out", resume=True)

    def test_an_unfinished_fit_of_an_older_version(self, tmp_path):
        (tmp_path / "difflm_fit.json").write_text("{}")
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(FileExistsError, match="of an older version, which cannot be resumed"):
            FitFolder(tmp_path).check()
        assert is_whole(run(tmp_path, "new", overwrite=True).path, "new")

    def test_another_fit_at_work(self, tmp_path):
        folder, other = FitFolder(tmp_path / "out"), FitFolder(tmp_path / "out")
        with folder.opened({"versions": {}}, resume=False):
            with pytest.raises(FolderInUseError, match="Another fit is at work in .*out"):
                other.opened({"versions": {}}, resume=False).__enter__()
            assert (folder.checkpoints / "difflm_fit.json").is_file()
        assert not (tmp_path / "out").exists()


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")


FAILURES = {
    "no such file": ({"data": "nowhere.csv"}, None, FileNotFoundError),
    "a damaged file": ({"data": "damaged.csv"}, None, ValueError),
    "no such model": ({"decoder": "no/such/folder"}, None, Exception),
    "no such condition": ({"condition_columns": ["colour"]}, None, ValueError),
    "a wrong option of the second stage": ({"denoiser_kwargs": {"batch_size": 0}}, None, ValueError),
    "a wrong option of the first stage": ({"training_kwargs": {"beta_schedule": "up"}}, None, ValueError),
    "Ctrl-C in the first part": ({}, (draft_stage, "train_draft", interrupt), KeyboardInterrupt),
}


@pytest.mark.parametrize("failure", FAILURES)
class TestAFitThatFailsBeforeItsFirstCheckpoint:
    def options(self, failure, small_table, tmp_path, monkeypatch):
        changes, patch, error = FAILURES[failure]
        monkeypatch.chdir(tmp_path)
        Path("damaged.csv").write_text("a,b\n1,2\n3\n")
        if patch is not None:
            monkeypatch.setattr(*patch)
        return {"data": small_table, "show_progress": False} | changes, error

    def test_leaves_the_old_pipeline(self, failure, fitted, preset, small_table, tmp_path, monkeypatch):
        options, error = self.options(failure, small_table, tmp_path, monkeypatch)
        before = content(fitted[1])
        with pytest.raises(error):
            fit(output_dir=fitted[1], preset=preset, overwrite=True, **options)
        assert content(fitted[1]) == before
        DiffLMPipeline.from_pretrained(fitted[1])

    def test_leaves_nothing_in_its_own_way(self, failure, preset, small_table, tmp_path, monkeypatch):
        options, error = self.options(failure, small_table, tmp_path, monkeypatch)
        for _ in range(2):  # the same command fails for the same reason
            with pytest.raises(error):
                fit(output_dir=tmp_path / "deep" / "out", preset=preset, **options)
            assert not (tmp_path / "deep").exists()


def test_a_full_disk_leaves_the_old_pipeline_and_the_way_on(drafted, preset, small_table, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    old = run(folder, "old")
    before = content(folder)
    with monkeypatch.context() as patched:
        patched.setattr(DiffLMPipeline, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            fit(small_table, folder, preset=preset, overwrite=True, show_progress=False)
    assert {name: digest for name, digest in content(folder).items() if not name.startswith("checkpoints/")} == before
    with pytest.raises(FileExistsError, match="a fitted pipeline and an unfinished fit: resume it"):
        old.check()
    resumed = fit(small_table, folder, preset=preset, resume=True, show_progress=False)
    assert not (folder / "checkpoints").exists()
    assert resumed(3, seed=0).records == drafted[0](3, seed=0).records


def test_a_fit_that_was_to_replace_a_pipeline_resumes(preset, small_table, tmp_path, monkeypatch):
    folder = run(tmp_path / "out", "old")
    with monkeypatch.context() as patched:
        patched.setattr(DenoiserTrainer, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, folder.path, preset=preset, overwrite=True, show_progress=False)
    assert is_whole(folder.path, "old")
    # As a command in a loop gives both.
    fit(small_table, folder.path, preset=preset, resume=True, overwrite=True, show_progress=False)
    DiffLMPipeline.from_pretrained(folder.path)
    assert not (folder.path / "pipeline.py").exists()  # of the old one alone


def test_the_swap_takes_what_is_the_pipelines_and_leaves_the_rest(tmp_path):
    run(tmp_path, "old", "digests.safetensors")
    for name in ("rows.parquet", "notes.py", "README.md"):
        (tmp_path / name).write_text("mine")
    run(tmp_path, "new", overwrite=True)
    assert is_whole(tmp_path, "new")
    names = {"denoiser", "model_index.json", "pipeline.py", "training_log.json", "difflm_fit.json"}
    # The card described the old one.
    assert {path.name for path in tmp_path.iterdir()} == names | {"rows.parquet", "notes.py"}


class Killed(BaseException):
    """From here on nothing can be done any more."""


@pytest.mark.parametrize("move", range(12))
def test_a_swap_that_is_killed_is_completed(tmp_path, monkeypatch, move):
    run(tmp_path, "old", "digests.safetensors")
    calls = iter(range(1000))
    replace, rmtree = os.replace, fit_folder.shutil.rmtree

    def stopped(function):
        def call(*args, **kwargs):
            if Path(args[0]).name.startswith("."):  # writing the files themselves
                return function(*args, **kwargs)
            if next(calls) >= move:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(fit_folder.os, "replace", stopped(replace))
        patched.setattr(fit_folder.shutil, "rmtree", stopped(rmtree))
        with contextlib.suppress(Killed):
            run(tmp_path, "new", "more.json", overwrite=True)
    # Whoever comes in between finds one whole pipeline or none.
    if (tmp_path / "model_index.json").is_file():
        assert is_whole(tmp_path, (tmp_path / "model_index.json").read_text())
    swapping = (tmp_path / "checkpoints" / "finished").is_dir()
    folder = FitFolder(tmp_path)
    assert folder.check(resume=True, overwrite=True) == ("done" if swapping else "new")
    assert is_whole(tmp_path, "new")
    assert not (tmp_path / "digests.safetensors").exists()
    with pytest.raises(FileExistsError, match="holds a fitted pipeline: overwrite it"):
        folder.check()


@pytest.mark.parametrize("move", range(10))
def test_a_swap_that_fails_puts_the_old_pipeline_back(tmp_path, monkeypatch, move):
    run(tmp_path, "old", "digests.safetensors")
    before = content(tmp_path)
    calls, replace = iter(range(1000)), os.replace

    def fails_once(source, target):
        if not Path(source).name.startswith(".") and next(calls) == move:
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(fit_folder.os, "replace", fails_once)
        with pytest.raises(PermissionError):
            run(tmp_path, "new", "more.json", overwrite=True)
    found = {name: digest for name, digest in content(tmp_path).items() if not name.startswith("checkpoints/")}
    assert found == before
    assert FitFolder(tmp_path).check(resume=True) == "done"
    assert is_whole(tmp_path, "new")


KILLED = """
import os, signal, sys
from pathlib import Path
from difflm.training.fit_folder import FitFolder
from difflm.training.script_results import save_result
folder = FitFolder(sys.argv[1])
folder.check()
with folder.opened({"versions": {}}, resume=False):
    if sys.argv[2] == "checkpoint":
        save_result(folder.autoencoder, lambda stage: (stage / "stage.json").write_text("whole"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("has", ["nothing", "checkpoint"])
def test_a_killed_fit_gives_its_folder_back(tmp_path, has):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), has], check=False)
    assert done.returncode == -signal.SIGKILL
    folder = FitFolder(tmp_path / "out")
    assert (folder.checkpoints / "difflm_fit.json").is_file()
    if has == "nothing":
        assert folder.check() == "new"
        assert folder.check(resume=True) == "new"
        assert is_whole(run(folder.path, "new").path, "new")
    else:
        with pytest.raises(FileExistsError, match="an unfinished fit: resume it"):
            folder.check()
        assert folder.check(resume=True) == "resume"
        with folder.opened({"versions": {}}, resume=True):
            folder.save_pipeline(write_pipeline("new"))
        assert is_whole(folder.path, "new")
