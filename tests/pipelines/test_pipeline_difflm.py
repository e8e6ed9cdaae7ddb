"""Sampling on a tiny fitted pipeline: reproducible rows, valid records, bounded retries, work on given records."""

from __future__ import annotations

import copy
import warnings

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from difflm.errors import ArgumentError
from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines import record_writers
from difflm.pipelines.conditions import ConditionError
from difflm.pipelines.decode_rows import decode_rows
from difflm.pipelines.pipeline_difflm import DiffLMPipeline
from difflm.pipelines.token_sampling import SamplingError
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


class TestArguments:
    """Numbers of numpy's types mean what Python's do; what cannot be meant is refused."""

    def test_numpys_numbers(self, pipe, twenty):
        output = pipe(
            np.int64(4),
            seed=np.int64(1),
            first_row=np.uint8(3),
            batch_size=np.int32(2),
            max_attempts=np.int16(3),
            num_inference_steps=np.int64(50),
            guidance_scale=np.float32(1.0),
            temperature=np.float32(1.0),
            top_k=np.int64(0),
            top_p=np.float64(1.0),
        )
        assert output.records == twenty.records[3:7]
        assert [type(value) for value in (output.seed, output.rows[0], output.report.requested)] == [int] * 3
        parts = list(pipe.stream(np.int64(4), np.int64(3), seed=np.int64(1), first_row=np.int64(3)))
        assert [record for part in parts for record in part.records] == output.records
        latents = twenty.latents.numpy()
        assert pipe(20, seed=1, latents=latents).records == twenty.records
        assert len(pipe.interpolate(*twenty.records[:2], np.int64(3), seed=np.int64(0)).records) == 3
        assert pipe.prior_latents("gaussian", np.int64(2), seed=np.int64(3)).shape == (2, 8)

    def test_any_seed_is_a_seed(self, pipe, small_table):
        assert pipe(3, seed=-3).records != pipe(3, seed=3).records
        assert pipe(3, seed=2**70).seed == 2**70
        assert len(pipe.vary(small_table[:2], seed=-1, first_row=2).rows) == 2
        assert pipe.prior_latents("gmm", 2, records=small_table, num_components=2, seed=-1).shape == (2, 8)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_samples": True}, "num_samples must be an integer of at least 1, not True"),
            ({"batch_size": np.True_}, "batch_size must be an integer"),
            ({"first_row": True}, "first_row must be an integer"),
            ({"first_row": -1}, "first_row must be an integer of at least 0, not -1"),
            ({"first_row": 1.5}, "first_row must be an integer"),
            ({"seed": np.float64(1)}, "seed must be an integer"),
            ({"max_attempts": np.float32(2)}, "max_attempts must be an integer"),
            ({"num_inference_steps": 5.0}, "num_inference_steps must be an integer of at least 2"),
            ({"num_inference_steps": True}, "num_inference_steps must be an integer"),
            ({"guidance_scale": "much"}, "guidance_scale must be a finite number"),
            ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
            ({"top_k": True}, "top_k must be"),
            ({"seed": 3, "generator": torch.Generator()}, "Pass seed= or generator=, not both"),
            ({"generator": [torch.Generator()]}, "generator must be one torch.Generator"),
            ({"output_type": "csv", "return_dict": False}, "output_type='csv' is not one of"),
            ({"given": [{"age": 3}] * 2}, "given must have one entry per row: it has 2 for 1 rows"),
            ({"given": [{"colour": 3}]}, "row 0 has a cell of 'colour'; the columns to be written are: kind, age"),
            ({"given": [{"kind": "cow"}]}, "given: row 0: column 'kind'"),
            ({"given": [{"age": 3}], "condition": {"age": (4, 9)}}, "row 0 has 'age' = 3, which the condition on it"),
        ],
    )
    def test_what_cannot_be_meant(self, pipe, arguments, message):
        with pytest.raises(ArgumentError if "top_k" not in arguments else SamplingError, match=message):
            pipe(**arguments)

    @pytest.mark.parametrize("output_type", ["records", "pandas", "dataset", "latent"])
    def test_a_tuple_of_what_was_asked_for_and_the_report(self, pipe, output_type):
        whole = pipe(3, seed=1, output_type=output_type)
        content, report = pipe(3, seed=1, output_type=output_type, return_dict=False)
        assert report.requested == 3
        if output_type == "pandas":
            pd.testing.assert_frame_equal(content, whole)
        elif output_type == "dataset":
            assert content.to_list() == whole.to_list()
        elif output_type == "latent":
            assert torch.equal(content, whole.latents)
        else:
            assert content == whole.records

    def test_given_cells_are_those_of_the_schema_that_is_asked_for(self, pipe):
        schema = {
            "type": "object",
            "properties": {"age": {"enum": ["old", "new"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["age", "size"],
            "additionalProperties": False,
        }
        given = [{"age": "new"}, {"size": np.int64(4)}, {}]
        for fast in (True, False):
            records = pipe(3, seed=0, schema=schema, given=given, fast=fast).records
            assert records[0]["age"] == "new" and records[1]["size"] == 4
        parts = pipe.stream(3, 2, seed=0, schema=schema, given=given)
        assert [record for part in parts for record in part.records] == records
        with pytest.raises(ArgumentError, match="has a cell of 'kind'; the columns to be written are: age, size"):
            pipe(1, schema=schema, given=[{"kind": "dog"}])
        with pytest.raises(ArgumentError, match="leave schema= out"):
            pipe.impute([{"kind": "dog"}], schema=schema)


class TestDtypes:
    """A pipeline's dtype is its decoder's; what was trained stays in float32."""

    @pytest.mark.parametrize("asked", [torch.bfloat16, "bfloat16", {"default": torch.bfloat16}])
    def test_a_load_with_torch_dtype(self, fitted, twenty, asked):
        loaded = DiffLMPipeline.from_pretrained(fitted[1], torch_dtype=asked)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.autoencoder.decoder.dtype == torch.bfloat16
        assert loaded.autoencoder.dtype == loaded.denoiser.dtype == torch.float32
        output = loaded(20, seed=1)
        assert torch.equal(output.latents, twenty.latents)
        assert output.valid_first_attempt == 1.0

    def test_the_decoders_own_argument_goes_before(self, fitted):
        loaded = DiffLMPipeline.from_pretrained(fitted[1], torch_dtype=torch.bfloat16, decoder_dtype="float32")
        assert loaded.autoencoder.decoder.dtype == torch.float32
        assert DiffLMPipeline.from_pretrained(fitted[1], torch_dtype="auto").autoencoder.decoder.dtype == torch.float32
        with pytest.raises(ArgumentError, match="torch_dtype='tiny' is no dtype"):
            DiffLMPipeline.from_pretrained(fitted[1], torch_dtype="tiny")

    def test_the_autoencoders_own_load(self, fitted):
        for name in ("torch_dtype", "dtype"):
            model = DiffLMModel.from_pretrained(fitted[1] / "autoencoder", **{name: torch.bfloat16})
            assert (model.dtype, model.decoder.dtype) == (torch.float32, torch.bfloat16)

    def test_to(self, fitted, twenty):
        pipe = copy.deepcopy(fitted[0])
        for arguments in ((torch.bfloat16,), ("cpu", torch.bfloat16)):
            assert pipe.to(*arguments) is pipe
            assert pipe.autoencoder.decoder.dtype == torch.bfloat16
            output = pipe(20, seed=1)
            assert output.valid_first_attempt == 1.0
            assert torch.equal(output.latents, twenty.latents)
            assert pipe.to(dtype=torch.float32).autoencoder.decoder.dtype == torch.float32
        with pytest.raises(ValueError, match="One dtype at most"):
            pipe.to(torch.float32, dtype=torch.float32)

    def test_a_model_that_is_cast_as_a_whole(self, fitted, small_table):
        pipe = copy.deepcopy(fitted[0])
        pipe.autoencoder.bfloat16()
        pipe.denoiser.bfloat16()
        for fast in (True, False):
            assert pipe(4, seed=0, fast=fast).valid_first_attempt == 1.0
        latents = pipe.encode(small_table[:3])
        assert latents.dtype == torch.float32
        precise = fitted[0].encode(small_table[:3])
        assert (latents - precise).norm() < 0.5 * precise.norm()  # rounded, in every layer
