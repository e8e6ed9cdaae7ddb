"""Pipelines that are copied, pickled and sent to other processes, before and after they were used."""

from __future__ import annotations

import copy
import multiprocessing
import operator
import pickle

import pytest

from difflm.pipelines.grammar_cache import GrammarCache
from difflm.pipelines.pipeline_difflm import DiffLMPipeline


OPTIONS = {"seed": 7, "condition": {"kind": "dog", "age": (3, 9)}, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def expected(fitted):
    return fitted[0](6, **OPTIONS).texts


@pytest.fixture(params=["unused", "used"])
def pipe(request, fitted) -> DiffLMPipeline:
    pipeline = DiffLMPipeline.from_pretrained(fitted[1])
    pipeline.set_progress_bar_config(disable=True)
    if request.param == "used":
        pipeline(3, **OPTIONS)
        pipeline(3, seed=0, fast=False)
        pipeline.reconstruct(pipeline(2, seed=0).records)
    return pipeline


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_writes_the_same(pipe, expected, duplicate):
    twin = duplicate(pipe)
    assert twin(6, **OPTIONS).texts == expected
    assert duplicate(twin)(6, fast=False, **OPTIONS).texts == expected
    assert pipe(6, **OPTIONS).texts == expected
    assert twin.autoencoder.decoder_lock is not pipe.autoencoder.decoder_lock


def test_the_parts_can_be_copied_alone(pipe, expected):
    for name in ("autoencoder", "denoiser"):
        part = getattr(pipe, name)
        for twin in (copy.deepcopy(part), pickled(part)):
            setattr(pipe, name, twin)
            assert pipe(6, **OPTIONS).texts == expected
    decoder = copy.deepcopy(pipe.autoencoder.decoder)
    pipe.autoencoder.attach_decoder(pickled(decoder))
    assert pipe(6, **OPTIONS).texts == expected


def test_a_spawned_process_writes_the_same(fitted, expected):
    pipe = fitted[0]
    pipe(2, **OPTIONS)
    call = operator.methodcaller("__call__", 6, return_dict=False, **OPTIONS)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        records, report = pool.apply(call, (pipe,))
    assert records == pipe(6, **OPTIONS).records
    assert report.returned == 6


class TestGrammarCache:
    def test_those_used_last_are_kept(self):
        cache, compiled = GrammarCache(2), []

        def get(key):
            return cache.get(key, lambda: compiled.append(key) or f"grammar {key}")

        assert [get(key) for key in "abacab"] == [f"grammar {key}" for key in "abacab"]
        assert compiled == ["a", "b", "c", "b"]
        assert len(cache) == 2

    def test_a_pipeline_forgets(self, fitted):
        pipe = copy.deepcopy(fitted[0])
        pipe.set_progress_bar_config(disable=True)
        for low in range(1, 31):
            pipe.constraint(pipe_condition(pipe, low))
        assert len(pipe._grammars) == pipe._grammars.size == 16
        assert pipe.constraint(pipe_condition(pipe, 30)) is pipe.constraint(pipe_condition(pipe, 30))

    def test_what_fails_to_compile_is_not_kept(self):
        cache = GrammarCache()
        with pytest.raises(ZeroDivisionError):
            cache.get("a", lambda: 1 / 0)
        assert cache.get("a", lambda: "grammar") == "grammar"
        assert len(pickled(cache)) == 0


def pipe_condition(pipe, low):
    from difflm.pipelines.conditions import check_condition

    return check_condition({"age": (low, low + 100)}, pipe.schema.columns)
