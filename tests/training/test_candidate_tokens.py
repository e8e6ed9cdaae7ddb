"""Candidates of a sampled softmax: which tokens, and what they weigh."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from difflm.training.candidate_tokens import draw_candidates


def test_known_tokens_first_then_others():
    known = torch.tensor([0, 3, 4, 59])
    candidates = draw_candidates(known, 60, 500, torch.Generator().manual_seed(0))
    assert candidates.ids[:4].tolist() == [0, 3, 4, 59]
    others = set(candidates.ids[4:].tolist())
    assert others == set(range(60)) - {0, 3, 4, 59}
    assert candidates.log_weights[:4].tolist() == [0.0] * 4
    assert candidates.log_weights[4:].exp().sum().item() == pytest.approx(56, rel=1e-4)
    assert candidates.places(torch.tensor([59, 0, 4])).tolist() == [3, 0, 2]


def test_the_normaliser_is_right_on_average():
    logits = torch.randn(60, generator=torch.Generator().manual_seed(0))
    known, generator = torch.tensor([5, 6, 30]), torch.Generator().manual_seed(1)
    drawn = [draw_candidates(known, 60, 8, generator) for _ in range(4000)]
    estimates = torch.stack([(logits[one.ids] + one.log_weights).exp().sum() for one in drawn])
    assert estimates.mean().item() == pytest.approx(logits.exp().sum().item(), rel=0.02)
    assert estimates.std() > 0


def test_wrong_tokens_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        draw_candidates(torch.tensor([3, 3]), 60, 8)
    with pytest.raises(ValueError, match="none of the known"):
        draw_candidates(torch.tensor([3, 5]), 60, 8).places(torch.tensor([4]))
    with pytest.raises(ValueError, match="none of the known"):
        draw_candidates(torch.tensor([3, 5]), 60, 8).places(torch.tensor([7]))  # beyond all known ones
    with pytest.raises(ValueError, match="at least one other"):
        draw_candidates(torch.tensor([3, 5]), 60, 0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_narrowed_decoder_gives_the_candidates_logits_alone_and_then_all_again(bias):
    config = LlamaConfig(
        vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(config).eval()
    decoder.set_output_embeddings(torch.nn.Linear(8, 60, bias=bias))
    head, tokens = decoder.get_output_embeddings(), torch.arange(5)[None]
    with torch.no_grad():
        whole = decoder(tokens).logits
        candidates = draw_candidates(torch.tensor([3, 5, 59]), 60, 4)
        with candidates.narrowed(decoder):
            torch.testing.assert_close(decoder(tokens).logits, whole[..., candidates.ids])
        with pytest.raises(ZeroDivisionError), candidates.narrowed(decoder):
            raise ZeroDivisionError
    assert decoder.get_output_embeddings() is head
