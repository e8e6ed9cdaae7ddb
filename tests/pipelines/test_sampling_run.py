"""The account of a call: which rows are kept, which are written again, and who keeps one of two equal records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from difflm.pipelines.sampling_run import SamplingRun


class Judge:
    """Takes every text but "bad" (no record) and "no" (refused)."""

    schema = SimpleNamespace()

    def __call__(self, text: str):
        reasons = {"bad": "invalid: a: it is bad", "no": "condition"}
        return {"a": text}, reasons.get(text)


def make_run(num_samples: int, max_attempts: int = 3, unique: bool = True) -> SamplingRun:
    return SamplingRun(
        num_samples=num_samples, seed=5, first_row=10, max_attempts=max_attempts, unique=unique, judge=Judge()
    )


def take(run: SamplingRun, **texts: str) -> None:
    rows = [int(name[1:]) for name in texts]
    run.take(rows, list(texts.values()), torch.tensor(rows)[:, None].float())


def test_of_equal_records_the_lowest_row_keeps_its_own_in_whatever_order_they_come() -> None:
    run = make_run(3)
    take(run, r1="x", r2="y")
    take(run, r0="x")
    assert run.pending() == [1]  # what it had is row 0's
    take(run, r1="y")
    assert run.pending() == [2]
    take(run, r2="x")
    assert run.pending() == [2]
    take(run, r2="z")
    output = run.output()
    assert (output.texts, output.rows) == (["x", "y", "z"], [10, 11, 12])
    assert output.latents.tolist() == [[0.0], [1.0], [2.0]]
    assert run.report.rejected == {"duplicate": 3}
    assert (run.report.attempts, run.report.first_attempt_parsed, run.report.returned) == (6, 3, 3)


def test_equal_records_are_kept_where_nothing_else_is_asked() -> None:
    run = make_run(2, unique=False)
    take(run, r0="x", r1="x")
    assert run.pending() == [] and run.output().texts == ["x", "x"]


def test_a_row_has_so_many_attempts_and_other_random_numbers_in_each() -> None:
    run = make_run(2, max_attempts=2)
    first = [random.uniform() for random in run.randoms([0, 1])]
    take(run, r0="bad", r1="no")
    assert run.pending() == [0, 1]
    assert not {random.uniform() for random in run.randoms([0, 1])} & {*first}
    take(run, r0="no", r1="x")
    assert run.pending() == []
    with pytest.warns(UserWarning, match="1 of 2 rows were given up after 2 attempts"):
        output = run.output()
    assert output.rows == [11]
    assert (run.report.first_attempt_parsed, run.report.rejected["condition"]) == (1, 2)
    with pytest.warns(UserWarning, match="2 of 2 rows"):
        assert make_run(2).output().latents.shape == (0,)
