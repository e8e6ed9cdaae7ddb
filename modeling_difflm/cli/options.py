"""What the commands' options share: the form of their help, the types of their values."""

import argparse
import errno
from pathlib import Path
from typing import Any

from difflm.errors import ArgumentError, DamagedPipelineError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to an option's help when the text does not state it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        no_value = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        silent = no_value or not action.option_strings
        return text if silent or "default" in text else f"{text} (default: %(default)s)"


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not value > 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def check_table(path: str) -> None:
    """Refuse what is no file; ArgumentError says what is taken, FileNotFoundError that there is nothing."""
    if Path(path).is_dir():
        from difflm.training.data import READABLE_ENDINGS

        raise ArgumentError(f"{path} is a folder: name a table in it, a file ending in {', '.join(READABLE_ENDINGS)}")
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, "no such table", path)


def check_pipeline(pipeline: str) -> Path:
    """The folder of a fitted pipeline; FileNotFoundError, with the remedy, if there is none in it."""
    folder = Path(pipeline)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            errno.ENOENT, "no fitted pipeline here (no model_index.json); run `difflm fit` first", pipeline
        )
    return folder


def pipeline_schema(pipeline: str) -> Any:
    """The ``RecordSchema`` of a fitted pipeline, a folder or a Hub id, from its index alone: no weights are loaded."""
    from difflm.pipelines.checkpoint_safety import read_index
    from difflm.pipelines.hub_saving import download_folder
    from difflm.pipelines.record_schema import RecordSchema

    folder = Path(pipeline) if Path(pipeline).exists() else download_folder(pipeline)
    stored = read_index(folder).get("record_schema")
    if stored is None:
        raise DamagedPipelineError(f"{folder}: model_index.json holds no record_schema: copy the pipeline anew")
    return RecordSchema.from_dict(stored)


def add_reading_options(command: Any, tables: str) -> None:
    """Add how text files of tables are read; ``tables`` says which."""
    reading = command.add_argument_group(f"reading {tables}")
    reading.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="of .csv and .tsv (default: tab for .tsv; comma for .csv, or the one of ; | and tab that alone fits)",
    )
    reading.add_argument(
        "--encoding", metavar="NAME", help="e.g. latin-1 (default: by the byte order mark, else utf-8)"
    )
    reading.add_argument(
        "--na-values",
        nargs="+",
        metavar="TEXT",
        help="the only cells of a .csv that mean missing; '' is an empty one (default: empty, NA, null, nan, ...)",
    )
    reading.add_argument("--decimal", metavar="CHARACTER", help="decimal mark of numbers in a .csv (default: .)")
    reading.add_argument("--thousands", metavar="CHARACTER", help="groups the digits of numbers (default: none)")


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_reading_options` that were given, as keywords of ``difflm.read_table``."""
    names = ("delimiter", "encoding", "na_values", "decimal", "thousands")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if given.get("delimiter") in ("tab", r"\t"):
        given["delimiter"] = "\t"
    return given


def add_device_option(command: Any) -> None:
    """Add where a command runs its models."""
    command.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps; auto is the best of this machine, and under torchrun a GPU for each process",
    )


def add_device_options(command: Any) -> None:
    """Add where a command runs its models, and in which dtype."""
    add_device_option(command)
    command.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the frozen language model; auto is the one it was fitted with, or what the hardware multiplies",
    )


def load_pipeline(arguments: argparse.Namespace) -> Any:
    """Load a command's pipeline, in the dtype and on the device that its options name."""
    from difflm.devices import choose_device, decoder_options
    from difflm.pipelines import DiffLMPipeline

    device = choose_device(arguments.device)
    options = decoder_options(device, arguments.dtype)
    return DiffLMPipeline.from_pretrained(arguments.pipeline, **options).to(device)
