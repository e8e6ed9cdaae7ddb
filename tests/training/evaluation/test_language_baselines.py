"""Baselines that write with a language model: time limits, learning rate, what counts as a row."""

import numpy as np
import pytest
import torch

from difflm.training.evaluation import language_baselines as module
from difflm.training.evaluation.tables import EvaluationError, TableSpec, prepare
from tests.conftest import tiny_decoder


@pytest.fixture(scope="module")
def spec(small_table):
    return TableSpec.infer(small_table, target="kind")


def says(texts, tokenizer):
    """A ``generate`` that goes on with these texts in turn, whatever it is given."""

    def generate(input_ids, **options):
        said = [texts[place % len(texts)] for place in range(len(input_ids))]
        width = max(map(len, said))
        return torch.cat([input_ids, torch.tensor(tokenizer([one.ljust(width) for one in said])["input_ids"])], dim=1)

    return generate


def test_the_rate_warms_up_and_falls_to_zero():
    schedule = module._Schedule(1.0, float("inf"), steps=100, warmup=10)
    rates = [schedule(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and np.argmax(rates) == 9 and rates[100] == 0
    assert not schedule.over
    schedule = module._Schedule(1.0, schedule.started - 1, steps=100)
    assert schedule.over and schedule(50) == 0


@pytest.mark.parametrize("name", ["great", "lora_lm"])
def test_a_fit_stops_in_time(name, small_table, spec, model_folders):
    pytest.importorskip({"great": "be_great", "lora_lm": "peft"}[name])
    baseline = {"great": module.GReaT, "lora_lm": module.FineTunedLM}[name]
    model = baseline(0.0, decoder=model_folders["decoder"]).fit(small_table, spec)
    assert model.details["steps"] == 1 and model.details["epochs"] == 0.12


@pytest.mark.parametrize("name", ["great", "lora_lm"])
def test_a_fit_learns(name, small_table, spec, model_folders, monkeypatch):
    pytest.importorskip({"great": "be_great", "lora_lm": "peft"}[name])
    baseline = {"great": module.GReaT, "lora_lm": module.FineTunedLM}[name]
    monkeypatch.setattr(baseline, "epochs", 10, raising=False)
    monkeypatch.setattr(baseline, "max_epochs", 10, raising=False)
    monkeypatch.setattr(baseline, "learning_rate", 1e-2)
    # Small matrices are not faster in bf16, and each shape is compiled.
    monkeypatch.setattr(baseline, "_bf16", False)
    model = baseline(None, decoder=model_folders["decoder"]).fit(small_table, spec)
    first, last = model.details["losses"]
    assert model.details["epochs"] == 10 and last < first - 0.3


def test_great_rows(small_table, spec, model_folders):
    pytest.importorskip("be_great")
    model = module.GReaT(0.0, decoder=model_folders["decoder"], sample_batch_size=6).fit(small_table, spec)
    names = [name for name in small_table.columns if name != "kind"]
    # Missing cells are "None", and whole numbers have no decimal point.
    rows = small_table[names].convert_dtypes().astype(object).where(small_table[names].notna(), "None")
    sentences = [
        " " + ", ".join(f"{name} is {value}" for name, value in row.items()) for row in rows.to_dict(orient="records")
    ]
    written = [sentences[0], "nothing", sentences[1]]
    model._model.model.generate = says(written, model._model.tokenizer)
    sampled = model.sample(7)
    assert len(sampled) == 7 and sampled.columns.tolist() == small_table.columns.tolist()
    assert model.details["texts"] == 12 and model.details["validity_rate"] == pytest.approx(2 / 3)
    wanted = prepare(small_table.head(2), spec)[names]
    found = prepare(sampled, spec)[names].iloc[:2]
    assert found.equals(wanted) and wanted.isna().any().any()
    assert set(sampled["kind"]) <= {"cat", "dog"}
    assert max(map(len, model._model.tokenizer(sentences)["input_ids"])) < model._longest


def test_examples_in_the_prompt(small_table, spec, model_folders, monkeypatch):
    model = module.InContext(decoder=model_folders["decoder"], sample_minutes=0.0, sample_batch_size=16)
    model.fit(small_table, spec)
    decoder, tokenizer = model._load()
    decoder.generate = says([f"{model._lines[3]}\nmore", "{", f" {model._lines[5]}", "[]"], tokenizer)
    monkeypatch.setattr(model, "_load", lambda: (decoder, tokenizer))
    # The time is over after one batch.
    rows = model.sample(100)
    assert len(rows) == 8 and model.details == {"texts": 16, "validity_rate": 0.5}
    assert prepare(rows, spec).head(2).equals(prepare(small_table.iloc[[3, 5]], spec))


def test_a_model_that_writes_no_record_is_an_error(small_table, spec, model_folders):
    model = module.InContext(decoder=model_folders["decoder"], sample_minutes=0.0, sample_batch_size=8)
    with pytest.raises(EvaluationError, match="icl: none of 8 texts is a record"):
        model.fit(small_table, spec).sample(5)


def test_prompts_that_are_read_once_are_continued_as_if_read_each_time(decoder_tokenizer):
    model = tiny_decoder()
    inputs = decoder_tokenizer(["a", "a longer one"], padding=True, padding_side="left", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": decoder_tokenizer.pad_token_id}
    plain = model.generate(**{name: value.repeat_interleave(3, dim=0) for name, value in inputs.items()}, **options)
    with torch.no_grad():
        shared = module._repeated(model, inputs, 3)
    assert torch.equal(model.generate(**shared, **options), plain)
