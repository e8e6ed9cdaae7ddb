"""The autoencoder's losses, each against its definition, and the part that only training has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflm.modeling_difflm import DiffLMModel, Posterior
from difflm.training.autoencoder_losses import AutoencoderObjective, draft_loss, kl, reconstruction
from difflm.training.candidate_tokens import draw_candidates
from tests.conftest import tiny_encoder
from tests.modeling_difflm.test_modeling_difflm import COLUMNS, DECODERS, DRAFT, batch, build, speak


VALUES = torch.tensor([[0.1, 0.2], [0.3, float("nan")], [0.5, 0.6], [1.0, 0.0]])


@pytest.fixture
def with_features() -> AutoencoderObjective:
    torch.manual_seed(0)
    model = build(tiny_encoder(), DECODERS["gpt2"](), num_feature_columns=2, feature_size=16)
    model.column_features.fit(torch.rand(50, 2) ** 2)
    return AutoencoderObjective(model)


def test_a_model_without_a_draft_has_no_loss_of_it():
    model = build(tiny_encoder(), DECODERS["mistral_grouped"](), **COLUMNS)
    with pytest.raises(ValueError, match="no draft"):
        draft_loss(model, torch.randn(1, 8), torch.tensor([[3, 2]]))


def test_a_draft_needs_a_head_of_plain_numbers(monkeypatch):
    model = build(tiny_encoder(), DECODERS["mistral_grouped"](), **DRAFT)
    quantised = SimpleNamespace(weight=torch.zeros(60, 32, dtype=torch.int8))
    for head in (None, torch.nn.Module(), quantised):
        monkeypatch.setattr(model.decoder, "get_output_embeddings", lambda head=head: head)
        with pytest.raises(ValueError, match="draft_places"):
            draft_loss(model, torch.randn(2, 8), torch.full((2, 1), 3))


def test_the_drafts_loss_is_of_the_tokens_at_its_places():
    torch.manual_seed(0)
    objective = AutoencoderObjective(build(tiny_encoder(), DECODERS["mistral_grouped"](), **DRAFT)).eval()
    model = objective.autoencoder
    speak(model)
    latents, labels = torch.randn(2, 8), torch.tensor([[3, 4, 5, 7, 8, 2], [20, 5, 5, 3, -100, -100]])
    loss = objective.column_loss(latents, torch.zeros(2, 0), labels)
    assert torch.equal(draft_loss(model, latents, labels), loss)  # there are no other columns to tell
    assert model.record_draft.token_ids.tolist() == [2, 3, 4, 5, 8, 20]  # with the end of the record
    head = model.decoder.get_output_embeddings().weight[[2, 3, 4, 5, 8, 20]]
    hidden = model.record_draft.to_hidden(model.record_draft(latents))
    nats = -torch.nn.functional.pad(hidden @ head.T, (0, 1)).log_softmax(-1)
    # (place, token's number); all that are no tokens of the draft, here 7, are one more.
    known = [[(0, 1), (1, 2), (2, 6), (3, 0)], [(0, 5), (2, 3), (3, 3)]]
    expected = [sum(nats[row, place, token] for place, token in found) for row, found in enumerate(known)]
    torch.testing.assert_close(loss, torch.stack(expected))
    labels[0, 5] = 59  # larger than all of the draft's
    changed = draft_loss(model, latents, labels)[0]
    torch.testing.assert_close(changed, expected[0] - nats[0, 3, 0] + nats[0, 3, 6])


def test_a_draft_is_not_asked_for_padding():
    torch.manual_seed(0)
    model = build(tiny_encoder(), DECODERS["mistral_grouped"](), **DRAFT).eval()
    speak(model)
    latents, labels = torch.randn(1, 8), torch.tensor([[3, -100, -100, -100]])
    torch.testing.assert_close(draft_loss(model, latents, labels), draft_loss(model, latents, labels[:, :1]))


def test_the_loss_has_the_columns_term_if_it_has_a_weight(with_features):
    model, inputs = with_features.autoencoder, batch()
    with_features.eval()
    posterior = model.encode(inputs["input_ids"], inputs["attention_mask"], VALUES)
    column_loss = with_features.column_loss(posterior.mean, VALUES)
    difference = with_features.column_decoder.latent_to_waves(posterior.mean) - model.column_features.waves(VALUES)
    torch.testing.assert_close(column_loss, 0.5 * difference.square().sum(dim=1))
    found = with_features(**inputs, feature_values=VALUES, beta=0.3)
    expected = found.reconstruction_loss + 0.3 * posterior.kl().mean() + column_loss.mean()
    torch.testing.assert_close(found.loss, expected)
    model.config.column_loss_weight = 2.5
    weighted = with_features(**inputs, feature_values=VALUES, beta=0.3)
    torch.testing.assert_close(weighted.loss, expected + 1.5 * column_loss.mean())
    model.config.column_loss_weight = 0.0
    alone = with_features(**inputs, feature_values=VALUES, beta=0.3)
    torch.testing.assert_close(alone.loss, model(**inputs, feature_values=VALUES, beta=0.3).loss)
    assert AutoencoderObjective(model).column_decoder is None


def test_given_noise_is_the_latents_noise(with_features):
    inputs = batch() | {"feature_values": VALUES}
    with_features.train()
    eps = torch.randn(4, 8)
    losses = [with_features(**inputs, eps=noise).record_losses for noise in (eps, eps, -eps)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("family", DECODERS)
def test_candidates_give_nearly_the_exact_losses_and_gradients(family):
    torch.manual_seed(0)
    model = build(tiny_encoder(), DECODERS[family]()).eval()
    head, labels = model.decoder.get_output_embeddings(), batch()["labels"]
    latents = torch.randn(4, 8, requires_grad=True)
    candidates = draw_candidates(labels[labels >= 0].unique(), 60, 4000)
    exact, estimated = reconstruction(model, latents, labels), reconstruction(model, latents, labels, candidates)
    assert torch.equal(exact, model.reconstruction(latents, labels))
    torch.testing.assert_close(estimated, exact, rtol=0.01, atol=0.0)
    gradients = [torch.autograd.grad(losses.sum(), latents)[0] for losses in (exact, estimated)]
    assert torch.nn.functional.cosine_similarity(*[one.flatten() for one in gradients], dim=0) > 0.98
    assert model.decoder.get_output_embeddings() is head


def test_free_bits_cost_nothing_more():
    posterior = Posterior(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    assert torch.equal(kl(posterior), posterior.kl())
    assert kl(posterior, 0.5).item() == pytest.approx(2.5)  # the first dimension, of 0 nats, counts as half a nat


def test_free_bits_are_of_a_dimensions_mean_over_the_batch():
    posterior = Posterior(torch.tensor([[0.0, 2.0], [2.0, 2.0]]), torch.zeros(2, 2))  # 0 and 2, 2 and 2 nats
    assert torch.equal(kl(posterior, 0.9), posterior.kl())
    assert kl(posterior, 1.1).tolist() == pytest.approx([1.1 + 2, 1.1 + 2])


def test_losses_are_computed_in_float32_of_a_decoder_in_less():
    torch.manual_seed(0)
    model = build(tiny_encoder(), DECODERS["llama_tied"]().bfloat16()).eval()
    latents, labels = torch.randn(4, 8), batch()["labels"]
    logits = model.logits(latents, labels)
    assert logits.dtype == torch.bfloat16
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100
    )
    torch.testing.assert_close(model.reconstruction(latents, labels), losses.sum(dim=1), rtol=1e-6, atol=0)
    candidates = draw_candidates(labels[labels >= 0].unique(), 60, 40)
    assert reconstruction(model, latents, labels, candidates).dtype == torch.float32


def test_a_published_model_holds_no_part_of_training_alone(with_features, tmp_path, caplog):
    model = with_features.autoencoder.eval()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    stored = load_file(weights)
    assert not any("column_decoder" in name for name in stored)
    # Checkpoints of before hold it: they load without a word.
    before = {f"column_decoder.{name}": value for name, value in with_features.column_decoder.state_dict().items()}
    save_file(stored | before, weights, metadata={"format": "pt"})
    loaded, report = DiffLMModel.from_pretrained(tmp_path, decoder=model.decoder, output_loading_info=True)
    assert not report["unexpected_keys"] and "column_decoder" not in caplog.text
    inputs = batch() | {"feature_values": VALUES}
    assert torch.equal(loaded.eval()(**inputs).record_losses, model(**inputs).record_losses)
