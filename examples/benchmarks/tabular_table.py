"""The results table of tabular.py, made of nothing but the JSONs in a folder."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from tabular_quantity import quantity_table

from difflm.training.evaluation import registry


DATASETS = ("adult", "default", "magic", "shoppers", "beijing")
METHODS = (
    "real", "independent", "smote", "gaussian_copula", "ctgan", "tvae", "mostlyai", "great", "icl", "lora_lm",
    "difflm_gaussian", "difflm_gmm", "difflm_encode", "difflm_no_draft", "difflm_lm", "difflm",
)  # fmt: skip
# Figure to heading and decimals.
FIGURES = {name: (figure.heading, figure.digits) for name, figure in registry.FIGURES.items() if figure.heading}
LANGUAGE_METHODS = ("great", "icl", "lora_lm")
BESIDE = """Their fits and their sampling have the same minutes, or more on a processor without bf16 products (see
"hardware" below). In these DiffLM writes more rows, and more rows have smaller errors: "at its number of rows" are the
first rows of DiffLM, as many as the other method wrote.
"""
# What latents are drawn from, beside the diffusion.
PRIOR_METHODS = ("difflm_gaussian", "difflm_gmm", "difflm_encode")
# Shown first, one small table each; what a good value is.
HEADLINES = {
    "shape_error": "lower is better",
    "trend_error": "lower is better",
    "mle": "AUC, higher is better; beijing: RMSE, lower is better",
    "detection_auc": "0.5 is perfect",
}
RUN = (
    "method", "fits", "budget min", "hardware", "rows fitted", "fit s", "CPU s", "epochs", "rows sampled", "sample s",
    "rows/s",
)  # fmt: skip
# The paper's, table by table; Mistral-7B, 56 hours of an A100 on Adult.
PUBLISHED_SHAPE = {"adult": 9.74, "default": 9.06, "magic": 7.53, "shoppers": 10.07, "beijing": 6.35}
PUBLISHED_REAL = {"adult": 0.927, "default": 0.770, "magic": 0.946, "shoppers": 0.926, "beijing": 0.423}
INTRODUCTION = """# Synthetic tables, measured

Written by `python examples/benchmarks/tabular.py --render` from the JSON files of this folder; do not edit.

Fitted on the training split; difflm looks at the validation split as well, to choose among the states of its denoiser
(mostlyai sets a fifth of the training rows aside instead). MLE is XGBoost fitted on the synthetic rows, its settings
chosen on the real validation split, and scored on the test split (AUC; beijing: RMSE of log(max(pm2.5, 1)), lower is
better). Detection: 5-fold, equal counts; an AUC of 0.5 and a score of 1 are perfect, and less than 0.5 is a sign of
copies; "beside unseen rows" are those of the test split instead of the training split. DCR share: rows nearer to the
training split than to as many test rows, 50 is ideal; "of copies": what plain copies of training rows would have.
Risks are what the rows give away beyond a control, the test split, with a 95 % interval. Singling out attacks as many
training rows as the control has (a leak of all rows shows as their share of the training split, 0.56 on adult and
0.125 on the others); of a number (beijing) its tenth of the column is inferred. Copies and duplicates in the row
"real" are those of the test split, as a reference. ± is the standard deviation over repetitions. A small shape error
alone proves nothing: see the independent columns.
"budget min" is the time limit of a fit, "fit s" what it took and "CPU s" how long the processor worked for it, less on
a machine that is shared. Where "hardware" says "without bf16", a language model takes at most half as many steps in a
minute: there great was given 2.0 to 2.3 times the minutes to fit and 1.7 to 2.5 times the minutes to write, and icl
(magic) 4.5 times the minutes to write. A method's fits with another budget than its first have lines of their own.
"epochs" are passes over the rows fitted, for methods that make any; ctgan and tvae end at 300, the authors' choice, or
with their budget. A language baseline has limited minutes to write: "rows sampled" says how far it came in "sample s".
Few rows have large errors by chance alone: the "floor" is the error of as many unseen real rows (at most the test
split). "fitting rows": known categories alone, and no value missing where none may. "valid texts": what the method
itself takes for a record before any filter; difflm writes under a grammar, so that all are.
"difflm_gaussian", "difflm_gmm" and "difflm_encode" draw their latents from a standard normal, a Gaussian mixture and
the encodings of real rows instead of the diffusion. On these tables difflm's draft writes; in "difflm_lm" the
language model writes the same latents down, and "difflm_no_draft" is a fit without a draft of columns. "mostlyai" is
MOSTLY AI's TabularARGN. TabSyn (a VAE over columns and latent diffusion) is missing: on PyPI it was found in tabstruct
alone, whose requirements (peft 0.9) exclude those of this package.
"""


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the result files of a folder, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-*-*.json"))]


def _cell(runs: list[dict[str, Any]], name: str, digits: int) -> str:
    figures = [run["figures"][name] for run in runs if run["figures"].get(name, {}).get("mean") is not None]
    if not figures:
        return ""
    values = [figure["mean"] for figure in figures]
    # Over fits if there are several, else over the learner's seeds.
    spread = pstdev(values) if len(values) > 1 else figures[0].get("std")
    interval = f" ({figures[0]['low']:.2f} to {figures[0]['high']:.2f})" if "low" in figures[0] else ""
    return f"{mean(values):.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else interval)


def _rate(runs: list[dict[str, Any]]) -> str:
    """Rows written in a second."""
    known = [(run["sampled_rows"], run["fit"].get("sample_seconds")) for run in runs if "sampled_rows" in run]
    rates = [rows / seconds for rows, seconds in known if seconds]
    return f"{mean(rates):,.1f}" if rates else ""


def _summary(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Methods against tables, the four figures to judge by."""
    methods = sorted({method for _, method in groups}, key=_order)
    lines = ["## In short\n"]
    for name, goal in HEADLINES.items():
        title, digits = FIGURES[name]
        rows = [
            [method, *(_cell(_run(groups.get((table, method), [])), name, digits) for table in DATASETS)]
            for method in methods
        ]
        lines += [
            f"**{title[0].upper()}{title[1:]}** ({goal})\n",
            f"| method | {' | '.join(DATASETS)} |",
            f"|{'---|' * (1 + len(DATASETS))}",
        ]
        lines += [f"| {' | '.join(row)} |" for row in rows if any(row[1:])] + [""]
    return lines


def _beside_language_models(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """On how many tables DiffLM is better than the methods that use the same language model, and its shape error."""
    names = ("trend_error", "mle", "detection_auc")
    lines = ["## DiffLM beside the methods that write with the same language model\n", BESIDE]
    lines += [f"| DiffLM is better than | {' | '.join(FIGURES[name][0] for name in names)} |", "|---|---|---|---|"]
    compared = len(lines)
    for method in LANGUAGE_METHODS:
        for where, title in ((None, method), (method, f"{method}, at its number of rows")):
            cells = []
            for name in names:
                pairs = [
                    (
                        _distance(groups, table, "difflm", name, at_rows_of=where),
                        _distance(groups, table, method, name),
                    )
                    for table in DATASETS
                ]
                both = [(ours, other) for ours, other in pairs if ours is not None and other is not None]
                cells.append(f"on {sum(ours < other for ours, other in both)} of {len(both)} tables" if both else "")
            if any(cells):
                lines.append(f"| {title} | {' | '.join(cells)} |")
    if len(lines) == compared:
        return []
    shapes = [_cell(_run(groups.get((table, "difflm"), [])), "shape_error", 2) for table in DATASETS]
    return [
        *lines,
        "",
        f"| shape error % | {' | '.join(DATASETS)} |",
        f"|{'---|' * (1 + len(DATASETS))}",
        f"| the paper's DiffLM, Mistral-7B | {' | '.join(f'{PUBLISHED_SHAPE[table]:.2f}' for table in DATASETS)} |",
        f"| difflm, SmolLM2-135M | {' | '.join(shapes)} |",
        "",
    ]


def _priors(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """The priors over latents, each beside as many rows of the diffusion."""
    rows = []
    for table in DATASETS:
        for method in PRIOR_METHODS:
            runs = _run(groups.get((table, method), []))
            ours = [run.get("at_rows_of", {}).get(method) for run in _run(groups.get((table, "difflm"), [])) if runs]
            for title, found in ((method, runs), ("difflm", [run for run in ours if run])):
                cells = [_cell(found, name, FIGURES[name][1]) for name in HEADLINES]
                count = " / ".join(f"{run.get('sampled_rows', run.get('rows')):,}" for run in found)
                if found and (row := f"| {table} | {title} | {count} | {' | '.join(cells)} |") not in rows:
                    rows.append(row)
    if not rows:
        return []
    headings = ["table", "method", "rows", *(FIGURES[name][0] for name in HEADLINES)]
    return ["## Priors over latents\n", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *rows, ""]


def _distance(
    groups: dict[tuple[str, str], list[dict[str, Any]]],
    table: str,
    method: str,
    name: str,
    *,
    at_rows_of: str | None = None,
) -> float | None:
    """How far a figure is from the ideal (plus a constant), of all rows or of as many as another method has."""
    runs = _run(groups.get((table, method), []))
    if at_rows_of is not None:
        runs = [run["at_rows_of"][at_rows_of] for run in runs if at_rows_of in run.get("at_rows_of", {})]
    values = [run["figures"][name]["mean"] for run in runs if run["figures"].get(name, {}).get("mean") is not None]
    if not values:
        return None
    if name == "detection_auc":
        return abs(mean(values) - 0.5)
    return -mean(values) if name == "mle" and table != "beijing" else mean(values)


def _run(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if "not_run" not in entry]


def _either(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _hardware(run: dict[str, Any]) -> str:
    """What the fit ran on: a fit that is used again may have been made on something else than it is judged on."""
    return str(run["fit"].get("hardware", run["hardware"]))


def _average(runs: list[dict[str, Any]], name: str, digits: int) -> str:
    values = [run["fit"][name] for run in runs if name in run["fit"]]
    return f"{mean(values):.{digits}f}" if values else ""


def _different(cells: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(cells))


def _line(entry: dict[str, Any], groups: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Name the line of an entry: figures of fits with unlike budgets have no common mean."""
    method, budget = entry["method"], entry.get("budget_minutes")
    first = groups.get((entry["dataset"], method), [entry])[0]
    return str(method) if first.get("budget_minutes") == budget else f"{method}, {_either(budget)} min"


def _order(line: str) -> tuple[int, str]:
    method = line.partition(",")[0]
    return (METHODS.index(method) if method in METHODS else len(METHODS), line)


def render(folder: Path) -> str:
    """Return the text of the table."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in read(folder):
        groups[entry["dataset"], _line(entry, groups)].append(entry)
    lines = [INTRODUCTION, *_summary(groups), *_beside_language_models(groups)]
    for dataset in DATASETS:
        methods = sorted({method for name, method in groups if name == dataset}, key=_order)
        if not methods:
            continue
        headings = [*RUN, *(title for title, _ in FIGURES.values())]
        lines += [f"## {dataset}\n", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        for method in methods:
            every = groups[dataset, method]
            runs = _run(every)
            if not runs:
                reason = every[0]["not_run"]
                lines.append(f"| {method} | not run: {reason} |" + " |" * (len(headings) - 2))
                continue
            cells = [
                method,
                str(len(runs)) + (f" of {len(every)}" if len(runs) < len(every) else ""),
                _either(runs[0].get("budget_minutes")),
                _different(map(_hardware, runs)),
                _different(f"{run['train_rows']:,}" for run in runs),
                f"{mean(run['fit']['fit_seconds'] for run in runs):.0f}",
                _average(runs, "fit_cpu_seconds", 0),
                _average(runs, "epochs", 2),
                " / ".join(f"{run['sampled_rows']:,}" for run in runs if "sampled_rows" in run),
                _average(runs, "sample_seconds", 0),
                _rate(runs),
            ]
            cells += [_cell(runs, name, digits) for name, (_, digits) in FIGURES.items()]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += _priors(groups)
    lines += quantity_table(groups)
    lines += _real(folder, groups)
    return "\n".join(lines).rstrip() + "\n"


def _real(folder: Path, groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Compare the learner on real rows with the published row, and with other random splits of the same tables."""
    rows = [(name, found) for name in DATASETS if (found := _run(groups.get((name, "real"), [])))]
    if not rows:
        return []
    path = folder / "real_splits.json"
    splits = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = ["## Real rows: the learner's upper bound\n"]
    lines += [
        "| table | here | published | difference | other random splits: mean ± std, range |"
        " published settings: worst, chosen on validation, best on test |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in rows:
        value = mean(run["figures"]["mle"]["mean"] for run in runs)
        other = splits.get(name)
        text = grid = ""
        if other:
            text = f"{other['mean']:.3f} ± {other['std']:.3f}, {other['min']:.3f} to {other['max']:.3f}"
        if found := (other or {}).get("published_grid"):
            grid = f"{found['worst']:.3f}, {found['chosen_on_validation']:.3f}, {found['best_on_test']:.3f}"
        cells = [
            name,
            _cell(runs, "mle", 3),
            f"{PUBLISHED_REAL[name]:.3f}",
            f"{value - PUBLISHED_REAL[name]:+.3f}",
            text,
            grid,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = splits.get("note")
    return [*lines, "", *([note] if note else [])]
