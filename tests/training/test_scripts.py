"""The two scripts in a row end in the pipeline that ``fit`` ends in."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoTokenizer

from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.training import script_results, train_autoencoder, train_denoiser
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.fitting import fit
from difflm.training.presets import PRESETS
from tests.conftest import tiny_preset


@pytest.fixture
def table(small_table, tmp_path):
    small_table.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def first_script(table, tmp_path, model_folders, *more):
    train_autoencoder.main(
        [
            *("--data", str(table), "--save_dir", str(tmp_path / "stage")),
            *("--output_dir", str(tmp_path / "checkpoints"), "--disable_tqdm", "True"),
            *("--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]),
            *("--model_kwargs", json.dumps(tiny_preset(model_folders).model), *more),
        ]
    )
    return tmp_path / "stage"


def second_script(stage, tmp_path, *more):
    words = ["--autoencoder", str(stage), "--save_dir", str(tmp_path / "pipeline"), "--show_progress", "false"]
    return train_denoiser.main([*words, "--output_dir", str(tmp_path / "denoiser_checkpoints"), *more])


def test_the_scripts_end_in_the_pipeline_of_a_fit(model_folders, table, tmp_path, capsys, monkeypatch):
    # Without a time limit, which no two runs reach at the same step.
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(tiny_preset(model_folders), model={}))
    whole = fit(
        table,
        tmp_path / "whole",
        preset="tiny",
        batch_size=7,
        seed=3,
        model_kwargs=tiny_preset(model_folders).model,
        denoiser_kwargs={"eval_steps": 5},
        show_progress=False,
    )
    stage = first_script(table, tmp_path, model_folders, "--preset", "tiny", "--batch_size", "7", "--seed", "3")
    assert second_script(stage, tmp_path, "--eval_steps", "5") == 0
    assert "Pipeline saved to" in capsys.readouterr().out
    parts = DiffLMPipeline.from_pretrained(tmp_path / "pipeline")
    for part in ("draft", "autoencoder", "denoiser"):
        one, other = getattr(whole, part).state_dict(), getattr(parts, part).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    for found in (whole, parts):
        found.set_progress_bar_config(disable=True)
    assert parts(10, seed=1).records == whole(10, seed=1).records
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == sorted(
        [*(path.name for path in (tmp_path / "pipeline").iterdir()), "difflm_fit.json"]
    )
    logs = [json.loads((tmp_path / name / "training_log.json").read_text()) for name in ("whole", "pipeline")]
    for name in ("rows", "seed", "kl", "writer_reason", "denoiser_steps", "reconstruction_own_latent", "left_out"):
        assert logs[0][name] == logs[1][name]


def test_the_training_options_that_are_given_count(model_folders, table, tmp_path):
    stage = first_script(table, tmp_path, model_folders, "--max_steps", "3", "--save_strategy", "no")
    fitted = FittedAutoencoder.load(stage)
    size = fitted.draft.latent_size
    assert DiffLMModel.from_pretrained(stage).config.latent_size == size
    assert fitted.log["autoencoder_steps"] == 3
    assert fitted.settings.epochs == 40  # the preset's, which were not given
    assert fitted.latents.mean.shape == (54, size)
    assert fitted.held_out_latents.log_variance.shape == (6, size)
    more = ["--max_steps", "4", "--unconditional", "--denoiser", json.dumps({"hidden_size": 16})]
    assert second_script(stage, tmp_path, *more) == 0
    pipeline = DiffLMPipeline.from_pretrained(tmp_path / "pipeline")
    assert (pipeline.denoiser.config.hidden_size, pipeline.denoiser.config.class_names) == (16, None)
    assert isinstance(pipeline.decoder_tokenizer, type(AutoTokenizer.from_pretrained(model_folders["decoder"])))


def test_a_stage_that_is_none_is_named(fitted, tmp_path, capsys):
    assert second_script(tmp_path / "nowhere", tmp_path) == 1
    assert "nowhere holds no fitted autoencoder" in capsys.readouterr().err
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "stage.json").write_text("{")
    assert second_script(tmp_path / "stage", tmp_path) == 1
    assert "stage.json: not a readable JSON file" in capsys.readouterr().err
    assert not (tmp_path / "pipeline").exists()


def test_a_folder_of_something_else_is_not_touched(table, tmp_path, model_folders, capsys):
    for name in ("stage", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"stage exists and is no earlier result \(no stage.json\)"):
        first_script(table, tmp_path, model_folders)
    assert second_script(tmp_path / "nowhere", tmp_path) == 1
    assert "pipeline exists and is no earlier result (no model_index.json)" in capsys.readouterr().err
    assert all((tmp_path / name / "thesis.txt").is_file() for name in ("stage", "pipeline"))


def test_of_several_processes_one_writes_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(script_results, "is_main_process", lambda: False)
    script_results.save_result(tmp_path / "result", lambda folder: pytest.fail("it is another's to write"))
    assert list(tmp_path.iterdir()) == []
