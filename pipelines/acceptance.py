"""What ``accept=`` of the pipeline's call may be: checks that decide which records are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import ArgumentError


def acceptance_checks(accept: Any) -> dict[str, Callable[[dict[str, Any]], bool]]:
    """Named checks from a callable, a dict of callables, or a pandera schema."""
    if accept is None:
        return {}
    if isinstance(accept, Mapping):
        return dict(accept)
    if hasattr(accept, "validate"):
        return {getattr(accept, "name", None) or "schema": _PanderaCheck(accept)}
    if callable(accept):
        return {getattr(accept, "__name__", "accept"): accept}
    raise ArgumentError(f"accept must be a callable, a dict of callables or a pandera schema, not {accept!r}.")


class _PanderaCheck:
    """Whether a record, as a one-row table, passes a pandera schema."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema

    def __call__(self, record: dict[str, Any]) -> bool:
        import pandas as pd
        import pandera.errors

        try:
            self.schema.validate(pd.DataFrame([record]))
        except (pandera.errors.SchemaError, pandera.errors.SchemaErrors):
            return False
        return True
