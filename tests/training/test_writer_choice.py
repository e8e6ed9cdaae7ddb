"""Who writes is decided by what held-out records cost, unless it is asked for."""

from __future__ import annotations

import pytest

from difflm.training.writer_choice import choose_writer


@pytest.mark.parametrize(
    ("lm", "draft", "writer", "reason"),
    [
        (9.0, 10.0, "lm", "costs the language model 9.00 nats and the draft 10.00: 10.0 % less"),
        (9.9, 10.0, "lm", "1.0 % less"),
        (9.95, 10.0, "draft", "0.5 % are too little to pay"),
        (10.0, 10.0, "draft", "costs the language model 10.00 nats and the draft 10.00"),
        (float("nan"), 10.0, "draft", "costs the language model nan nats"),
        (0.5, 0.0, "draft", "the draft 0.00"),
    ],
)
def test_the_language_model_writes_where_it_adds(lm, draft, writer, reason):
    choice = choose_writer("auto", has_draft=True, lm_nats=lm, draft_nats=draft, least_gain=0.0099)
    assert choice.writer == writer
    assert choice.reason.endswith(reason) or reason in choice.reason


@pytest.mark.parametrize("asked", ["lm", "draft"])
def test_who_is_asked_for_writes(asked):
    assert choose_writer(asked, has_draft=True, lm_nats=1.0, draft_nats=2.0, least_gain=0.01) == (asked, "asked for")


def test_without_a_draft_the_language_model_writes():
    assert choose_writer("auto", has_draft=False, least_gain=0.01).writer == "lm"
    with pytest.raises(ValueError, match="must be known to choose"):
        choose_writer("auto", has_draft=True, least_gain=0.01)
