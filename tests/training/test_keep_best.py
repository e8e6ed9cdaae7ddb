"""The best weights are kept as a copy, and come back."""

from __future__ import annotations

import math

import torch

from difflm.training.keep_best import KeepBest


def test_the_best_weights_come_back():
    layer = torch.nn.Linear(2, 1)
    weights = dict(layer.named_parameters())
    best = KeepBest()
    best.copy_to(weights)  # nothing kept yet: nothing changes
    first = {name: value.detach().clone() for name, value in weights.items()}
    assert best.offer(2.0, weights)
    with torch.no_grad():
        layer.weight.add_(1)
    assert not best.offer(2.0, weights)
    assert not best.offer(math.nan, weights)
    assert (best.loss, best.evaluations_without_improvement) == (2.0, 2)
    best.copy_to(weights)
    assert all(torch.equal(weights[name], first[name]) for name in first)
    assert best.offer(1.0, weights, device="cpu")
    assert best.evaluations_without_improvement == 0
