"""What calls of the pipeline take: counts, numbers and seeds as plain Python values, or an error that names them."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentError, SchemaError


if TYPE_CHECKING:
    from .conditions import ColumnCondition
    from .record_schema import RecordSchema

OUTPUT_TYPES = ("records", "pandas", "dataset", "latent")
WRITERS = ("auto", "lm", "draft")


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    """A plain int, of any integer type (numpy's too) but booleans; ArgumentError below the ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    least = "" if minimum is None else f" of at least {minimum}"
    if number is None or isinstance(value, (bool, np.bool_)) or (minimum is not None and number < minimum):
        raise ArgumentError(f"{name} must be an integer{least}, not {value!r}.")
    return number


def real(name: str, value: Any) -> float:
    """A plain, finite float, of any real type but booleans."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a finite number, not {value!r}.")
    return float(value)


def choose_seed(seed: Any, generator: Any = None) -> int:
    """The run's seed: the given one, or one drawn from ``generator`` or else from torch's global generator."""
    if seed is not None and generator is not None:
        raise ArgumentError("Pass seed= or generator=, not both: a generator is only where a seed is drawn from.")
    if seed is not None:
        return integer("seed", seed)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentError(f"generator must be one torch.Generator, not {generator!r}: rows get their own from it.")
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31, (1,), generator=generator, device=device).item())


def decoder_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a load with diffusers' ``torch_dtype`` as the decoder's, where that is not given itself.

    The decoder is nearly all of a pipeline's memory and work; the parts that were trained stay in float32, in which
    their rounding cannot be seen.
    """
    kwargs = dict(kwargs)
    named = [kwargs.pop(name) for name in ("torch_dtype", "dtype") if name in kwargs]
    dtype = next((value for value in named if value is not None), None)
    if isinstance(dtype, Mapping):
        dtype = dtype.get("autoencoder", dtype.get("default"))
    if dtype is None or dtype == "auto":
        return kwargs
    name = str(dtype).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ArgumentError(f"torch_dtype={dtype!r} is no dtype: pass one of torch's, which the decoder gets.")
    return {"decoder_dtype": name, **{key: value for key, value in kwargs.items() if value is not None}}


def check_output_type(output_type: Any) -> None:
    """Raise ArgumentError for an unknown one."""
    if output_type not in OUTPUT_TYPES:
        raise ArgumentError(f"output_type={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")


def given_latents(latents: Any, num_samples: int, latent_size: int) -> Tensor:
    """The latents to decode, ``[num_samples, latent_size]``."""
    latents = torch.as_tensor(latents)
    if latents.shape != (num_samples, latent_size):
        raise ArgumentError(f"latents must be [{num_samples}, {latent_size}], not {list(latents.shape)}.")
    return latents


def given_values(
    given: Sequence[Mapping[str, Any]] | None,
    num_samples: int,
    schema: RecordSchema,
    conditions: Mapping[str, ColumnCondition],
) -> list[dict[str, Any]] | None:
    """Per row the normalised cells it must have, checked against the schema that the records are written by."""
    if given is None:
        return None
    if len(given) != num_samples:
        raise ArgumentError(f"given must have one entry per row: it has {len(given)} for {num_samples} rows.")
    return [_cell_values(row, cells, schema, conditions) for row, cells in enumerate(given)]


def _cell_values(
    row: int, cells: Mapping[str, Any], schema: RecordSchema, conditions: Mapping[str, ColumnCondition]
) -> dict[str, Any]:
    values = {}
    for name, value in cells.items():
        if name not in schema.names:
            known = ", ".join(schema.names)
            raise ArgumentError(f"given: row {row} has a cell of {name!r}; the columns to be written are: {known}.")
        try:
            value = schema.column(name).normalize(value)
        except SchemaError as error:
            raise ArgumentError(f"given: row {row}: {error}") from None
        if name in conditions and not conditions[name].holds(value):
            raise ArgumentError(f"given: row {row} has {name!r} = {value!r}, which the condition on it excludes.")
        values[name] = value
    return values


def choose_writer(writer: Any, stored: str, obstacle: str | None) -> str:
    """Who writes a call's records: "lm" or "draft".

    Parameters
    ----------
    writer : {"auto", "lm", "draft"}
        As asked for.
    stored : {"lm", "draft"}
        What "auto" means to the pipeline.
    obstacle : str, optional
        Why the draft cannot write what is asked for.
    """
    if writer not in WRITERS:
        raise ArgumentError(f"writer={writer!r} is not one of {', '.join(WRITERS)}.")
    if writer == "draft" and obstacle is not None:
        raise ArgumentError(f"writer='draft': {obstacle}. The language model can: leave writer= out.")
    wanted = stored if writer == "auto" else writer
    return "draft" if wanted == "draft" and obstacle is None else "lm"
