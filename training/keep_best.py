"""The weights of the best evaluation, to go back to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class KeepBest:
    """Keeps a copy of the weights that were best so far.

    Attributes
    ----------
    loss : float
        Of the weights kept; infinite before the first evaluation.
    weights : dict of str to Tensor
        Empty before the first evaluation.
    evaluations_without_improvement : int
        Since the best one.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.weights: dict[str, Tensor] = {}
        self.evaluations_without_improvement = 0

    @torch.no_grad()
    def offer(self, loss: float, weights: Mapping[str, Tensor], *, device: torch.device | str | None = None) -> bool:
        """Keep a copy of ``weights`` if their loss is the lowest so far (one that is no number never is).

        Parameters
        ----------
        loss : float
        weights : mapping of str to Tensor
        device : torch.device or str, optional
            Where the copy is kept; default: where the weights are.

        Returns
        -------
        bool
            Whether they are kept.
        """
        if not loss < self.loss:
            self.evaluations_without_improvement += 1
            return False
        self.loss, self.evaluations_without_improvement = loss, 0
        self.weights = {
            name: value.detach().to(device or value.device, copy=True) for name, value in weights.items()
        }
        return True

    @torch.no_grad()
    def copy_to(self, weights: Mapping[str, Tensor]) -> None:
        """Put the weights kept, if any, back into those of the same names."""
        for name, value in self.weights.items():
            weights[name].copy_(value)
