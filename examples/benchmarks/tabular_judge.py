"""How tabular.py measures rows: just sampled ones, or those kept beside an entry."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabular_data import load
from tabular_entries import entry_path, environment, kept_rows
from tabular_quantity import quantity
from tabular_table import HEADLINES, LANGUAGE_METHODS, PRIOR_METHODS

from difflm.training.evaluation.copies import copies
from difflm.training.evaluation.efficiency import machine_learning_efficiency
from difflm.training.evaluation.figures import evaluate_tables
from difflm.training.evaluation.metric import Evaluation
from difflm.training.evaluation.privacy import AttackUnavailableError, attack_library
from difflm.training.evaluation.tables import TableSpec


def judge(
    arguments: argparse.Namespace,
    tables: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
    spec: TableSpec,
    entry: dict[str, Any],
    attacks: Sequence[str],
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
        entry |= measure(arguments, tables, rows, spec, seed, attacks)
    if method == "difflm":
        entry["at_rows_of"] = at_rows_of_others(arguments, tables, rows, spec, dataset, seed)
    if "validity_rate" in entry["fit"]:  # of the method's own texts, before any filter
        entry["figures"]["validity_rate"] = {"mean": entry["fit"]["validity_rate"]}


def judge_again(arguments: argparse.Namespace, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """Measure the kept rows of an entry anew; what it says of its fit and of the machine stays."""
    path = kept_rows(arguments.results, dataset, method, seed)
    if not path.is_file():
        raise SystemExit(f"no rows of {method} on {dataset} are kept ({path}): run it without --judge")
    entry = json.loads(entry_path(arguments.results, dataset, method, seed).read_text(encoding="utf-8"))
    entry.pop("not_run", None)
    tables, spec = load(arguments, dataset)
    rows = pd.read_parquet(path)
    amount = 2 * (arguments.quantity_rows or len(rows) // 2)
    if arguments.quantity and amount > len(rows):
        raise SystemExit(f"{path} holds {len(rows):,} rows, not {amount:,}: lower --quantity-rows")
    attacks = arguments.attacks or [*entry.get("details", {}).get("attacks", {})]
    try:
        if attacks:
            attack_library()
    except AttackUnavailableError as error:  # its entry would lose them
        raise SystemExit(str(error)) from error
    judge(arguments, tables, rows, spec, entry, attacks)
    if arguments.quantity:
        entry["quantity"] = quantity(tables, rows.head(amount), spec, arguments.seeds, seed)
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
        upper_bound=False,  # the entry "real" has it
        progress=lambda step: print(f"  {step}", flush=True),
    )
    return _without_pairs(result)


def _without_pairs(result: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in result.to_dict().items() if name != "pairs"}
