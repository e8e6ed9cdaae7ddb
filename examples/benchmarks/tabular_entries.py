"""What tabular.py leaves: one JSON per (dataset, method, seed), and beside it the rows that took long to make."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from difflm.devices import choose_device
from difflm.files import write_json
from difflm.training.hardware import hardware
from difflm.training.versions import installed_versions


RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "difflm", "numpy", "pandas", "scikit-learn", "sdmetrics", "xgboost-cpu", "xgboost", "torch", "transformers",
    "diffusers", "imbalanced-learn", "copulas", "ctgan", "mostlyai-engine", "be-great", "peft", "anonymeter",
)  # fmt: skip


def entry_path(results: Path, dataset: str, method: str, seed: int) -> Path:
    """Where an entry is."""
    return results / f"{dataset}-{method}-{seed}.json"


def kept_rows(results: Path, dataset: str, method: str, seed: int) -> Path:
    """Where rows are kept."""
    return results / "rows" / f"{dataset}-{method}-{seed}.parquet"


def measured(arguments: argparse.Namespace, entry: dict[str, Any]) -> bool:
    """Whether there is an entry of the same table, method and seed that holds figures."""
    path = entry_path(arguments.results, entry["dataset"], entry["method"], entry["seed"])
    return path.is_file() and "figures" in json.loads(path.read_text(encoding="utf-8"))


def save(arguments: argparse.Namespace, entry: dict[str, Any]) -> None:
    """Write an entry, whole or not at all."""
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = entry_path(arguments.results, entry["dataset"], entry["method"], entry["seed"])
    write_json(path, entry)


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    versions = {"python": platform.python_version()} | installed_versions(PACKAGES)
    return {"versions": versions, "hardware": hardware(choose_device())}
