"""Records as training examples: lazy tokenisation by segment, and the collator that pads a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.vocabulary import tokenize_segment


IGNORED_LABEL = -100
_CACHED_SEGMENT_CHARACTERS = 64


class RecordDataset(Dataset):
    """Records, tokenised when asked for.

    The decoder's tokens are those of the record's segments (keys and values apart), as constrained sampling will
    force and draw them, then EOS. The encoder, if there is one, reads the same text.

    Parameters
    ----------
    records : sequence of dict
    schema : RecordSchema
    encoder_tokenizer : PreTrainedTokenizerBase or None
    decoder_tokenizer : PreTrainedTokenizerBase
    eos_token_id : int
        Ends every record.
    untold_ends : int, default 0
        How many of a column's smallest and largest values :meth:`told_feature_values` leaves out.
    column_latents : Tensor, optional
        ``[records, column_latent_size]``: what the model reads instead of the values' places.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        schema: RecordSchema,
        encoder_tokenizer: PreTrainedTokenizerBase | None,
        decoder_tokenizer: PreTrainedTokenizerBase,
        eos_token_id: int,
        untold_ends: int = 0,
        column_latents: Tensor | None = None,
    ) -> None:
        self.schema, self.eos_token_id, self.untold_ends = schema, eos_token_id, untold_ends
        self.encoder_tokenizer, self.decoder_tokenizer = encoder_tokenizer, decoder_tokenizer
        self.column_latents = column_latents
        self._segment_ids: dict[str, list[int]] = {}
        self.records = list(records)
        # In bytes, of which a text never has fewer than tokens: only a long one must be tokenised to know.
        self.lengths = [len(schema.serialize(record).encode()) for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def token_ids(self, record: dict[str, Any]) -> list[int]:
        """The decoder's tokens of a record, EOS last."""
        ids: list[int] = []
        for segment in self.schema.segments(record):
            known = self._segment_ids.get(segment.text)
            if known is None:
                known = tokenize_segment(self.decoder_tokenizer, segment.text)
                if len(segment.text) <= _CACHED_SEGMENT_CHARACTERS:
                    self._segment_ids[segment.text] = known
            ids.extend(known)
        return [*ids, self.eos_token_id]

    def tokens_of(self, record: dict[str, Any], columns: Collection[str]) -> list[bool]:
        """Which of a record's tokens write the values of these columns, each with the token behind, which ends it."""
        found: list[bool] = []
        ends = False
        for segment in self.schema.segments(record):
            inside = segment.column in columns
            for _ in tokenize_segment(self.decoder_tokenizer, segment.text):
                found.append(inside or ends)
                ends = False
            ends = ends or inside
        return [*found, ends]

    def vocabulary(self, limit: int | None = None) -> list[int] | None:
        """The decoder's tokens that occur in any record, ascending; None if there are more than ``limit``."""
        tokens: set[int] = set()
        for record in self.records:
            tokens.update(self.token_ids(record))
            if limit is not None and len(tokens) > limit:
                return None
        return sorted(tokens)

    def feature_values(self) -> Tensor:
        """Places of all records' numbers in their columns' ranges, ``[records, columns]``, NaN where missing."""
        return torch.tensor([self.schema.feature_values(record) for record in self.records])

    def told_feature_values(self) -> Tensor:
        """As :meth:`feature_values`, for quantiles that the weights keep: without the values at the ranges' ends.

        The ``untold_ends`` smallest and largest places of a column with a range are replaced by steps up to the ends.
        """
        values = self.feature_values()
        ranged = [column.minimum is not None for column in self.schema.columns for _ in column.feature_names]
        for place in range(values.shape[1] if self.untold_ends else 0):
            if ranged[place]:
                known = ~values[:, place].isnan()
                values[known, place] = _without_ends(values[known, place], self.untold_ends)
        return values

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        record = self.records[index]
        example: dict[str, list[Any]] = {"labels": self.token_ids(record)}
        if self.encoder_tokenizer is not None:
            # Some tokenizers state no limit but a huge number.
            limit = min(self.encoder_tokenizer.model_max_length, 512)
            encoded = self.encoder_tokenizer(self.schema.serialize(record), truncation=True, max_length=limit)
            example["input_ids"] = encoded["input_ids"]
        if self.column_latents is not None:
            example["column_latents"] = self.column_latents[index].tolist()
        elif self.schema.feature_columns:
            example["feature_values"] = self.schema.feature_values(record)
        return example


@dataclass
class RecordCollator:
    """Pad examples on the right to the batch's longest.

    Masks come from lengths, never from ``!= pad``: a decoder's pad token may be its EOS token.
    """

    encoder_pad_token_id: int = 0

    def __call__(self, examples: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
        batch = {"labels": _pad([example["labels"] for example in examples], IGNORED_LABEL)}
        if "input_ids" in examples[0]:
            batch["input_ids"] = _pad([example["input_ids"] for example in examples], self.encoder_pad_token_id)
            lengths = torch.tensor([len(example["input_ids"]) for example in examples])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        for name in ("feature_values", "column_latents"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def encoder_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch [`~DiffLMModel.encode`] reads."""
    return {name: values for name, values in batch.items() if name != "labels"}


def _without_ends(values: Tensor, count: int) -> Tensor:
    """Values between 0 and 1, sorted, of which the first and the last ``count`` are steps from 0 and to 1."""
    values = values.sort().values
    if len(values) <= 2 * count:
        return torch.linspace(0, 1, len(values))
    low, high = float(values[count]), float(values[-1 - count])
    values[:count] = torch.linspace(0, low, count + 1)[:-1]
    values[-count:] = torch.linspace(high, 1, count + 1)[1:]
    return values


def _pad(rows: list[list[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
