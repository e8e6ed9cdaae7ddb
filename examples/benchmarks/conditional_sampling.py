"""Do records sampled under a condition follow the real records that satisfy it?

For each condition and guidance scale, prints the mean shape error (SDMetrics' 1 - KS or 1 - TV complement, percent) of
the *other* columns against the real rows that satisfy the condition. Scale 0 leaves the latent ignorant of the
condition (the grammar alone enforces it), 1 is the conditional denoiser, more is classifier-free guidance.

    python examples/benchmarks/conditional_sampling.py PIPELINE REAL.csv --condition island=Dream [--json PATH]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from difflm import DiffLMPipeline
from difflm.cli.sample import typed_condition
from difflm.files import write_json
from difflm.pipelines.conditions import check_condition
from difflm.training.data import read_table
from difflm.training.reports.table_comparison import compare_columns, mean_shape_error_percent


def satisfying(frame: pd.DataFrame, pipe: DiffLMPipeline, condition: dict) -> pd.DataFrame:
    """The rows of a table that satisfy a condition."""
    checked = check_condition(condition, pipe.schema.columns)
    records = pipe.schema.to_records(frame)
    return frame[[all(rule.holds(record[name]) for name, rule in checked.items()) for record in records]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a fitted pipeline")
    parser.add_argument("real", help="the table it was fitted on")
    parser.add_argument("--condition", action="append", required=True, metavar="COLUMN=VALUE", help="may be repeated")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.0, 1.5, 2.0])
    parser.add_argument("--num-samples", type=int, default=300, help="per condition and scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()

    pipe = DiffLMPipeline.from_pretrained(arguments.pipeline)
    pipe.set_progress_bar_config(disable=True)
    real = read_table(arguments.real)
    rows = []
    for text in arguments.condition:
        condition = typed_condition([tuple(text.split("=", 1))], pipe.schema)
        expected = satisfying(real, pipe, condition)
        for scale in arguments.scales:
            output = pipe(arguments.num_samples, seed=arguments.seed, condition=condition, guidance_scale=scale)
            synthetic = output.to_pandas()
            columns = [name for name in real.columns if name not in condition]
            comparison = compare_columns(expected[columns], synthetic[columns])
            rows.append(
                {
                    "condition": text,
                    "guidance_scale": scale,
                    "real_rows": len(expected),
                    "synthetic_rows": len(synthetic),
                    "satisfied_percent": 100.0 * len(satisfying(synthetic, pipe, condition)) / len(synthetic),
                    "texts_per_row": output.report.attempts / len(synthetic),
                    "shape_error_percent": mean_shape_error_percent(comparison),
                }
            )
            print(
                f"{text:<40} scale {scale:<4} satisfied {rows[-1]['satisfied_percent']:.2f} %  "
                f"shape error {rows[-1]['shape_error_percent']:.2f} %",
                flush=True,
            )
    table = pd.DataFrame(rows).pivot(index="condition", columns="guidance_scale", values="shape_error_percent")
    print("\nMean shape error of the other columns, percent, by guidance scale\n" + table.round(2).to_string())
    print("mean over conditions: " + ", ".join(f"{scale}: {table[scale].mean():.2f}" for scale in table.columns))
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
