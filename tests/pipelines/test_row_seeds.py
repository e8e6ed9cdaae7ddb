"""Random numbers of rows: numpy's own seeds, made for many rows at once, and uniforms that belong to a row."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.pipelines.row_seeds import draft_uniforms, latent_generators, row_seeds, row_uniforms
from difflm.pipelines.token_sampling import RowRandom


ROWS = st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 9)), min_size=1, max_size=4)


@given(seed=st.integers(-(2**70), 2**70), rows=ROWS, stream=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_they_are_numpys(seed, rows, stream):
    found = row_seeds(seed, *zip(*rows, strict=True), stream)
    sequences = [np.random.SeedSequence(seed % 2**64, spawn_key=(*row, stream)) for row in rows]
    assert found.tolist() == [int(sequence.generate_state(1, np.uint64)[0]) for sequence in sequences]


@given(seed=st.integers(0, 2**64), rows=ROWS, count=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_rows_uniforms_do_not_depend_on_the_others(seed, rows, count):
    together = row_uniforms(seed, *zip(*rows, strict=True), 3, count)
    alone = [row_uniforms(seed, [row], [attempt], 3, count + 1)[0, :count] for row, attempt in rows]
    assert np.array_equal(together, np.stack(alone))
    assert (together >= 0).all() and (together < 1).all()


def test_uniforms_are_uniform_and_independent():
    values = row_uniforms(0, range(4000), [0] * 4000, 3, 12)
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert abs(counts / counts.mean() - 1).max() < 0.08
    beside = np.corrcoef(np.concatenate([values[:-1], values[1:]], axis=1).T) - np.eye(24)
    assert abs(beside).max() < 0.08


def test_rows_of_a_run():
    randoms = [RowRandom(-3, row, row % 2) for row in range(5)]
    for random, generator in zip(randoms, latent_generators(randoms), strict=True):
        assert torch.equal(torch.randn(4, generator=generator), torch.randn(4, generator=random.latent_generator()))
    assert torch.equal(draft_uniforms(randoms, 6)[2:4], draft_uniforms(randoms[2:4], 6))
    assert draft_uniforms([], 6).shape == (0, 6)
