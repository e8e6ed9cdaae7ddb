"""Writing records: a latent, a compiled grammar and a row's random numbers become a text.

A [`RecordWriter`] is how the language model does that; all of them give the same texts: which one is taken is a matter
of speed. [`CallWriter`] is who writes a call's records: the language model, the draft, or each its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from .decode_rows import decode_rows
from .draft_writer import DraftWriter
from .packed_attention import supports
from .record_grammar import RecordConstraint
from .record_schema import RecordSchema
from .token_sampling import RecordLogitsProcessor, RowRandom


@dataclass(frozen=True)
class WritingOptions:
    """How tokens are drawn.

    Attributes
    ----------
    temperature, top_k, top_p
        See `choose_tokens`.
    constrained : bool, default True
        Whether the grammar restricts the tokens.
    batch_size : int, default 256
        Most rows in the decoder at a time.
    max_new_tokens : int, default 1024
        Most tokens of a record.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    constrained: bool = True
    batch_size: int = 256
    max_new_tokens: int = 1024


class RecordWriter:
    """Writes one text per latent; the base of the ways to do it, which differ in :meth:`write`.

    Parameters
    ----------
    autoencoder : DiffLMModel
        Its injector and its decoder are used, by one thread at a time.
    options : WritingOptions
    """

    #: How many batches :meth:`write` gets at a time.
    batches_at_once = 1
    #: How many rows at least.
    least_rows = 1

    def __init__(self, autoencoder: Any, options: WritingOptions) -> None:
        self.autoencoder, self.options = autoencoder, options

    def __call__(
        self,
        latents: Tensor,
        constraint: RecordConstraint,
        randoms: Sequence[RowRandom],
        *,
        given_texts: Sequence[Mapping[str, str] | None] | None = None,
        on_rows_done: Callable[[int], Any] | None = None,
    ) -> list[str]:
        """Write records.

        Parameters
        ----------
        latents : Tensor
            ``[rows, latent_size]``.
        constraint : RecordConstraint
        randoms : sequence of RowRandom
            One per row.
        given_texts : sequence of mappings, optional
            Per row the texts of its known cells by column name.
        on_rows_done : callable, optional
            Called with the number of rows that have just been finished.
        """
        texts: list[str] = []
        rows_at_once = max(self.options.batch_size * self.batches_at_once, self.least_rows)
        for start in range(0, len(latents), rows_at_once):
            rows = slice(start, start + rows_at_once)
            given = None if given_texts is None else given_texts[rows]
            chunk = latents[rows].to(self.autoencoder.device)
            with self.autoencoder.decoder_lock:
                tokens = self.write(chunk, constraint, randoms[rows], given, on_rows_done)
            texts.extend(constraint.text(row) for row in tokens)
        return texts

    def write(
        self,
        latents: Tensor,
        constraint: RecordConstraint,
        randoms: Sequence[RowRandom],
        given_texts: Sequence[Mapping[str, str] | None] | None,
        on_rows_done: Callable[[int], Any] | None,
    ) -> list[list[int]]:
        """The rows' tokens; the decoder is this thread's alone."""
        raise NotImplementedError

    def most_tokens(self, constraint: RecordConstraint) -> int:
        """Of a record. A text written freely may never end: no longer than any valid record can be."""
        return min(self.options.max_new_tokens, constraint.max_new_tokens or self.options.max_new_tokens)

    @property
    def drawing(self) -> dict[str, Any]:
        """The options that say how a token is drawn."""
        return {name: getattr(self.options, name) for name in ("temperature", "top_k", "top_p", "constrained")}


class PackedWriter(RecordWriter):
    """Our own loop (see decode_rows.py). Its batch is filled up as rows finish: it gets several batches at a time."""

    batches_at_once = 8
    least_rows = 256  # what guesses learn from the rows before is worth most where few rows share a pass

    def write(
        self,
        latents: Tensor,
        constraint: RecordConstraint,
        randoms: Sequence[RowRandom],
        given_texts: Sequence[Mapping[str, str] | None] | None,
        on_rows_done: Callable[[int], Any] | None,
    ) -> list[list[int]]:
        return decode_rows(
            self.autoencoder.decoder,
            self.autoencoder.inject(latents),
            constraint,
            randoms,
            given_texts=given_texts,
            batch_size=self.options.batch_size,
            max_new_tokens=self.most_tokens(constraint),
            on_rows_done=on_rows_done,
            **self.drawing,
        )


class GenerateWriter(RecordWriter):
    """The decoder's own ``generate``: slower, and for every decoder."""

    def write(
        self,
        latents: Tensor,
        constraint: RecordConstraint,
        randoms: Sequence[RowRandom],
        given_texts: Sequence[Mapping[str, str] | None] | None,
        on_rows_done: Callable[[int], Any] | None,
    ) -> list[list[int]]:
        processor = RecordLogitsProcessor(constraint, randoms, given_texts=given_texts, **self.drawing)
        tokens = self.autoencoder.generate(
            latents,
            logits_processor=LogitsProcessorList([processor]),
            do_sample=False,
            max_new_tokens=self.most_tokens(constraint),
        ).tolist()
        if on_rows_done is not None:
            on_rows_done(len(tokens))
        return tokens


def record_writer(autoencoder: Any, options: WritingOptions, *, fast: bool = True) -> RecordWriter:
    """The fastest writer that the decoder can be used with, or with ``fast=False`` its own ``generate``."""
    with autoencoder.decoder_lock:
        packed = fast and supports(autoencoder.decoder)
    return (PackedWriter if packed else GenerateWriter)(autoencoder, options)


@dataclass(frozen=True)
class CallWriter:
    """Writes a call's records.

    Attributes
    ----------
    schema : RecordSchema
    draft : DraftWriter, optional
        Writes its cells first; where these are all, nobody else is needed.
    model : callable, optional
        A [`RecordWriter`] with its constraint: writes the other cells, or without a draft all of them.
    """

    schema: RecordSchema
    draft: DraftWriter | None = None
    model: Callable[..., list[str]] | None = None

    def __call__(
        self,
        latents: Tensor,
        randoms: Sequence[RowRandom],
        given: Sequence[Mapping[str, Any]] | None = None,
        on_rows_done: Callable[[int], Any] | None = None,
    ) -> list[str]:
        """One text per row of ``latents``, ``[rows, latent_size]``; parameters as in [`DraftWriter`]."""
        texts: list[dict[str, str]] | None = None
        if self.draft is not None:
            if self.model is None:
                return self.draft.texts(self.draft.cells(latents, randoms, given, on_rows_done))
            cells = self.draft.cells(latents, randoms, given)
            texts = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        if self.model is None:
            raise ValueError("Nobody writes: a CallWriter needs a draft or a model.")
        if given is not None:
            known = [{name: self.schema.value_text(name, row[name]) for name in row} for row in given]
            texts = known if texts is None else [row | own for row, own in zip(texts, known, strict=True)]
        return self.model(latents, randoms=randoms, given_texts=texts, on_rows_done=on_rows_done)
