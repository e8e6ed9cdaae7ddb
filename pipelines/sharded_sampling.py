"""Sample any number of records into parquet shards: constant memory, atomic files, resumable, shared by processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from difflm.errors import ArgumentError, DiffLMError
from difflm.files import atomic_file, drop_leftovers, write_json
from difflm.pipelines.call_arguments import integer
from difflm.pipelines.outputs import SamplingReport


MANIFEST = "sampling.json"
REPORT_KEY = b"difflm_report"


class ShardFolderError(DiffLMError, ValueError):
    """The folder belongs to another run, or to somebody else."""


def shard_name(index: int, count: int) -> str:
    """File name of a shard, as the Hub and ``datasets`` write them: ``part-00003-of-00010.parquet``."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def sample_shards(
    pipeline: Any,
    folder: str | Path,
    num_samples: int,
    *,
    seed: int,
    shard_size: int = 10_000,
    process_index: int = 0,
    num_processes: int = 1,
    on_shard_done: Callable[[int, int], Any] | None = None,
    big_integers: str = "decimal",
    **options: Any,
) -> Iterator[Path]:
    """Write rows 0 to ``num_samples`` - 1 as parquet shards; yield each shard's path when it is complete.

    Shards that are there already are left alone: after a kill, the same call goes on where it stopped and ends with
    the same files. Process p of n writes the shards whose index is p modulo n; the union is what one process writes.

    Parameters
    ----------
    pipeline : DiffLMPipeline
    folder : path
        Created if missing. Must be empty or hold the same run.
    num_samples : int
    seed : int
    shard_size : int, default 10,000
        Rows of a shard.
    process_index, num_processes : int, default 0, 1
    on_shard_done : callable, optional
        Called with the number of rows done and this process's number of rows.
    big_integers : {"decimal", "string"}, default "decimal"
        See [`DiffLMPipelineOutput.to_arrow`].
    **options
        Of the pipeline's call; JSON-able, since they are written to ``sampling.json`` (a tuple, the range of a
        condition, as ``{"range": [low, high]}``).

    Raises
    ------
    ShardFolderError
        If the folder holds another run's shards or files that are not ours.
    """
    shard_size, num_samples = integer("shard_size", shard_size, 1), integer("num_samples", num_samples, 1)
    seed = integer("seed", seed)
    if not 0 <= process_index < num_processes:
        raise ArgumentError(f"process_index must lie between 0 and {num_processes - 1}, not {process_index}.")
    if options.get("unique"):
        raise ArgumentError("unique=True needs all rows at once: drop duplicates from the shards afterwards.")
    folder = Path(folder)
    count = -(-num_samples // shard_size)
    settings = {"num_samples": num_samples, "seed": seed, "shard_size": shard_size, **options}
    # Folders of earlier versions have no such entry.
    _claim_folder(folder, settings | ({} if big_integers == "decimal" else {"big_integers": big_integers}))
    mine = range(process_index, count, num_processes)
    rows_of = {index: min(shard_size, num_samples - index * shard_size) for index in mine}
    total, done = sum(rows_of.values()), 0
    for index in mine:
        path = folder / shard_name(index, count)
        if not path.exists():
            output = pipeline(rows_of[index], seed=seed, first_row=index * shard_size, **options)
            _write_shard(path, output, big_integers)
        done += rows_of[index]
        if on_shard_done is not None:
            on_shard_done(done, total)
        yield path


def read_run(folder: str | Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and the shards, in order, of a finished run.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ShardFolderError
        If shards are missing: the run was interrupted, or is still at work.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: make it with `difflm sample PIPELINE -o {folder}/`.")
    settings = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    count = -(-settings["num_samples"] // settings["shard_size"])
    paths = [folder / shard_name(index, count) for index in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ShardFolderError(
            f"{folder} lacks {len(missing)} of {count} shards ({missing[0]}, ...): repeat the same command to finish."
        )
    return settings, paths


def read_report(path: str | Path) -> SamplingReport:
    """The sampling report that a shard carries."""
    stored = json.loads(pq.read_schema(path).metadata[REPORT_KEY])
    report = SamplingReport(**{name: value for name, value in stored.items() if name != "rejected"})
    report.rejected.update(stored["rejected"])
    return report


def _write_shard(path: Path, output: Any, big_integers: str) -> None:
    report = {**vars(output.report), "rejected": dict(output.report.rejected)}
    table = output.to_arrow(big_integers=big_integers)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), REPORT_KEY: json.dumps(report).encode()})
    drop_leftovers(path)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _stored(value: Any) -> Any:
    """What JSON cannot tell apart, told apart: a tuple is a range of values, a list some of them."""
    if isinstance(value, tuple):
        return {"range": [_stored(item) for item in value]}
    if isinstance(value, Mapping):
        return {name: _stored(item) for name, item in value.items()}
    return [_stored(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Numpy's numbers, arrays, sets, and dates, which conditions may hold, in JSON's types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value, key=repr) if isinstance(value, Set) else str(value)


def _claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(_stored(settings), default=_plain))
    manifest = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise ShardFolderError(f"{folder} is a file: name a folder for the shards.")
    if manifest.is_file():
        before = json.loads(manifest.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*settings, *before} if settings.get(name) != before.get(name))
        if changed:
            raise ShardFolderError(
                f"{folder} holds shards sampled with other {', '.join(changed)}: repeat the same command to go on, or "
                "name a new folder."
            )
        return
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        if manifest.is_file():  # another process of this run was a moment faster
            return _claim_folder(folder, settings)
        raise ShardFolderError(f"{folder} holds other files; nothing in it is touched. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(manifest, settings)
