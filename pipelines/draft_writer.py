"""Records written by the draft: a latent, a row's random numbers and what is asked of the cells become cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cell_codes import UNKNOWN, CellCodes
from .errors import ArgumentError
from .row_seeds import draft_uniforms
from .values import listed


if TYPE_CHECKING:
    from .conditions import ColumnCondition
    from .record_schema import RecordSchema
    from .token_sampling import RowRandom


class DraftWriter:
    """Writes the cells that a draft can, of all rows at once, column by column.

    Parameters
    ----------
    draft : ColumnDraft
    schema : RecordSchema
        Of the records that it was trained on.
    conditions : mapping, optional
        Column to what must hold in it.
    within_range : bool, default True
        Whether numbers and dates stay within what was seen in training.
    temperature, top_k, top_p
        See ``ColumnDraft.write``.
    """

    #: Rows between two reports of progress.
    rows_at_once = 1024

    def __init__(
        self,
        draft: Any,
        schema: RecordSchema,
        conditions: Mapping[str, ColumnCondition] | None = None,
        *,
        within_range: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.draft, self.schema, self.codes = draft, schema, CellCodes(schema)
        conditions = conditions or {}
        columns = [part.name for part in self.codes.columns]
        if columns != [column["name"] for column in draft.config["columns"]]:
            raise ArgumentError(
                f"The draft writes {listed(column['name'] for column in draft.config['columns'])}, and the schema's "
                f"columns are {listed(columns)}: pass the draft that was fitted to this table, or none."
            )
        limits = self.codes.limits(conditions, within_range=within_range)
        self._limits = {
            place: limit if isinstance(limit, tuple) else torch.from_numpy(limit) for place, limit in limits.items()
        }
        self._listed = self.codes.listed_dates(conditions)
        self._asked = {name: self._asked_texts(name, condition) for name, condition in conditions.items()}
        self._drawing: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    @property
    def complete(self) -> bool:
        """Whether it writes all columns of a record."""
        return self.codes.complete

    def cells(
        self,
        latents: Tensor,
        randoms: Sequence[RowRandom],
        given: Sequence[Mapping[str, Any]] | None = None,
        on_rows_done: Callable[[int], Any] | None = None,
    ) -> dict[str, list[str]]:
        """The texts of the cells, by column, one per row.

        Parameters
        ----------
        latents : Tensor
            ``[rows, latent_size]``; dimensions behind the draft's own are not read.
        randoms : sequence of RowRandom
            One per row.
        given : sequence of mapping, optional
            Per row the normalised values of its known cells by column.
        on_rows_done : callable, optional
            Called with the number of rows that have just been finished.
        """
        written: dict[str, list[str]] = {name: [] for name in self.codes.names}
        for start in range(0, len(randoms), self.rows_at_once):
            rows = slice(start, start + self.rows_at_once)
            uniforms = draft_uniforms(randoms[rows], 2 * len(self.codes.columns))
            known = self._known(uniforms, None if given is None else given[rows])
            codes = self.draft.write(
                latents[rows, : self.draft.latent_size], uniforms, limits=self._limits, given=known, **self._drawing
            )
            for name, values in self.codes.values(codes.cpu().numpy()).items():
                written[name] += self._texts(name, values)
            if given is not None:
                self._keep(written, start, given[rows])
            if on_rows_done is not None:
                on_rows_done(len(uniforms))
        return written

    def texts(self, cells: Mapping[str, Sequence[str]]) -> list[str]:
        """Records of the cells of all columns."""
        first, *fixed = self.schema.fixed_segments()
        columns = [cells[name] for name in self.schema.names]
        pieces = [[text + after for text in column] for column, after in zip(columns, fixed, strict=True)]
        return [first + "".join(row) for row in zip(*pieces, strict=True)]

    def _texts(self, name: str, values: Sequence[Any]) -> list[str]:
        known = dict(self._asked.get(name, {}))  # cells repeat
        texts = []
        for value in values:
            if value not in known:
                known[value] = self.schema.value_text(name, value)
            texts.append(known[value])
        return texts

    def _asked_texts(self, name: str, condition: ColumnCondition) -> dict[Any, str]:
        """Texts of a condition's values by what their codes stand for: those of long numbers have fewer digits."""
        if name not in self.codes.names or condition.values is None:
            return {}
        values = self.codes.values(self.codes.encode([{name: value} for value in condition.values]))[name]
        return {
            value: self.schema.value_text(name, asked)
            for value, asked in zip(values, condition.values, strict=True)
        }

    def _keep(self, written: dict[str, list[str]], start: int, given: Sequence[Mapping[str, Any]]) -> None:
        """Put in the given cells as they are, to the last digit."""
        for row, cells in enumerate(given, start):
            for name in cells.keys() & written.keys():
                written[name][row] = self.schema.value_text(name, cells[name])

    def _known(self, uniforms: Tensor, given: Sequence[Mapping[str, Any]] | None) -> Tensor | None:
        """Codes of cells that are not the draft's to choose: those that are given, and dates out of a list."""
        if given is None and not self._listed:
            return None
        records: list[Mapping[str, Any]] = [{}] * len(uniforms) if given is None else list(given)
        for name, dates in self._listed.items():
            # The parts of a date depend on each other: one is drawn as a whole, by a number that its parts then spare.
            drawn = (uniforms[:, 2 * self.codes.place(name).start] * len(dates)).long().tolist()
            records = [{name: dates[place], **record} for place, record in zip(drawn, records, strict=True)]
        return torch.from_numpy(self.codes.encode(records, absent=UNKNOWN))
