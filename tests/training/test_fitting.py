"""A whole fit on tiny models: what it writes, resuming after Ctrl-C, output folders, data it cannot learn from."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from difflm.build_difflm import from_encoder_decoder
from difflm.modeling_difflm import DiffLMModel, multiplies_bf16
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.training import autoencoder_stage, autoencoder_trainer, denoiser_stage, preparation
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.fitting import fit, warn_of_idle_latents
from difflm.training.overlong import RecordTooLongError
from difflm.training.policy import Policy
from difflm.training.preparation import prepare
from difflm.training.presets import PRESETS, Preset
from tests.conftest import tiny_preset


def test_the_posterior_reads_columns_as_in_training(fitted, small_table, model_folders):
    pipeline, folder = fitted
    train = prepare(small_table, tiny_preset(model_folders)).train
    expected = load_file(folder / "latents.safetensors")["mean"]
    torch.testing.assert_close(pipeline.encode(train).cpu(), expected, atol=0.02, rtol=0.02)
    assert pipeline.autoencoder.config.num_feature_columns == len(small_table.columns)
    ages = torch.tensor([(record["age"] - 1) / 13 for record in train])
    quantiles = torch.quantile(ages, torch.linspace(0, 1, 129))
    torch.testing.assert_close(pipeline.autoencoder.column_features.quantiles[1], quantiles)
    assert not PRESETS["paper"].column_features


@pytest.fixture
def preset(model_folders) -> Preset:
    return tiny_preset(model_folders, epochs=1.0, denoiser_steps=10)


@pytest.fixture
def without_draft(preset) -> Preset:
    return dataclasses.replace(preset, column_draft=False)


def test_what_a_fit_leaves(fitted, small_table):
    pipeline, folder = fitted
    log = json.loads((folder / "training_log.json").read_text())
    assert not (folder / "checkpoints").exists()
    assert (log["rows"], log["validation_rows"]) == (54, 6)
    assert log["rows_seen"] == log["autoencoder_steps"] * 8
    assert log["reconstruction_own_latent"] > 0
    cpu = " CPU" if multiplies_bf16(torch.device("cpu")) else " CPU without bf16"
    assert log["hardware"].endswith((f"{cpu}, {torch.get_num_threads()} threads", f"{cpu}, 1 thread"))
    assert log["autoencoder_history"][-1]["eval_reconstruction"] == pytest.approx(log["reconstruction_own_latent"])
    assert {"step", "train_loss", "validation_loss"} <= set(log["denoiser_history"][-1])
    latents = load_file(folder / "latents.safetensors")
    assert (folder / "latents.safetensors").stat().st_mode == (folder / "model_index.json").stat().st_mode
    assert latents["mean"].shape == (54, 8)
    pickles = [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


def test_the_decoder_is_not_saved_and_not_changed(fitted, model_folders):
    pipeline, folder = fitted
    with safe_open(folder / "autoencoder" / "model.safetensors", "pt") as file:
        assert not any(name.startswith("decoder.") for name in file.keys())  # noqa: SIM118
    original = load_file(model_folders["decoder"] + "/model.safetensors")
    now = pipeline.autoencoder.decoder.state_dict()
    assert all(torch.equal(now[name], value) for name, value in original.items())


def test_the_same_seed_gives_the_same_fit(preset, small_table, tmp_path):
    first, second = (fit(small_table, tmp_path / name, preset=preset, show_progress=False) for name in ("a", "b"))
    for part in ("draft", "autoencoder", "denoiser"):
        one, other = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_interrupted_fits_resume(without_draft, small_table, tmp_path, monkeypatch, stage):
    preset = without_draft
    whole = fit(small_table, tmp_path / "whole", preset=preset, show_progress=False)
    training = {"save_steps": 2, "save_strategy": "steps"}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stage == "autoencoder":
            original = AutoencoderTrainer.compute_loss
            calls = iter(range(100))
            patched.setattr(
                AutoencoderTrainer,
                "compute_loss",
                lambda *args, **kwargs: interrupt() if next(calls) == 5 else original(*args, **kwargs),
            )
        else:
            patched.setattr(DenoiserTrainer, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, tmp_path / "parts", preset=preset, show_progress=False, training_kwargs=training)
    assert not (tmp_path / "parts" / "model_index.json").exists()
    with pytest.raises(FileExistsError, match="an unfinished fit: resume it"):
        fit(small_table, tmp_path / "parts", preset=preset)
    resumed = fit(
        small_table, tmp_path / "parts", preset=preset, show_progress=False, training_kwargs=training, resume=True
    )
    for part in ("autoencoder", "denoiser"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(resumed, part).state_dict()[name]), name
    assert (tmp_path / "parts" / "model_index.json").exists()


def test_a_slow_encoder_leaves_the_denoiser_its_time(without_draft, small_table, tmp_path, monkeypatch):
    budgets = []
    monkeypatch.setattr(
        AutoencoderTrainer, "train", lambda self, *args, **kwargs: budgets.append(self.args.max_minutes)
    )
    monkeypatch.setattr(AutoencoderTrainer, "keep_best", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    for name, seconds in (("fast", 1.0), ("slow", 60.0), ("hopeless", 1e6), ("warmed up", 1.0)):
        policy = Policy(min_rows_to_warm_up=1) if name == "warmed up" else None
        monkeypatch.setattr(autoencoder_stage, "estimated_seconds", lambda *args, seconds=seconds, **kwargs: seconds)
        options = {"preset": without_draft, "max_minutes": 10.0, "policy": policy, "show_progress": False}
        with pytest.raises(KeyboardInterrupt):
            fit(small_table, tmp_path / name, **options)
    assert budgets == pytest.approx([8.5, 6.8, 5.0, 7.5])  # the slow one encodes both parts for two minutes


@pytest.mark.parametrize(("steps", "interval"), [(600, 100), (8_000, 200), (40_000, 250)])
def test_the_denoisers_best_weights_are_looked_for_often(
    without_draft, small_table, tmp_path, monkeypatch, steps, interval
):
    found = []

    def trainer(denoiser, args, *datasets, **options):
        found.append((args.max_steps, args.eval_steps))
        raise KeyboardInterrupt

    monkeypatch.setattr(denoiser_stage, "DenoiserTrainer", trainer)
    with pytest.raises(KeyboardInterrupt):
        fit(
            small_table,
            tmp_path / "out",
            preset=dataclasses.replace(without_draft, denoiser_steps=steps),
            show_progress=False,
        )
    assert found == [(steps, interval)]


@pytest.mark.parametrize("warmed", [True, False])
def test_only_tables_of_some_length_are_warmed_up(without_draft, small_table, tmp_path, monkeypatch, warmed):
    steps = []
    monkeypatch.setattr(
        autoencoder_trainer, "warm_up_latents", lambda *args, **options: steps.append(options["steps"])
    )
    policy = {"min_rows_to_warm_up": 54 if warmed else 55}
    pipeline = fit(small_table, tmp_path / "out", preset=without_draft, show_progress=False, policy=policy)
    assert steps == ([1500] if warmed else [])
    config = pipeline.autoencoder.config
    assert config.column_loss_weight == (1.0 if warmed else 0.0)
    assert (config.draft_places is not None) == (pipeline.autoencoder.record_draft is not None) == warmed
    log = json.loads((tmp_path / "out" / "training_log.json").read_text(encoding="utf-8"))
    assert (log["reconstruction_draft_alone"] is not None) == warmed


def test_a_draft_has_its_say_in_what_is_written(without_draft, small_table, tmp_path):
    preset = dataclasses.replace(without_draft, policy=Policy(min_rows_to_warm_up=54))
    pipeline = fit(small_table, tmp_path / "out", preset=preset, show_progress=False)
    loaded = DiffLMPipeline.from_pretrained(tmp_path / "out")
    sampled = [
        found(num_samples=20, seed=3, fast=fast).records for found in (pipeline, loaded) for fast in (True, False)
    ]
    assert sampled == [sampled[0]] * 4
    torch.nn.init.zeros_(loaded.autoencoder.record_draft.to_hidden.weight)
    torch.nn.init.zeros_(loaded.autoencoder.record_draft.to_hidden.bias)
    assert loaded(num_samples=20, seed=3).records != sampled[0]


def test_columns_begin_at_separators(fitted, decoder_tokenizer):
    config = fitted[0].autoencoder.config
    assert config.num_embedded_columns == 4
    assert config.separator_token_ids == decoder_tokenizer.encode(",", add_special_tokens=False)
    assert not PRESETS["paper"].column_embeddings


def test_resuming_with_other_settings_is_refused(preset, small_table, tmp_path, monkeypatch):
    monkeypatch.setattr(DenoiserTrainer, "train", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(small_table, tmp_path / "out", preset=preset, show_progress=False)
    with pytest.raises(ValueError, match="started with other seed"):
        fit(small_table, tmp_path / "out", preset=preset, seed=7, resume=True)


class TestData:
    def write(self, path, text):
        path.write_text(text, encoding="utf-8")
        return path

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            ("a,b\n", "row"),
            ("a,b\n1,2\n", "row"),
            ("a,a\n1,2\n3,4\n", "a"),
        ],
    )
    def test_tables_that_cannot_be_learned(self, preset, tmp_path, text, message):
        table = self.write(tmp_path / "table.csv", text)
        with pytest.raises(ValueError, match=message):
            fit(table, tmp_path / "out", preset=preset)
        assert not (tmp_path / "out" / "model_index.json").exists()

    def test_a_row_longer_than_the_limit(self, preset, tmp_path):
        frame = pd.DataFrame({"note": ["short", "x" * 300, "fine"], "n": [1, 2, 3]})
        with pytest.raises(RecordTooLongError, match=r"Row 1 \(the first is 0\) has 30"):
            fit(frame, tmp_path / "out", preset=preset, max_length=100)

    def test_hostile_values_survive_a_fit(self, preset, tmp_path):
        frame = pd.DataFrame(
            {
                'say "hi", {now}': ['a "quoted" one', "line\nbreak", "comma, brace }", "zoë 漢字"] * 5,
                "constant": [7] * 20,
                "missing": [None] * 20,
                "n": [-1.5, 0.25, None, 3.0] * 5,
            }
        )
        pipeline = fit(frame, tmp_path / "out", preset=preset, show_progress=False)
        pipeline.set_progress_bar_config(disable=True)
        output = pipeline(10, seed=0)
        assert output.valid_first_attempt == 1.0
        assert {record["constant"] for record in output.records} == {7}
        assert {record["missing"] for record in output.records} == {None}
        assert {record['say "hi", {now}'] for record in output.records} <= set(frame['say "hi", {now}'])

    def test_a_validation_table_is_held_out(self, preset, small_table, tmp_path):
        fit(small_table[:40], tmp_path / "out", preset=preset, validation=small_table[40:], show_progress=False)
        log = json.loads((tmp_path / "out" / "training_log.json").read_text())
        assert (log["rows"], log["validation_rows"]) == (40, 20)


@pytest.mark.parametrize(("own", "shuffled", "idle"), [(60.9, 64.0, True), (15.3, 44.9, False), (20.0, 24.0, False)])
def test_a_fit_that_was_too_short_says_so(own, shuffled, idle):
    log = {"reconstruction_own_latent": own, "reconstruction_shuffled_latent": shuffled, "rows_seen": 3104}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_idle_latents(log, Policy())
    assert len(caught) == idle
    if idle:
        assert "one costs 60.9 nats from its own latent and 64.0 from another's" in str(caught[0].message)
        assert "saw 3,104 rows: give it more minutes" in str(caught[0].message)


@pytest.mark.parametrize(("fast", "size"), [(True, 16), (False, 8)])
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="the CPU is idle")
def test_batches_are_smaller_where_steps_are_slow(fast, size, monkeypatch):
    monkeypatch.setattr(preparation, "multiplies_bf16", lambda device: fast)
    assert preparation.resolve_settings("small").batch_size == size
    assert preparation.resolve_settings("small", batch_size=4).batch_size == 4
    assert preparation.resolve_settings("small", policy={"batch_size": 5, "slow_batch_size": 5}).batch_size == 5
    assert preparation.resolve_settings("paper").batch_size == 16


def test_presets():
    with pytest.raises(ValueError, match="preset='huge' is not one of tiny, small, paper"):
        fit([], "out", preset="huge")
    assert PRESETS["paper"].model["latent_size"] == 4096


SMOLLM2, MINILM = PRESETS["small"].decoder, PRESETS["small"].encoder


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["kv_memory", "soft_prompt", "embedding"])
def test_real_weights_encode_inject_step_generate_save_and_load(injection, tmp_path, real_models):
    """SmolLM2-135M-Instruct and MiniLM: steps along every injection's gradient go down; and it survives saving."""
    import copy

    encoder, decoder, encoder_tokenizer, decoder_tokenizer = real_models
    torch.manual_seed(0)
    model = from_encoder_decoder(
        copy.deepcopy(encoder),
        decoder,
        encoder_name_or_path=MINILM,
        decoder_name_or_path=SMOLLM2,
        injection=injection,
    ).train()
    frozen = [p.clone() for p in decoder.parameters()]
    texts = ["Adelie,Torgersen,39.1", "Gentoo,Biscoe,46.1"]
    inputs = encoder_tokenizer(texts, padding=True, return_tensors="pt")
    labels = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([*decoder_tokenizer(text)["input_ids"], model.config.eos_token_id]) for text in texts],
        batch_first=True,
        padding_value=-100,
    )
    batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(6):
        output = model(**batch, generator=generator.manual_seed(0))
        losses.append(output.loss.item())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # The best of the steps, by more than bf16's rounding: which of them overshoot, processors do not agree on.
    assert min(losses) < 0.95 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(frozen, decoder.parameters(), strict=True))
    model.eval()
    latents = model.encode(batch["input_ids"], batch["attention_mask"]).mean
    written = model.generate(latents, max_new_tokens=6, do_sample=False)
    model.save_pretrained(tmp_path)
    loaded = DiffLMModel.from_pretrained(tmp_path, decoder=decoder).eval()
    assert loaded.config.decoder_name_or_path == SMOLLM2
    assert torch.equal(loaded.generate(latents, max_new_tokens=6, do_sample=False), written)
    trainable = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1.2 * trainable
