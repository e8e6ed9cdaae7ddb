"""Fit, sample and judge generators on the five tables of the paper; one JSON per (dataset, method, seed).

    python examples/benchmarks/tabular.py --dataset adult --data-dir DATA --methods real,independent,difflm
    python examples/benchmarks/tabular.py --dataset adult --data-dir DATA --methods great --judge    # its kept rows
    python examples/benchmarks/tabular.py --render            # results/README.md, from the JSONs alone
    python examples/benchmarks/tabular.py --render --check    # fails if the committed table differs

DATA holds <dataset>/{train,validation,test}.csv and spec.json. Instead, --hub-dataset USER/NAME takes the splits of
these names from a dataset on the Hub, with a --spec file. Rows that took more than five minutes to make are kept
beside the JSONs (results/rows), so that anybody can measure them again without the fit.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from tabular_difflm import PRIORS, sample_difflm
from tabular_quantity import quantity
from tabular_table import DATASETS, HEADLINES, LANGUAGE_METHODS, PRIOR_METHODS, render

from difflm.cli_files import write_atomically
from difflm.training.evaluation.baselines import Baseline, BaselineUnavailableError, baselines
from difflm.training.evaluation.distributions import copies
from difflm.training.evaluation.figures import Evaluation, evaluate_tables
from difflm.training.evaluation.learning import machine_learning_efficiency
from difflm.training.evaluation.privacy import AttackUnavailableError, attack_library
from difflm.training.evaluation.tables import EvaluationError, TableSpec
from difflm.training.hardware import hardware, peak_memory_mib


RESULTS = Path(__file__).resolve().parent / "results"
SPLITS = ("train", "validation", "test")
# Rows that took longer to make are kept.
KEPT_SECONDS = 300
PACKAGES = (
    "difflm", "numpy", "pandas", "scikit-learn", "sdmetrics", "xgboost-cpu", "xgboost", "torch", "transformers",
    "diffusers", "imbalanced-learn", "copulas", "ctgan", "be-great", "peft", "anonymeter",
)  # fmt: skip


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
        positive=settings.get("positive"),
        log_target=regression,
    )
    return tables, spec


def run_baseline(
    model: Baseline, train: pd.DataFrame, spec: TableSpec, seed: int, count: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit and sample; the processor's seconds tell a busy machine from a slow method."""
    details: dict[str, Any] = {}
    started, busy = time.monotonic(), time.process_time()
    model.fit(train, spec, seed)
    details["fit_seconds"] = round(time.monotonic() - started, 1)
    details["fit_cpu_seconds"] = round(time.process_time() - busy, 1)
    started, busy = time.monotonic(), time.process_time()
    rows = model.sample(count)
    details["sample_seconds"] = round(time.monotonic() - started, 1)
    details["sample_cpu_seconds"] = round(time.process_time() - busy, 1)
    return rows, details | model.details


def run_one(arguments: argparse.Namespace, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """Fit, sample and evaluate; what fails is an entry that says why. Each step's outcome is saved before the next."""
    started = time.monotonic()
    tables, spec = load(arguments, dataset)
    train = tables["train"]
    if arguments.train_rows and len(train) > arguments.train_rows:
        train = train.sample(arguments.train_rows, random_state=seed).reset_index(drop=True)
    entry: dict[str, Any] = {"dataset": dataset, "method": method, "seed": seed, "train_rows": len(train)}
    entry |= {"budget_minutes": arguments.budget_minutes, "sample_minutes": arguments.sample_minutes}
    entry |= environment()
    model: Baseline | None = None

    def sampled(count: int, minutes: float) -> tuple[pd.DataFrame, dict[str, Any]]:
        given = (tables | {"train": train}, count, keep, seed, arguments.preset, arguments.budget_minutes, minutes)
        return sample_difflm(method, *given)

    try:
        count = arguments.rows or len(tables["train"])
        if method in PRIORS:
            keep = Path(arguments.fit_dir or tempfile.mkdtemp(prefix="difflm-")) / f"{dataset}-{seed}"
            rows, details = sampled(count, arguments.sample_minutes)
        else:
            model = baselines()[method](arguments.budget_minutes, sample_minutes=arguments.sample_minutes)
            rows, details = run_baseline(model, train, spec, seed, count)
    except (BaselineUnavailableError, EvaluationError) as error:
        # How far it came: a model that wrote no record was fitted all the same.
        return entry | {"not_run": str(error), "fit": model.details if model else {}}
    if details["fit_seconds"] + details["sample_seconds"] > KEPT_SECONDS:
        path = kept_rows(arguments.results, dataset, method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: rows.to_parquet(temporary, compression="zstd", index=False))
    entry |= {"sampled_rows": len(rows), "fit": details}
    save(arguments, entry | {"not_run": "fitted, but not measured yet: run it with --judge"})
    judge(arguments, tables, rows, spec, entry)
    entry["seconds"] = round(time.monotonic() - started, 1)
    # The highest of the whole process (and of the fit's, if it is used again): run one method at a time to know it.
    entry["peak_memory_mib"] = round(max(peak_memory_mib() or 0, details.pop("peak_memory_mib", 0)))
    if arguments.quantity:
        save(arguments, entry)
        amount = 2 * (arguments.quantity_rows or len(tables["train"]))
        if model is None:  # beyond the minutes that all methods have
            rows = sampled(amount, math.inf)[0]
        else:
            model.sample_minutes = math.inf
            rows = model.sample(amount)
        entry["quantity"] = quantity(tables, rows, spec, arguments.seeds)
    return entry


def kept_rows(results: Path, dataset: str, method: str, seed: int) -> Path:
    """Where rows are kept."""
    return results / "rows" / f"{dataset}-{method}-{seed}.parquet"


def judge_again(arguments: argparse.Namespace, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """Measure the kept rows of an entry anew; what it says of its fit and of the machine stays."""
    path = kept_rows(arguments.results, dataset, method, seed)
    if not path.is_file():
        raise SystemExit(f"no rows of {method} on {dataset} are kept ({path}): run it without --judge")
    entry = json.loads(entry_path(arguments.results, dataset, method, seed).read_text(encoding="utf-8"))
    entry.pop("not_run", None)
    tables, spec = load(arguments, dataset)
    rows = pd.read_parquet(path)
    judge(arguments, tables, rows, spec, entry)
    if arguments.quantity:
        amount = 2 * (arguments.quantity_rows or len(rows) // 2)
        if amount > len(rows):
            raise SystemExit(f"{path} holds {len(rows):,} rows, not {amount:,}: lower --quantity-rows")
        entry["quantity"] = quantity(tables, rows.head(amount), spec, arguments.seeds)
    return entry | {"judged_with": environment()["versions"]}


def at_rows_of_others(
    arguments: argparse.Namespace,
    tables: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
    spec: TableSpec,
    dataset: str,
    seed: int,
) -> dict[str, Any]:
    """Measure the first rows, as many as each other language method wrote, and each other prior gave."""
    found = {}
    for other in (*LANGUAGE_METHODS, *PRIOR_METHODS):
        path = entry_path(arguments.results, dataset, other, seed)
        entry = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        count = entry.get("sampled_rows", len(rows))
        if "figures" in entry and count < len(rows):
            result = measure(arguments, tables, rows.head(count), spec, seed)
            figures = {name: result["figures"][name] for name in HEADLINES if name in result["figures"]}
            found[other] = {"rows": count, "figures": figures}
    return found


def entry_path(results: Path, dataset: str, method: str, seed: int) -> Path:
    """Where an entry is."""
    return results / f"{dataset}-{method}-{seed}.json"


def save(arguments: argparse.Namespace, entry: dict[str, Any]) -> None:
    """Write an entry, whole or not at all."""
    text = json.dumps(entry, indent=1, ensure_ascii=False) + "\n"
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = entry_path(arguments.results, entry["dataset"], entry["method"], entry["seed"])
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def judge(
    arguments: argparse.Namespace,
    tables: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
    spec: TableSpec,
    entry: dict[str, Any],
) -> None:
    """Add what is measured of an entry's rows; of DiffLM's also at the other language methods' and priors' numbers."""
    dataset, method, seed = entry["dataset"], entry["method"], entry["seed"]
    if method == "real":
        # A table beside itself is no measurement: what remains is what a learner makes of it.
        train, test = tables["train"], tables["test"]
        found = machine_learning_efficiency(
            train, rows, test, spec, validation=tables["validation"], seeds=arguments.seeds
        )
        result = Evaluation(details={"mle": {"metric": found.metric, "settings": found.settings}})
        result.add("mle", *found.scores)
        result.add("copy_rate", copies(train, test, spec).copy_rate)
        result.add("duplicate_rate", copies(train, test, spec).duplicate_rate)
        entry |= _without_pairs(result)
    else:
        entry |= measure(arguments, tables, rows, spec, seed, attacks=arguments.attacks)
    if method == "difflm":
        entry["at_rows_of"] = at_rows_of_others(arguments, tables, rows, spec, dataset, seed)
    if "validity_rate" in entry["fit"]:  # of the method's own texts, before any filter
        entry["figures"]["validity_rate"] = {"mean": entry["fit"]["validity_rate"]}


def measure(
    arguments: argparse.Namespace,
    tables: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
    spec: TableSpec,
    seed: int,
    attacks: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate rows against the whole training split."""
    result = evaluate_tables(
        tables["train"],
        rows,
        spec,
        holdout=tables["test"],
        validation=tables["validation"],
        seeds=arguments.seeds,
        seed=seed,
        attacks=attacks,
        progress=lambda step: print(f"  {step}", flush=True),
    )
    return _without_pairs(result)


def _without_pairs(result: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in result.to_dict().items() if name != "pairs"}


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"versions": versions, "hardware": hardware(device)}


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="all", help=f"one of {', '.join(DATASETS)}, or all")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the tables")
    parser.add_argument("--hub-dataset", metavar="USER/NAME", help="take the splits from the Hub instead")
    parser.add_argument("--spec", metavar="FILE", help="spec.json for --hub-dataset")
    parser.add_argument("--methods", default="real,independent,smote,gaussian_copula", help="comma-separated")
    parser.add_argument("--budget-minutes", type=float, default=45.0, help="time limit of one fit (default: 45)")
    parser.add_argument("--sample-minutes", type=float, default=20.0, help="of a language model (default: 20)")
    parser.add_argument("--train-rows", type=int, help="fit on a subsample of so many rows (default: all)")
    parser.add_argument("--rows", type=int, help="rows to sample (default: as many as the training split)")
    parser.add_argument("--quantity", action="store_true", help="also learn from 1x, 2x, real + 1x synthetic rows")
    parser.add_argument(
        "--quantity-rows", type=int, help="in 1x (default: the training split's; --judge: half the kept)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of fitting and sampling (default: 0)")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of what is learnt (default: 5)")
    parser.add_argument("--attacks", nargs="*", default=[], help="singling_out linkability inference (default: none)")
    parser.add_argument("--preset", default="small", help="of DiffLM (default: small)")
    parser.add_argument("--fit-dir", metavar="DIR", help="keep DiffLM's fits here, to be used again")
    parser.add_argument("--judge", action="store_true", help="fit nothing: measure the rows kept in results/rows anew")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONs")
    parser.add_argument("--render", action="store_true", help="write README.md from the JSONs; nothing is run")
    parser.add_argument("--check", action="store_true", help="with --render: only compare")
    arguments = parser.parse_args()
    table = arguments.results / "README.md"
    if arguments.render:
        text = render(arguments.results)
        if arguments.check:
            same = table.is_file() and table.read_text(encoding="utf-8") == text
            print(f"{table} {'agrees with' if same else 'differs from'} its JSONs")
            return 0 if same else 1
        write_atomically(table, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return 0
    if arguments.attacks:
        try:
            attack_library()
        except AttackUnavailableError as error:  # said before a fit, not after it
            parser.error(str(error))
    known = {*baselines(), *PRIORS}
    methods = arguments.methods.split(",")
    if unknown := [name for name in methods if name not in known]:
        parser.error(f"no method {unknown[0]!r}: choose from {', '.join(sorted(known))}")
    for dataset in DATASETS if arguments.dataset == "all" else [arguments.dataset]:
        for method in methods:
            print(f"{dataset}, {method}", flush=True)
            work = judge_again if arguments.judge else run_one
            save(arguments, work(arguments, dataset, method, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
