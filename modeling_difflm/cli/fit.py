"""``difflm fit``: fit a table and save it as a pipeline."""

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difflm.cli.options import (
    HelpFormatter,
    add_reading_options,
    check_table,
    positive_float,
    positive_int,
    reading_options,
)


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    fit = commands.add_parser(
        "fit",
        help="fit a DiffLM on a table and save it as a pipeline",
        description="Fit a DiffLM on a table and save it as a pipeline.\n\n"
        "First a small draft of the table's columns is trained, then the diffusion model on its latents, then what "
        "lets the frozen language model read them. Texts get a part of the latents from an encoder, which is trained "
        "before the diffusion model.",
        epilog="example: difflm fit penguins.csv --output-dir out --max-minutes 10",
        formatter_class=HelpFormatter,
    )
    fit.add_argument("data", metavar="DATA", help="the table: .csv, .tsv, .parquet, .jsonl or .json")
    fit.add_argument("--output-dir", "-o", required=True, metavar="DIR", help="folder for the pipeline (required)")
    models = fit.add_argument_group("models")
    models.add_argument(
        "--preset",
        choices=("tiny", "small", "paper"),
        default="small",
        help="tiny: SmolLM2-135M and MiniLM, few steps, at most 5 minutes; small: the same models, at most 20 "
        "minutes; paper: Mistral-7B-Instruct and BERT in the paper's sizes, needs a large GPU",
    )
    models.add_argument(
        "--encoder",
        metavar="NAME",
        help="encoder: a folder, a Hub id or package://PACKAGE/PATH (default: the preset's)",
    )
    models.add_argument(
        "--decoder",
        metavar="NAME",
        help="frozen causal language model: a folder, a Hub id or package://PACKAGE/PATH.gguf (default: the preset's)",
    )
    models.add_argument(
        "--injection",
        choices=("kv_memory", "soft_prompt", "embedding"),
        help="how the decoder reads a latent (default: the preset's)",
    )
    models.add_argument(
        "--record-format",
        choices=("json", "values"),
        help="text of a record: JSON objects, or the values alone, which are fewer tokens (default: the preset's)",
    )
    columns = fit.add_argument_group("columns")
    columns.add_argument(
        "--condition-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns that the diffusion model learns to follow in --condition; none: no column "
        "(default: numbers, booleans and categories of up to 64 values)",
    )
    columns.add_argument(
        "--text-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns of a .csv to read as text, digits and leading zeros kept (default: chosen from the values)",
    )
    columns.add_argument(
        "--category-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns whose values are a list, of which a new record has one (default: chosen from the values)",
    )
    columns.add_argument(
        "--max-decimals",
        type=positive_int,
        metavar="N",
        help="round numbers to so many digits after the point (default: 12, more for tiny numbers)",
    )
    columns.add_argument(
        "--max-length",
        type=positive_int,
        metavar="N",
        help="most tokens of a record, in the language model's tokens (default: 1024)",
    )
    columns.add_argument(
        "--overlong",
        choices=("refuse", "drop"),
        help="what becomes of a longer record: an error names it, or it is left out and counted (default: refuse)",
    )
    add_reading_options(fit, "DATA and --validation")
    privacy = fit.add_argument_group("what the pipeline tells of single rows")
    privacy.add_argument(
        "--rare-categories",
        choices=("keep", "merge", "missing", "drop"),
        help='a category of few rows stays; becomes "other", or missing; or its rows are left out (default: keep)',
    )
    privacy.add_argument(
        "--rare-below",
        type=positive_int,
        metavar="N",
        help="rows that a category needs not to be rare, and that share each end of a clipped range (default: 5)",
    )
    privacy.add_argument(
        "--ranges",
        choices=("exact", "rounded", "clipped"),
        help="ranges of numbers: the smallest and largest seen, these rounded outwards, or the 1st and 99th "
        "percentile (default: exact)",
    )
    training = fit.add_argument_group("training")
    training.add_argument(
        "--epochs", type=positive_float, metavar="N", help="most passes over the table (default: the preset's)"
    )
    training.add_argument(
        "--max-minutes",
        type=positive_float,
        metavar="MINUTES",
        help="time limit of all stages together, in minutes (default: the preset's); a table without texts may end "
        "earlier",
    )
    training.add_argument(
        "--writer",
        choices=("auto", "lm", "draft"),
        help="who writes the records: the language model, or the draft (texts always by the former); auto decides by "
        "what held-out records cost each (default: auto)",
    )
    training.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="records in one training step (default: the preset's)"
    )
    training.add_argument(
        "--validation",
        metavar="FILE",
        help="table of held-out records (default: a tenth of DATA, at most 1000 records, is held out)",
    )
    training.add_argument(
        "--device",
        metavar="NAME",
        help="where to train: cpu, cuda, cuda:1, mps (default: the best of this machine, and under torchrun a GPU for "
        "each process)",
    )
    training.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the frozen language model (default: what the hardware multiplies)",
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice")
    training.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in DIR (default: start anew)"
    )
    training.add_argument(
        "--overwrite", action="store_true", help="replace a pipeline that is already in DIR (default: refuse)"
    )
    fit.set_defaults(run=run, interrupted=interrupted)


def fit_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Translate the options of ``difflm fit`` into keyword arguments of ``difflm.fit``.

    Options that were not given are left out, so that the preset decides.
    """
    keywords: dict[str, Any] = {
        "preset": arguments.preset,
        "seed": arguments.seed,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
    }
    reading = reading_options(arguments)
    for name in ("category_columns", "max_decimals"):
        if (value := getattr(arguments, name)) is not None:
            reading[name] = value
    if reading:
        keywords["read_options"] = reading
    optional = (
        "encoder",
        "decoder",
        "injection",
        "record_format",
        "epochs",
        "max_minutes",
        "batch_size",
        "writer",
        "condition_columns",
        "text_columns",
        "max_length",
        "overlong",
        "device",
        "dtype",
        "validation",
        "rare_categories",
        "rare_below",
        "ranges",
    )
    keywords.update({name: value for name in optional if (value := getattr(arguments, name)) is not None})
    if keywords.get("condition_columns") in (["auto"], ["none"]):
        keywords["condition_columns"] = "auto" if keywords["condition_columns"] == ["auto"] else ()
    return keywords


def run(arguments: argparse.Namespace) -> int:
    """Fit; return the exit status."""
    for path in filter(None, (arguments.data, arguments.validation)):
        check_table(path)
    from difflm.files import read_json
    from difflm.training.fitting import fit

    started = time.monotonic()
    pipeline = fit(arguments.data, arguments.output_dir, **fit_arguments(arguments))
    if int(os.environ.get("RANK", "0")):  # of several processes one speaks
        return 0
    minutes = (time.monotonic() - started) / 60
    log = Path(arguments.output_dir) / "training_log.json"
    if log.is_file() and (reason := read_json(log).get("writer_reason")):
        writer = "language model" if pipeline.config["writer"] == "lm" else "draft"
        print(f"Records are written by the {writer}: {reason}.")
    print(f"Fitted in {minutes:.1f} minutes. Sample with:")
    print(f"  difflm sample {shlex.quote(arguments.output_dir)} -n 1000 -o rows.parquet")
    return 0


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint below a fit's folder, or None.

    That is a ``checkpoint-*`` of a stage, or a finished one's result.
    """
    found = [path for name in ("checkpoint-*", "fitted_*") for path in Path(folder).glob(f"**/{name}")]
    return max((path for path in found if path.is_dir()), key=lambda path: path.stat().st_mtime, default=None)


def interrupted(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """What Ctrl-C leaves, and the command that goes on."""
    again = ["difflm", *(word for word in words if word not in ("--resume", "--overwrite"))]
    checkpoint = last_checkpoint(arguments.output_dir)
    if checkpoint is None:
        command = shlex.join([*again, *(["--overwrite"] if arguments.overwrite else [])])
        return f"interrupted before the first checkpoint; nothing to resume\nstart again with: {command}"
    return f"interrupted; the last checkpoint is {checkpoint}\nresume with: {shlex.join([*again, '--resume'])}"
