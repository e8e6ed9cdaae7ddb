"""How much synthetic data helps a learner (the paper's Table 7): as many rows as real ones, twice as many, or both."""

from typing import Any

import pandas as pd

from difflm.training.evaluation.figures import Evaluation
from difflm.training.evaluation.learning import machine_learning_efficiency
from difflm.training.evaluation.tables import TableSpec


# Name in the JSON to heading.
AMOUNTS = {"mle_real": "real rows", "mle": "1x synthetic", "mle_2x": "2x synthetic", "mle_with_real": "real + 1x"}


def add_quantity(
    result: Evaluation, tables: dict[str, pd.DataFrame], rows: pd.DataFrame, spec: TableSpec, seeds: int
) -> None:
    """Add the efficiency of the real rows, of all synthetic rows, and of the real with half of the synthetic ones.

    Parameters
    ----------
    result
        Holds "mle", measured on the first half of ``rows``.
    tables
        "train", "validation" and "test" rows.
    rows
        Synthetic rows.
    spec
        What the columns are.
    seeds
        Repetitions of the learner.
    """
    train = tables["train"]
    amounts = {
        "mle_real": train,
        "mle_2x": rows,
        "mle_with_real": pd.concat([train, rows.head(len(rows) // 2)], ignore_index=True),
    }
    for name, learnt in amounts.items():
        found = machine_learning_efficiency(
            train, learnt, tables["test"], spec, validation=tables["validation"], seeds=seeds
        )
        result.add(name, *found.scores)


def _cell(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.3f}" + (f" ± {figure['std']:.3f}" if "std" in figure else "")


def quantity_table(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Render the entries that hold these figures."""
    rows = []
    for (dataset, method), runs in groups.items():
        measured = [run for run in runs if "mle_2x" in run.get("figures", {})]
        for run in measured:
            cells = [_cell(run["figures"][name]) for name in AMOUNTS]
            rows.append(f"| {dataset} | {method} | {run['sampled_rows']:,} | {' | '.join(cells)} |")
    if not rows:
        return []
    headings = ["table", "method", "rows in 1x", *AMOUNTS.values()]
    return [
        "## Quantity: MLE by the rows learnt from\n",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *rows,
        "",
    ]
