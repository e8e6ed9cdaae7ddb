"""Drawing the tokens of a step's softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from difflm.modeling_difflm import CandidateTokens


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
