"""The ``difflm`` command: fit a table, sample records, look at what was fitted.

Nothing heavy is imported until the arguments are known to be right: ``difflm fit --help`` loads neither torch nor
transformers, and a mistyped option is reported at once.
"""

import argparse
import contextlib
import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difflm.cli_evaluate import run_evaluate
from difflm.cli_hub import run_hub_command
from difflm.cli_parser import build_parser


USER_ERROR = 2
INTERRUPTED = 130


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
    from difflm.cli_files import check_output, is_folder, write_records

    to_folder = is_folder(arguments.output)
    if to_folder and arguments.unique:
        raise ValueError("--unique needs all records at once: name a file, or drop duplicates from the shards")
    if to_folder and arguments.overwrite:
        raise ValueError("--overwrite replaces a file: remove the folder yourself, or name a new one")
    output = Path(arguments.output) if to_folder else check_output(arguments.output, overwrite=arguments.overwrite)
    folder = Path(arguments.pipeline)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            errno.ENOENT, "no fitted pipeline here (no model_index.json); run `difflm fit` first", arguments.pipeline
        )
    from difflm.pipelines import DiffLMPipeline

    pipe = DiffLMPipeline.from_pretrained(arguments.pipeline)
    options = {
        "batch_size": arguments.batch_size,
        "max_attempts": arguments.max_attempts,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "num_inference_steps": arguments.steps,
        "condition": typed_condition(arguments.condition, pipe.schema) if arguments.condition else None,
        "constrained": arguments.constrained,
        "within_range": arguments.within_range,
        "guidance_scale": arguments.guidance_scale,
        "unique": arguments.unique,
        "exclude_training_copies": arguments.exclude_training_copies,
    }
    if to_folder:
        return _sample_shards(pipe, output, arguments, options)
    started = time.monotonic()
    result = pipe(num_samples=arguments.num_samples, seed=arguments.seed, **options)
    seconds = max(time.monotonic() - started, 1e-9)
    write_records(result, output)
    count = len(result.records)
    print(
        f"{count} records in {output} ({count / seconds:.1f} records/s, "
        f"{100 * result.valid_first_attempt:.1f} % valid on the first attempt)"
    )
    if count < arguments.num_samples:
        print(f"difflm: only {count} of {arguments.num_samples} records became valid", file=sys.stderr)
        return 1
    return 0


def _sample_shards(pipe: Any, folder: Path, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """Write parquet shards; under ``accelerate launch`` each process writes its share."""
    import torch
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from difflm.pipelines.sharded_sampling import read_report, sample_shards

    index, count = 0, 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=not torch.cuda.is_available())
        index, count = state.process_index, state.num_processes
        if state.device.type == "cuda":
            pipe.to(state.device)
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
            **options,
        )
        reports = [read_report(shard) for shard in shards]
    returned = sum(report.returned for report in reports)
    print(f"{returned} records in {len(reports)} shards in {folder}{os.sep}")
    if returned < total:
        print(f"difflm: only {returned} of {total} records became valid", file=sys.stderr)
    # A process that ends with an error takes the others, which may still be at work, down with it.
    return 1 if returned < total and count == 1 else 0


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
    """Return the newest checkpoint below a fit's folder, or None.

    That is a ``checkpoint-*`` of either stage, or the finished autoencoder between the two.
    """
    found = [path for name in ("checkpoint-*", "fitted_autoencoder") for path in Path(folder).glob(f"**/{name}")]
    return max((path for path in found if path.is_dir()), key=lambda path: path.stat().st_mtime, default=None)


def _interrupted(arguments: argparse.Namespace, argv: Sequence[str]) -> str:
    if arguments.command == "sample" and Path(arguments.output).is_dir():
        return f"difflm: interrupted; complete shards stay in {arguments.output}: the same command goes on"
    if arguments.command == "evaluate":
        return "difflm: interrupted before the report was written"
    if arguments.command != "fit":
        return "difflm: interrupted; nothing was written"
    words = [word for word in argv if word not in ("--resume", "--overwrite")]
    checkpoint = last_checkpoint(arguments.output_dir)
    if checkpoint is None:
        command = shlex.join(["difflm", *words, "--overwrite"])
        return f"difflm: interrupted before the first checkpoint; nothing to resume\nstart again with: {command}"
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
    own = {"fit": _run_fit, "sample": _run_sample, "evaluate": run_evaluate, "info": _run_info}
    run = own.get(arguments.command, run_hub_command)
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
