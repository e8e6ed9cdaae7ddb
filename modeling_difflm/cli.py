"""The ``difflm`` command: fit a table, sample records, look at what was fitted.

Nothing heavy is imported until the arguments are known to be right: ``difflm fit --help`` loads neither torch nor
transformers, and a mistyped option is reported at once.
"""

import argparse
import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from difflm import __version__


USER_ERROR = 2
INTERRUPTED = 130


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to an option's help when the text does not state it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        no_value = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        silent = no_value or not action.option_strings
        return text if silent or "default" in text else f"{text} (default: %(default)s)"


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not value > 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def _condition(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"write it as COLUMN=VALUE, not {text!r}")
    return name, value


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``difflm`` with its sub-commands ``fit``, ``sample`` and ``info``."""
    parser = argparse.ArgumentParser(
        prog="difflm",
        description="Synthetic structured data from a latent diffusion model in front of a frozen language model.",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"difflm {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error (default: one line)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{fit,sample,info}")
    _add_fit(commands)
    _add_sample(commands)
    _add_info(commands)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a DiffLM on a table and save it as a pipeline",
        description="Fit a DiffLM on a table and save it as a pipeline.\n\n"
        "First the autoencoder is trained (the language model stays frozen), then the diffusion model on its latents.",
        epilog="example: difflm fit penguins.csv --output-dir out --max-minutes 10",
        formatter_class=_HelpFormatter,
    )
    fit.add_argument("data", metavar="DATA", help="the table: .csv, .parquet or .jsonl, one record a row")
    fit.add_argument("--output-dir", "-o", required=True, metavar="DIR", help="folder for the pipeline (required)")
    models = fit.add_argument_group("models")
    models.add_argument(
        "--preset",
        choices=("tiny", "small", "paper"),
        default="small",
        help="tiny: little networks, to try things out; small: SmolLM2-135M and MiniLM, fits on two CPU cores; "
        "paper: Mistral-7B-Instruct and BERT with the paper's sizes, needs a large GPU",
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
        help="category columns that sampling may fix with --condition; none: no column (default: chosen from DATA)",
    )
    columns.add_argument(
        "--text-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns to treat as free text whatever they look like (default: chosen from the values)",
    )
    training = fit.add_argument_group("training")
    training.add_argument(
        "--epochs", type=_positive_float, metavar="N", help="passes over the table (default: the preset's)"
    )
    training.add_argument(
        "--max-minutes",
        type=_positive_float,
        metavar="MINUTES",
        help="time limit for both stages together, in minutes (default: none beyond the preset's epochs)",
    )
    training.add_argument(
        "--batch-size", type=_positive_int, metavar="N", help="records in one training step (default: the preset's)"
    )
    training.add_argument(
        "--validation",
        metavar="FILE",
        help="table of held-out records (default: a part of DATA is held out)",
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice")
    training.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in DIR (default: start anew)"
    )
    training.add_argument(
        "--overwrite", action="store_true", help="replace a pipeline that is already in DIR (default: refuse)"
    )
    fit.set_defaults(run=_run_fit)


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser(
        "sample",
        help="sample records from a fitted pipeline",
        description="Sample records from a fitted pipeline into a file.",
        epilog="example: difflm sample out -n 1000 -o rows.parquet --condition species=Adelie",
        formatter_class=_HelpFormatter,
    )
    sample.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote, or a Hub id")
    sample.add_argument("-n", "--num-samples", type=_positive_int, default=100, metavar="N", help="records to sample")
    sample.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write: .parquet, .csv or .jsonl (required)"
    )
    sample.add_argument("--overwrite", action="store_true", help="replace FILE if it exists (default: refuse)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="record i depends on the seed and on i alone")
    sample.add_argument(
        "--batch-size",
        type=_positive_int,
        default=64,
        metavar="N",
        help="records decoded together; more is faster and takes more memory",
    )
    sample.add_argument(
        "--temperature",
        type=_positive_float,
        default=1.0,
        metavar="T",
        help="of the language model's token choice, no unit; below 1 the records are less varied",
    )
    sample.add_argument(
        "--top-p",
        type=_probability,
        default=1.0,
        metavar="P",
        help="keep the likeliest tokens of total probability P",
    )
    sample.add_argument(
        "--top-k", type=_positive_int, metavar="K", help="keep the K likeliest tokens (default: all of them)"
    )
    sample.add_argument(
        "--steps", type=_positive_int, default=50, metavar="N", help="denoising steps of the diffusion model"
    )
    sample.add_argument(
        "--condition",
        type=_condition,
        action="append",
        metavar="COLUMN=VALUE",
        help="fix a column to a value, to null (missing) or, if a number, to a range LOW..HIGH; repeat for several "
        "columns or for alternatives (default: none is fixed)",
    )
    sample.add_argument(
        "--guidance-scale",
        type=_positive_float,
        default=1.0,
        metavar="W",
        help="weight of the condition in classifier-free guidance, no unit; 1 is none",
    )
    sample.add_argument(
        "--no-constrained",
        dest="constrained",
        action="store_false",
        help="let the language model write freely and reject what is no record "
        "(default: only tokens that keep the record valid are allowed)",
    )
    sample.set_defaults(run=_run_sample)


def _add_info(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="describe a fitted pipeline",
        description="Describe a fitted pipeline: its models, columns and how its training ended. Loads no weights.",
        formatter_class=_HelpFormatter,
    )
    info.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    info.add_argument("--json", action="store_true", help="print one JSON object (default: text for people)")
    info.set_defaults(run=_run_info)


def fit_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Translate the options of ``difflm fit`` into keyword arguments of ``difflm.training.train_difflm.fit``.

    Options that were not given are left out, so that the preset decides.
    """
    keywords: dict[str, Any] = {
        "preset": arguments.preset,
        "seed": arguments.seed,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
    }
    optional = (
        "encoder",
        "decoder",
        "injection",
        "record_format",
        "epochs",
        "max_minutes",
        "batch_size",
        "condition_columns",
        "text_columns",
        "validation",
    )
    keywords.update({name: value for name in optional if (value := getattr(arguments, name)) is not None})
    if keywords.get("condition_columns") in (["auto"], ["none"]):
        keywords["condition_columns"] = "auto" if keywords["condition_columns"] == ["auto"] else ()
    return keywords


def _run_fit(arguments: argparse.Namespace) -> int:
    for path in filter(None, (arguments.data, arguments.validation)):
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such table", str(path))
    from difflm.training.train_difflm import fit

    started = time.monotonic()
    fit(arguments.data, arguments.output_dir, **fit_arguments(arguments))
    minutes = (time.monotonic() - started) / 60
    print(f"Fitted in {minutes:.1f} minutes. Sample with:")
    print(f"  difflm sample {shlex.quote(arguments.output_dir)} -n 1000 -o rows.parquet")
    return 0


def _run_sample(arguments: argparse.Namespace) -> int:
    # Whatever can be known to be wrong is reported before minutes are spent on sampling.
    from difflm.cli_files import check_output, write_records

    output = check_output(arguments.output, overwrite=arguments.overwrite)
    folder = Path(arguments.pipeline)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            errno.ENOENT, "no fitted pipeline here (no model_index.json); run `difflm fit` first", arguments.pipeline
        )
    from difflm.pipelines import DiffLMPipeline

    pipe = DiffLMPipeline.from_pretrained(arguments.pipeline)
    started = time.monotonic()
    result = pipe(
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        num_inference_steps=arguments.steps,
        condition=typed_condition(arguments.condition, pipe.schema) if arguments.condition else None,
        constrained=arguments.constrained,
        guidance_scale=arguments.guidance_scale,
    )
    seconds = max(time.monotonic() - started, 1e-9)
    write_records(result, output)
    count = len(result.records)
    print(
        f"{count} records in {output} ({count / seconds:.1f} records/s, "
        f"{100 * result.valid_first_attempt:.1f} % valid on the first attempt)"
    )
    if count < arguments.num_samples:
        print(
            f"difflm: only {count} of {arguments.num_samples} records became valid: {result.report}", file=sys.stderr
        )
        return 1
    return 0


def typed_condition(condition: Sequence[tuple[str, str]], schema: Any) -> dict[str, Any]:
    """Give the values of ``--condition`` the type of their column.

    ``year=2008`` becomes ``{"year": 2008}``, ``mass=3000..4000`` of a number column ``{"mass": (3000, 4000)}``,
    ``sex=null`` ``{"sex": None}``, and a column named twice a list of alternatives.

    Parameters
    ----------
    condition
        Pairs of column name and value, both as typed.
    schema
        The pipeline's ``RecordSchema``.

    Raises
    ------
    ValueError
        If there is no such column, or a number column is given something else.
    """
    columns = {column.name: column for column in schema.columns}
    typed: dict[str, Any] = {}
    for name, text in condition:
        if name not in columns:
            raise ValueError(f"--condition {name}={text}: no column {name!r}; the columns are {', '.join(columns)}")
        value = _typed_value(text, columns[name])
        if name not in typed:
            typed[name] = value
        elif isinstance(value, tuple) or isinstance(typed[name], tuple):
            raise ValueError(f"--condition {name}={text}: give one range for {name!r}, or values")
        else:
            typed[name] = [*(typed[name] if isinstance(typed[name], list) else [typed[name]]), value]
    return typed


def _typed_value(text: str, column: Any) -> Any:
    choices = [True, False] if column.kind == "boolean" else list(column.categories or ())
    spelled = {json.dumps(choice) if isinstance(choice, bool) else str(choice): choice for choice in choices}
    if text in spelled:
        return spelled[text]
    if text == "null":
        return None
    if column.kind not in ("integer", "decimal"):
        return text
    number = int if column.kind == "integer" else float
    try:
        low, is_range, high = text.partition("..")
        return (number(low), number(high)) if is_range else number(text)
    except ValueError:
        raise ValueError(
            f"--condition {column.name}={text}: {column.name!r} is {column.kind}; give a number, LOW..HIGH or null"
        ) from None


def _run_info(arguments: argparse.Namespace) -> int:
    from difflm.cli_info import describe, render

    description = describe(arguments.pipeline)
    if arguments.json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        print(render(description))
    return 0


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest ``checkpoint-*`` folder below ``folder``, or None."""
    found = [path for path in Path(folder).glob("**/checkpoint-*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _interrupted(arguments: argparse.Namespace, argv: Sequence[str]) -> str:
    if arguments.command != "fit":
        return "difflm: interrupted; nothing was written"
    checkpoint = last_checkpoint(arguments.output_dir)
    if checkpoint is None:
        return "difflm: interrupted before the first checkpoint; nothing to resume"
    words = [word for word in argv if word not in ("--resume", "--overwrite")]
    command = shlex.join(["difflm", *words, "--resume"])
    return f"difflm: interrupted; the last checkpoint is {checkpoint}\nresume with: {command}"


def _raised_by_us(error: BaseException) -> bool:
    """Tell a refusal of ours from a defect: our own code raised it, on purpose."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "difflm"


def user_message(error: BaseException) -> str | None:
    """Return the one line that tells a user what went wrong, or None if the error is a defect of the program."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in str(error):
        where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"no space left on the disk{where}; free some and run again (a fit goes on with --resume)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    refusal = isinstance(error, OSError) or isinstance(error, ValueError | ImportError) and _raised_by_us(error)
    return " ".join(str(error).split()) if refusal else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``difflm`` command.

    Parameters
    ----------
    argv
        The words after ``difflm``; default: those of the process.

    Returns
    -------
    int
        0 if all went well, 1 if fewer records than wanted became valid, 2 for an error of the user's (one line on
        stderr), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt:
        print(_interrupted(arguments, words), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `difflm info out | head`: the reader has what it wanted. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = user_message(error)
        if message is None or arguments.traceback:
            raise
        print(f"difflm: error: {message}", file=sys.stderr)
        return USER_ERROR
