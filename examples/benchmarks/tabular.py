"""Fit, sample and judge generators on the five tables of the paper; one JSON per (dataset, method, seed).

    python examples/benchmarks/tabular.py --dataset adult --data-dir DATA --methods real,independent,difflm
    python examples/benchmarks/tabular.py --dataset adult --data-dir DATA --methods great --judge    # its kept rows
    python examples/benchmarks/tabular.py --render            # results/README.md, from the JSONs alone
    python examples/benchmarks/tabular.py --render --check    # fails if the committed table differs

DATA holds <dataset>/{train,validation,test}.csv and spec.json. Instead, --hub-dataset USER/NAME takes the splits of
these names from a dataset on the Hub, with a --spec file. Rows that took more than a minute to make are kept
beside the JSONs (results/rows), so that anybody can measure them again without the fit.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from tabular_data import load
from tabular_difflm import PRIORS, sample_difflm
from tabular_entries import RESULTS, environment, kept_rows, measured, save
from tabular_judge import judge, judge_again
from tabular_quantity import quantity
from tabular_table import DATASETS, render

from difflm.files import atomic_file, write_text
from difflm.training.evaluation.baselines import Baseline, BaselineUnavailableError, baselines
from difflm.training.evaluation.privacy import AttackUnavailableError, attack_library
from difflm.training.evaluation.tables import EvaluationError, TableSpec
from difflm.training.hardware import peak_memory_mib


# Rows that took longer to make are kept.
KEPT_SECONDS = 60


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
        with atomic_file(path) as temporary:
            rows.to_parquet(temporary, compression="zstd", index=False)
    entry |= {"sampled_rows": len(rows), "fit": details}
    save(arguments, entry | {"not_run": "fitted, but not measured yet: run it with --judge"})
    judge(arguments, tables, rows, spec, entry, arguments.attacks)
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
        entry["quantity"] = quantity(tables, rows, spec, arguments.seeds, seed)
    return entry


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
    parser.add_argument(
        "--attacks",
        nargs="*",
        default=[],
        help="singling_out linkability inference (default: none, or the same again)",
    )
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
        write_text(table, text)
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
            entry = work(arguments, dataset, method, arguments.seed)
            if "not_run" in entry and measured(arguments, entry):
                print(f"not run, its entry stays as it was: {entry['not_run']}", file=sys.stderr)
            else:
                save(arguments, entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
