"""Drawing tokens: the model's distribution renormalised, and randomness that belongs to a row."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from difflm.pipelines.token_sampling import (
    RecordLogitsProcessor,
    RowRandom,
    SamplingError,
    check_sampling_options,
    choose_tokens,
)


def draw(logits: torch.Tensor, choices: np.ndarray, number: int, **options: object) -> np.ndarray:
    """Tokens of `number` rows with the same logits [vocab_size]."""
    uniforms = [RowRandom(0, row).uniform() for row in range(number)]
    return np.array(choose_tokens(logits.expand(number, -1), [choices] * number, uniforms, **options))


def expected_distribution(logits: torch.Tensor, choices: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    ids = np.flatnonzero(choices) if choices.dtype == np.bool_ else choices
    weights = np.exp(logits.double().numpy()[ids] / temperature)
    full = np.zeros(len(logits))
    full[ids] = weights / weights.sum()
    return full


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_match_the_renormalised_model(dense: bool, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1500)
    logits[[3, 700, 1400]] += 8.0  # likely tokens at both ends of several blocks, one of them not allowed
    if dense:
        choices = np.ones(1500, dtype=np.bool_)
        choices[700] = False
    else:
        choices = np.array([3, 4, 5, 255, 256, 1400], dtype=np.int64)
        logits[[4, 5, 255, 256]] = torch.tensor([9.0, 7.0, -3.0, 8.0])
    number = 20_000
    frequencies = np.bincount(draw(logits, choices, number, temperature=temperature), minlength=1500) / number
    expected = expected_distribution(logits, choices, temperature)
    error = np.sqrt(expected * (1 - expected) / number)
    assert (frequencies[expected == 0] == 0).all()
    assert (np.abs(frequencies - expected) <= 5 * error + 1 / number).all()
    assert expected.max() < 0.9


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    choices = np.array([1, 2, 3])
    for row in range(50):
        uniform = RowRandom(7, row).uniform()
        expected = choices[np.searchsorted(np.cumsum([2 / 9, 3 / 9, 4 / 9]), uniform, side="right")]
        assert choose_tokens(logits[None], [choices], [uniform]) == [expected]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 3000)
    mask = np.zeros(3000, dtype=np.bool_)
    mask[::2] = True
    choices = [mask if row % 3 else np.arange(row + 1, 40 * row + 7) for row in range(9)]
    options = {"top_k": 50, "top_p": 0.9, "temperature": 1.3}
    together = choose_tokens(logits, choices, [RowRandom(5, row).uniform() for row in range(9)], **options)
    alone = [choose_tokens(logits[[r]], [choices[r]], [RowRandom(5, r).uniform()], **options)[0] for r in range(9)]
    assert together == alone


def test_columns_of_a_partial_output_layer() -> None:
    torch.manual_seed(2)
    logits = torch.randn(40, 500)
    columns = np.array([2, 3, 5, 7, 11, 400, 499])
    choices = [columns[row % 3 :: 2] for row in range(40)]
    uniforms = [RowRandom(0, row).uniform() for row in range(40)]
    whole = choose_tokens(logits, choices, uniforms)
    part = choose_tokens(logits[:, columns], choices, uniforms, columns=columns)
    assert whole == part
    assert len(set(whole)) > 3


def test_top_k_top_p_and_temperature_zero() -> None:
    logits = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1]))
    everything = np.arange(5)
    assert set(draw(logits, everything, 400, top_k=2)) == {0, 2}
    assert set(draw(logits, everything, 400, top_p=0.6)) == {0, 2}
    assert set(draw(logits, everything, 400, top_p=0.75)) == {0, 2, 3}
    assert set(draw(logits, np.array([1, 3, 4]), 400, top_k=1)) == {3}  # of the allowed tokens
    assert set(draw(logits, np.array([1, 2, 3]), 50, temperature=0)) == {2}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    equal = torch.zeros(4)
    assert set(draw(equal, np.arange(4), 400, top_p=0.5)) == {0, 1}
    assert set(draw(equal, np.arange(4), 400, top_p=0.501)) == {0, 1, 2}
    assert set(draw(equal, np.arange(4), 400, top_p=1e-9)) == {0}


def test_top_p_below_one_drops_even_the_least_probable() -> None:
    largest, logits = 1 - 2.0**-53, torch.log(torch.tensor([1 - 2.0**-20, 2.0**-20]))
    drawn = [choose_tokens(logits[None], [np.arange(2)], [largest], top_p=share) for share in (1.0, 1 - 2.0**-19)]
    assert drawn == [[1], [0]]


def test_the_smallest_number_draws_the_first_token_that_is_allowed() -> None:
    """0.0 is as likely as any other number, and the cumulative distribution begins with tokens of no weight."""
    smallest = 0.0
    for first in (1, 255, 256, 299):
        mask = np.zeros(600, dtype=np.bool_)
        mask[first:500] = True
        assert choose_tokens(torch.zeros(1, 600), [mask], [smallest]) == [first]
    logits = torch.zeros(1, 4)
    logits[0, 0] = -200.0  # allowed, but its weight is 0 in float32
    assert choose_tokens(logits, [np.arange(4)], [smallest]) == [1]


def test_logits_are_taken_as_float32_whatever_their_size_and_dtype() -> None:
    torch.manual_seed(6)
    logits = torch.randn(300) * 3
    exact = (logits * 64).round() / 64  # so is 4096 more
    plain = draw(exact, np.arange(300), 300)
    assert (draw(exact + 4096, np.arange(300), 300) == plain).all()
    mask = np.ones(300, dtype=np.bool_)
    for dtype in (torch.bfloat16, torch.float16):
        expected = draw(logits.to(dtype).float(), np.arange(300), 300, temperature=0.7)
        assert (draw(logits.to(dtype), np.arange(300), 300, temperature=0.7) == expected).all()
        assert (draw(logits.to(dtype), mask, 300, temperature=0.7) == expected).all()
    assert len(set(plain)) > 10


def test_bounds_that_keep_all_change_nothing() -> None:
    torch.manual_seed(4)
    logits = torch.randn(300) * 5
    plain = draw(logits, np.arange(300), 500)
    assert (draw(logits, np.arange(300), 500, top_p=1, top_k=0) == plain).all()
    assert (draw(logits, np.arange(300), 500, top_k=300) == plain).all()


def test_rounding_never_draws_past_the_last_token_of_weight() -> None:
    """The largest uniform number; blocks are summed in another precision than their tokens."""
    largest = 1 - 2.0**-53
    for seed in range(100):
        torch.manual_seed(seed)
        logits = torch.rand(600)
        mask = np.zeros(600, dtype=np.bool_)
        mask[:500] = True
        assert choose_tokens(logits[None], [mask], [largest]) == [499]
        # Rows of different lengths: the shorter one is filled up with tokens of no weight.
        choices = [np.arange(240), np.arange(255)]
        assert choose_tokens(logits.expand(2, -1), choices, [largest, largest]) == [239, 254]


def test_options_of_numpys_types() -> None:
    logits = torch.randn(50)
    plain = draw(logits, np.arange(50), 40, temperature=0.5, top_k=7, top_p=0.75)
    found = draw(
        logits, np.arange(50), 40, temperature=np.float32(0.5), top_k=np.int64(7), top_p=np.float32(0.75)
    )
    assert (found == plain).all()


def test_logits_that_are_not_numbers_are_refused() -> None:
    for value in (math.nan, math.inf, -math.inf):
        for choices in (np.arange(4), np.ones(4, dtype=np.bool_)):
            with pytest.raises(SamplingError, match="not finite"):
                draw(torch.full((4,), value), choices, 1)


def test_a_whole_vocabulary_is_summed_without_losing_its_small_tokens() -> None:
    """Against float64 throughout: in float32 one draw in twenty would be its neighbour's."""
    torch.manual_seed(5)
    logits, mask = torch.randn(50_000), np.ones(50_000, dtype=np.bool_)
    cumulative = (logits - logits.max()).exp().double().cumsum(0).numpy()
    uniforms = np.array([RowRandom(0, row).uniform() for row in range(200)])
    expected = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    assert (draw(logits, mask, 200) != expected).sum() <= 2


def test_row_randomness_is_a_function_of_seed_row_and_attempt() -> None:
    keys = list(itertools.product((-1, 0, 1, 2**40), (0, 1), (0, 1)))
    streams = {key: tuple(RowRandom(*key).uniform() for _ in range(3)) for key in keys}
    latents = {key: torch.randn(2, generator=RowRandom(*key).latent_generator()).tolist() for key in keys}
    assert len(set(streams.values())) == len(keys)
    assert len({tuple(value) for value in latents.values()}) == len(keys)
    assert all(tuple(RowRandom(*key).uniform() for _ in range(1)) == streams[key][:1] for key in keys)
    random = RowRandom(np.int64(3), 4)
    used = [random.uniform() for _ in range(5)]
    assert torch.equal(
        torch.randn(3, generator=random.latent_generator()),
        torch.randn(3, generator=RowRandom(3, 4).latent_generator()),
    )
    assert all(0 <= number < 1 for number in used)
    labels = torch.randn(3, generator=random.label_generator())
    assert torch.equal(labels, torch.randn(3, generator=RowRandom(3, 4).label_generator()))
    assert not torch.equal(labels, torch.randn(3, generator=random.latent_generator()))


def test_numbers_that_were_looked_at_are_still_to_be_drawn() -> None:
    random, other = RowRandom(1, 2), RowRandom(1, 2)
    numbers = [other.uniform() for _ in range(6)]
    assert random.look_ahead(3) == numbers[3]
    assert random.look_ahead(0) == random.uniform() == numbers[0]
    assert [random.look_ahead(place) for place in range(2)] == numbers[1:3]
    assert [random.uniform() for _ in range(5)] == numbers[1:]


def test_random_numbers_are_those_of_earlier_versions() -> None:
    """A seed gives the same rows for good: these numbers change for no reason."""
    random = RowRandom(-3, 4, 1)
    assert [random.uniform(), random.uniform()] == [0.5462645137613529, 0.866521319458468]
    assert torch.randint(2**40, (2,), generator=random.latent_generator()).tolist() == [128252413696, 889131381162]
    assert torch.randint(2**40, (2,), generator=random.label_generator()).tolist() == [262613620315, 56277384850]


@pytest.mark.parametrize("arguments", [("1", 0), (1.5, 0), (None, 0), (True, 0), (0, -1), (0, 0, -2), (0, "a")])
def test_wrong_seeds_and_rows_are_refused(arguments: tuple) -> None:
    with pytest.raises(SamplingError, match="must be an integer"):
        RowRandom(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-1, None, None), "temperature"),
        ((float("inf"), None, None), "temperature"),
        ((float("nan"), None, None), "temperature"),
        (("hot", None, None), "temperature"),
        ((True, None, None), "temperature"),
        ((1, True, None), "top_k"),
        ((1, np.True_, None), "top_k"),
        ((1, None, True), "top_p"),
        ((1, -1, None), "top_k"),
        ((1, 1.5, None), "top_k"),
        ((1, None, 0), "top_p"),
        ((1, None, 1.1), "top_p"),
    ],
)
def test_options_out_of_range_are_named(options: tuple, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        check_sampling_options(*options)


class _TwoChoices:
    """A constraint: one forced token, then two choices among 0, 2 and 3, then EOS (1)."""

    eos_token_id = 1

    def start(self, given_texts: object = None, *, constrained: bool = True) -> _TwoChoices:
        state = _TwoChoices()
        state.left, state.done, state.pending = 2, False, [4]
        return state

    def forced(self) -> list[int]:
        run, self.pending = self.pending, []
        return run

    def choices(self) -> np.ndarray:
        return np.array([0, 2, 3])

    def advance(self, token: int) -> None:
        self.left -= 1
        self.done = self.left == 0
        self.pending = [1] if self.done else []


def test_the_processor_leaves_one_token_per_row() -> None:
    processor = RecordLogitsProcessor(_TwoChoices(), [RowRandom(0, 0), RowRandom(0, 1)])
    ids = torch.empty(2, 0, dtype=torch.long)
    written = []
    for _ in range(5):
        scores = processor(ids, torch.zeros(2, 6))
        assert torch.isfinite(scores).sum(dim=1).tolist() == [1, 1]
        written.append(scores.argmax(dim=1))
        ids = torch.stack(written, dim=1)
    assert ids[:, 0].tolist() == [4, 4]
    assert set(ids[:, 1:3].unique().tolist()) <= {0, 2, 3}
    assert ids[:, 3:].tolist() == [[1, 1], [1, 1]]


def test_the_processor_refuses_another_batch_or_call() -> None:
    with pytest.raises(SamplingError, match="3 rows are generated"):
        RecordLogitsProcessor(_TwoChoices(), [RowRandom(0, 0)])(torch.empty(3, 0), torch.zeros(3, 6))
    processor = RecordLogitsProcessor(_TwoChoices(), [RowRandom(0, 0)])
    processor(torch.empty(1, 0), torch.zeros(1, 6))
    with pytest.raises(SamplingError, match="one call of generate"):
        processor(torch.empty(1, 0), torch.zeros(1, 6))
