"""Linear layers on processors by oneDNN, with weights laid out once.

torch multiplies by the weights as they lie, which costs a rearrangement of them in every product, or leaves the wide
registers of some processors idle. While decoding, a pass has few tokens and reads all weights: there it matters most.

Here a token's result is the same, to the last bit, whatever tokens are multiplied along with it. torch's own product
of fp32 takes another way for one token than for many; rounding then draws another token now and then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


#: Most memory that the rearranged copies of a model's weights may take, in bytes; a larger one does without.
_MOST_BYTES = 2**30
_laid_out: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Tensor]]] = WeakKeyDictionary()


@contextlib.contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """While open, and where the processor gains by it, the model's plain linear layers multiply by oneDNN.

    The copies of the weights stay until the model is gone; those of weights that have changed are made anew. No other
    thread may use the model meanwhile.
    """
    changed = []
    try:
        for name, module in _linears(model):
            weight = _weight(model, name, module)
            module.forward = partial(_product, weight=weight, bias=module.bias)  # type: ignore[method-assign]
            changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.functional.linear` of inputs [tokens, in] and a few rows of a weight, by the same products."""
    if _gains(weight) and len(weight) > 1:  # oneDNN multiplies by a single row in another way
        return _product(inputs, weight.contiguous(), None if bias is None else bias.contiguous())
    return nn.functional.linear(inputs, weight, bias)


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The layers that are to be exchanged."""
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and "forward" not in vars(module) and _gains(module.weight)
    ]
    return layers if sum(module.weight.nbytes for _, module in layers) <= _MOST_BYTES else []


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and _multiplies(weight.dtype)


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN is worth while on this processor, and does as this file expects."""
    if dtype not in _found:
        _found[dtype] = dtype in (torch.float32, torch.bfloat16) and _try(dtype)
    return _found[dtype]


_found: dict[torch.dtype, bool] = {}


def _try(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight, inputs = torch.ones(3, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype)
        products = [_product(inputs, weight=each, bias=None) for each in (weight, _lay_out(weight))]
        return all(torch.equal(found, inputs @ weight.T) for found in products) and _is_steady(dtype)
    except (AttributeError, RuntimeError):  # the operators are torch's own business, and may go
        return False


def _is_steady(dtype: torch.dtype) -> bool:
    """Whether a token's products are the same beside others, and a weight's beside others: not in every version."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(size, 576, generator=generator).to(dtype) for size in (33, 100))
    whole, some = (_product(inputs, weight=each.contiguous(), bias=None) for each in (weight, weight[::7]))
    fewer = _product(inputs[:1], weight=weight[14:40:7].contiguous(), bias=None)
    tokens = (_product(inputs[:count], weight=weight, bias=None) for count in (1, 2, 3, 7, 16))
    return torch.equal(fewer, some[:1, 2:6]) and all(torch.equal(found, whole[: len(found)]) for found in tokens)


def _weight(model: nn.Module, name: str, module: nn.Linear) -> Tensor:
    """The layer's weight as oneDNN wants it."""
    weight, known = module.weight, _laid_out.setdefault(model, {})
    state = (weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version)
    if name not in known or known[name][0] != state:
        known[name] = (state, _lay_out(weight.detach()))
    return known[name][1]


def _lay_out(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    alone = inputs.shape[:-1].numel() == 1  # multiplied in another way than several
    if alone:
        inputs = torch.cat([inputs, inputs])
    outputs = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs[:1] if alone else outputs
