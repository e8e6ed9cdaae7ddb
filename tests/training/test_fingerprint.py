"""A fit is resumed only with the data and arguments that it began with; what differs is named."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

from difflm.training import fingerprint
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.fingerprint import ResumeError, check_same, describe, records_digest
from difflm.training.fitting import fit
from tests.conftest import tiny_preset


@pytest.fixture(scope="module")
def begun(tmp_path_factory, model_folders, small_table):
    """The folder of a fit that ended between its parts; resuming it in vain does not change it."""
    folder = tmp_path_factory.mktemp("begun") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DenoiserTrainer, "train", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, folder, preset=tiny_preset(model_folders), show_progress=False)
    return folder


def swapped(table):
    rows = list(range(len(table)))
    rows[3], rows[4] = rows[4], rows[3]
    return table.iloc[rows].reset_index(drop=True)


CHANGES = {
    "a cell": (lambda table: {"data": table.assign(age=table["age"].where(table.index != 7, 3))}, "other data:"),
    "the order of the rows": (lambda table: {"data": swapped(table)}, "other data:"),
    "fewer rows": (lambda table: {"data": table[:59]}, "other data:"),
    "another column": (lambda table: {"data": table.assign(n=1)}, "other data:"),
    "the writer": (lambda table: {"writer": "lm"}, r"other writer \(auto, now lm\):"),
    "the seed": (lambda table: {"seed": 7}, r"other seed \(0, now 7\):"),
    "validation data": (lambda table: {"validation": table[:5]}, "other validation:"),
    "condition columns": (lambda table: {"condition_columns": ["kind"]}, "other condition_columns:"),
    "text columns": (lambda table: {"text_columns": ["kind"]}, "other .*text_columns"),
    "the longest record": (lambda table: {"max_length": 500}, r"other max_length \(1024, now 500\):"),
    "what becomes of long records": (lambda table: {"overlong": "drop"}, r"other overlong \(refuse, now drop\):"),
    "the epochs": (lambda table: {"epochs": 7}, r"other epochs \(2.0, now 7\):"),
    "the batch size": (lambda table: {"batch_size": 4}, r"other batch_size \(8, now 4\):"),
    "a constant": (
        lambda table: {"policy": {"max_evaluation_records": 3}},
        r"other policy.max_evaluation_records \(128, now 3\):",
    ),
    "the model": (
        lambda table: {"model_kwargs": {"latent_size": 4}},
        r"other model_kwargs.latent_size \(not given, now 4\):",
    ),
    "the first stage": (
        lambda table: {"training_kwargs": {"weight_decay": 0.1}},
        r"other training_kwargs.weight_decay \(not given, now 0.1\):",
    ),
    "the second stage": (
        lambda table: {"denoiser_kwargs": {"batch_size": 4}},
        r"other denoiser_kwargs.batch_size \(not given, now 4\):",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_fit_is_refused_and_says_why(begun, small_table, model_folders, change):
    options, message = CHANGES[change]
    before = (begun / "checkpoints" / "difflm_fit.json").read_bytes()
    keywords = {"data": small_table, "preset": tiny_preset(model_folders)} | options(small_table)
    with pytest.raises(ResumeError, match=f"was started with {message}"):
        fit(output_dir=begun, resume=True, show_progress=False, **keywords)
    assert (begun / "checkpoints" / "difflm_fit.json").read_bytes() == before
    assert (begun / "checkpoints" / "fitted_draft").is_dir()


def test_time_and_bars_may_differ_and_so_may_the_source(small_table, model_folders, tmp_path, monkeypatch):
    """The rows count, not where they come from."""
    small_table.to_parquet(tmp_path / "table.parquet")
    with monkeypatch.context() as patched:
        patched.setattr(DenoiserTrainer, "train", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, tmp_path / "out", preset=tiny_preset(model_folders), show_progress=False)
    fit(
        tmp_path / "table.parquet",
        tmp_path / "out",
        preset=dataclasses.replace(tiny_preset(model_folders), max_minutes=50.0),
        show_progress=True,
        resume=True,
        denoiser_kwargs={"max_seconds": 60.0},
    )
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_other_versions_are_warned_of(tmp_path, monkeypatch):
    before = describe(seed=0)
    assert "torch" in before["versions"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(before, describe(seed=0), tmp_path)
    monkeypatch.setattr(fingerprint, "installed_versions", lambda packages: before["versions"] | {"torch": "99.0"})
    with pytest.warns(UserWarning, match=r"was started with torch .* \(now 99.0\)"):
        check_same(before, describe(seed=0), tmp_path)


def test_a_description_is_the_same_in_every_process(tmp_path):
    """Values that JSON does not have are told by what they are, not by where they lie in memory."""

    class Thing:
        pass

    first, second = (describe(training_kwargs={"dtype": torch.float32, "thing": Thing()}) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))
    assert first["training_kwargs"]["dtype"] == "torch.float32"


def test_a_digest_is_of_content_and_order():
    records = [{"a": 1, "b": "ü"}, {"a": None, "b": "\udc80"}]
    assert records_digest(records) == records_digest([dict(record) for record in records])
    others = [records[::-1], records[:1], [{"a": "1", "b": "ü"}, records[1]], [{"b": "ü", "a": 1}, records[1]]]
    assert len({records_digest(other) for other in [records, *others]}) == 5
