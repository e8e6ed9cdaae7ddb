"""The decoder's context: how many tokens of a record it can read beside what the latent takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from difflm.modeling_difflm import DiffLMConfig, resolve_source
from difflm.training.overlong import RecordTooLongError, longest_column, overlong_records
from difflm.training.preparation import Prepared


def within_context(prepared: Prepared, model_kwargs: Mapping[str, Any] | None = None) -> Prepared:
    """The same with a ``max_length`` that the decoder has positions for. Reads its configuration, no weights.

    ``model_kwargs`` are fields of [`DiffLMConfig`] that go before the settings'.

    Raises
    ------
    RecordTooLongError
        If a record needs more; names its longest column, and what can be done.
    """
    options = prepared.settings.model | dict(model_kwargs or {})
    source, gguf_file = resolve_source(prepared.settings.decoder)
    config = AutoConfig.from_pretrained(
        source,
        revision=options.get("decoder_revision") or "main",
        trust_remote_code=False,
        **({"gguf_file": found} if (found := gguf_file or options.get("decoder_gguf_file")) else {}),
    )
    room = record_room(config, options)
    if room is None or prepared.max_length <= room:
        return prepared
    for dataset in prepared.datasets(eos_token_id=0):
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


def record_room(config: Any, options: Mapping[str, Any]) -> int | None:
    """Most tokens of a record, the end-of-text token included, that a decoder of this configuration can write.

    None: no limit is known. ``options`` are fields of [`DiffLMConfig`].
    """
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    injection = options.get("injection", DiffLMConfig.injection)
    taken = 0 if injection == "embedding" else options.get("num_injection_tokens", DiffLMConfig.num_injection_tokens)
    # BOS takes a position, the end-of-text token none: it is never read.
    return max(positions - taken, 0)
