"""A decoder is known by what it computes: other layers or another head are refused, other dtypes are not."""

import copy
import time

import pytest
import torch

from difflm.modeling_difflm import DecoderMismatchError, DiffLMModel, check_decoder, decoder_fingerprint


@pytest.fixture
def decoder(tiny_model):
    return tiny_model.decoder


def replaced(decoder, *parts):
    """A copy with other weights, as large as before, in the parameters of these parts."""
    other = copy.deepcopy(decoder)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.ndim == 2 and name.startswith(parts):
                parameter.normal_(0, float(parameter.std()))
    return other


@pytest.mark.parametrize(
    "parts",
    [("model.layers", "lm_head"), ("model.layers",), ("lm_head",), ("model.layers.1",)],
    ids=" and ".join,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoder_with_other_layers_or_head_is_refused(decoder, parts, dtype):
    expected = decoder_fingerprint(decoder)
    other = replaced(decoder, *parts).to(dtype)
    assert torch.equal(
        other.get_input_embeddings().weight, decoder.get_input_embeddings().weight.to(dtype)
    ), "the embeddings are the same"
    with pytest.raises(DecoderMismatchError, match="its layers and head compute something else"):
        check_decoder(other, expected)


@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loaded_in", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_does_not_matter(decoder, trained_in, loaded_in):
    expected = decoder_fingerprint(copy.deepcopy(decoder).to(trained_in))
    check_decoder(copy.deepcopy(decoder).to(loaded_in), expected)


def test_layers_of_eight_bits_are_the_same_decoder(decoder):
    expected = decoder_fingerprint(decoder)
    rounded = copy.deepcopy(decoder)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.ndim == 2 and name.startswith("model.layers"):
                scale = parameter.abs().amax(dim=1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)
    check_decoder(rounded, expected)


def test_fingerprint_of_format_1_is_checked_as_it_was(decoder):
    old = {name: value for name, value in decoder_fingerprint(decoder).items() if not name.startswith("probe")}
    check_decoder(replaced(decoder, "model.layers", "lm_head"), old)
    with pytest.raises(DecoderMismatchError, match="embedding_sample"):
        check_decoder(replaced(decoder, "model.embed_tokens"), old)


def test_saved_model_refuses_another_decoder(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert isinstance(DiffLMModel.from_pretrained(tmp_path, decoder=copy.deepcopy(tiny_model.decoder)), DiffLMModel)
    with pytest.raises(DecoderMismatchError):
        DiffLMModel.from_pretrained(tmp_path, decoder=replaced(tiny_model.decoder, "model.layers", "lm_head"))


@pytest.mark.slow
def test_real_decoder_is_known_in_fp32_and_quickly(real_models):
    decoder = real_models[1]
    expected = decoder_fingerprint(decoder)
    single = copy.deepcopy(decoder).float()
    started = time.monotonic()
    check_decoder(single, expected)
    assert time.monotonic() - started < 5
    with pytest.raises(DecoderMismatchError):
        check_decoder(replaced(single, "model.layers.17.mlp"), expected)
