"""Why the learner's score on real rows differs from the published one: other splits, and the published settings.

    python examples/benchmarks/real_rows.py --data-dir DATA --dataset magic --random-splits 10

Writes results/real_splits.json, which ``tabular.py --render`` shows: the score of our learner on random splits of
the same sizes, and of the 36 settings that the published tables search (TabSyn's code), on our split: the worst,
the one that validation rows choose, and the best on the test rows, which is what the publications report.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabular_data import SPLITS, load
from tabular_entries import RESULTS
from tabular_table import DATASETS

from difflm.files import write_json
from difflm.training.evaluation.efficiency import machine_learning_efficiency
from difflm.training.evaluation.tables import TableSpec, prepare


PUBLISHED_GRID = [
    {"n_estimators": trees, "min_child_weight": weight, "max_depth": depth, "gamma": gamma}
    for trees, weight, depth, gamma in itertools.product((10, 50, 100), (1, 10), (5, 10, 20), (0.0, 1.0))
]


def random_splits(
    tables: dict[str, pd.DataFrame], spec: TableSpec, settings: dict[str, Any], number: int
) -> dict[str, Any]:
    """Score the learner on random splits of the same sizes."""
    pooled = pd.concat([tables[name] for name in SPLITS], ignore_index=True)
    ends = np.cumsum([len(tables[name]) for name in SPLITS])[:-1]
    scores = []
    for seed in range(number):
        shuffled = pooled.sample(frac=1.0, random_state=seed).reset_index(drop=True)
        train, validation, test = (part.reset_index(drop=True) for part in np.split(shuffled, ends))
        found = machine_learning_efficiency(train, train, test, spec, validation=validation, seeds=1, grid=(settings,))
        scores.append(round(found.scores[0], 4))
    return {
        "metric": found.metric,
        "settings": settings,
        "random_splits": scores,
        "mean": round(float(np.mean(scores)), 4),
        "std": round(float(np.std(scores)), 4),
        "min": min(scores),
        "max": max(scores),
    }


def published_grid(tables: dict[str, pd.DataFrame], spec: TableSpec, jobs: int) -> dict[str, Any]:
    """Score every published setting, one-hot categories as there, on validation and on test rows."""
    from sklearn.metrics import roc_auc_score, root_mean_squared_error
    from xgboost import XGBClassifier, XGBRegressor

    parts = {name: prepare(tables[name], spec, name).dropna(subset=[spec.target]) for name in SPLITS}
    targets = {name: part.pop(spec.target) for name, part in parts.items()}
    categories = [name for name in spec.categorical if name != spec.target]
    pooled = pd.get_dummies(pd.concat(parts, keys=parts), columns=categories)
    pooled.columns = [f"f{place}" for place in range(pooled.shape[1])]  # XGBoost refuses some characters in names
    features = {name: pooled.loc[name] for name in parts}
    regression = spec.task == "regression"
    rarest = targets["train"].value_counts().index[-1]
    labels = {
        name: np.log(values.clip(lower=1)) if regression else (values == rarest).astype(int)
        for name, values in targets.items()
    }
    scores = []
    for settings in PUBLISHED_GRID:
        model = (XGBRegressor if regression else XGBClassifier)(tree_method="hist", n_jobs=jobs, **settings)
        model.fit(features["train"], labels["train"])
        pair = []
        for name in ("validation", "test"):
            if regression:
                pair.append(root_mean_squared_error(labels[name], model.predict(features[name])))
            else:
                pair.append(roc_auc_score(labels[name], model.predict_proba(features[name])[:, 1]))
        scores.append(pair)
        print(f"  {settings}: {pair[0]:.4f} {pair[1]:.4f}", flush=True)
    validation, test = np.array(scores).T
    chosen, best, worst = (np.argmin, np.min, np.max) if regression else (np.argmax, np.max, np.min)
    return {
        "runs": len(scores),
        "worst": round(float(worst(test)), 4),
        "chosen_on_validation": round(float(test[chosen(validation)]), 4),
        "best_on_test": round(float(best(test)), 4),
    }


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder of the tables")
    parser.add_argument("--dataset", default="all", help=f"one of {', '.join(DATASETS)}, or all")
    parser.add_argument("--random-splits", type=int, default=0, metavar="N", help="random splits (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONs")
    arguments = parser.parse_args()
    arguments.hub_dataset = None
    path = arguments.results / "real_splits.json"
    for dataset in DATASETS if arguments.dataset == "all" else [arguments.dataset]:
        print(dataset, flush=True)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        entry = known.setdefault(dataset, {})
        tables, spec = load(arguments, dataset)
        if arguments.random_splits:
            real = json.loads((arguments.results / f"{dataset}-real-0.json").read_text(encoding="utf-8"))
            entry |= random_splits(tables, spec, real["details"]["mle"]["settings"], arguments.random_splits)
        entry["published_grid"] = published_grid(tables, spec, arguments.jobs)
        write_json(path, known)


if __name__ == "__main__":
    main()
