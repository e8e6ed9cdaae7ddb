"""Exact tensors of the dataset and the collator."""

from __future__ import annotations

import torch

from difflm.pipelines.record_schema import RecordSchema
from difflm.training.record_dataset import RecordCollator, RecordDataset


RECORDS = [{"a": 1, "b": "x"}, {"a": 23, "b": "y"}]


def dataset(encoder_tokenizer, decoder_tokenizer, records=RECORDS, **kwargs) -> RecordDataset:
    schema = RecordSchema.infer(RECORDS, record_format="values")
    return RecordDataset(records, schema, encoder_tokenizer, decoder_tokenizer, eos_token_id=1, **kwargs)


def test_a_batch_is_padded_on_the_right(encoder_tokenizer, decoder_tokenizer):
    data = dataset(encoder_tokenizer, decoder_tokenizer)
    batch = RecordCollator(encoder_pad_token_id=0)([data[0], data[1]])

    def ids(text):
        return decoder_tokenizer(text, add_special_tokens=False)["input_ids"]

    def encoder_ids(text):
        return encoder_tokenizer(text)["input_ids"]

    assert batch["labels"].tolist() == [[*ids("1,x"), 1, -100], [*ids("23,y"), 1]]
    assert batch["input_ids"].tolist() == [[*encoder_ids("1,x"), 0], encoder_ids("23,y")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert batch["labels"].dtype == torch.long


def test_values_stand_beside_the_text(encoder_tokenizer, decoder_tokenizer):
    data = dataset(encoder_tokenizer, decoder_tokenizer)
    assert RecordCollator()([data[1], data[0]])["feature_values"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert data.feature_values().tolist() == [[0.0, 0.0], [1.0, 1.0]]
    words = [{"b": "x"}, {"b": "y"}]
    schema = RecordSchema.infer(words, text_columns=["b"])
    data = RecordDataset(words, schema, encoder_tokenizer, decoder_tokenizer, eos_token_id=1)
    assert "feature_values" not in RecordCollator()([data[0]])


def test_tokens_of_columns_are_their_values_with_what_ends_them(decoder_tokenizer):
    data = dataset(None, decoder_tokenizer)
    assert len(data.token_ids(RECORDS[1])) == 5  # 2 3 , y and the end
    assert data.tokens_of(RECORDS[1], ()) == [False] * 5
    assert data.tokens_of(RECORDS[1], ("a",)) == [True, True, True, False, False]
    assert data.tokens_of(RECORDS[1], ("b",)) == [False, False, False, True, True]
    assert data.tokens_of(RECORDS[1], ("a", "b")) == [True] * 5


def test_without_an_encoder_there_is_no_text_to_read(decoder_tokenizer):
    latents = torch.tensor([[0.5, 1.0], [0.25, -1.0]])
    data = dataset(None, decoder_tokenizer, column_latents=latents)
    batch = RecordCollator()([data[0], data[1]])
    assert batch.keys() == {"labels", "column_latents"}
    assert torch.equal(batch["column_latents"], latents)
