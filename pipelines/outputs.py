"""What sampling returns: records, their texts and latents, and an account of what was rejected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusers.utils import BaseOutput
from torch import Tensor

from .arrow_tables import plain_types, to_arrow


if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa


@dataclass
class SamplingReport:
    """An account of one sampling run.

    Attributes
    ----------
    requested, returned : int
        Rows asked for and delivered.
    attempts : int
        Records written in all; each row is written at most ``max_attempts`` times.
    first_attempt_parsed : int
        Rows whose first text parsed and held every column with the right type.
    rejected : Counter
        Reason to number of rejected texts: ``"invalid: ..."``, ``"condition"``, ``"accept: ..."``, ``"duplicate"``,
        ``"training copy"``.
    """

    requested: int = 0
    returned: int = 0
    attempts: int = 0
    first_attempt_parsed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def valid_first_attempt(self) -> float:
        """Share of rows whose first text parsed, before any filter (0 to 1)."""
        return self.first_attempt_parsed / self.requested if self.requested else 0.0

    def __add__(self, other: SamplingReport) -> SamplingReport:
        return SamplingReport(
            self.requested + other.requested,
            self.returned + other.returned,
            self.attempts + other.attempts,
            self.first_attempt_parsed + other.first_attempt_parsed,
            self.rejected + other.rejected,
        )

    def __str__(self) -> str:
        lines = [f"{self.returned:,} of {self.requested:,} rows, {self.attempts:,} texts written"]
        lines += [f"  rejected {count:,}: {reason}" for reason, count in self.rejected.most_common()]
        return "\n".join(lines)


@dataclass
class DiffLMPipelineOutput(BaseOutput):
    """Output of [`DiffLMPipeline`].

    Attributes
    ----------
    records : list of dict
        One per delivered row, in order of rows.
    texts : list of str
        The records as the decoder wrote them.
    latents : Tensor
        ``[rows, latent_size]``, in latent units.
    rows : list of int
        Index of each record's row in the run: not contiguous if rows were given up.
    report : SamplingReport
    seed : int
        With which the same call gives the same records.
    schema : RecordSchema
    """

    records: list[dict[str, Any]] | None = None
    texts: list[str] | None = None
    latents: Tensor | None = None
    rows: list[int] | None = None
    report: SamplingReport | None = None
    seed: int | None = None
    schema: Any = None

    @property
    def valid_first_attempt(self) -> float:
        """Share of rows whose first text parsed, before any filter (0 to 1)."""
        if self.report is None:
            raise ValueError("This output has no sampling report.")
        return self.report.valid_first_attempt

    def converted(self, output_type: str, return_dict: bool = True) -> Any:
        """What the pipeline's call returns: this, a table, or a tuple of the content asked for and the report."""
        content: Any
        if output_type == "pandas":
            content = self.to_pandas()
        elif output_type == "dataset":
            content = self.to_dataset()
        else:
            content = self.latents if output_type == "latent" else self.records
        if not return_dict:
            return content, self.report
        return content if output_type in ("pandas", "dataset") else self

    def to_pandas(self) -> pd.DataFrame:
        """The records as a DataFrame with the training data's dtypes."""
        return self.schema.to_pandas(self.records)

    def to_arrow(self, *, big_integers: str = "decimal") -> pa.Table:
        """The records as a ``pyarrow.Table``, of the same types for any rows.

        Parameters
        ----------
        big_integers : {"decimal", "string"}, default "decimal"
            How integers of more than 64 bits are held: as decimals of 38 digits, none after the point, or as text.
        """
        return to_arrow(self.to_pandas(), self.schema, big_integers=big_integers)

    def to_dataset(self) -> datasets.Dataset:
        """The records as a ``datasets.Dataset``: categories as their values, what Arrow has no type for as text."""
        import datasets

        return datasets.Dataset(plain_types(self.to_arrow()))
