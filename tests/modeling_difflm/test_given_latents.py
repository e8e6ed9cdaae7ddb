"""Latents whose first dimensions come from outside; without any for the text there is no encoder."""

from __future__ import annotations

import pytest
import torch

from difflm.build_difflm import from_encoder_decoder
from difflm.modeling_difflm import DiffLMConfig, DiffLMModel


NOISE = [0.5, 0.25, 0.5]
SIZES = {"num_injection_tokens": 2, "injection_hidden_size": 16, "injection_token_size": 16}


def build(model_folders: dict[str, str], text_size: int = 0) -> DiffLMModel:
    torch.manual_seed(0)
    encoder = model_folders["encoder"] if text_size else None
    sizes = SIZES | {"decoder_dtype": "float32", "latent_size": len(NOISE) + text_size, "column_latent_noise": NOISE}
    return from_encoder_decoder(encoder, model_folders["decoder"], **sizes).eval()


def test_without_dimensions_for_the_text_there_is_no_encoder(model_folders, tmp_path):
    model = build(model_folders)
    assert (model.config.column_latent_size, model.config.text_latent_size) == (3, 0)
    assert model.encoder is None and model.config.encoder_config is None
    assert {name.split(".")[0] for name in model.state_dict()} == {"injector", "decoder"}
    model.save_pretrained(tmp_path)
    loaded = DiffLMModel.from_pretrained(tmp_path).eval()
    assert loaded.encoder is None
    means = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 0.1]])
    posterior = loaded.encode(column_latents=means)
    assert torch.equal(posterior.mean, means)
    torch.testing.assert_close(posterior.log_variance.exp().sqrt(), torch.tensor([NOISE, NOISE]))
    assert torch.equal(posterior.kl(), torch.zeros(2))
    labels = torch.randint(3, 200, (2, 5))
    expected, found = (one(labels=labels, column_latents=means).record_losses for one in (model, loaded))
    assert torch.equal(expected, found)


def test_the_encoder_gives_the_other_dimensions(model_folders):
    model = build(model_folders, text_size=2)
    ids = torch.randint(3, 50, (4, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    means = torch.randn(4, 3)
    posterior = model.encode(**inputs, column_latents=means)
    other = model.encode(**inputs, column_latents=means + 1)
    assert posterior.mean.shape == posterior.log_variance.shape == (4, 5)
    assert torch.equal(posterior.mean[:, :3] + 1, other.mean[:, :3])
    assert torch.equal(posterior.mean[:, 3:], other.mean[:, 3:])
    assert posterior.kl_per_dimension().shape == (4, 2)
    assert torch.equal(posterior.kl(), other.kl())
    with pytest.raises(ValueError, match="reads the records' text: pass input_ids"):
        model.encode(column_latents=means)
    for wrong in (None, means[:, :2]):
        with pytest.raises(ValueError, match="first 3 dimensions of this model's latents come from outside"):
            model.encode(**inputs, column_latents=wrong)


@pytest.mark.parametrize("noise", [[0.1] * 9, [0.1, 0.0]])
def test_noise_that_fits_no_latent_is_refused(noise):
    with pytest.raises(ValueError, match="column_latent_noise must be above 0, one at most"):
        DiffLMConfig(latent_size=8, column_latent_noise=noise)
