"""DiffLMDenoiser: preconditioning, conditioning, statistics and saving."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflm.modeling_denoiser import DiffLMDenoiser, edm_coefficients
from difflm.training.denoiser_losses import edm_loss_weight


def make_denoiser(*, trained: bool = True, **overrides: Any) -> DiffLMDenoiser:
    torch.manual_seed(0)
    arguments = {"latent_size": 8, "hidden_size": 32, "num_blocks": 2} | overrides
    denoiser = DiffLMDenoiser(**arguments).eval()
    if trained:  # A fresh output layer is zero, which would hide everything before it.
        torch.nn.init.normal_(denoiser.network.output_projection.weight, std=0.3)
    return denoiser


def test_edm_coefficients_match_the_paper() -> None:
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = edm_coefficients(sigma, sigma_data=2.0)
    torch.testing.assert_close(c_skip, torch.tensor([4 / 4.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(c_out, torch.tensor([1 / 4.25**0.5, 4 / 8**0.5], dtype=torch.float64))
    torch.testing.assert_close(c_in, torch.tensor([1 / 4.25**0.5, 1 / 8**0.5], dtype=torch.float64))
    torch.testing.assert_close(c_noise, torch.tensor([math.log(0.5) / 4, math.log(2) / 4], dtype=torch.float64))
    # The weight makes the network's effective loss uniform: weight * c_out^2 == 1.
    torch.testing.assert_close(edm_loss_weight(sigma, 2.0) * c_out**2, torch.ones(2, dtype=torch.float64))


def test_an_untrained_denoiser_is_the_best_linear_one_for_unit_gaussian_data() -> None:
    denoiser = make_denoiser(trained=False)
    noisy, sigma = torch.randn(5, 8), torch.tensor([0.1, 0.5, 1.0, 5.0, 50.0])
    torch.testing.assert_close(denoiser.denoise(noisy, sigma), noisy / (1 + sigma[:, None] ** 2))


def test_denoise_is_the_preconditioned_network() -> None:
    denoiser = make_denoiser(sigma_data=0.7)
    noisy, sigma = torch.randn(4, 8), torch.tensor([0.1, 0.5, 2.0, 9.0])
    c_skip, c_out, c_in, c_noise = edm_coefficients(sigma[:, None], 0.7)
    raw = denoiser(c_in * noisy, c_noise[:, 0]).sample
    assert raw.abs().max() > 0.1
    torch.testing.assert_close(denoiser.denoise(noisy, sigma), c_skip * noisy + c_out * raw)


def test_scalar_and_per_row_noise_levels_agree() -> None:
    denoiser = make_denoiser()
    noisy = torch.randn(3, 8)
    torch.testing.assert_close(denoiser.denoise(noisy, 0.8), denoiser.denoise(noisy, torch.full((3,), 0.8)))
    assert not torch.allclose(denoiser(noisy, -0.5).sample, denoiser(noisy, 0.5).sample, atol=1e-3)


def test_missing_labels_are_the_null_classes() -> None:
    denoiser = make_denoiser(class_sizes=[3, 2], class_names=["species", "sex"])
    noisy = torch.randn(4, 8)
    null = denoiser.network.null_labels(4)
    assert null.tolist() == [[3, 2]] * 4
    torch.testing.assert_close(denoiser.denoise(noisy, 1.0), denoiser.denoise(noisy, 1.0, null))


def test_every_column_conditions_the_output() -> None:
    denoiser = make_denoiser(class_sizes=[3, 2])
    noisy = torch.randn(1, 8)
    outputs = [
        denoiser.denoise(noisy, 1.0, torch.tensor([[first, second]])) for first in range(4) for second in range(3)
    ]
    for index, one in enumerate(outputs):
        for other in outputs[index + 1 :]:
            assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.long), r"shape \(2, 2\)"),
        (torch.zeros(2, 2), "integers"),
        (torch.tensor([[0, 0], [4, 0]]), "'species' must be between 0 and 2, or 3"),
        (torch.tensor([[0, -1], [0, 0]]), "'sex'"),
    ],
)
def test_bad_labels_are_named(labels: torch.Tensor, message: str) -> None:
    denoiser = make_denoiser(class_sizes=[3, 2], class_names=["species", "sex"])
    with pytest.raises(ValueError, match=message):
        denoiser.check_labels(labels, 2)


def test_labels_for_an_unconditional_denoiser_are_refused() -> None:
    with pytest.raises(ValueError, match="without class_sizes"):
        make_denoiser().denoise(torch.randn(1, 8), 1.0, torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"class_sizes": [2, 0]}, "class_sizes"),
        ({"class_sizes": [2], "class_names": ["a", "b"]}, "class_names"),
        ({"noise_floor": -0.5}, "noise_floor"),
        ({"noise_floor": math.nan}, "noise_floor"),
    ],
)
def test_bad_sizes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser(**arguments)


def test_statistics_standardize_and_come_back() -> None:
    denoiser = make_denoiser()
    latents = torch.randn(1000, 8) * torch.arange(1.0, 9.0) - 3
    denoiser.scaler.set_latent_statistics(latents.mean(0), latents.std(0))
    standardized = denoiser.standardize(latents)
    torch.testing.assert_close(standardized.std(0), torch.ones(8))
    torch.testing.assert_close(standardized.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(denoiser.unstandardize(standardized), latents)


def test_axes_whiten_and_come_back() -> None:
    denoiser = make_denoiser()
    latents = torch.randn(1000, 8) @ torch.randn(8, 8) - 3
    variance, axes = torch.linalg.eigh(torch.cov(latents.T))
    denoiser.scaler.set_latent_statistics(latents.mean(0), variance.sqrt(), axes)
    standardized = denoiser.standardize(latents)
    torch.testing.assert_close(torch.cov(standardized.T), torch.eye(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(denoiser.unstandardize(standardized), latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("mean", "std", "axes", "message"),
    [
        (torch.zeros(7), torch.ones(8), None, "mean must have shape"),
        (torch.full((8,), float("nan")), torch.ones(8), None, "finite"),
        (torch.zeros(8), torch.zeros(8), None, "positive"),
        (torch.zeros(8), torch.ones(8), torch.eye(7), "axes must have shape"),
        (torch.zeros(8), torch.ones(8), 2 * torch.eye(8), "orthonormal"),
    ],
)
def test_bad_statistics_are_refused(
    mean: torch.Tensor, std: torch.Tensor, axes: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser().scaler.set_latent_statistics(mean, std, axes)


def test_save_and_load_keep_weights_buffers_and_configuration(tmp_path: Path) -> None:
    denoiser = make_denoiser(class_sizes=[3, 2], class_names=["species", "sex"], sigma_data=0.9)
    axes = torch.linalg.qr(torch.randn(8, 8))[0]
    denoiser.scaler.set_latent_statistics(torch.arange(8.0), torch.arange(1.0, 9.0), axes)
    denoiser.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()

    loaded = DiffLMDenoiser.from_pretrained(tmp_path)
    saved_state, loaded_state = denoiser.state_dict(), loaded.state_dict()
    assert saved_state.keys() == loaded_state.keys()
    for name, value in saved_state.items():
        assert torch.equal(value, loaded_state[name]), name
    assert loaded.config.class_names == ["species", "sex"]
    noisy, labels = torch.randn(2, 8), torch.tensor([[0, 1], [3, 2]])
    # Not to the bit: a product of one row depends on where in memory the weights begin.
    torch.testing.assert_close(loaded.denoise(noisy, 0.5, labels), denoiser.denoise(noisy, 0.5, labels))


def test_a_checkpoint_from_before_the_three_parts_loads_without_its_digests(tmp_path: Path) -> None:
    denoiser = make_denoiser(class_sizes=[3, 2])
    denoiser.scaler.set_latent_statistics(torch.arange(8.0), torch.arange(1.0, 9.0))
    denoiser.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    flat = {name.removeprefix("network.").removeprefix("scaler."): value for name, value in load_file(weights).items()}
    assert {"latent_mean", "blocks.0.linear_in.weight"} <= set(flat)
    save_file(flat | {"record_digests": torch.zeros(3, 16, dtype=torch.uint8)}, weights, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_record_digests": 3}), encoding="utf-8")
    loaded, report = DiffLMDenoiser.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    noisy = torch.randn(4, 8)
    torch.testing.assert_close(loaded.denoise(noisy, 0.7), denoiser.denoise(noisy, 0.7))
    assert torch.equal(loaded.unstandardize(noisy), denoiser.unstandardize(noisy))
    loaded.save_pretrained(tmp_path / "again")
    assert "record_digests" not in load_file(tmp_path / "again" / weights.name)
    assert "num_record_digests" not in (tmp_path / "again" / "config.json").read_text(encoding="utf-8")


# With a noise floor


SPREAD = torch.tensor([3.3, 1.0, 1.0, 0.7, 1e-3, 2.0, 1.0, 0.1])


def floored_denoiser(**overrides: Any) -> DiffLMDenoiser:
    denoiser = make_denoiser(noise_floor=0.5, **overrides)
    denoiser.scaler.set_latent_statistics(torch.arange(8.0), torch.arange(1.0, 9.0) / 4, SPREAD)
    return denoiser


def test_an_untrained_denoiser_is_the_best_linear_one_in_each_dimension() -> None:
    denoiser = floored_denoiser(trained=False)
    noisy, sigma = torch.randn(4, 8), torch.tensor([0.5, 1.0, 5.0, 50.0])
    shrink = SPREAD**2 / (SPREAD**2 + sigma[:, None] ** 2)
    torch.testing.assert_close(denoiser.denoise(noisy, sigma), shrink * noisy)


def test_each_dimension_is_scaled_by_itself_and_comes_back() -> None:
    denoiser, latents = floored_denoiser(), torch.randn(5, 8)
    standardized = denoiser.standardize(latents)
    torch.testing.assert_close(standardized, (latents - torch.arange(8.0)) * 4 / torch.arange(1.0, 9.0))
    torch.testing.assert_close(denoiser.unstandardize(standardized), latents)


def test_coefficients_are_those_of_each_dimension_and_the_weight_undoes_them() -> None:
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None]
    c_skip, c_out, c_in, c_noise = edm_coefficients(sigma, SPREAD.double())
    assert c_noise.shape == (2, 1) and c_skip.shape == c_out.shape == c_in.shape == (2, 8)
    for dimension, spread in enumerate(SPREAD.double().tolist()):
        for whole, one in zip((c_skip, c_out, c_in), edm_coefficients(sigma[:, 0], spread)[:3], strict=True):
            torch.testing.assert_close(whole[:, dimension], one)
    weight = edm_loss_weight(sigma, SPREAD.double())
    torch.testing.assert_close(weight * c_out**2, torch.ones(2, 8, dtype=torch.float64))


def test_a_noise_floor_is_saved_with_its_statistics_and_half_precision_keeps_them(tmp_path: Path) -> None:
    denoiser = floored_denoiser()
    denoiser.save_pretrained(tmp_path)
    loaded, report = DiffLMDenoiser.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.noise_floor == 0.5
    assert torch.equal(loaded.sigma_data, SPREAD)
    noisy = torch.randn(2, 8)
    torch.testing.assert_close(loaded.denoise(noisy, 0.5), denoiser.denoise(noisy, 0.5))
    half = DiffLMDenoiser.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(half.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("mean", "scale", "spread", "message"),
    [
        (torch.zeros(7), torch.ones(8), torch.ones(8), "mean must have shape"),
        (torch.zeros(8), torch.zeros(8), torch.ones(8), "scale must be positive"),
        (torch.zeros(8), torch.ones(8), torch.zeros(8), "spread must be positive"),
        (torch.zeros(8), torch.ones(8), torch.full((8,), math.inf), "spread has values that are not finite"),
    ],
)
def test_bad_statistics_of_a_noise_floor_are_refused(
    mean: torch.Tensor, scale: torch.Tensor, spread: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser(noise_floor=0.5).scaler.set_latent_statistics(mean, scale, spread)


def test_a_load_in_half_precision_keeps_the_weights_exact(tmp_path: Path) -> None:
    denoiser = make_denoiser()
    denoiser.scaler.set_latent_statistics(torch.randn(8), torch.ones(8))
    denoiser.save_pretrained(tmp_path)
    loaded = DiffLMDenoiser.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
