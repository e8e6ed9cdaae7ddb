"""Records written by the draft: rows of their own, valid, under conditions, around given cells, beside the LM."""

from __future__ import annotations

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difflm import DiffLMPipeline
from difflm.errors import ArgumentError
from difflm.pipelines import record_writers
from difflm.pipelines.draft_writer import DraftWriter


STEPS = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def thirty(drafting):
    return drafting(30, seed=1, **STEPS)


@pytest.fixture(scope="module")
def reviews(build_drafted, mixed_table):
    """A pipeline whose schema has a column of texts, which the draft cannot write."""
    words = np.random.default_rng(0).permutation(60)
    table = mixed_table[["kind", "age"]].assign(note=[f"no {word}" for word in words], tame=mixed_table["tame"])
    return build_drafted(table, text_size=3, text_columns=["note"])


class TestRows:
    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_batches_do_not_show(self, drafting, thirty, batch_size):
        batches = list(drafting.stream(30, batch_size, seed=1, **STEPS))
        assert [text for batch in batches for text in batch.texts] == thirty.texts

    def test_first_row_continues(self, drafting, thirty):
        assert drafting(9, seed=1, first_row=21, **STEPS).texts == thirty.texts[21:]

    def test_seeds_and_attempts_differ(self, drafting, thirty):
        assert drafting(30, seed=2, **STEPS).texts != thirty.texts
        once = dict.fromkeys(thirty.texts, 0)

        def unseen(record):
            text = drafting.schema.serialize(record)
            once[text] = once.get(text, 0) + 1
            return once[text] > 1

        again = drafting(30, seed=1, accept=unseen, **STEPS)
        assert again.report.attempts > 30

    def test_records_are_valid_and_read_back(self, drafting, thirty):
        validator = jsonschema.Draft202012Validator(drafting.schema.json_schema(bounded=True))
        for record in thirty.records:
            validator.validate(record)
        assert thirty.valid_first_attempt == 1.0
        assert thirty.report.attempts == 30
        assert [drafting.schema.serialize(record) for record in thirty.records] == thirty.texts
        assert any(record["weight"] is None or record["seen"] is None for record in thirty.records)
        assert len({record["age"] for record in thirty.records}) > 5

    def test_progress_is_told(self, drafting, monkeypatch):
        monkeypatch.setattr(DraftWriter, "rows_at_once", 8)
        done = []
        writer = DraftWriter(drafting.draft, drafting.schema)
        latents = torch.randn(20, drafting.draft.latent_size)
        writer.cells(latents, drafting.row_randoms(0, 20), on_rows_done=done.append)
        assert done == [8, 8, 4]


class TestConditions:
    @given(
        ages=st.tuples(st.integers(1, 14), st.integers(1, 14)).map(sorted),
        weight=st.sampled_from([None, (3.5, 4.2), (None, 4.0), (19.0, None), (100, 200), [4.1, 20.3, None]]),
        kind=st.sampled_from(["cat", ["dog"], ["cat", "dog"]]),
        seen=st.sampled_from([None, ("2024-01-03", "2024-01-10"), ["2024-01-04", "2024-01-19"], ("2024-02-01", None)]),
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_they_hold(self, drafting, ages, weight, kind, seen):
        condition = {"age": tuple(ages), "weight": weight, "kind": kind, "seen": seen, "tame": True}
        output = drafting(8, seed=0, condition=condition, **STEPS)
        assert output.report.attempts == 8
        for record in output.records:
            assert ages[0] <= record["age"] <= ages[1]
            assert record["kind"] in kind
            assert record["tame"] is True
            if weight is None or isinstance(weight, list):
                assert record["weight"] in (weight or [None])
            elif weight != (100, 200):
                assert record["weight"] is not None
                assert (weight[0] or 0) <= record["weight"] <= (weight[1] or 99)
            if seen is None:
                assert record["seen"] is None

    def test_listed_dates_are_drawn_whole(self, drafting):
        days = ["2024-01-04", "2024-01-19"]
        output = drafting(30, seed=0, condition={"seen": days}, **STEPS)
        assert {record["seen"][:10] for record in output.records} == set(days)

    def test_temperature_0_takes_the_likeliest(self, drafting):
        latents = torch.randn(1, drafting.draft.latent_size).expand(4, -1)
        assert len(set(drafting(4, seed=0, latents=latents, temperature=0.0).texts)) == 1
        assert len(set(drafting(4, seed=0, latents=latents, top_k=1).texts)) > 1


class TestGivenCells:
    def test_impute_keeps_them(self, drafting, mixed_table):
        gaps = mixed_table.head(6).astype(object).where(np.arange(30).reshape(6, 5) % 3 > 0, None)
        filled = drafting.impute(gaps, seed=0, **STEPS).records
        for before, after in zip(gaps.to_dict("records"), filled, strict=True):
            known = {name: value for name, value in before.items() if not pd.isna(value)}
            known = {name: drafting.schema.column(name).normalize(value) for name, value in known.items()}
            assert known.items() <= after.items()

    def test_they_stay_to_the_last_digit(self, build_drafted):
        table = pd.DataFrame({"far": np.linspace(1e4, 9e4, 40) + 1e-9, "kind": ["a", "b"] * 20})
        pipe = build_drafted(table, max_decimals=14)
        value = pipe.schema.column("far").normalize(float(table["far"][7]))
        assert pipe.impute([{"far": value}], seed=0, **STEPS).records[0]["far"] == value
        output = pipe(3, seed=0, condition={"far": value}, **STEPS)
        assert [record["far"] for record in output.records] == [value] * 3


class TestTexts:
    def test_the_language_model_writes_them_around_the_drafts_cells(self, reviews, monkeypatch):
        seen = []

        def decode(*args, given_texts, **kwargs):
            seen.extend(given_texts)
            return record_writers_decode(*args, given_texts=given_texts, **kwargs)

        record_writers_decode = record_writers.decode_rows
        monkeypatch.setattr(record_writers, "decode_rows", decode)
        output = reviews(4, seed=0, condition={"kind": "dog"}, **STEPS)
        assert [set(cells) for cells in seen] == [{"kind", "age", "tame"}] * 4
        assert [str(record["age"]) for record in output.records] == [cells["age"] for cells in seen]
        assert {record["kind"] for record in output.records} == {"dog"}
        assert reviews(2, seed=0, first_row=2, condition={"kind": "dog"}, **STEPS).texts == output.texts[2:]

    def test_given_texts_are_kept_too(self, reviews):
        output = reviews(2, seed=0, given=[{"note": "no 5"}, {"age": 3}], **STEPS)
        assert output.records[0]["note"] == "no 5"
        assert output.records[1]["age"] == 3

    def test_encodings_have_the_columns_first(self, reviews):
        records = reviews(3, seed=0, **STEPS).records
        latents = reviews.encode(records)
        assert latents.shape[1] == reviews.denoiser.config.latent_size
        assert torch.equal(latents[:, : reviews.draft.latent_size], reviews._encode_columns(records))
        assert reviews.prior_latents("encode", 3, records=records).shape == latents.shape


class TestWhoWrites:
    def test_the_language_model_on_request_and_as_stored(self, build_drafted, drafting, thirty, mixed_table):
        by_model = drafting(30, seed=1, writer="lm", **STEPS)
        assert by_model.texts != thirty.texts
        assert torch.equal(by_model.latents, thirty.latents)
        stored = build_drafted(mixed_table, writer="lm")
        assert stored(30, seed=1, **STEPS).texts == by_model.texts
        assert stored(30, seed=1, writer="draft", **STEPS).texts == thirty.texts

    def test_what_the_draft_cannot_write(self, drafting, pipe_without):
        other = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}}
        other["required"] = ["n"]
        with pytest.raises(ArgumentError, match="schema= asks for other records.*leave writer= out"):
            drafting(1, schema=other, writer="draft")
        assert set(drafting(1, seed=0, schema=other, **STEPS).records[0]) == {"n"}
        with pytest.raises(ArgumentError, match="constrained=False is about texts"):
            drafting(1, constrained=False, writer="draft")
        with pytest.raises(ArgumentError, match="this pipeline has no draft"):
            pipe_without(1, writer="draft")
        with pytest.raises(ArgumentError, match="writer='llm' is not one of auto, lm, draft"):
            drafting(1, writer="llm")

    @pytest.fixture
    def pipe_without(self, drafting):
        parts = {name: part for name, part in drafting.components.items() if name != "draft"}
        settings = {name: drafting.config[name] for name in ("record_schema", "condition_classes", "max_new_tokens")}
        return DiffLMPipeline(**parts, **settings)

    def test_a_pipeline_needs_the_draft_of_its_own_table(self, drafting, build_drafted, small_table):
        parts = drafting.components
        schema = drafting.config["record_schema"]
        with pytest.raises(ArgumentError, match="needs one: pass draft="):
            DiffLMPipeline(**parts | {"draft": None}, record_schema=schema, writer="draft")
        with pytest.raises(ArgumentError, match="is one of lm, draft, not 'auto'"):
            DiffLMPipeline(**parts, record_schema=schema, writer="auto")
        other = build_drafted(small_table.drop(columns="age")).draft
        with pytest.raises(ArgumentError, match=r"The draft writes 'kind', 'weight', 'tame'.*'seen \(week\)'"):
            DiffLMPipeline(**parts | {"draft": other}, record_schema=schema)


class TestEditing:
    def test_encodings_are_the_drafts_means(self, drafting, mixed_table):
        latents = drafting.encode(mixed_table)
        assert latents.shape == (60, drafting.draft.latent_size)
        assert torch.equal(latents, drafting.encode(mixed_table, batch_size=7))
        drawn = [drafting.prior_latents("encode", 400, records=mixed_table[:1], seed=seed) for seed in (0, 1)]
        assert not torch.equal(drawn[0], drawn[1])
        # A value that repeats among the training rows has a range of ranks beside.
        assert (drawn[0].std(0) > 0.8 * drafting.draft.latent_noise).all()
        assert (drawn[0].std(0) < 0.8).all()

    def test_records_are_varied_and_interpolated(self, drafting, mixed_table):
        records = drafting.schema.to_records(mixed_table[:3])
        latents = drafting.encode(records)
        assert len(drafting.reconstruct(records, seed=0).records) == 3
        assert len(drafting.vary(records, 0.5, seed=0, **STEPS).records) == 3
        assert len(drafting.interpolate(*records[:2], num_steps=4, seed=0).records) == 4
        assert drafting.prior_latents("gmm", 5, records=mixed_table, num_components=2).shape == (5, latents.shape[1])


