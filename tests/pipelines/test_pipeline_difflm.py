"""Sampling on a tiny fitted pipeline: reproducible rows, valid records, bounded retries, work on given records."""

from __future__ import annotations

import warnings

import jsonschema
import pandas as pd
import pytest
import torch

from difflm.pipelines import record_writers
from difflm.pipelines.conditions import ConditionError
from difflm.pipelines.decode_rows import decode_rows
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.pipelines.training_digests import record_digest


@pytest.fixture(scope="module")
def pipe(fitted) -> DiffLMPipeline:
    pipeline = fitted[0]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def twenty(pipe):
    return pipe(20, seed=1)


class TestReproducibility:
    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_batch_size_does_not_show(self, pipe, twenty, batch_size):
        assert pipe(20, seed=1, batch_size=batch_size).records == twenty.records

    def test_the_fast_loop_and_generate_write_the_same(self, pipe, twenty):
        assert pipe(20, seed=1, fast=False).texts == twenty.texts

    def test_streamed_rows_are_the_same(self, pipe, twenty):
        batches = list(pipe.stream(20, 7, seed=1))
        assert [len(batch.records) for batch in batches] == [7, 7, 6]
        assert [record for batch in batches for record in batch.records] == twenty.records

    def test_rows_can_be_shared_out(self, pipe, twenty):
        assert pipe(8, seed=1, first_row=12).records == twenty.records[12:]

    def test_seeds_differ_and_default_from_torch(self, pipe, twenty):
        assert pipe(20, seed=2).records != twenty.records
        torch.manual_seed(5)
        first = pipe(3)
        torch.manual_seed(5)
        assert pipe(3).records == first.records
        assert pipe(3, seed=first.seed).records == first.records
        generator = torch.Generator().manual_seed(9)
        assert pipe(2, generator=generator).seed != pipe(2, generator=generator).seed

    def test_a_reloaded_pipeline_writes_the_same(self, fitted, twenty):
        loaded = DiffLMPipeline.from_pretrained(fitted[1])
        loaded.set_progress_bar_config(disable=True)
        again = loaded(20, seed=1)
        assert again.texts == twenty.texts
        assert torch.equal(again.latents, twenty.latents)


class TestValidity:
    def test_records_satisfy_the_json_schema(self, pipe, twenty):
        validator = jsonschema.Draft202012Validator(pipe.schema.json_schema(bounded=True))
        for record in twenty.records:
            validator.validate(record)
        assert twenty.valid_first_attempt == 1.0
        assert twenty.report.attempts == 20

    def test_dtypes_are_the_training_datas(self, twenty, small_table):
        assert dict(twenty.to_pandas().dtypes) == dict(small_table.dtypes)
        assert twenty.to_dataset().column_names == list(small_table.columns)

    def test_free_writing_is_filtered_and_bounded(self, pipe):
        with pytest.warns(UserWarning, match="rows were given up after 2 attempts"):
            output = pipe(3, seed=0, constrained=False, max_attempts=2)
        # Untrained, the tiny decoder writes noise: nothing parses, and that is reported, not retried for ever.
        assert output.records == []
        assert output.report.attempts == 6
        assert output.valid_first_attempt == 0.0
        assert sum(output.report.rejected.values()) == 6
        assert all(reason.startswith("invalid") for reason in output.report.rejected)

    @pytest.mark.parametrize("constrained", [True, False])
    def test_no_text_is_longer_than_a_valid_record_can_be(self, pipe, monkeypatch, constrained):
        limits = []

        def decode(*args, max_new_tokens, **kwargs):
            limits.append(max_new_tokens)
            return decode_rows(*args, max_new_tokens=max_new_tokens, **kwargs)

        monkeypatch.setattr(record_writers, "decode_rows", decode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            pipe(2, seed=0, constrained=constrained, max_attempts=1)
        assert set(limits) == {pipe.constraint().max_new_tokens}
        assert limits[0] < pipe.config["max_new_tokens"]

    def test_without_the_range_numbers_may_leave_it(self, pipe, small_table):
        ages = [record["age"] for record in pipe(60, seed=3, within_range=False).records]
        assert max(ages) > small_table["age"].max()
        assert max(record["age"] for record in pipe(60, seed=3).records) <= small_table["age"].max()


class TestConditions:
    def test_conditions_hold_in_every_record(self, pipe):
        condition = {"kind": "dog", "age": (3, 5), "weight": None, "tame": [True]}
        output = pipe(12, seed=0, condition=condition)
        for record in output.records:
            assert record["kind"] == "dog"
            assert 3 <= record["age"] <= 5
            assert record["weight"] is None
            assert record["tame"] is True
        assert output.report.attempts == 12

    def test_the_denoiser_gets_the_labels(self, pipe, monkeypatch):
        seen = {}
        import difflm.pipelines.pipeline_difflm as module

        original = module.sample_latents

        def spy(*args, **kwargs):
            seen.update(kwargs)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, "sample_latents", spy)
        pipe(4, seed=0, condition={"kind": "dog"}, guidance_scale=2.0)
        position = pipe.condition_encoder.names.index("kind")
        label = pipe.schema.column("kind").categories.index("dog")
        assert seen["class_labels"][:, position].tolist() == [label] * 4
        assert seen["guidance_scale"] == 2.0
        null = torch.tensor(pipe.condition_encoder.class_sizes)
        others = [i for i in range(len(null)) if i != position]
        assert torch.equal(seen["class_labels"][:, others], null[others].repeat(4, 1))

    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            ({"colour": "red"}, "names the column 'colour'; the columns are: kind, age, weight, tame"),
            ({"kind": "cow"}, "'kind' was never 'cow' in the training data; it was: "),
            ({"age": (5, 3)}, "No value of 'age'"),
            ({"age": (3.2, 3.8)}, "No value of 'age'"),
            ({"age": None}, "'age' was never missing"),
            ({"age": "old"}, "'age' is a number"),
            ({"age": 2.5}, "'age' holds integers"),
            ({"weight": 2.55}, "'weight' has 1 decimals"),
            ({"tame": "yes"}, "'tame' is a boolean"),
            ({"kind": []}, "allows no value"),
        ],
    )
    def test_bad_conditions(self, pipe, condition, message):
        with pytest.raises(ConditionError, match=message):
            pipe(2, condition=condition)


class TestAcceptance:
    def test_rejected_records_are_resampled_and_counted(self, pipe):
        output = pipe(10, seed=0, accept={"adult": lambda record: record["age"] >= 5}, max_attempts=50)
        assert len(output.records) == 10
        assert all(record["age"] >= 5 for record in output.records)
        assert output.report.rejected["accept: adult"] == output.report.attempts - 10
        assert output.report.valid_first_attempt == 1.0

    def test_what_can_never_be_accepted_ends(self, pipe):
        with pytest.warns(UserWarning, match="Relax the condition or accept="):
            output = pipe(3, seed=0, accept=lambda record: False, max_attempts=3)
        assert output.records == []
        assert output.report.attempts == 9
        assert len(output.to_pandas()) == 0

    def test_a_pandera_schema(self, pipe):
        pandera = pytest.importorskip("pandera.pandas")
        schema = pandera.DataFrameSchema({"age": pandera.Column(int, pandera.Check.ge(5))}, name="adults")
        output = pipe(5, seed=0, accept=schema, max_attempts=50)
        assert all(record["age"] >= 5 for record in output.records)
        assert set(output.report.rejected) <= {"accept: adults"}

    def test_unique_does_not_depend_on_the_batch(self, pipe):
        options = {"seed": 0, "condition": {"age": (1, 3), "weight": (4.0, 4.4)}, "unique": True, "max_attempts": 30}
        whole = pipe(25, **options)
        assert len({tuple(record.items()) for record in whole.records}) == 25
        assert whole.report.rejected["duplicate"] > 0
        assert pipe(25, batch_size=4, **options).records == whole.records

    def test_training_copies_are_known(self, pipe, small_table, fitted):
        records = pipe.schema.to_records(small_table)
        stored = pipe.training_digests()
        assert len(stored) > 0
        known = sum(record_digest(pipe.schema.serialize(record)) in stored for record in records)
        assert known >= 54  # nine tenths were trained on
        assert record_digest("dog,1,2.0,true") not in stored

    def test_copies_are_resampled(self, pipe, monkeypatch):
        first = pipe(1, seed=0).texts[0]
        monkeypatch.setattr(pipe, "_digests", frozenset([record_digest(first)]))
        output = pipe(1, seed=0, exclude_training_copies=True)
        assert output.texts[0] != first
        assert output.report.rejected == {"training copy": 1}

    def test_accept_of_another_type(self, pipe):
        with pytest.raises(ValueError, match="accept must be a callable"):
            pipe(1, accept=3)


class TestGivenRecords:
    def test_reconstruct_decodes_the_posterior_mean(self, pipe, twenty):
        latents = pipe.encode(twenty.records)
        assert latents.shape == (20, 8)
        again = pipe.reconstruct(twenty.records, seed=4)
        assert torch.equal(again.latents, latents.cpu())

    def test_vary_moves_with_strength(self, pipe, twenty):
        latents = pipe.encode(twenty.records).cpu()
        distances = [
            (pipe.vary(twenty.records, strength=strength, seed=0).latents - latents).norm().item()
            for strength in (0.0, 0.3, 1.0)
        ]
        assert distances[0] == 0.0
        assert distances[0] < distances[1] < distances[2]
        with pytest.raises(ValueError, match="strength must lie in"):
            pipe.vary(twenty.records, strength=2.0)

    def test_interpolate_ends_at_its_ends(self, pipe, twenty):
        path = pipe.interpolate(twenty.records[0], twenty.records[1], 5, seed=0).latents
        ends = pipe.encode(twenty.records[:2]).cpu()
        torch.testing.assert_close(path[[0, -1]], ends, atol=1e-4, rtol=1e-4)
        assert len(path) == 5
        with pytest.raises(ValueError, match="at least 2"):
            pipe.interpolate(twenty.records[0], twenty.records[1], 1)

    def test_impute_keeps_given_cells(self, pipe):
        rows = [{"kind": "dog"}, {"age": 3, "weight": float("nan"), "tame": True}, {"kind": "cat", "age": None}]
        filled = pipe.impute(rows, seed=0).records
        assert filled[0]["kind"] == "dog"
        assert (filled[1]["age"], filled[1]["tame"]) == (3, True)
        assert filled[2]["kind"] == "cat"
        assert all(set(record) == {"kind", "age", "weight", "tame"} for record in filled)
        assert pipe.impute(pd.DataFrame([{"kind": "dog"}]), seed=0).records[0] == filled[0]
        with pytest.raises(ValueError, match="unknown column 'colour'"):
            pipe.impute([{"colour": "red"}])


class TestPriors:
    def test_gaussian_is_standard_normal(self, pipe):
        latents = pipe.prior_latents("gaussian", 5000)
        assert latents.mean().abs() < 0.05
        assert latents.std().item() == pytest.approx(1.0, abs=0.05)

    def test_mixture_has_the_encodings_moments(self, pipe, small_table):
        encoded = pipe.prior_latents("encode", 4000, records=small_table)
        latents = pipe.prior_latents("gmm", 4000, records=small_table, num_components=2)
        # One posterior sample of each of 60 records is what the mixture sees: a tenth of a standard deviation or so.
        assert ((latents.mean(0) - encoded.mean(0)).abs() / encoded.std(0)).max() < 0.6
        torch.testing.assert_close(latents.std(0), encoded.std(0), atol=0.0, rtol=0.4)
        assert not torch.equal(latents[:10], latents[10:20])

    def test_encodings_lie_around_real_ones(self, pipe, small_table):
        encoded = pipe.encode(small_table).cpu()
        latents = pipe.prior_latents("encode", 200, records=small_table)
        nearest = torch.cdist(latents, encoded).min(dim=1).values
        assert nearest.mean() < 0.5 * torch.cdist(torch.randn(200, 8) * 3, encoded).min(dim=1).values.mean()
        assert pipe(3, seed=0, latents=latents[:3]).valid_first_attempt == 1.0

    def test_errors(self, pipe):
        with pytest.raises(ValueError, match="prior='uniform' is not one of gaussian, gmm, encode"):
            pipe.prior_latents("uniform", 3)
        with pytest.raises(ValueError, match="needs records="):
            pipe.prior_latents("gmm", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, not 0"),
        ({"num_samples": -3}, "num_samples must be"),
        ({"num_samples": 2.5}, "num_samples must be"),
        ({"seed": "one"}, "seed must be an integer, not 'one'"),
        ({"seed": True}, "seed must be an integer"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"output_type": "csv"}, "output_type='csv' is not one of"),
        ({"latents": torch.zeros(3, 8)}, r"latents must be \[1, 8\], not \[3, 8\]"),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_output_types(pipe, twenty):
    assert isinstance(pipe(2, seed=1, output_type="pandas"), pd.DataFrame)
    assert pipe(2, seed=1, output_type="dataset").num_rows == 2
    latent = pipe(20, seed=1, output_type="latent")
    torch.testing.assert_close(latent.latents.cpu(), twenty.latents)
    records, report = pipe(2, seed=1, return_dict=False)
    assert records == twenty.records[:2]
    assert report.returned == 2


def test_given_latents_are_decoded(pipe, twenty):
    assert pipe(20, seed=1, latents=twenty.latents).records == twenty.records


def test_unique_cannot_be_streamed(pipe):
    with pytest.raises(ValueError, match="unique=True needs all rows"):
        next(pipe.stream(3, unique=True))


def test_any_json_schema_can_be_asked_for(pipe):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "level": {"enum": ["low", "high"]},
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
                "required": ["x", "ok"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "level", "point"],
        "additionalProperties": False,
    }
    output = pipe(8, seed=0, schema=schema, condition={"level": "high"})
    assert output.valid_first_attempt == 1.0
    for record in output.records:
        jsonschema.Draft202012Validator(schema).validate(record)
        assert record["level"] == "high"
    assert pipe(8, seed=0, schema=schema, condition={"level": "high"}, fast=False).records == output.records
