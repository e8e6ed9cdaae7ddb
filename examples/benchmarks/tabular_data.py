"""The tables of tabular.py: their splits, and what their columns are."""

import argparse
import json
from pathlib import Path

import pandas as pd

from difflm.training.evaluation.tables import TableSpec


SPLITS = ("train", "validation", "test")


def load(arguments: argparse.Namespace, dataset: str) -> tuple[dict[str, pd.DataFrame], TableSpec]:
    """Read the three splits and the spec of a dataset."""
    if arguments.data_dir is None:
        if arguments.hub_dataset is None or arguments.spec is None:
            raise SystemExit("give --data-dir, or --hub-dataset and --spec")
        if arguments.dataset == "all":
            raise SystemExit("--hub-dataset holds one table: say which with --dataset")
        from datasets import load_dataset

        loaded = load_dataset(arguments.hub_dataset)
        tables, settings = (
            {name: loaded[name].to_pandas() for name in SPLITS},
            json.loads(Path(arguments.spec).read_text()),
        )
    else:
        folder = Path(arguments.data_dir) / dataset
        settings = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        # Empty cells alone are missing: "?" and "NA" are categories of these tables.
        tables = {name: pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""]) for name in SPLITS}
    regression = settings["task"] == "regression"
    spec = TableSpec.infer(
        tables["train"],
        target=settings["target"],
        categorical=settings["categorical"],
        task="regression" if regression else "classification",
        log_target=regression,
    )
    return tables, spec
