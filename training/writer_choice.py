"""Who writes the records of a fitted pipeline: the language model, or the draft by itself."""

from __future__ import annotations

from typing import Literal, NamedTuple


class WriterChoice(NamedTuple):
    """Who writes, and why."""

    writer: Literal["lm", "draft"]
    reason: str


def choose_writer(
    asked: str, *, has_draft: bool, lm_nats: float | None = None, draft_nats: float | None = None, least_gain: float
) -> WriterChoice:
    """Choose by what held-out records cost.

    Parameters
    ----------
    asked : {"auto", "lm", "draft"}
    has_draft : bool
    lm_nats, draft_nats : float, optional
        Of a held-out record's cells, those that the draft can write, by each alone; needed for "auto" with a draft.
    least_gain : float
        The language model writes if it needs less than the draft by this share.

    Raises
    ------
    ValueError
        If "auto" is asked and the nats are not known.
    """
    if not has_draft:
        return WriterChoice("lm", "there is no draft of such records")
    if asked != "auto":
        return WriterChoice("lm" if asked == "lm" else "draft", "asked for")
    if lm_nats is None or draft_nats is None:
        raise ValueError("What held-out records cost the language model and the draft must be known to choose.")
    gain = 1 - lm_nats / draft_nats if draft_nats > 0 else 0.0
    nats = f"a held-out record costs the language model {lm_nats:.2f} nats and the draft {draft_nats:.2f}"
    if gain >= least_gain:
        return WriterChoice("lm", f"{nats}: {100 * gain:.1f} % less")
    if gain > 0:
        return WriterChoice("draft", f"{nats}: {100 * gain:.1f} % are too little to pay")
    return WriterChoice("draft", nats)
