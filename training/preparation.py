"""The first step of a fit: settings, and data as records to learn from and to hold out."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from difflm.devices import choose_device
from difflm.errors import ArgumentError, DiffLMError
from difflm.modeling_difflm import multiplies_bf16, resolve_source, why_absent
from difflm.pipelines.cell_codes import CellCodes
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.disclosure import Disclosure
from difflm.training.domains import Domain, Reading, find_domain
from difflm.training.fingerprint import records_digest
from difflm.training.nested_check import check_nested_columns
from difflm.training.overlong import OVERLONG, overlong_records, too_long
from difflm.training.policy import Policy
from difflm.training.presets import PRESETS, Preset
from difflm.training.record_dataset import RecordDataset


class TooFewRecordsError(DiffLMError, ValueError):
    """Too few records are left to learn from and to validate on."""


class Tokenizers(NamedTuple):
    """The encoder's, if there is a text to read, and the decoder's."""

    encoder: PreTrainedTokenizerBase | None
    decoder: PreTrainedTokenizerBase

    @classmethod
    def load(cls, settings: Preset, reads_text: bool) -> Tokenizers:
        return cls(
            load_tokenizer(settings.encoder, "encoder") if reads_text else None,
            load_tokenizer(settings.decoder, "decoder"),
        )

    @property
    def encoder_pad_token_id(self) -> int:
        found = None if self.encoder is None else self.encoder.pad_token_id
        return found if isinstance(found, int) else 0


@dataclass(frozen=True)
class Prepared:
    """What both stages work on.

    Attributes
    ----------
    settings : Preset
    domain : Domain
    schema : RecordSchema
        Of the records to learn from and those held out.
    train, held_out : list of dict
    tokenizers : Tokenizers
    max_length : int
        Most decoder tokens of a record, the end-of-text token included.
    left_out : dict of str to int
        Reason to number of records that were read and are in neither part.
    disclosure : dict
        What is told of single records, see [`Disclosure.describe`].
    data, validation : str, optional
        Digests of the records before they were split, and of the validation data, if it was given.
    """

    settings: Preset
    domain: Domain
    schema: RecordSchema
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    tokenizers: Tokenizers
    max_length: int
    left_out: dict[str, int] = field(default_factory=dict)
    disclosure: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    validation: str | None = None

    @functools.cached_property
    def codes(self) -> CellCodes | None:
        """The cells that a draft encodes; None without a draft, or where there are none."""
        return draft_codes(self.settings, self.schema)

    @property
    def reads_text(self) -> bool:
        """Whether there are values, in text or nested columns, that only the text encoder reads."""
        return self.codes is None or not self.codes.complete

    def datasets(
        self, eos_token_id: int, column_latents: tuple[Tensor, Tensor] | None = None
    ) -> tuple[RecordDataset, RecordDataset]:
        """Training and held-out records, to be tokenised when asked for."""
        exact = self.disclosure.get("ranges", "exact") == "exact"
        latents = column_latents or (None, None)
        train, held_out = (
            RecordDataset(
                part,
                self.schema,
                *self.tokenizers,
                eos_token_id,
                untold_ends=0 if exact else self.disclosure["rare_below"],
                column_latents=own,
            )
            for part, own in zip((self.train, self.held_out), latents, strict=True)
        )
        return train, held_out


def resolve_settings(
    preset: str | Preset,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    injection: str | None = None,
    record_format: str | None = None,
    epochs: float | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
    policy: Policy | Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Preset:
    """A preset with some settings replaced, and a batch size that suits the hardware where none is given.

    Raises
    ------
    ArgumentError
        If there is no such preset, or no such field of the policy.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ArgumentError(f"preset={preset!r} is not one of {', '.join(PRESETS)}.")
        preset = PRESETS[preset]
    changes: dict[str, Any] = {
        # A path, too, is kept in the checkpoint by its name.
        "encoder": None if encoder is None else str(encoder),
        "decoder": None if decoder is None else str(decoder),
        "record_format": record_format,
        "epochs": epochs,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
        "policy": preset.policy.changed(policy),
    }
    settings = dataclasses.replace(preset, **{name: value for name, value in changes.items() if value is not None})
    if settings.batch_size is None:
        settings = dataclasses.replace(settings, batch_size=_default_batch_size(settings.policy, device))
    if injection is not None:
        settings = dataclasses.replace(settings, model=settings.model | {"injection": injection})
    return settings


def _default_batch_size(policy: Policy, device: str | None) -> int:
    chosen = choose_device(device)
    return policy.slow_batch_size if chosen.type == "cpu" and not multiplies_bf16(chosen) else policy.batch_size


def prepare(
    data: Any,
    settings: Preset,
    *,
    validation: Any = None,
    domain: str | Domain = "tables",
    read_options: Mapping[str, Any] | None = None,
    max_length: int = 1024,
    overlong: Literal["refuse", "drop"] = "refuse",
    disclosure: Disclosure | None = None,
    seed: int = 0,
) -> Prepared:
    """Read the data, leave out what cannot be learned from, and hold records out. Writes nothing, loads no weights.

    Parameters
    ----------
    data, validation : see ``domain``
        Without the latter a share of the former is held out.
    settings : Preset
    domain : str or Domain, default "tables"
    read_options : dict, optional
        The domain's; see its ``read``.
    max_length : int, default 1024
    overlong : {"refuse", "drop"}, default "refuse"
    disclosure : Disclosure, optional
        What the checkpoint may tell of single records; default: their values as they are.
    seed : int, default 0
        Of the split.

    Raises
    ------
    DiffLMError
        If the data cannot be learned from.
    """
    if overlong not in OVERLONG:
        raise ArgumentError(f"overlong={overlong!r} is neither 'refuse' nor 'drop'.")
    if max_length < 2:
        raise ArgumentError(f"max_length={max_length} has no room for a record and its end.")
    domain, options = find_domain(domain), dict(read_options or {})
    settings = dataclasses.replace(settings, record_format=_record_format(settings, domain))
    reading = domain.read(data, record_format=settings.record_format, **options)
    tokenizers = Tokenizers.load(settings, reads_text=False)
    left_out = dict(reading.left_out)
    reading = _without_problems(reading, domain, left_out)
    reading = _without_overlong(reading, domain, tokenizers, max_length, overlong, left_out)
    disclosure, seen = disclosure or Disclosure(), reading.schema
    reading, change = _disclosed(reading, disclosure, left_out)
    if validation is None:
        train_rows, held_out_rows = domain.split(reading, seed, settings.policy)
        train, held_out = ([reading.records[row] for row in rows] for rows in (train_rows, held_out_rows))
    else:
        train, held_out = reading.records, domain.read_held_out(validation, seen, **options)
        held_out = [record for record in map(change, held_out) if record is not None]
        dataset = RecordDataset(held_out, reading.schema, *tokenizers, eos_token_id=0)
        if found := overlong_records(dataset, max_length):
            if overlong == "refuse":
                raise too_long(found, dataset, range(len(held_out)), max_length, part="of the validation data ")
            held_out = [record for row, record in enumerate(held_out) if row not in found]
            _count(left_out, f"validation records of more than {max_length} tokens", len(found))
            if not held_out:
                raise TooFewRecordsError("No record of the validation data is short enough: raise max_length.")
    decoder_tokenizer = tokenizers.decoder
    check_nested_columns(train, reading.schema, decoder_tokenizer, decoder_tokenizer.eos_token_id or 0)
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        warnings.warn(f"Left out: {reasons}. {len(train):,} records are learned from.", stacklevel=3)
    codes = draft_codes(settings, reading.schema)
    if codes is None or not codes.complete:
        tokenizers = tokenizers._replace(encoder=load_tokenizer(settings.encoder, "encoder"))
    return Prepared(
        settings=settings,
        domain=domain,
        schema=reading.schema,
        train=train,
        held_out=held_out,
        tokenizers=tokenizers,
        max_length=max_length,
        left_out=left_out,
        disclosure=disclosure.describe(reading.schema, reading.records),
        data=records_digest(reading.records),
        validation=None if validation is None else records_digest(held_out),
    )


def draft_codes(settings: Preset, schema: RecordSchema) -> CellCodes | None:
    """The cells of such records that a draft encodes, if there is one."""
    codes = CellCodes(schema) if settings.column_draft else None
    return codes if codes is not None and codes.columns else None


def _record_format(settings: Preset, domain: Domain) -> str:
    return settings.record_format if settings.record_format in domain.record_formats else domain.record_formats[0]


def load_tokenizer(name: str, role: str = "") -> Any:
    """The tokenizer of an encoder or decoder; ``role`` is the argument that named it.

    Raises
    ------
    OSError, ArgumentError
        If it cannot be had or loaded; names the model.
    """
    label = f"{role}={name!r} (--{role})" if role else name
    if Path(name).is_absolute() and not Path(name).exists():
        raise FileNotFoundError(f"{label}: there is no such folder or file")
    source, gguf_file = resolve_source(name)
    try:
        return AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf_file} if gguf_file else {}))
    except OSError as error:
        raise OSError(f"{label}: {why_absent(name, error)}") from error
    except ValueError as error:
        raise ArgumentError(f"{label}: its tokenizer cannot be loaded: {error}") from error


def _without_problems(reading: Reading, domain: Domain, left_out: dict[str, int]) -> Reading:
    problems = {row: found for row, record in enumerate(reading.records) if (found := domain.problem(record))}
    for reason in problems.values():
        _count(left_out, f"that {reason}", 1)
    return _selected(reading, domain, problems) if problems else reading


def _without_overlong(
    reading: Reading,
    domain: Domain,
    tokenizers: Tokenizers,
    max_length: int,
    overlong: str,
    left_out: dict[str, int],
) -> Reading:
    # Again, as the others may be written longer under the schema that is inferred from them alone.
    while True:
        dataset = RecordDataset(reading.records, reading.schema, *tokenizers, eos_token_id=0)
        found = overlong_records(dataset, max_length)
        if not found:
            return reading
        if overlong == "refuse":
            raise too_long(found, dataset, reading.places, max_length)
        _count(left_out, f"of more than {max_length} tokens", len(found))
        reading = _selected(reading, domain, found)


def _disclosed(
    reading: Reading, disclosure: Disclosure, left_out: dict[str, int]
) -> tuple[Reading, Callable[[dict[str, Any]], dict[str, Any] | None]]:
    """The reading as it may be told, and what makes it so of a further record."""
    schema, change = disclosure.apply(reading.schema, reading.records)
    kept = [(row, record) for row, found in enumerate(reading.records) if (record := change(found)) is not None]
    if dropped := len(reading.records) - len(kept):
        _count(left_out, f"of a category of fewer than {disclosure.rare_below} records", dropped)
    changed = dataclasses.replace(
        reading,
        records=[record for _, record in kept],
        schema=schema,
        places=[reading.places[row] for row, _ in kept],
        groups=None if reading.groups is None else [reading.groups[row] for row, _ in kept],
    )
    return changed, change


def _selected(reading: Reading, domain: Domain, without: Mapping[int, Any]) -> Reading:
    rows = [row for row in range(len(reading.records)) if row not in without]
    if len(rows) < 2:
        raise TooFewRecordsError(
            f"{len(rows)} of {len(reading.records)} records can be learned from, at least 2 are needed: raise "
            "max_length (--max-length), or look at the data."
        )
    return domain.select(reading, rows)


def _count(counts: dict[str, int], reason: str, number: int) -> None:
    counts[reason] = counts.get(reason, 0) + number
