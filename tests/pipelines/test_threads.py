"""Several threads at once: each gets what its seed gives alone, and nobody's decoder is broken."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from difflm.pipelines.pipeline_difflm import DiffLMPipeline


@pytest.fixture
def pipe(fitted) -> DiffLMPipeline:
    """One that no test used: the first calls are at once, too."""
    pipeline = copy.deepcopy(fitted[0])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def at_once(calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]


@pytest.mark.parametrize("ways", [[True] * 4, [False] * 3, [True, False, True, False]], ids=["fast", "slow", "mixed"])
def test_each_seed_gives_its_own_records(pipe, fitted, ways):
    alone = [fitted[0](12, seed=seed).texts for seed in range(len(ways))]
    calls = [lambda s=seed, f=fast: pipe(12, seed=s, fast=f, batch_size=5).texts for seed, fast in enumerate(ways)]
    assert at_once(calls) == alone
    assert at_once(calls) == alone


def test_pipelines_that_share_a_decoder_wait_for_each_other(pipe, fitted):
    other = DiffLMPipeline.from_pretrained(fitted[1], decoder=pipe.autoencoder.decoder)
    other.set_progress_bar_config(disable=True)
    assert other.autoencoder.decoder_lock is pipe.autoencoder.decoder_lock
    alone = [fitted[0](12, seed=seed).texts for seed in range(4)]
    calls = [
        lambda s=seed: (pipe if s % 2 else other)(12, seed=s, fast=s < 2, batch_size=5).texts for seed in range(4)
    ]
    assert at_once(calls) == alone


def test_losses_are_right_while_others_sample(pipe, fitted):
    model = pipe.autoencoder
    latents = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, 258, (6, 9), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def nats():
        return [model.reconstruction(latents, labels) for _ in range(10)]

    expected, texts = nats()[0], fitted[0](12, seed=0).texts
    losses, *written = at_once([nats, lambda: pipe(12, seed=0).texts, lambda: pipe(12, seed=0, fast=False).texts])
    assert written == [texts, texts]
    for loss in losses:
        assert torch.equal(loss, expected)


def test_conditions_and_records_in_several_threads(pipe, fitted):
    conditions = [{"kind": "dog"}, {"age": (3, 5)}, {"tame": True}, {}]
    alone = [fitted[0](8, seed=3, condition=condition).texts for condition in conditions]
    assert at_once([lambda c=condition: pipe(8, seed=3, condition=c).texts for condition in conditions]) == alone
    records = fitted[0](8, seed=3).records
    again = fitted[0].reconstruct(records, seed=1).texts
    assert at_once([lambda: pipe.reconstruct(records, seed=1).texts] * 4) == [again] * 4


@pytest.mark.parametrize("fast", [True, False])
def test_a_failed_call_leaves_the_decoder_usable(pipe, fitted, monkeypatch, fast):
    expected = fitted[0](6, seed=1).texts

    class Full(RuntimeError):
        pass

    def fail(*args, **kwargs):
        raise Full

    model = pipe.autoencoder
    pipe(1, seed=0, fast=fast)
    with monkeypatch.context() as patched:
        patched.setattr(type(model.decoder.model.layers[1]), "forward", fail)
        with pytest.raises(Full):
            pipe(6, seed=1, fast=fast)
    calls = [lambda f=way: pipe(6, seed=1, fast=f).texts for way in (True, False)]
    assert at_once(calls) == [expected] * 2
    assert not model.decoder.get_input_embeddings()._forward_hooks
    assert not model.decoder.get_output_embeddings()._forward_pre_hooks
