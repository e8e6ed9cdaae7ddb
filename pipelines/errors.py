"""What goes wrong with data, schemas and records."""

from __future__ import annotations


try:
    from difflm.errors import ArgumentError, DamagedPipelineError, DiffLMError
except ImportError:  # this file is published beside the weights, where difflm may be missing

    class DiffLMError(Exception):  # type: ignore[no-redef]
        """Base of the errors that difflm raises on purpose."""

    class ArgumentError(DiffLMError, ValueError):  # type: ignore[no-redef]
        """An argument has the wrong type, is out of range, or does not go with another one."""

    class DamagedPipelineError(DiffLMError, ValueError):  # type: ignore[no-redef]
        """A saved pipeline is incomplete, altered, or of a newer layout; the message names file and remedy."""


class SchemaError(DiffLMError, ValueError):
    """The data, a value or a schema does not fit; the message names the column and the remedy."""


class ConditionError(DiffLMError, ValueError):
    """A condition that names no column, a value never seen, or nothing that can hold."""


class RecordParseError(DiffLMError, ValueError):
    """A text is not a record of the schema.

    Attributes
    ----------
    column : str or None
        The column at fault; None when the fault lies in no column (text after the end of the record).
    reason : str
        What is wrong, without the column's name.
    """

    def __init__(self, column: str | None, reason: str) -> None:
        self.column = column
        self.reason = reason
        super().__init__(reason if column is None else f"column {column!r}: {reason}")


class DecodingError(DiffLMError, ValueError):
    """A record cannot be decoded: the message names the column or argument and the remedy."""
