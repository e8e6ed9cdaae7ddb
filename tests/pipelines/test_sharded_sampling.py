"""Shards: the same rows as one call, however interrupted or shared out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from difflm.pipelines.sharded_sampling import ShardFolderError, read_report, sample_shards, shard_name


@pytest.fixture(scope="module")
def pipe(fitted):
    fitted[0].set_progress_bar_config(disable=True)
    return fitted[0]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_the_rows_of_one_call(pipe, tmp_path):
    paths = list(sample_shards(pipe, tmp_path / "out", 10, seed=3, shard_size=4))
    assert [path.name for path in paths] == [shard_name(index, 3) for index in range(3)]
    rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    pd.testing.assert_frame_equal(rows, pipe(10, seed=3).to_pandas())
    assert [read_report(path).returned for path in paths] == [4, 4, 2]


def test_a_killed_run_goes_on_and_ends_with_the_same_files(pipe, tmp_path):
    list(sample_shards(pipe, tmp_path / "whole", 10, seed=3, shard_size=4))
    killed = sample_shards(pipe, tmp_path / "killed", 10, seed=3, shard_size=4)
    first = next(killed)
    killed.close()
    stamp = first.stat().st_mtime_ns
    (tmp_path / "killed" / f".{Path(shard_name(1, 3)).stem}.99.partial.parquet").write_bytes(b"half a shard")
    list(sample_shards(pipe, tmp_path / "killed", 10, seed=3, shard_size=4))
    assert first.stat().st_mtime_ns == stamp
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_range_is_not_the_two_values_at_its_ends(pipe, tmp_path):
    options = {"seed": 3, "shard_size": 4}
    list(sample_shards(pipe, tmp_path / "out", 4, condition={"age": (3, 9)}, **options))
    list(sample_shards(pipe, tmp_path / "out", 4, condition={"age": (3, 9)}, **options))
    with pytest.raises(ShardFolderError, match="other condition"):
        list(sample_shards(pipe, tmp_path / "out", 4, condition={"age": [3, 9]}, **options))


@pytest.mark.parametrize("ages", [{3, 9}, np.array([3, 9]), np.int64(3), [np.int64(3), 9]])
def test_a_run_under_any_condition_goes_on(pipe, tmp_path, ages):
    for _ in range(2):
        list(sample_shards(pipe, tmp_path / "out", 2, condition={"age": ages}, seed=3))


def test_a_write_that_fails_leaves_no_shard(pipe, tmp_path, monkeypatch):
    import difflm.pipelines.sharded_sampling as module

    def full(table, where):
        where.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        list(sample_shards(pipe, tmp_path / "out", 4, seed=0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sampling.json"]


def test_processes_share_the_shards(pipe, tmp_path):
    list(sample_shards(pipe, tmp_path / "one", 10, seed=3, shard_size=3))
    for process in (1, 0):
        done = []
        list(
            sample_shards(
                pipe,
                tmp_path / "two",
                10,
                seed=3,
                shard_size=3,
                process_index=process,
                num_processes=2,
                on_shard_done=lambda rows, total, done=done: done.append((rows, total)),
            )
        )
        assert done == [[(3, 6), (6, 6)], [(3, 4), (4, 4)]][process]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_process_that_comes_second_joins_in(pipe, tmp_path, monkeypatch):
    """The manifest appears between its look for it and its look at the folder."""
    import difflm.pipelines.sharded_sampling as module

    list(sample_shards(pipe, tmp_path / "out", 4, seed=0))
    is_file, looks = module.Path.is_file, []

    def late(path):
        looks.append(path)
        return len(looks) > 1 and is_file(path)

    monkeypatch.setattr(module.Path, "is_file", late)
    assert [path.name for path in sample_shards(pipe, tmp_path / "out", 4, seed=0)] == [shard_name(0, 1)]
    assert len(looks) > 1


class TestErrors:
    def test_another_run(self, pipe, tmp_path):
        list(sample_shards(pipe, tmp_path / "out", 4, seed=0))
        with pytest.raises(ShardFolderError, match="sampled with other seed, temperature"):
            next(sample_shards(pipe, tmp_path / "out", 4, seed=1, temperature=0.5))

    def test_somebody_elses_folder(self, pipe, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ShardFolderError, match="nothing in it is touched"):
            next(sample_shards(pipe, tmp_path, 4, seed=0))
        with pytest.raises(ShardFolderError, match="is a file"):
            next(sample_shards(pipe, tmp_path / "thesis.txt", 4, seed=0))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_samples": 0}, "num_samples must be an integer of at least 1"),
            ({"shard_size": 0}, "shard_size must be an integer of at least 1"),
            ({"process_index": 2, "num_processes": 2}, "between 0 and 1, not 2"),
            ({"unique": True}, "unique=True needs all rows"),
        ],
    )
    def test_bad_arguments(self, pipe, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            next(sample_shards(pipe, tmp_path / "out", **{"num_samples": 4, "seed": 0} | arguments))
