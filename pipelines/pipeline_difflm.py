"""DiffLMPipeline: noise -> denoiser -> latent -> injector -> frozen LLM -> record (DiffLM, arXiv 2411.03250)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from transformers import LogitsProcessorList


if __package__ and __package__ not in sys.modules:
    # diffusers names the package of a published file by its repository: Python cannot import it if that has a dot.
    sys.modules[__package__] = ModuleType(__package__)
    sys.modules[__package__].__path__ = [str(Path(__file__).parent)]

# diffusers copies the files that this one names, not those that they name in turn: hence the unused ones.
from .acceptance import acceptance_checks
from .choice_kinds import CategoryKind  # noqa: F401
from .column_kinds import Column  # noqa: F401
from .conditions import ColumnCondition, ConditionEncoder, check_condition
from .decode_rows import decode_rows
from .errors import RecordParseError
from .hub_saving import MODEL_MODULES, HubSavingMixin, download_folder, verify, verify_source
from .json_values import plain_json  # noqa: F401
from .kind_base import ColumnKind  # noqa: F401
from .latent_sampling import sample_latents
from .number_kinds import IntegerKind  # noqa: F401
from .outputs import DiffLMPipelineOutput, SamplingReport
from .packed_attention import supports
from .patterns import matches  # noqa: F401
from .record_editing import RecordEditingMixin
from .record_grammar import RecordConstraint
from .record_schema import RecordSchema
from .tables import as_dataframe  # noqa: F401
from .text_kinds import TextKind  # noqa: F401
from .token_sampling import RecordLogitsProcessor, RowRandom, check_sampling_options
from .value_grammars import ValueSpec
from .values import clean_text  # noqa: F401
from .vocabulary import tokenize_segment  # noqa: F401


class DiffLMPipeline(RecordEditingMixin, HubSavingMixin, DiffusionPipeline):
    """Samples records from a fitted DiffLM.

    Parameters
    ----------
    autoencoder : DiffLMModel
    denoiser : DiffLMDenoiser
    scheduler : KarrasVeScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler
    encoder_tokenizer, decoder_tokenizer : PreTrainedTokenizerBase
    record_schema : dict
        [`RecordSchema.to_dict`] of the training data.
    condition_classes : list of dict, optional
        Of [`ConditionEncoder`]: what the denoiser's class labels mean.
    max_new_tokens : int, default 1024
        Most tokens of a record.
    """

    model_cpu_offload_seq: Any = "denoiser->autoencoder"
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
    ) -> None:
        super().__init__()
        if record_schema is None:
            raise ValueError("A DiffLMPipeline needs the record_schema of its training data.")
        self.register_modules(
            autoencoder=autoencoder,
            denoiser=denoiser,
            scheduler=scheduler,
            encoder_tokenizer=encoder_tokenizer,
            decoder_tokenizer=decoder_tokenizer,
        )
        # One JSON text each: diffusers takes lists in model_index.json for components.
        self.register_to_config(
            record_schema=dict(record_schema),
            condition_classes={"classes": condition_classes}
            if isinstance(condition_classes, list)
            else condition_classes,
            max_new_tokens=max_new_tokens,
        )
        self.schema = RecordSchema.from_dict(record_schema)
        classes = condition_classes["classes"] if isinstance(condition_classes, Mapping) else condition_classes
        self.condition_encoder = ConditionEncoder(list(classes or []))
        self._constraints: dict[str, RecordConstraint] = {}
        self.remember_sources()
        if __name__.startswith("diffusers_modules."):
            # Loaded by diffusers itself, from a repository: what `from_pretrained` below checks is checked here.
            verify_source(autoencoder)

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
        num_inference_steps: int = 50,
        batch_size: int | None = None,
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
            Where the seed is drawn from, as in diffusers.
        condition : mapping, optional
            Column to a value, a list of values, ``None`` (missing) or a ``(low, high)`` tuple: holds in every record.
        guidance_scale : float, default 1.0
            Classifier-free guidance towards ``condition``; 1 is the plain conditional distribution.
        temperature, top_k, top_p : float, int, float, default 1.0, None, None
            Of the decoder's tokens; None keeps all. A temperature of 0 takes the likeliest token.
        constrained : bool, default True
            Only tokens that can become a valid record are drawn. False: the decoder writes freely and invalid texts
            are resampled (the paper's way).
        within_range : bool, default True
            Numbers stay between the smallest and the largest seen in training (only with ``constrained``).
        fast : bool, default True
            Own decoding loop; False uses the decoder's ``generate``, as does a decoder the loop cannot run. Same
            records.
        num_inference_steps : int, default 50
            Noise levels of the diffusion.
        batch_size : int, optional
            Rows decoded together; default by the device's memory.
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
            Per row, the values that its record must have (used by ``impute``).
        schema : mapping, optional
            A JSON Schema of an object: records are written and checked by it instead of by the training table's.
        first_row : int, default 0
            Index of the first row: ``pipe(5, seed=0, first_row=5)`` continues ``pipe(5, seed=0)``.
        output_type : {"records", "pandas", "dataset", "latent"}, default "records"
            "latent" stops before decoding.
        return_dict : bool, default True
            False returns a tuple ``(records or table, report)``.
        callback_on_step_end : callable, optional
            See [`sample_latents`].

        Returns
        -------
        DiffLMPipelineOutput

        Raises
        ------
        ValueError
            If an argument is out of range; ``ConditionError`` if a condition cannot hold.
        """
        check_sampling_options(temperature, top_k, top_p)
        _check_arguments(num_samples, seed, max_attempts, batch_size, output_type, first_row)
        if seed is None:
            seed = int(torch.randint(2**31, (1,), generator=generator).item())
        if latents is not None and latents.shape != (num_samples, self.denoiser.config.latent_size):
            raise ValueError(
                f"latents must be [{num_samples}, {self.denoiser.config.latent_size}], not {list(latents.shape)}."
            )
        table = self.schema
        if schema is not None:
            table = RecordSchema.from_json_schema(schema, record_format=self.schema.record_format)
        conditions = check_condition(condition or {}, table.columns)
        checks = acceptance_checks(accept)
        if exclude_training_copies and not self.denoiser.config.num_record_digests:
            raise ValueError(
                "This checkpoint stores no digests of its training records: fit it again to exclude copies."
            )
        digests = _digest_set(self.denoiser) if exclude_training_copies else frozenset()
        report = SamplingReport(requested=num_samples)
        done: dict[int, tuple[dict[str, Any], str, Tensor]] = {}
        owner: dict[str, int] = {}
        attempts = dict.fromkeys(range(num_samples), 0)
        latent_options = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "callback_on_step_end": callback_on_step_end,
        }
        with self.progress_bar(total=num_samples) as progress:
            while rows := [row for row, count in attempts.items() if row not in done and count < max_attempts]:
                randoms = [RowRandom(seed, first_row + row, attempts[row]) for row in rows]
                if latents is not None:
                    batch_latents = latents[rows].to(self.denoiser.device)
                else:
                    labels = self._condition_labels(conditions, randoms)
                    batch_latents = self._sample_latents(randoms, labels, **latent_options)
                if output_type == "latent":
                    return (
                        DiffLMPipelineOutput(latents=batch_latents, seed=seed, report=report)
                        if return_dict
                        else (
                            batch_latents,
                            report,
                        )
                    )
                texts = self._decode(
                    batch_latents,
                    randoms,
                    self.constraint(conditions, within_range=within_range, schema=table),
                    given=None if given is None else [given[row] for row in rows],
                    constrained=constrained,
                    fast=fast,
                    batch_size=batch_size,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    on_rows_done=progress.update if report.attempts == 0 else None,
                )
                for position, row in enumerate(rows):
                    report.attempts += 1
                    record, reason = self._read(texts[position], table, conditions, checks, digests)
                    if attempts[row] == 0 and not (reason or "").startswith("invalid"):
                        report.first_attempt_parsed += 1
                    if unique and reason is None:
                        reason = self._claim(texts[position], row, owner, done, report)
                    if reason is None:
                        done[row] = (record, texts[position], batch_latents[position].cpu())
                    else:
                        report.rejected[reason] += 1
                    attempts[row] += 1
        report.returned = len(done)
        if report.returned < num_samples:
            warnings.warn(
                f"{num_samples - report.returned} of {num_samples} rows were given up after {max_attempts} attempts "
                f"each.\n{report}\nRelax the condition or accept=, or raise max_attempts.",
                stacklevel=2,
            )
        kept = sorted(done)
        output = DiffLMPipelineOutput(
            records=[done[row][0] for row in kept],
            texts=[done[row][1] for row in kept],
            latents=torch.stack([done[row][2] for row in kept]) if kept else torch.empty(0),
            rows=[first_row + row for row in kept],
            report=report,
            seed=seed,
            schema=table,
        )
        if output_type == "records":
            return output if return_dict else (output.records, report)
        return output.to_pandas() if output_type == "pandas" else output.to_dataset()

    def stream(self, num_samples: int, batch_size: int = 256, *, first_row: int = 0, **kwargs: Any) -> Iterator[Any]:
        """Yield [`DiffLMPipelineOutput`] of ``batch_size`` rows at a time, in order, with constant memory.

        The rows are those of one call with the same seed. ``unique`` holds within a batch only, so it is refused.
        """
        if kwargs.get("unique"):
            raise ValueError("unique=True needs all rows at once: call the pipeline, or drop duplicates afterwards.")
        _check_arguments(num_samples, kwargs.get("seed"), batch_size=batch_size, first_row=first_row)
        if kwargs.get("seed") is None:
            kwargs["seed"] = int(torch.randint(2**31, (1,), generator=kwargs.pop("generator", None)).item())
        for start in range(0, num_samples, batch_size):
            yield self(min(batch_size, num_samples - start), first_row=first_row + start, **kwargs)

    def row_randoms(self, seed: int, num_rows: int, first_row: int = 0, attempt: int = 0) -> list[RowRandom]:
        """The random numbers of rows ``first_row`` and on."""
        return [RowRandom(seed, first_row + row, attempt) for row in range(num_rows)]

    def _sample_latents(self, randoms: Sequence[RowRandom], labels: Tensor | None = None, **options: Any) -> Tensor:
        generators = [random.latent_generator() for random in randoms]
        return sample_latents(
            self.denoiser, self.scheduler, len(randoms), generators=generators, class_labels=labels, **options
        )

    def _condition_labels(
        self, conditions: Mapping[str, ColumnCondition], randoms: Sequence[RowRandom]
    ) -> Tensor | None:
        if not any(name in conditions for name in self.condition_encoder.names):
            return None
        generators = [random.label_generator() for random in randoms]
        return self.condition_encoder.condition_labels(conditions, generators)

    def _decode(
        self,
        latents: Tensor,
        randoms: Sequence[RowRandom],
        constraint: RecordConstraint,
        *,
        given: Sequence[Mapping[str, Any]] | None,
        fast: bool,
        batch_size: int | None,
        on_rows_done: Callable[[int], Any] | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Write one text per latent."""
        batch_size = batch_size or self.default_batch_size()
        with self.autoencoder.decoder_lock:
            fast = fast and supports(self.autoencoder.decoder)
        given_texts = None
        if given is not None:
            given_texts = [
                {name: self.schema.value_text(name, value) for name, value in values.items()} for values in given
            ]
        # A text written freely may never end: no longer than any valid record can be, or its cache fills the memory.
        most_tokens = min(self.config["max_new_tokens"], constraint.max_new_tokens or self.config["max_new_tokens"])
        # The fast loop refills its batch as rows finish: it gets several batches at a time.
        chunk = batch_size * 8 if fast else batch_size
        texts: list[str] = []
        for start in range(0, len(latents), chunk):
            rows = slice(start, start + chunk)
            chunk_latents = latents[rows].to(self.autoencoder.device)
            row_given = None if given_texts is None else given_texts[rows]
            if fast:
                with self.autoencoder.decoder_lock:
                    tokens = decode_rows(
                        self.autoencoder.decoder,
                        self.autoencoder.inject(chunk_latents),
                        constraint,
                        randoms[rows],
                        given_texts=row_given,
                        batch_size=batch_size,
                        max_new_tokens=most_tokens,
                        on_rows_done=on_rows_done,
                        **sampling,
                    )
            else:
                processor = RecordLogitsProcessor(constraint, randoms[rows], given_texts=row_given, **sampling)
                tokens = self.autoencoder.generate(
                    chunk_latents,
                    logits_processor=LogitsProcessorList([processor]),
                    do_sample=False,
                    max_new_tokens=most_tokens,
                ).tolist()
                if on_rows_done is not None:
                    on_rows_done(len(tokens))
            texts.extend(constraint.text(row) for row in tokens)
        return texts

    def constraint(
        self,
        conditions: Mapping[str, ColumnCondition] | None = None,
        *,
        within_range: bool = True,
        schema: RecordSchema | None = None,
    ) -> RecordConstraint:
        """The grammar of the schema, narrowed by conditions; compiled once for each."""
        conditions = conditions or {}
        schema = schema or self.schema
        key = repr((within_range, sorted(conditions.items()), schema.to_dict()))
        if key not in self._constraints:
            config = self.autoencoder.config
            self._constraints[key] = RecordConstraint.compile(
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
        return self._constraints[key]

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

    @staticmethod
    def _read(
        text: str,
        schema: RecordSchema,
        conditions: Mapping[str, ColumnCondition],
        checks: Mapping[str, Callable[[dict[str, Any]], bool]],
        digests: frozenset[bytes],
    ) -> tuple[dict[str, Any], str | None]:
        """Parse a text; the reason is None if the record is kept."""
        try:
            record = schema.parse(text)
        except RecordParseError as error:
            return {}, f"invalid: {error.column or 'record'}: {error.reason}"
        if any(not condition.holds(record[name]) for name, condition in conditions.items()):
            return record, "condition"
        for name, check in checks.items():
            if not check(record):
                return record, f"accept: {name}"
        if digests and record_digest(text) in digests:
            return record, "training copy"
        return record, None

    @staticmethod
    def _claim(
        text: str,
        row: int,
        owner: dict[str, int],
        done: dict[int, Any],
        report: SamplingReport,
    ) -> str | None:
        """Of equal records the lowest row keeps its own, whatever was drawn first: batches do not show."""
        other = owner.get(text)
        if other is not None and other < row:
            return "duplicate"
        owner[text] = row
        if other is not None:
            del done[other]
            report.rejected["duplicate"] += 1
        return None

    def default_batch_size(self) -> int:
        """Rows decoded together: 256 on a CPU, 512 on an accelerator."""
        return 256 if self.autoencoder.device.type == "cpu" else 512

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved pipeline from a folder or the Hub with the installed difflm; no remote code runs.

        Takes diffusers' arguments (``revision``, ``cache_dir``, ``token``, ``local_files_only``, components by name)
        and ``decoder``, ``decoder_name_or_path``, ``decoder_dtype``, ``decoder_kwargs`` of [`DiffLMModel`].
        """
        if importlib.util.find_spec("difflm") is None:
            # This file runs from a published repository: diffusers loads the code beside the weights.
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        download = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = Path(str(pretrained_model_name_or_path))
        if not folder.is_dir():
            folder = download_folder(str(pretrained_model_name_or_path), **download)
        index = verify(folder)
        model_kwargs = {
            name: kwargs.pop(name)
            for name in ("decoder", "decoder_name_or_path", "decoder_dtype", "decoder_kwargs")
            if name in kwargs
        }
        components: dict[str, Any] = {}
        for name, entry in index.items():
            if name in kwargs:
                components[name] = kwargs.pop(name)
            elif isinstance(entry, list) and not name.startswith("_"):
                component = _component_class(*entry)
                # The decoder may be on the Hub too, and gated.
                hub = {key: value for key, value in download.items() if key not in ("revision", "force_download")}
                extra = model_kwargs | hub if name == "autoencoder" else {}
                components[name] = component.from_pretrained(folder / name, **extra)
            elif not name.startswith("_"):
                components[name] = entry
        if kwargs:
            raise TypeError(f"Unknown arguments of DiffLMPipeline.from_pretrained: {', '.join(sorted(kwargs))}.")
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline


def record_digest(text: str) -> bytes:
    """128-bit digest of a serialised record, by which copies of training records are known.

    Keyed, so that it matches no digest made for another purpose; it hides no secret: who holds the checkpoint can
    test whether a guessed record was in the training data.
    """
    return hashlib.blake2b(text.encode(), digest_size=16, key=b"difflm record v1").digest()


def _digest_set(denoiser: Any) -> frozenset[bytes]:
    return frozenset(bytes(row) for row in denoiser.record_digests.cpu().numpy())


def _component_class(library: str, name: str) -> Any:
    # By string: in a published repository this file runs without difflm.
    module = f"difflm.{library}" if library in MODEL_MODULES.values() else library
    return getattr(importlib.import_module(module), name)


def _check_arguments(
    num_samples: int,
    seed: int | None = None,
    max_attempts: int = 1,
    batch_size: int | None = None,
    output_type: str = "records",
    first_row: int = 0,
) -> None:
    counts = {"num_samples": num_samples, "max_attempts": max_attempts, "batch_size": batch_size}
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}.")
    if first_row < 0:
        raise ValueError(f"first_row must be at least 0, not {first_row}.")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"seed must be an integer, not {seed!r}.")
    if output_type not in ("records", "pandas", "dataset", "latent"):
        raise ValueError(f"output_type={output_type!r} is not one of records, pandas, dataset, latent.")
