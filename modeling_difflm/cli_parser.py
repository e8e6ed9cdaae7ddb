"""The options of the ``difflm`` command, with their help."""

import argparse
from typing import Any

from difflm import __version__
from difflm.cli_evaluate import add_evaluate_command
from difflm.cli_hub import add_hub_commands


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


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
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
    """Build the parser of ``difflm`` with its sub-commands."""
    parser = argparse.ArgumentParser(
        prog="difflm",
        description="Synthetic structured data from a latent diffusion model in front of a frozen language model.",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"difflm {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error (default: one line)"
    )
    names = "{fit,sample,evaluate,info,card,push,space}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    _add_fit(commands)
    _add_sample(commands)
    _add_info(commands)
    add_evaluate_command(commands, _HelpFormatter)
    add_hub_commands(commands, _HelpFormatter)
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
    fit.add_argument("data", metavar="DATA", help="the table: .csv, .tsv, .parquet, .jsonl or .json")
    fit.add_argument("--output-dir", "-o", required=True, metavar="DIR", help="folder for the pipeline (required)")
    models = fit.add_argument_group("models")
    models.add_argument(
        "--preset",
        choices=("tiny", "small", "paper"),
        default="small",
        help="tiny: SmolLM2-135M and MiniLM, few epochs, at most 5 minutes; small: the same models, at most 40 epochs "
        "and 60 minutes; paper: Mistral-7B-Instruct and BERT in the paper's sizes, needs a large GPU",
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
    training = fit.add_argument_group("training")
    training.add_argument(
        "--epochs", type=_positive_float, metavar="N", help="most passes over the table (default: the preset's)"
    )
    training.add_argument(
        "--max-minutes",
        type=_positive_float,
        metavar="MINUTES",
        help="time limit of both stages together, in minutes (default: the preset's)",
    )
    training.add_argument(
        "--batch-size", type=_positive_int, metavar="N", help="records in one training step (default: the preset's)"
    )
    training.add_argument(
        "--validation",
        metavar="FILE",
        help="table of held-out records (default: a tenth of DATA, at most 1000 records, is held out)",
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice")
    training.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in DIR (default: start anew)"
    )
    training.add_argument(
        "--overwrite", action="store_true", help="replace a pipeline that is already in DIR (default: refuse)"
    )


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser(
        "sample",
        help="sample records from a fitted pipeline",
        description="Sample records from a fitted pipeline into a file, or into a folder of parquet shards.\n\n"
        "A run into a folder that was stopped goes on when the same command is repeated, and\n"
        "`accelerate launch -m difflm sample ...` shares it among processes: the records are the same.",
        epilog="example: difflm sample out -n 1000 -o rows.parquet --condition species=Adelie",
        formatter_class=_HelpFormatter,
    )
    sample.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote, or a Hub id")
    sample.add_argument("-n", "--num-samples", type=_positive_int, default=100, metavar="N", help="records to sample")
    sample.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="file to write: .parquet, .csv or .jsonl; or a folder, named with a slash at its end (required)",
    )
    sample.add_argument(
        "--shard-size", type=_positive_int, default=10_000, metavar="N", help="records of a shard in a folder"
    )
    sample.add_argument("--overwrite", action="store_true", help="replace FILE if it exists (default: refuse)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="record i depends on the seed and on i alone")
    sample.add_argument(
        "--batch-size",
        type=_positive_int,
        metavar="N",
        help="records decoded together; more is faster and takes more memory (default: chosen for the device)",
    )
    sample.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="of the language model's token choice, no unit; below 1 the records are less varied, at 0 the likeliest "
        "token is taken",
    )
    sample.add_argument(
        "--top-p",
        type=_probability,
        metavar="P",
        help="keep the likeliest tokens of total probability P (default: all)",
    )
    sample.add_argument("--top-k", type=_positive_int, metavar="K", help="keep the K likeliest tokens (default: all)")
    sample.add_argument(
        "--steps", type=_positive_int, default=50, metavar="N", help="denoising steps of the diffusion model"
    )
    sample.add_argument(
        "--max-attempts",
        type=_positive_int,
        default=10,
        metavar="N",
        help="give a record up after so many rejected texts; the file then has fewer records",
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
        "--unique",
        action="store_true",
        help="resample records equal to an earlier one; not with a folder (default: keep)",
    )
    sample.add_argument(
        "--exclude-training-copies",
        action="store_true",
        help="resample exact copies of training records (default: keep)",
    )
    sample.add_argument(
        "--no-within-range",
        dest="within_range",
        action="store_false",
        help="let numbers leave the range seen in training (default: they stay within)",
    )
    sample.add_argument(
        "--no-constrained",
        dest="constrained",
        action="store_false",
        help="let the language model write freely and reject what is no record "
        "(default: only tokens that keep the record valid are allowed)",
    )


def _add_info(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="describe a fitted pipeline",
        description="Describe a fitted pipeline: its models, columns and how its training ended. Loads no weights.",
        formatter_class=_HelpFormatter,
    )
    info.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    info.add_argument("--json", action="store_true", help="print one JSON object (default: text for people)")
