"""Linear layers by oneDNN: the same results, nothing left behind, and copies that follow their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difflm.pipelines import packed_linear
from difflm.pipelines.packed_linear import fast_linears, linear


WIDE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def make_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32, bias=False)).to(dtype).eval()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(1, 32), (1, 7, 32), (70, 32)])
def test_same_results(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, inputs = make_model(dtype), torch.randn(shape).to(dtype)
    expected = model(inputs)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with fast_linears(model):
        assert ("forward" in vars(model[0])) == packed_linear._multiplies(dtype)
        found = model(inputs)
    assert torch.allclose(found, expected, atol=1e-6 if dtype in (torch.float32, torch.float64) else 1e-2)
    assert {name: vars(module) for name, module in model.named_modules()} == before


@pytest.mark.skipif(not WIDE, reason="oneDNN multiplies nothing here")
def test_copies_follow_the_weights_and_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_model(torch.float32), torch.randn(3, 32)
    laid_out: list[torch.Tensor] = []
    lay_out = packed_linear._lay_out
    monkeypatch.setattr(packed_linear, "_found", {torch.float32: True})
    monkeypatch.setattr(packed_linear, "_lay_out", lambda weight: laid_out.append(weight) or lay_out(weight))
    for _ in range(2):
        with torch.inference_mode(), fast_linears(model):
            first = model(inputs)
    assert len(laid_out) == 2
    with torch.no_grad():
        model[2].weight.mul_(2)
    with torch.inference_mode(), fast_linears(model):
        assert torch.allclose(model(inputs), 2 * first, atol=1e-6)
    assert len(laid_out) == 3


@torch.inference_mode()
def test_layers_that_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4))
    with fast_linears(model):
        assert "forward" not in vars(model[0])
    monkeypatch.setattr(packed_linear, "_MOST_BYTES", 4 * 4 * 4 - 1)
    with fast_linears(model):
        assert "forward" not in vars(model[1])

    def refuse(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(packed_linear, "_MOST_BYTES", 2**20)
    monkeypatch.setattr(packed_linear, "_found", {})
    monkeypatch.setattr(packed_linear, "_lay_out", refuse)
    model, inputs = make_model(torch.float32), torch.randn(2, 32)
    with fast_linears(model):
        assert "forward" not in vars(model[0])
    expected = nn.functional.linear(inputs, model[0].weight, model[0].bias)
    assert torch.equal(linear(inputs, model[0].weight, model[0].bias), expected)


def test_products_that_depend_on_their_neighbours_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    product = packed_linear._product

    def unsteady(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return product(inputs, weight, bias) + 1e-6 * (len(inputs) > 20)

    monkeypatch.setattr(packed_linear, "_found", {})
    monkeypatch.setattr(packed_linear, "_product", unsteady)
    assert not packed_linear._multiplies(torch.float32)
    assert not packed_linear._multiplies(torch.float64)


@torch.inference_mode()
@pytest.mark.skipif(not WIDE, reason="oneDNN multiplies nothing here")
def test_a_token_does_not_depend_on_those_beside_it() -> None:
    model, inputs = nn.Linear(576, 100), torch.randn(70, 576)
    dtypes = [dtype for dtype in (torch.float32, torch.bfloat16) if packed_linear._multiplies(dtype)]
    if not dtypes:
        pytest.skip("in this version of torch a product depends on what stands beside it: torch's own is used")
    for dtype in dtypes:
        model, inputs = model.to(dtype), inputs.to(dtype)
        with fast_linears(model):
            expected = model(inputs)
            for count in (1, 2, 3, 4, 7, 16, 33):
                assert torch.equal(model(inputs[:count]), expected[:count])
        few = linear(inputs, model.weight[::7], model.bias[::7])
        assert torch.allclose(few, expected[:, ::7], atol=1e-5 if dtype == torch.float32 else 1e-2)
        assert torch.equal(linear(inputs[:1], model.weight[14:40:7], model.bias[14:40:7]), few[:1, 2:6])
