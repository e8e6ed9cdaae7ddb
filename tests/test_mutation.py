"""The changes that `make mutation` makes."""

import ast
from pathlib import Path

from tests import mutation


ROOT = Path(__file__).resolve().parent.parent


def changes(tmp_path: Path, source: str) -> set[str]:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    return {f"{one.before} -> {one.text}" for one in mutation.mutations(path, tmp_path)}


def test_borders_signs_numbers_and_conditions_are_changed(tmp_path):
    assert changes(tmp_path, "if a < b:\n    x = -y + 2\n") == {
        "a < b -> (not a < b)",
        "a < b -> (a <= b)",
        "-y + 2 -> (-y - 2)",
        "-y -> (y)",
        "2 -> (3)",
    }
    assert changes(tmp_path, "ü = f(max(1.0, z))\ng()\n") == {
        "max(1.0, z) -> (min(1.0, z))",
        "1.0 -> (2.0)",
        "g() -> pass",
    }


def test_what_no_test_could_notice_is_left(tmp_path):
    source = 'from a import b\nx: int\nif TYPE_CHECKING:\n    y = 1\nraise ValueError(f"{1 + 1}")\n'
    assert changes(tmp_path, source) == set()


def test_every_change_of_a_published_file_is_python_and_has_tests():
    files = mutation.published_files(ROOT)
    assert len(files) > 15
    for path in files:
        source = path.read_bytes()
        for one in mutation.mutations(path, ROOT)[::40]:
            ast.parse(source[: one.start] + one.text.encode() + source[one.end :])
        assert mutation.tests_of(path.relative_to(ROOT).as_posix(), ROOT)
