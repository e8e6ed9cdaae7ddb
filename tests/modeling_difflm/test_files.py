"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from difflm.files import atomic_file, atomic_folder, drop_leftovers, read_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "rows.csv"
    target.write_text("old")

    def write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half a")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert names(tmp_path) == ["rows.csv"]
    assert target.read_text() == "old"


def test_the_temporary_file_keeps_the_ending_and_nobody_sees_it_as_the_target(tmp_path):
    target = tmp_path / "rows.csv"
    with atomic_file(target) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["rows.csv"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_file_has_the_mode_of_any_new_file_whatever_its_writer_does(tmp_path):
    with atomic_file(tmp_path / "a.safetensors") as temporary:
        temporary.chmod(0o600)
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "plain")}
    assert len(modes) == 1


def test_a_failing_writer_leaves_the_old_folder(tmp_path):
    target = tmp_path / "checkpoint"
    with atomic_folder(target) as temporary:
        write_json(temporary / "state.json", {"step": 1})

    def write() -> None:
        with atomic_folder(target) as temporary:
            assert names(temporary) == []
            write_json(temporary / "state.json", {"step": 2})
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write()
    assert read_json(target / "state.json") == {"step": 1}
    (tmp_path / ".checkpoint.partial").mkdir()  # left by a kill
    with atomic_folder(target) as temporary:
        write_json(temporary / "state.json", {"step": 3})
    assert read_json(target / "state.json") == {"step": 3}
    assert names(tmp_path) == ["checkpoint"]


def test_leftovers_of_a_kill_go_and_those_of_other_files_stay(tmp_path):
    for name in (".part-1.99.partial.parquet", ".part-2.99.partial.parquet", "part-1.parquet"):
        (tmp_path / name).touch()
    drop_leftovers(tmp_path / "part-1.parquet")
    assert names(tmp_path) == [".part-2.99.partial.parquet", "part-1.parquet"]


def test_json_keeps_letters_and_a_damaged_file_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"stadt": "Köln"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "stadt": "Köln"\n}\n'
    write_text(tmp_path / "b.json", "[1]")
    with pytest.raises(ValueError, match="b.json: expected a JSON object"):
        read_json(tmp_path / "b.json")
    write_text(tmp_path / "c.json", '{"a": ')
    with pytest.raises(ValueError, match="c.json: not a readable JSON file"):
        read_json(tmp_path / "c.json")
