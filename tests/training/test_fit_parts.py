"""The parts of a fit over a draft's latents: their order, who writes, and going on after an interruption in each."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from difflm.errors import ArgumentError
from difflm.pipelines.cell_codes import CellCodes
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.training import draft_stage, fit_parts
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.draft_stage import FittedColumns, fit_columns
from difflm.training.fitting import fit
from difflm.training.preparation import prepare
from difflm.training.presets import PRESETS
from tests.conftest import tiny_preset


PARTS = ("draft", "denoiser", "autoencoder")


@pytest.fixture
def preset(model_folders):
    return tiny_preset(model_folders)


@pytest.fixture
def with_notes(small_table):
    return small_table.assign(note=[f"number {row}, a {kind}" for row, kind in enumerate(small_table["kind"])])


def log_of(folder):
    return json.loads((folder / "training_log.json").read_text(encoding="utf-8"))


def same(one, other) -> None:
    for part in PARTS:
        first, second = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part


def test_a_plain_table_needs_no_encoder(drafted, small_table, preset):
    pipeline, folder = drafted
    size = pipeline.draft.latent_size
    assert pipeline.autoencoder.encoder is None and pipeline.encoder_tokenizer is None
    assert pipeline.autoencoder.config.latent_size == pipeline.denoiser.config.latent_size == size
    assert pipeline.autoencoder.config.column_latent_noise == pytest.approx(pipeline.draft.latent_noise.tolist())
    assert pipeline.denoiser.config.noise_floor == preset.policy.noise_floor
    assert not (folder / "encoder_tokenizer").exists()
    latents = load_file(folder / "latents.safetensors")
    assert latents["mean"].shape == (54, size)
    torch.testing.assert_close(latents["log_variance"].exp().sqrt(), pipeline.draft.latent_noise.expand(54, -1))


def test_its_log_tells_who_writes_and_why(drafted, preset):
    pipeline, folder = drafted
    log = log_of(folder)
    assert log["writer"] == pipeline.config["writer"] == "draft"
    assert f"the draft {log['draft_nats']:.2f}" in log["writer_reason"]
    assert log["lm_nats"] == log["reconstruction_own_latent"] > log["draft_nats"]
    assert log["autoencoder_steps"] == preset.policy.floor_steps  # of 14
    seconds = [log[f"{part}_seconds"] for part in ("draft", "denoiser", "autoencoder")]
    assert min(seconds) > 0 and log["fit_seconds"] == pytest.approx(sum(seconds))
    assert log["draft_history"][-1]["held_out_nats"] > 0 and log["kl"] == 0


def test_both_can_write_from_a_saved_pipeline(drafted):
    loaded = DiffLMPipeline.from_pretrained(drafted[1])
    loaded.set_progress_bar_config(disable=True)
    records = {writer: loaded(5, seed=0, writer=writer).records for writer in ("auto", "draft", "lm")}
    assert records["auto"] == records["draft"] != records["lm"]


def test_the_denoiser_learns_what_records_are_encoded_to(drafted, small_table, preset):
    pipeline, folder = drafted
    prepared = prepare(small_table, preset)
    codes = torch.from_numpy(CellCodes(prepared.schema).encode(prepared.train))
    means = load_file(folder / "latents.safetensors")["mean"]
    # Nothing repeats in an embedding; equal numbers are spread over their ranks.
    exact = pipeline.draft.encode(codes)
    kinds = (means - exact).abs().amax(dim=0) < 1e-6
    assert kinds.any() and not kinds.all()
    assert ((means - exact).abs().mean(dim=0) < 0.6).all()


@pytest.mark.parametrize("part", ["before the denoiser", *PARTS])
def test_a_fit_goes_on_from_wherever_it_was_interrupted(preset, small_table, drafted, tmp_path, monkeypatch, part):
    training = {"save_steps": 3, "save_strategy": "steps"}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if part == "draft":
            patched.setattr(draft_stage, "train_draft", interrupt)
        elif part == "before the denoiser":
            patched.setattr(fit_parts, "train_denoiser", interrupt)
        elif part == "denoiser":
            step, calls = DenoiserTrainer._training_step, iter(range(100))
            patched.setattr(
                DenoiserTrainer,
                "_training_step",
                lambda *args: interrupt() if next(calls) == 12 else step(*args),
            )
        else:
            loss, calls = AutoencoderTrainer.compute_loss, iter(range(100))
            patched.setattr(
                AutoencoderTrainer,
                "compute_loss",
                lambda *args, **kwargs: interrupt() if next(calls) == 4 else loss(*args, **kwargs),
            )
        options = {"training_kwargs": training, "denoiser_kwargs": {"checkpoint_steps": 5}, "show_progress": False}
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, tmp_path / "out", preset=preset, **options)
    if part == "draft":  # nothing to go on from is left
        assert not (tmp_path / "out").exists()
        return
    with pytest.raises(FileExistsError, match="an unfinished fit: resume it"):
        fit(small_table, tmp_path / "out", preset=preset)
    monkeypatch.setattr(draft_stage, "train_draft", lambda *args, **kwargs: pytest.fail("it is trained already"))
    resumed = fit(small_table, tmp_path / "out", preset=preset, resume=True, **options)
    same(resumed, drafted[0])
    assert log_of(tmp_path / "out")["writer_reason"] == log_of(drafted[1])["writer_reason"]


@pytest.mark.parametrize(("asked", "steps"), [("auto", 14), ("draft", 10), ("lm", 14)])
def test_the_language_model_goes_on_where_it_adds(preset, small_table, tmp_path, monkeypatch, asked, steps):
    monkeypatch.setattr(FittedColumns, "nats", lambda *args: 1e6)
    pipeline = fit(
        small_table,
        tmp_path / "out",
        preset=preset,
        writer=asked,
        training_kwargs={"eval_steps": 5},
        show_progress=False,
    )
    log = log_of(tmp_path / "out")
    assert log["autoencoder_steps"] == steps
    assert pipeline.config["writer"] == log["writer"] == ("draft" if asked == "draft" else "lm")
    assert (log["writer_reason"] == "asked for") == (asked != "auto")


def test_texts_get_a_part_of_the_latent(preset, with_notes, tmp_path):
    preset = dataclasses.replace(preset, model=preset.model | {"latent_size": 5})
    options = {"preset": preset, "text_columns": ["note"], "show_progress": False}
    pipeline = fit(with_notes, tmp_path / "out", **options)
    size = pipeline.draft.latent_size
    config, log = pipeline.autoencoder.config, log_of(tmp_path / "out")
    assert (config.column_latent_size, config.text_latent_size) == (size, 5)
    assert pipeline.denoiser.config.latent_size == size + 5
    assert (config.num_feature_columns, config.draft_places is None) == (0, False)
    assert log["encoding_seconds"] > 0 and log["kl"] > 0
    assert log["lm_nats"] < log["reconstruction_own_latent"]  # without the texts'
    records = pipeline(3, seed=0).records
    assert all(isinstance(record["note"], str) for record in records)
    found = pipeline.encode(prepare(with_notes, preset, read_options={"text_columns": ("note",)}).train)
    means = load_file(tmp_path / "out" / "latents.safetensors")["mean"]
    torch.testing.assert_close(found[:, size:].cpu(), means[:, size:], atol=0.02, rtol=0.02)


def test_a_draft_is_not_asked_for_in_vain(preset, with_notes, tmp_path):
    without = dataclasses.replace(preset, column_draft=False)
    for table, changed in ((with_notes[["note"]], preset), (with_notes, without)):
        with pytest.raises(ArgumentError, match="writer='draft' needs columns that a draft can write"):
            fit(table, tmp_path / "out", preset=changed, writer="draft", text_columns=["note"])
    with pytest.raises(ArgumentError, match="writer='both' is not one of auto, lm, draft"):
        fit(with_notes, tmp_path / "out", preset=preset, writer="both")
    assert not PRESETS["paper"].column_draft


def test_a_drafts_stage_is_saved_whole(preset, small_table, tmp_path):
    columns = fit_columns(prepare(small_table, preset), show_progress=False)
    columns.save(tmp_path)
    loaded = FittedColumns.load(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(columns.latents, loaded.latents, strict=True))
    assert loaded.log == json.loads(json.dumps(columns.log)) and not loaded.draft.training
    prepared = prepare(small_table, preset)
    nats = [one.nats(prepared, 100, seed) for one, seed in ((columns, 0), (loaded, 0), (columns, 1))]
    assert nats[0] == nats[1] != nats[2]
