"""What a fit is made of: data, arguments, versions. Only a fit of the same can be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difflm.errors import DiffLMError
from difflm.training.versions import installed_versions


PACKAGES = ("difflm", "torch", "transformers", "tokenizers", "diffusers", "accelerate", "numpy", "pandas")
# How long a fit lasts and what it shows may differ: its steps are the same as far as it comes.
FREE = {
    "settings": ("max_minutes",),
    "training_kwargs": ("max_minutes", "disable_tqdm"),
    "denoiser_kwargs": ("max_seconds", "show_progress"),
}


class ResumeError(DiffLMError, ValueError):
    """A fit cannot go on with other data or arguments than it began with; the message names them."""


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the records' content, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def describe(**parts: Any) -> dict[str, Any]:
    """The description of a fit, as JSON holds it, with the versions that run it."""
    content = json.loads(json.dumps(parts, default=_as_json, ensure_ascii=False))
    return {**content, "versions": installed_versions(PACKAGES)}


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    # An object's address is another in every process.
    text = str(value)
    return text if " at 0x" not in text else f"{type(value).__module__}.{type(value).__qualname__}"


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with another fit than was begun; warn of other versions.

    Raises
    ------
    ResumeError
        Naming what is different.
    """
    # What follows from the data differs with it, and would only hide the cause.
    follows = ("rows", "schema") if before.get("data") != now.get("data") else ("rows",)
    names = [name for name in now if name not in ("versions", *follows)]
    changed = [text for name in names for text in _differences(name, before.get(name), now[name])]
    if changed:
        raise ResumeError(
            f"The fit in {folder} was started with other {', '.join(changed)}: resume with the same data and options "
            "(only the time limit may differ), or start anew with --overwrite."
        )
    versions = [
        f"{name} {before['versions'].get(name, 'absent')} (now {version})"
        for name, version in now["versions"].items()
        if before.get("versions") and before["versions"].get(name) != version
    ]
    if versions:
        warnings.warn(
            f"The fit in {folder} was started with {', '.join(versions)}: the result may differ slightly from that of "
            "one version.",
            stacklevel=4,
        )


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict) and name != "schema":
        for key in sorted({*before, *now}):
            if key not in FREE.get(name, ()):
                yield from _differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        told = all(isinstance(value, bool | int | float | str | None) for value in (before, now))
        shown = told and name not in ("data", "validation")
        name = name.removeprefix("settings.")
        yield f"{name} ({_shown(before)}, now {_shown(now)})" if shown else name


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
