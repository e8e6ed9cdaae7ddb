"""``difflm evaluate``: judge a synthetic table."""

import argparse
import errno
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from difflm.cli.options import (
    HelpFormatter,
    add_device_options,
    add_reading_options,
    check_table,
    load_pipeline,
    reading_options,
)
from difflm.errors import ArgumentError


ATTACKS = ("singling_out", "linkability", "inference")


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    command = commands.add_parser(
        "evaluate",
        help="measure how good a synthetic table is",
        description="Compare synthetic rows with real ones: evaluation.json with every figure, and report.html.",
        epilog="example: difflm evaluate --real train.csv --holdout test.csv --synthetic rows.parquet "
        "--target income -o report",
        formatter_class=HelpFormatter,
    )
    command.add_argument("--real", required=True, metavar="FILE", help="training rows of the generator (required)")
    command.add_argument("--synthetic", required=True, metavar="FILE", help="rows to judge (required)")
    command.add_argument(
        "--holdout",
        metavar="FILE",
        help="real rows that the generator has not seen (default: no efficiency, distances or attacks)",
    )
    command.add_argument(
        "--validation",
        metavar="FILE",
        help="real rows to choose the learner's settings on, best unseen ones (default: a tenth of the training rows)",
    )
    command.add_argument("--target", metavar="COLUMN", help="column to predict (default: no efficiency)")
    command.add_argument(
        "--task", choices=("classification", "regression"), help="of the target (default: by its values)"
    )
    command.add_argument("--log-target", action="store_true", help="regression on log(max(y, 1)) (default: on y)")
    command.add_argument(
        "--categorical",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="number columns that are codes, not quantities (default: none)",
    )
    command.add_argument(
        "--text-columns",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of a .csv to read as text, digits and leading zeros kept, as for the fit (default: none)",
    )
    command.add_argument(
        "--dates",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of a .csv that hold dates, compared as points in time (default: as text)",
    )
    command.add_argument("--seeds", type=int, default=5, metavar="N", help="repetitions of what is learnt")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice")
    command.add_argument(
        "--attacks", nargs="+", choices=ATTACKS, default=[], help="privacy attacks, by anonymeter (default: none)"
    )
    command.add_argument(
        "--pipeline", metavar="DIR", help="fitted pipeline: its encodings of both tables are mapped (default: no map)"
    )
    command.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="folder to write (required)")
    command.add_argument(
        "--overwrite", action="store_true", help="replace an evaluation that is already in DIR (default: refuse)"
    )
    add_reading_options(command, "--real, --holdout and --validation")
    add_device_options(command)
    command.set_defaults(run=run, interrupted=interrupted)


def _require_packages() -> None:
    """Raise ImportError, with the remedy, unless the extra is installed."""
    for package in ("jinja2", "matplotlib", "sdmetrics", "sklearn", "xgboost"):
        if find_spec(package) is None:
            raise ImportError(f"`difflm evaluate` needs {package}: pip install 'difflm[evaluation]'")


def run(arguments: argparse.Namespace) -> int:
    """Measure; return the exit status."""
    for path in filter(None, (arguments.real, arguments.synthetic, arguments.holdout, arguments.validation)):
        check_table(path)
    if arguments.seeds < 1:
        raise ArgumentError(f"--seeds must be at least 1, not {arguments.seeds}")
    if not 0 <= arguments.seed < 1 << 32:
        raise ArgumentError(f"--seed must be from 0 to {(1 << 32) - 1}, not {arguments.seed}")
    if arguments.pipeline and Path(arguments.pipeline).is_dir():
        if not (Path(arguments.pipeline) / "model_index.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "no fitted pipeline: it has no model_index.json", arguments.pipeline)
    elif arguments.pipeline:
        from difflm.pipelines.hub_saving import check_repo_id

        try:
            check_repo_id(arguments.pipeline)
        except ValueError:
            raise FileNotFoundError(errno.ENOENT, "no fitted pipeline", arguments.pipeline) from None
    folder = Path(arguments.output_dir)
    if folder.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a folder is written, and this is a file", str(folder))
    target = folder / "evaluation.json"
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(
            errno.EEXIST, "there is an evaluation already; pass --overwrite to replace it", str(target)
        )
    from pandas.api.types import infer_dtype

    from difflm.files import write_json
    from difflm.training.data import read_like, read_table
    from difflm.training.evaluation.figures import evaluate_tables
    from difflm.training.evaluation.privacy import attack_library
    from difflm.training.evaluation.tables import TableSpec
    from difflm.training.reports.evaluation_report import latent_pair, write_evaluation_report

    # Said before the minutes of measuring, not after them.
    _require_packages()
    if arguments.attacks:
        attack_library()
    options = reading_options(arguments)
    real = read_table(arguments.real, text_columns=arguments.text_columns, **options)
    # What the rows of another file look like does not make text numbers.
    texts = [name for name in real if infer_dtype(real[name], skipna=True) == "string"]
    synthetic = read_like(arguments.synthetic, texts)
    holdout, validation = (
        read_like(path, texts, **options) if path else None for path in (arguments.holdout, arguments.validation)
    )
    spec = TableSpec.infer(
        real,
        target=arguments.target,
        categorical=arguments.categorical,
        dates=arguments.dates,
        task=arguments.task,
        log_target=arguments.log_target,
    )
    result = evaluate_tables(
        real,
        synthetic,
        spec,
        holdout=holdout,
        validation=validation,
        seeds=arguments.seeds,
        seed=arguments.seed,
        attacks=arguments.attacks,
        progress=lambda step: print(f"measuring {step} ..."),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(target, result.to_dict(), indent=2)
    # After the figures are safe: what a page cannot show must not cost them.
    latents = latent_pair(load_pipeline(arguments), real, synthetic) if arguments.pipeline else None
    report = write_evaluation_report(folder / "report.html", result, real, synthetic, spec, latents=latents)
    width = max(map(len, result.figures))
    for name, figure in result.figures.items():
        spread = f" ± {figure['std']:.4f}" if "std" in figure else ""
        spread += f" ({figure['low']:.4f} to {figure['high']:.4f})" if "low" in figure else ""
        print(f"{name:{width}}  {figure['mean']:.4f}{spread}")
    for line in result.warnings:
        print(f"note: {line}")
    for name, reason in result.skipped.items():
        print(f"{name}: not measured: {reason}")
    print(f"{target}\n{report}")
    return 0


def interrupted(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """What Ctrl-C leaves."""
    return "interrupted before the report was written"
