"""How much synthetic data helps a learner (the paper's Table 7): as many rows as real ones, twice as many, or both."""

from typing import Any

import pandas as pd

from difflm.training.evaluation.efficiency import machine_learning_efficiency
from difflm.training.evaluation.metric import Evaluation
from difflm.training.evaluation.tables import TableSpec, subsample


# Name in the JSON to heading.
AMOUNTS = {
    "real": "all real rows",
    "real_1x": "as many real rows as 1x",
    "1x": "1x synthetic",
    "2x": "2x synthetic",
    "real_and_1x": "all real + 1x",
}


def quantity(
    tables: dict[str, pd.DataFrame], rows: pd.DataFrame, spec: TableSpec, seeds: int, seed: int
) -> dict[str, Any]:
    """Measure the efficiency of the real rows, of half and of all synthetic ones, and of the real with that half.

    Where 1x is fewer rows than the real ones, as many of these are drawn as its equal.

    Parameters
    ----------
    tables
        "train", "validation" and "test" rows.
    rows
        Synthetic rows, twice 1x.
    spec
        What the columns are.
    seeds
        Repetitions of the learner.
    seed
        Of the real rows drawn.
    """
    train, half = tables["train"], rows.head(len(rows) // 2)
    amounts = {
        "real": train,
        "real_1x": subsample(train, len(half), seed),
        "1x": half,
        "2x": rows,
        "real_and_1x": pd.concat([train, half], ignore_index=True),
    }
    result = Evaluation()
    for name, learnt in amounts.items():
        print(f"  quantity: {AMOUNTS[name]}", flush=True)
        # As many real rows as 1x may be all of them, which were learnt from just before.
        if name != "real_1x" or len(learnt) < len(train):
            found = machine_learning_efficiency(
                train, learnt, tables["test"], spec, validation=tables["validation"], seeds=seeds
            )
        result.add(name, *found.scores)
    return {"rows": len(half), "figures": result.to_dict()["figures"]}


def _cell(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.3f}" + (f" ± {figure['std']:.3f}" if "std" in figure else "")


def quantity_table(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Render the entries that hold these figures."""
    rows = []
    for (dataset, method), runs in groups.items():
        for found in (run["quantity"] for run in runs if "quantity" in run):
            cells = [_cell(found["figures"][name]) for name in AMOUNTS]
            rows.append(f"| {dataset} | {method} | {found['rows']:,} | {' | '.join(cells)} |")
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
