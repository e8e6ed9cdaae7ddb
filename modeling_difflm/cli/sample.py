"""``difflm sample``: sample records into a file, or into a folder of parquet shards."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difflm.cli.options import (
    HelpFormatter,
    add_device_options,
    check_pipeline,
    load_pipeline,
    pipeline_schema,
    positive_float,
    positive_int,
    probability,
    temperature,
)
from difflm.errors import ArgumentError


WRITERS = {"lm": "the language model", "draft": "the draft"}


def condition_pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"write it as COLUMN=VALUE, not {text!r}")
    return name, value


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    sample = commands.add_parser(
        "sample",
        help="sample records from a fitted pipeline",
        description="Sample records from a fitted pipeline into a file, or into a folder of parquet shards.\n\n"
        "A run into a folder that was stopped goes on when the same command is repeated, and\n"
        "`accelerate launch -m difflm sample ...` shares it among processes: the records are the same.",
        epilog="example: difflm sample out -n 1000 -o rows.parquet --condition species=Adelie",
        formatter_class=HelpFormatter,
    )
    sample.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote, or a Hub id")
    sample.add_argument("-n", "--num-samples", type=positive_int, default=100, metavar="N", help="records to sample")
    sample.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="file to write: .parquet, .csv or .jsonl; or a folder, named with a slash at its end (required)",
    )
    sample.add_argument(
        "--shard-size", type=positive_int, default=10_000, metavar="N", help="records of a shard in a folder"
    )
    sample.add_argument("--overwrite", action="store_true", help="replace FILE if it exists (default: refuse)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="record i depends on the seed and on i alone")
    sample.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="records decoded together; more is faster and takes more memory (default: chosen for the device)",
    )
    sample.add_argument(
        "--writer",
        choices=("auto", "lm", "draft"),
        default="auto",
        help="lm: the language model writes; draft: the columns' own network does, and the language model texts and "
        "nested values alone; auto: as the fit decided",
    )
    sample.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="of the writer's choice of tokens, no unit; below 1 the records are less varied, at 0 the likeliest "
        "token is taken",
    )
    sample.add_argument(
        "--top-p",
        type=probability,
        metavar="P",
        help="keep the likeliest tokens of total probability P (default: all)",
    )
    sample.add_argument("--top-k", type=positive_int, metavar="K", help="keep the K likeliest tokens (default: all)")
    sample.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="denoising steps of the diffusion model (default: 50, or 16 where it ends at a noise floor)",
    )
    sample.add_argument(
        "--max-attempts",
        type=positive_int,
        default=10,
        metavar="N",
        help="give a record up after so many rejected texts; the file then has fewer records",
    )
    sample.add_argument(
        "--condition",
        type=condition_pair,
        action="append",
        metavar="COLUMN=VALUE",
        help="fix a column to a value, to null (missing) or, if a number, to a range LOW..HIGH; repeat for several "
        "columns or for alternatives (default: none is fixed)",
    )
    sample.add_argument(
        "--guidance-scale",
        type=positive_float,
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
    sample.add_argument(
        "--big-integers",
        choices=("decimal", "string"),
        default="decimal",
        help="integers of more than 64 bits in .parquet: decimals of 38 digits, none after the point, or text",
    )
    add_device_options(sample)
    sample.set_defaults(run=run, interrupted=interrupted)


def run(arguments: argparse.Namespace) -> int:
    """Sample; return the exit status: 1 if fewer records than wanted became valid."""
    # Whatever can be known to be wrong is reported before minutes are spent on sampling.
    from difflm.pipelines.arrow_tables import output_notes
    from difflm.pipelines.table_files import check_output, is_folder, write_records

    to_folder = is_folder(arguments.output)
    if to_folder and arguments.unique:
        raise ArgumentError("--unique needs all records at once: name a file, or drop duplicates from the shards")
    if to_folder and arguments.overwrite:
        raise ArgumentError("--overwrite replaces a file: remove the folder yourself, or name a new one")
    output = Path(arguments.output) if to_folder else check_output(arguments.output, overwrite=arguments.overwrite)
    if Path(arguments.pipeline).exists():
        check_pipeline(arguments.pipeline)
    condition = None
    if arguments.condition:
        condition = checked_condition(arguments.condition, pipeline_schema(arguments.pipeline))
    pipe = load_pipeline(arguments)
    options = {
        "batch_size": arguments.batch_size,
        "max_attempts": arguments.max_attempts,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "num_inference_steps": arguments.steps,
        "condition": condition,
        "constrained": arguments.constrained,
        "within_range": arguments.within_range,
        "guidance_scale": arguments.guidance_scale,
        "unique": arguments.unique,
        "exclude_training_copies": arguments.exclude_training_copies,
    }
    who = pipe.who_writes(arguments.writer, constrained=arguments.constrained)
    if arguments.writer != "auto":  # runs that were begun by earlier versions go on
        options["writer"] = arguments.writer
    for note in output_notes(pipe.schema, ".parquet" if to_folder else output.suffix.lower(), arguments.big_integers):
        print(f"difflm: note: {note}", file=sys.stderr)
    if to_folder:
        return _sample_shards(pipe, output, arguments, options, WRITERS[who])
    started = time.monotonic()
    result = pipe(num_samples=arguments.num_samples, seed=arguments.seed, **options)
    seconds = max(time.monotonic() - started, 1e-9)
    write_records(result, output, big_integers=arguments.big_integers)
    count = len(result.records)
    print(
        f"{count} records in {output}, written by {WRITERS[who]} ({count / seconds:.1f} records/s, "
        f"{100 * result.valid_first_attempt:.1f} % valid on the first attempt)"
    )
    if count < arguments.num_samples:
        print(f"difflm: only {count} of {arguments.num_samples} records became valid", file=sys.stderr)
        return 1
    return 0


def _sample_shards(
    pipe: Any, folder: Path, arguments: argparse.Namespace, options: dict[str, Any], written_by: str
) -> int:
    """Write parquet shards; under ``accelerate launch`` each process writes its share."""
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from difflm.pipelines.sharded_sampling import read_report, sample_shards

    index, count = 0, 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=pipe.device.type != "cuda")
        index, count = state.process_index, state.num_processes
    label = "Sampling" if count == 1 else f"Sampling (process {index + 1} of {count})"
    total = sum(
        min(arguments.shard_size, arguments.num_samples - start)
        for start in range(index * arguments.shard_size, arguments.num_samples, count * arguments.shard_size)
    )
    with tqdm(total=total, desc=label, unit="record") as bar:

        def shard_done(done: int, total: int) -> None:
            # Rows that were there already took no time: they must not flatter the rate and the ETA.
            bar.initial += done - bar.n
            bar.n = done
            bar.refresh()

        # One bar over all shards, moved record by record, in place of one for each shard.
        pipe.progress_bar = lambda *args, **kwargs: contextlib.nullcontext(bar)
        shards = sample_shards(
            pipe,
            folder,
            arguments.num_samples,
            seed=arguments.seed,
            shard_size=arguments.shard_size,
            process_index=index,
            num_processes=count,
            on_shard_done=shard_done,
            big_integers=arguments.big_integers,
            **options,
        )
        reports = [read_report(shard) for shard in shards]
    returned = sum(report.returned for report in reports)
    print(f"{returned} records in {len(reports)} shards in {folder}{os.sep}, written by {written_by}")
    if returned < total:
        print(f"difflm: only {returned} of {total} records became valid", file=sys.stderr)
    # A process that ends with an error takes the others, which may still be at work, down with it.
    return 1 if returned < total and count == 1 else 0


def checked_condition(condition: Sequence[tuple[str, str]], schema: Any) -> dict[str, Any]:
    """As [`typed_condition`]; ConditionError if no record of the schema can satisfy it."""
    from difflm.pipelines.conditions import check_condition

    typed = typed_condition(condition, schema)
    check_condition(typed, schema.columns)
    return typed


def typed_condition(condition: Sequence[tuple[str, str]], schema: Any) -> dict[str, Any]:
    """Give the values of ``--condition`` the type of their column.

    ``year=2008`` becomes ``{"year": 2008}``, ``mass=3000..4000`` of a number column ``{"mass": (3000, 4000)}``,
    ``day=2023-01-01..`` of a date column ``{"day": ("2023-01-01", None)}``, ``sex=null``
    ``{"sex": None}``, and a column named twice a list of alternatives.

    Parameters
    ----------
    condition
        Pairs of column name and value, both as typed.
    schema
        The pipeline's ``RecordSchema``.

    Raises
    ------
    ArgumentError
        If there is no such column, or a number column is given something else.
    """
    columns = {column.name: column for column in schema.columns}
    typed: dict[str, Any] = {}
    for name, text in condition:
        if name not in columns:
            raise ArgumentError(f"--condition {name}={text}: no column {name!r}; the columns are {', '.join(columns)}")
        value = _typed_value(text, columns[name])
        if name not in typed:
            typed[name] = value
        elif isinstance(value, tuple) or isinstance(typed[name], tuple):
            raise ArgumentError(f"--condition {name}={text}: give one range for {name!r}, or values")
        else:
            typed[name] = [*(typed[name] if isinstance(typed[name], list) else [typed[name]]), value]
    return typed


def _typed_value(text: str, column: Any) -> Any:
    spelled = {str(choice): choice for choice in column.categories or ()}
    if text in spelled:
        return spelled[text]
    if text == "null":
        return None
    if column.kind == "boolean":
        # As JSON, Python, R and spreadsheets spell it.
        found = {"true": True, "false": False}.get(text.lower())
        if found is None:
            raise ArgumentError(
                f"--condition {column.name}={text}: {column.name!r} is boolean; give true, false or null"
            )
        return found
    if not column.rules.takes_ranges:
        return text
    numbers: dict[str, Any] = {"integer": int, "decimal": float, "category": float}
    typed = numbers.get(column.kind, str)  # dates stay text
    low, is_range, high = text.partition("..")
    try:
        if is_range:  # 3000.. is open at its end
            return tuple(typed(end) if end else None for end in (low, high))
        return typed(text)
    except ValueError:
        raise ArgumentError(
            f"--condition {column.name}={text}: {column.name!r} is {column.kind}; give a number, LOW..HIGH or null"
        ) from None


def interrupted(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """What Ctrl-C leaves."""
    if Path(arguments.output).is_dir():
        return f"interrupted; complete shards stay in {arguments.output}: the same command goes on"
    return "interrupted; nothing was written"
