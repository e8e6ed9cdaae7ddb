"""The autoencoder's training over latents that come from outside: injector, embeddings and draft move, no encoder."""

from __future__ import annotations

import pytest
import torch

from difflm.build_difflm import from_encoder_decoder
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_losses import AutoencoderObjective
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.draft_stage import with_evaluation_noise
from difflm.training.encode_latents import encode_latents, estimated_seconds
from difflm.training.latent_warmup import warm_up_latents
from difflm.training.record_dataset import RecordDataset


NOISE = [0.5, 0.25]


def build(model_folders, text_size=0, **kwargs):
    torch.manual_seed(0)
    sizes = {"num_injection_tokens": 2, "injection_hidden_size": 16, "injection_token_size": 16, "feature_size": 16}
    return from_encoder_decoder(
        model_folders["encoder"] if text_size else None,
        model_folders["decoder"],
        decoder_dtype="float32",
        latent_size=len(NOISE) + text_size,
        column_latent_noise=NOISE,
        num_embedded_columns=4,
        separator_token_ids=[14],
        draft_places=[2] * 4,
        draft_token_ids=list(range(5, 30)),
        **sizes | kwargs,
    )


@pytest.fixture
def dataset(small_table, encoder_tokenizer, decoder_tokenizer):
    def of(text_size):
        schema = RecordSchema.infer(small_table, record_format="values")
        latents = torch.randn(len(small_table), 2, generator=torch.Generator().manual_seed(0))
        tokenizer = encoder_tokenizer if text_size else None
        return RecordDataset(
            schema.to_records(small_table), schema, tokenizer, decoder_tokenizer, 1, column_latents=latents
        )

    return of


@pytest.mark.parametrize("text_size", [0, 3])
def test_training_moves_what_reads_the_latents(model_folders, dataset, tmp_path, text_size):
    model, data = build(model_folders, text_size), dataset(text_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = AutoencoderTrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=8, latent_warmup_steps=2, disable_tqdm=True
    )
    trainer = AutoencoderTrainer(model, args, data, torch.utils.data.Subset(data, range(20)))
    trainer.train()
    figures = trainer.keep_best()
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    text = {"encoder", "pooling", "posterior_norm", "posterior_mean", "posterior_log_variance"}
    assert moved == {"injector", "column_embeddings", "record_draft"} | (text if text_size else set())
    assert {"eval_reconstruction", "eval_reconstruction_draft"} <= set(figures)
    assert (figures["eval_kl"] > 0) == bool(text_size)


@pytest.mark.parametrize("text_size", [0, 3])
def test_records_are_encoded_with_what_comes_from_outside(model_folders, dataset, text_size):
    model, data = build(model_folders, text_size), dataset(text_size)
    posterior = encode_latents(model, data, batch_size=7, show_progress=False)
    assert torch.equal(posterior.mean[:, :2], data.column_latents)
    assert posterior.mean.shape == (60, 2 + text_size)
    assert estimated_seconds(model, data) > 0


@pytest.mark.parametrize("text_size", [0, 3])
def test_a_warm_up_trains_the_draft_alone(model_folders, dataset, text_size):
    model, data = build(model_folders, text_size), dataset(text_size)
    objective = AutoencoderObjective(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held_out = (data.column_latents[:9], [data[row]["labels"] for row in range(9)])
    losses = []
    for steps in (1, 60):
        made = warm_up_latents(
            objective,
            data.column_latents,
            lambda row: data[row]["labels"],
            held_out,
            steps=steps,
            show_progress=False,
        )
        assert made == steps
        with torch.no_grad():
            latents = torch.nn.functional.pad(data.column_latents[:9], (0, text_size))
            labels = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row) for row in held_out[1]], batch_first=True, padding_value=-100
            )
            losses.append(objective.eval().column_loss(latents, labels=labels).mean().item())
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"record_draft"}
    assert losses[1] < losses[0] - 0.02


def test_evaluation_sees_latents_as_they_are_sampled():
    means, noise = torch.zeros(4000, 5), torch.tensor(NOISE)
    noisy = with_evaluation_noise(means, noise, seed=1)
    assert torch.equal(noisy[:, 2:], means[:, 2:])
    torch.testing.assert_close(noisy[:, :2].std(dim=0), noise, atol=0.02, rtol=0)
    assert torch.equal(noisy, with_evaluation_noise(means, noise, seed=1))
    assert not torch.equal(noisy, with_evaluation_noise(means, noise, seed=2))
    assert torch.equal(with_evaluation_noise(means, torch.tensor([]), seed=1), means)
