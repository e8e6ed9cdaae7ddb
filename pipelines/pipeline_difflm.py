"""DiffLMPipeline: noise -> denoiser -> latent -> injector -> frozen LLM -> record (DiffLM, arXiv 2411.03250)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor


if __package__ and __package__ not in sys.modules:
    # diffusers names the package of a published file by its repository: Python cannot import it if that has a dot.
    sys.modules[__package__] = ModuleType(__package__)
    sys.modules[__package__].__path__ = [str(Path(__file__).parent)]

# diffusers copies the files that this one names, not those that they name in turn: hence the unused ones.
from .acceptance import acceptance_checks
from .arrow_tables import to_arrow  # noqa: F401
from .call_arguments import (
    WRITERS,
    check_output_type,
    choose_seed,
    choose_writer,
    decoder_dtype,
    given_latents,
    given_values,
    integer,
    real,
)
from .cell_codes import CellCodes  # noqa: F401
from .checkpoint_code import MODEL_MODULES  # noqa: F401
from .checkpoint_loading import load_components
from .checkpoint_safety import OPTIONAL, source_folder, verify
from .choice_kinds import CategoryKind  # noqa: F401
from .column_kinds import Column  # noqa: F401
from .conditions import ColumnCondition, ConditionEncoder, check_condition
from .date_forms import DateForm  # noqa: F401
from .date_kinds import DateKind  # noqa: F401
from .decode_rows import decode_rows  # noqa: F401
from .deferred_components import DeferredComponentsMixin
from .draft_writer import DraftWriter
from .errors import ArgumentError
from .grammar_cache import GrammarCache
from .hub_saving import HubSavingMixin, download_folder
from .json_schemas import NestedSchema  # noqa: F401
from .json_values import plain_json  # noqa: F401
from .kind_base import ColumnKind  # noqa: F401
from .latent_sampling import sample_latents
from .nested_kind import JsonKind  # noqa: F401
from .number_kinds import IntegerKind  # noqa: F401
from .outputs import DiffLMPipelineOutput
from .packed_attention import supports  # noqa: F401
from .packed_linear import fast_linears  # noqa: F401
from .patterns import matches  # noqa: F401
from .proposals import DraftProposals  # noqa: F401
from .record_editing import RecordEditingMixin
from .record_grammar import RecordConstraint
from .record_schema import RecordSchema
from .record_writers import CallWriter, WritingOptions, record_writer
from .row_seeds import latent_generators
from .sampling_run import RecordJudge, SamplingRun
from .schema_columns import schema_columns  # noqa: F401
from .stored_types import plain_scalar  # noqa: F401
from .tables import as_dataframe  # noqa: F401
from .text_kinds import TextKind  # noqa: F401
from .time_zones import find_zone  # noqa: F401
from .token_sampling import RowRandom, check_sampling_options
from .training_digests import record_digest
from .value_grammars import ValueSpec
from .values import clean_text  # noqa: F401
from .vocabulary import tokenize_segment  # noqa: F401


class DiffLMPipeline(DeferredComponentsMixin, RecordEditingMixin, HubSavingMixin, DiffusionPipeline):
    """Samples records from a fitted DiffLM.

    Loaded from a checkpoint whose draft writes all columns, the autoencoder (with the language model) and the
    tokenizers are read when they are first needed.

    Parameters
    ----------
    autoencoder : DiffLMModel
    denoiser : DiffLMDenoiser
    scheduler : KarrasVeScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler
    encoder_tokenizer : PreTrainedTokenizerBase or None
        None where the autoencoder has no encoder.
    decoder_tokenizer : PreTrainedTokenizerBase
    record_schema : dict
        [`RecordSchema.to_dict`] of the training data.
    condition_classes : list of dict, optional
        Of [`ConditionEncoder`]: what the denoiser's class labels mean.
    max_new_tokens : int, default 1024
        Most tokens of a record.
    draft : ColumnDraft, optional
        Encodes the cells of a table, and can write them without the language model.
    writer : {"lm", "draft"}, default "lm"
        Who writes where a call does not say.
    """

    model_cpu_offload_seq: Any = "denoiser->draft->autoencoder"
    _optional_components: Any = list(OPTIONAL)
    # The mixin's take fewer arguments by position than diffusers'.
    save_pretrained: Any
    push_to_hub: Any

    def __init__(
        self,
        autoencoder: Any,
        denoiser: Any,
        scheduler: Any,
        encoder_tokenizer: Any,
        decoder_tokenizer: Any,
        record_schema: dict | None = None,
        condition_classes: list | None = None,
        max_new_tokens: int = 1024,
        draft: Any = None,
        writer: str = "lm",
    ) -> None:
        super().__init__()
        if record_schema is None:
            raise ArgumentError("A DiffLMPipeline needs the record_schema of its training data.")
        if writer not in WRITERS[1:]:
            raise ArgumentError(f"The writer of a pipeline is one of {', '.join(WRITERS[1:])}, not {writer!r}.")
        if writer == "draft" and draft is None:
            raise ArgumentError("A pipeline whose records the draft writes needs one: pass draft=.")
        self.register_components(
            autoencoder=autoencoder,
            denoiser=denoiser,
            scheduler=scheduler,
            encoder_tokenizer=encoder_tokenizer,
            decoder_tokenizer=decoder_tokenizer,
            draft=draft,
        )
        # One JSON text each: diffusers takes lists in model_index.json for components.
        self.register_to_config(
            record_schema=dict(record_schema),
            condition_classes={"classes": condition_classes}
            if isinstance(condition_classes, list)
            else condition_classes,
            max_new_tokens=max_new_tokens,
            writer=writer,
        )
        self.schema = RecordSchema.from_dict(record_schema)
        if draft is not None:
            DraftWriter(draft, self.schema)  # whose columns they have to be
        classes = condition_classes["classes"] if isinstance(condition_classes, Mapping) else condition_classes
        self.condition_encoder = ConditionEncoder(list(classes or []))
        self._grammars = GrammarCache()
        self.remember_sources()
        self._digests, self._digests_folder = None, None
        if __name__.startswith("diffusers_modules.") and (folder := source_folder(autoencoder)) is not None:
            # Loaded by diffusers itself, from a repository: what `from_pretrained` below checks is checked here.
            verify(folder)
            self._digests_folder = folder

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def __call__(
        self,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        condition: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        constrained: bool = True,
        within_range: bool = True,
        fast: bool = True,
        num_inference_steps: int | None = None,
        batch_size: int | None = None,
        writer: str = "auto",
        max_attempts: int = 10,
        accept: Any = None,
        unique: bool = False,
        exclude_training_copies: bool = False,
        latents: Tensor | None = None,
        given: Sequence[Mapping[str, Any]] | None = None,
        schema: Mapping[str, Any] | None = None,
        first_row: int = 0,
        output_type: str = "records",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> Any:
        """Sample records.

        Row i depends on (seed, i) alone: not on the batch size, the number of processes or the order.

        Parameters
        ----------
        num_samples : int, default 1
        seed : int, optional
            Default: drawn from ``generator``, or from torch's global generator. The output names it.
        generator : torch.Generator, optional
            Where the seed is drawn from; not beside ``seed``.
        condition : mapping, optional
            Column to a value, a list of values, ``None`` (missing) or a ``(low, high)`` tuple: holds in every record.
        guidance_scale : float, default 1.0
            Classifier-free guidance towards ``condition``; 1 is the plain conditional distribution.
        temperature, top_k, top_p : float, int, float, default 1.0, None, None
            Of the writer's tokens; None keeps all. A temperature of 0 takes the likeliest token.
        constrained : bool, default True
            Only tokens that can become a valid record are drawn. False: the decoder writes freely and invalid texts
            are resampled (the paper's way).
        within_range : bool, default True
            Numbers stay between the smallest and the largest seen in training (only with ``constrained``).
        fast : bool, default True
            Own decoding loop; False uses the decoder's ``generate``, as does a decoder the loop cannot run. Same
            records.
        num_inference_steps : int, optional
            Steps of the diffusion; default: 50, or 16 where the denoiser has a noise floor.
        batch_size : int, optional
            Rows decoded together; default by the device's memory.
        writer : {"auto", "lm", "draft"}, default "auto"
            Who writes: the language model; or the draft, column by column, the language model only the columns of
            texts and nested values. "auto": as the fit decided; the language model where the draft cannot
            (``constrained=False``, ``schema=``).
        max_attempts : int, default 10
            A row rejected so many times is given up: the output has fewer rows, and the report says why.
        accept : callable or pandera schema, optional
            A callable on a record that returns whether to keep it, a dict of such callables by name, or a pandera
            schema.
        unique : bool, default False
            Resample a record equal to one of an earlier row.
        exclude_training_copies : bool, default False
            Resample exact copies of training records (known by their digests).
        latents : Tensor, optional
            ``[num_samples, latent_size]``: decode these instead of sampling some.
        given : sequence of dict, optional
            Per row, the values that its record must have, by column of what is written (used by ``impute``).
        schema : mapping, optional
            A JSON Schema of an object: records are written and checked by it instead of by the training table's.
        first_row : int, default 0
            Index of the first row: ``pipe(5, seed=0, first_row=5)`` continues ``pipe(5, seed=0)``.
        output_type : {"records", "pandas", "dataset", "latent"}, default "records"
            "latent" stops before decoding.
        return_dict : bool, default True
            False returns a tuple: what ``output_type`` names, and the report.
        callback_on_step_end : callable, optional
            See [`sample_latents`].

        Returns
        -------
        DiffLMPipelineOutput

        Raises
        ------
        ArgumentError
            If an argument has the wrong type, is out of range or does not go with another; it is a ``ValueError``.
        ConditionError
            If a condition cannot hold.
        """
        check_output_type(output_type)
        check_sampling_options(temperature, top_k, top_p)
        num_samples = integer("num_samples", num_samples, 1)
        table = self.schema
        if schema is not None:
            table = RecordSchema.from_json_schema(schema, record_format=self.schema.record_format)
        conditions = check_condition(condition or {}, table.columns)
        cells = given_values(given, num_samples, table, conditions)
        who = self.who_writes(writer, constrained=constrained, schema=schema)
        if latents is not None:
            latents = given_latents(latents, num_samples, self.denoiser.config.latent_size)
        run = SamplingRun(
            num_samples=num_samples,
            seed=choose_seed(seed, generator),
            first_row=integer("first_row", first_row, 0),
            max_attempts=integer("max_attempts", max_attempts, 1),
            unique=unique,
            judge=RecordJudge(
                table, conditions, acceptance_checks(accept), self._copy_check() if exclude_training_copies else None
            ),
        )
        writing = WritingOptions(
            temperature=float(temperature),
            top_k=None if top_k is None else integer("top_k", top_k),
            top_p=None if top_p is None else float(top_p),
            constrained=constrained,
            batch_size=self.default_batch_size() if batch_size is None else integer("batch_size", batch_size, 1),
            max_new_tokens=self.config["max_new_tokens"],
        )
        diffusion = {
            "num_inference_steps": num_inference_steps
            if num_inference_steps is None
            else integer("num_inference_steps", num_inference_steps, 2),
            "guidance_scale": real("guidance_scale", guidance_scale),
            "callback_on_step_end": callback_on_step_end,
        }
        if output_type == "latent":
            drawn = latents
            if drawn is None:
                drawn = self._diffuse(run.randoms(run.pending()), conditions, **diffusion)
            output = DiffLMPipelineOutput(latents=drawn.to(self.denoiser.device), seed=run.seed, report=run.report)
            return output.converted(output_type, return_dict)
        write = self._writer(who, table, conditions, writing, within_range=within_range, fast=fast)
        with self.progress_bar(total=num_samples) as progress:
            while rows := run.pending():
                randoms = run.randoms(rows)
                row_latents = self._diffuse(randoms, conditions, **diffusion) if latents is None else latents[rows]
                texts = write(
                    row_latents,
                    randoms,
                    None if cells is None else [cells[row] for row in rows],
                    on_rows_done=progress.update if run.report.attempts == 0 else None,
                )
                run.take(rows, texts, row_latents)
        return run.output().converted(output_type, return_dict)

    def who_writes(self, writer: str = "auto", *, constrained: bool = True, schema: Any = None) -> str:
        """Who writes the records of a call with these arguments: "lm" or "draft"."""
        obstacle = None
        if not self.has_component("draft"):
            obstacle = "this pipeline has no draft"
        elif not constrained:
            obstacle = "constrained=False is about texts, and the draft writes cells"
        elif schema is not None:
            obstacle = "schema= asks for other records than those that the draft was fitted to"
        return choose_writer(writer, self.config["writer"], obstacle)

    def _writer(
        self,
        who: str,
        table: RecordSchema,
        conditions: Mapping[str, ColumnCondition],
        options: WritingOptions,
        *,
        within_range: bool,
        fast: bool,
    ) -> CallWriter:
        drafted = None
        if who == "draft":
            drawing = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
            drafted = DraftWriter(self.draft, table, conditions, within_range=within_range, **drawing)
            if drafted.complete:
                return CallWriter(table, drafted)
        model = record_writer(self.autoencoder, options, fast=fast)
        constraint = self.constraint(conditions, within_range=within_range, schema=table)
        return CallWriter(table, drafted, partial(model, constraint=constraint))

    def _diffuse(
        self, randoms: Sequence[RowRandom], conditions: Mapping[str, ColumnCondition], **options: Any
    ) -> Tensor:
        """New latents of rows, of classes that agree with the conditions."""
        return self._sample_latents(randoms, self._condition_labels(conditions, randoms), **options)

    def stream(self, num_samples: int, batch_size: int = 256, *, first_row: int = 0, **kwargs: Any) -> Iterator[Any]:
        """Yield [`DiffLMPipelineOutput`] of ``batch_size`` rows at a time, in order, with constant memory.

        The rows are those of one call with the same seed, ``latents`` and ``given``. ``unique`` holds within
        a batch only, so it is refused.
        """
        if kwargs.get("unique"):
            raise ArgumentError("unique=True needs all rows: call the pipeline, or drop duplicates afterwards.")
        num_samples, batch_size = integer("num_samples", num_samples, 1), integer("batch_size", batch_size, 1)
        kwargs["seed"] = choose_seed(kwargs.get("seed"), kwargs.pop("generator", None))
        first_row = integer("first_row", first_row, 0)
        of_rows = {name: kwargs.pop(name) for name in ("latents", "given") if kwargs.get(name) is not None}
        for start in range(0, num_samples, batch_size):
            part = {name: values[start : start + batch_size] for name, values in of_rows.items()}
            yield self(min(batch_size, num_samples - start), first_row=first_row + start, **part, **kwargs)

    def row_randoms(self, seed: int, num_rows: int, first_row: int = 0, attempt: int = 0) -> list[RowRandom]:
        """The random numbers of rows ``first_row`` and on."""
        return [RowRandom(seed, first_row + row, attempt) for row in range(num_rows)]

    def _sample_latents(self, randoms: Sequence[RowRandom], labels: Tensor | None = None, **options: Any) -> Tensor:
        return sample_latents(
            self.denoiser,
            self.scheduler,
            len(randoms),
            generators=latent_generators(randoms),
            rows=[random.row for random in randoms],
            class_labels=labels,
            **options,
        )

    def _condition_labels(
        self, conditions: Mapping[str, ColumnCondition], randoms: Sequence[RowRandom]
    ) -> Tensor | None:
        if not any(name in conditions for name in self.condition_encoder.names):
            return None
        generators = [random.label_generator() for random in randoms]
        return self.condition_encoder.condition_labels(conditions, generators)

    def constraint(
        self,
        conditions: Mapping[str, ColumnCondition] | None = None,
        *,
        within_range: bool = True,
        schema: RecordSchema | None = None,
    ) -> RecordConstraint:
        """The grammar of the schema, narrowed by conditions; those used last are kept."""
        conditions = conditions or {}
        schema = schema or self.schema
        key = repr((within_range, sorted(conditions.items()), schema.to_dict()))
        return self._grammars.get(key, lambda: self._compile(schema, conditions, within_range))

    def _compile(
        self, schema: RecordSchema, conditions: Mapping[str, ColumnCondition], within_range: bool
    ) -> RecordConstraint:
        config = self.autoencoder.config
        return RecordConstraint.compile(
            self.decoder_tokenizer,
            vocab_size=self.autoencoder.decoder.get_input_embeddings().weight.shape[0],
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            fixed_segments=schema.fixed_segments(),
            values=[
                self._value_spec(schema, column, conditions.get(column.name), within_range)
                for column in schema.columns
            ],
        )

    @staticmethod
    def _value_spec(
        schema: RecordSchema, column: Any, condition: ColumnCondition | None, within_range: bool
    ) -> ValueSpec:
        def write(value: Any) -> str:
            return schema.value_text(column.name, value)

        spec = column.rules.grammar(write, within_range, condition)
        if schema.record_format == "text" and spec["kind"] == "text":
            spec["kind"] = "raw"
        return ValueSpec(**spec)

    def _copy_check(self) -> Callable[[str], bool]:
        digests = self.training_digests()
        return lambda text: record_digest(text) in digests

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the pipeline to a device; a dtype is the decoder's, what was trained stays in float32."""
        dtypes = [value for value in (*args, kwargs.pop("dtype", None)) if isinstance(value, torch.dtype)]
        if len(dtypes) > 1:
            raise ArgumentError(f"One dtype at most: {', '.join(map(str, dtypes))} were passed.")
        with self.only_loaded():
            super().to(*(value for value in args if not isinstance(value, torch.dtype)), **kwargs)
        if dtypes and "autoencoder" in self.deferred():
            self.deferred()["autoencoder"].options["decoder_dtype"] = str(dtypes[0]).removeprefix("torch.")
        elif dtypes:
            self.autoencoder.decoder.to(dtypes[0])
        return self

    def default_batch_size(self) -> int:
        """Rows decoded together: 256 on a CPU, 512 on an accelerator."""
        return 256 if self.denoiser.device.type == "cpu" else 512

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved pipeline from a folder or the Hub with the installed difflm; no remote code runs.

        Takes diffusers' arguments (``revision``, ``cache_dir``, ``token``, ``local_files_only``, components by name)
        and ``decoder``, ``decoder_name_or_path``, ``decoder_dtype``, ``decoder_kwargs`` of [`DiffLMModel`].
        ``torch_dtype`` is the decoder's, too: what was trained stays in float32.
        """
        try:
            from difflm.modeling_denoiser import DiffLMDenoiser  # noqa: F401
        except ImportError:
            # This file runs from a published repository: diffusers loads the code beside the weights.
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs = decoder_dtype(kwargs)
        names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        download = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = Path(str(pretrained_model_name_or_path))
        if not folder.is_dir():
            folder = download_folder(str(pretrained_model_name_or_path), **download)
        # The decoder may be on the Hub too, and gated.
        hub = {key: value for key, value in download.items() if key not in ("revision", "force_download")}
        components = load_components(folder, kwargs, hub)
        if kwargs:
            raise TypeError(f"Unknown arguments of DiffLMPipeline.from_pretrained: {', '.join(sorted(kwargs))}.")
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline._digests_folder = folder
        return pipeline
