"""Fit DiffLM on scikit-learn's iris table with the real weights, sample it, and compare: minutes on two cores."""

import argparse

from sklearn.datasets import load_iris

from difflm import DiffLMPipeline, fit
from difflm.training.reports.table_comparison import compare_columns, format_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", default="out/iris", help="folder for the pipeline (default: %(default)s)")
    parser.add_argument("--preset", default="small", help="see `difflm fit --help` (default: %(default)s)")
    parser.add_argument("--max-minutes", type=float, default=3.0, help="limit of the fit (default: %(default)s)")
    arguments = parser.parse_args()

    iris = load_iris(as_frame=True)
    table = iris.data.assign(species=iris.target_names[iris.target])

    fit(table, arguments.output_dir, preset=arguments.preset, max_minutes=arguments.max_minutes, overwrite=True)
    pipe = DiffLMPipeline.from_pretrained(arguments.output_dir)
    output = pipe(num_samples=150, seed=0)

    print(output.to_pandas().head(8).to_string(index=False))
    print(format_comparison(compare_columns(table, output.to_pandas())))


if __name__ == "__main__":
    main()
