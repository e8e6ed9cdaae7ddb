"""Tokens that stand for the decoder's whole vocabulary in a training step's softmax."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass
class CandidateTokens:
    """Tokens that stand for a decoder's whole vocabulary in a softmax (sampled softmax, arXiv 1412.2007).

    Every token that may be a label, and a random sample of the others, each counted as often as it stands for. With a
    table's few hundred tokens, logits over the vocabulary are most of a step's memory and a third of its time.

    Attributes
    ----------
    ids : Tensor
        ``[candidates]``, tokens; the ``num_known`` possible labels come first, in ascending order.
    log_weights : Tensor
        ``[candidates]``, log of the number of tokens each one stands for.
    num_known : int
    """

    ids: Tensor
    log_weights: Tensor
    num_known: int

    def places(self, labels: Tensor) -> Tensor:
        """Index of each label among the candidates.

        Raises
        ------
        ValueError
            If a label is no known token.
        """
        known = self.ids[: self.num_known].to(labels.device)
        found = torch.searchsorted(known, labels).clamp(max=self.num_known - 1)
        if not torch.equal(known[found], labels):
            raise ValueError("A label is none of the known tokens.")
        return found

    @contextlib.contextmanager
    def narrowed(self, decoder: PreTrainedModel) -> Iterator[None]:
        """While open, the decoder's logits are those of the candidates alone, ``[..., candidates]``."""
        head: Any = decoder.get_output_embeddings()
        rows = self.ids.to(head.weight.device)
        smaller = nn.Linear(1, 1, bias=head.bias is not None, device="meta")
        smaller.weight = nn.Parameter(head.weight[rows], requires_grad=False)
        if head.bias is not None:
            smaller.bias = nn.Parameter(head.bias[rows], requires_grad=False)
        decoder.set_output_embeddings(smaller)
        try:
            yield
        finally:
            decoder.set_output_embeddings(head)


def has_plain_head(decoder: PreTrainedModel) -> bool:
    """Whether rows of the decoder's head can be taken (a linear layer that is not quantised)."""
    head = decoder.get_output_embeddings()
    return type(head) is nn.Linear and head.weight.is_floating_point()


def draw_candidates(
    known: Tensor, vocab_size: int, num_others: int, generator: torch.Generator | None = None
) -> CandidateTokens:
    """Take the ``known`` tokens (ascending, without repetition) and ``num_others`` drawn from the rest.

    Raises
    ------
    ValueError
        If ``known`` is not ascending, or ``num_others`` is not positive.
    """
    if num_others < 1 or not bool((known[1:] > known[:-1]).all()):
        raise ValueError("known tokens must ascend without repetition, and at least one other must be drawn.")
    num_rest = vocab_size - len(known)
    # Places among the tokens that are not known, moved past the known ones before them.
    drawn = torch.randint(num_rest, (num_others,), generator=generator)
    gaps = known.cpu() - torch.arange(len(known))
    others = drawn + torch.searchsorted(gaps, drawn, right=True)
    weights = torch.zeros(len(known) + num_others)
    weights[len(known) :] = math.log(num_rest / num_others)
    return CandidateTokens(torch.cat([known.cpu(), others]).to(known.device), weights, len(known))
