"""The decoder's context: how many tokens of a record it can read beside what the latent takes."""

from __future__ import annotations

import dataclasses

import torch

from difflm.modeling_difflm import DiffLMModel
from difflm.training.overlong import RecordTooLongError, longest_column, overlong_records
from difflm.training.preparation import Prepared


def within_context(prepared: Prepared, model: DiffLMModel) -> Prepared:
    """The same with a ``max_length`` that the decoder has positions for.

    Raises
    ------
    RecordTooLongError
        If a record needs more; names its longest column, and what can be done.
    """
    room = record_room(model)
    if room is None or prepared.max_length <= room:
        return prepared
    for dataset in prepared.datasets(model.config.eos_token_id or 0):
        if not (found := overlong_records(dataset, room)):
            continue
        row, tokens = next(iter(found.items()))
        name, most = longest_column(dataset.records[row], dataset.schema, dataset.decoder_tokenizer)
        raise RecordTooLongError(
            f"A record has {tokens:,} tokens ({most:,} of them its column {name!r}); the context of the decoder "
            f"{prepared.settings.decoder!r} has room for {room:,} beside the latent's, and {len(found):,} of "
            f"{len(dataset):,} records have more: leave them out (max_length={room}, overlong='drop'; --max-length "
            f"{room} --overlong drop), leave the column out, or take a decoder of a longer context (--decoder)."
        )
    return dataclasses.replace(prepared, max_length=room)


def record_room(model: DiffLMModel) -> int | None:
    """Most tokens of a record, the end-of-text token included, that the decoder can write; None: no limit is known."""
    if model.decoder is None:
        return None
    config = model.decoder.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    with torch.no_grad():
        taken = model.inject(torch.zeros(1, model.config.latent_size, device=model.device)).length
    # BOS takes a position, the end-of-text token none: it is never read.
    return max(positions - taken, 0)
