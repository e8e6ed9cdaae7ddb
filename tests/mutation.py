"""``make mutation``: does a test fail when one line of a published file is wrong?

A sample of one-place changes (a comparison's border, a sign, a number, a condition, a bound, a call left out) is made
in the files that are copied beside a model's weights, one at a time and in a copy; the tests of the changed file run,
those marked ``slow`` left out. A change that they do not notice survives: either a test is missing, or the line is.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


MODELS = ("modeling_difflm.py", "modeling_denoiser.py")
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
CALLS |= {"clamp": "nan_to_num", "round": "float"}
# Seconds for tests without a change. With one, three times what they took then: one that makes them hang is noticed.
PATIENCE = 600.0


@dataclass(frozen=True)
class Mutation:
    """One change of one place: bytes ``start`` to ``end`` of ``file`` become ``text``."""

    file: str
    line: int
    start: int
    end: int
    before: str
    text: str


def published_files(root: Path) -> list[Path]:
    """Files that are copied into a published repository: the models, the pipeline and the siblings that it names."""
    pipeline = root / "pipelines" / "pipeline_difflm.py"
    siblings = [
        root / "pipelines" / f"{node.module}.py"
        for node in ast.walk(ast.parse(pipeline.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1
    ]
    return sorted({pipeline, *siblings, *(root / "modeling_difflm" / name for name in MODELS)})


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """What the node could be instead."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        if not any(
            isinstance(side, ast.Constant | ast.JoinedStr) and not _number(side) for side in (node.left, node.right)
        ):
            yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and _number(node):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLS and isinstance(node.func, ast.Attribute):
            yield ast.Call(ast.Attribute(node.func.value, CALLS[name]), node.args, node.keywords)
        elif name in CALLS:
            yield ast.Call(ast.Name(CALLS[name]), node.args, node.keywords)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield ast.UnaryOp(ast.Not(), node.test)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def _places(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes whose change a test could notice: not types, texts of errors, or what is never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arg):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield child.value
                yield from _places(child.value)
            continue
        yield child
        yield from _places(child)


def mutations(path: Path, root: Path) -> list[Mutation]:
    """All changes of a file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in _places(ast.parse(source)):
        for changed in _changed(node):
            place = node.test if isinstance(node, ast.If | ast.IfExp | ast.While) else node
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(changed))
            text = text if isinstance(changed, ast.Pass) else f"({text})"
            before = source[start:end].decode("utf-8")
            found.append(Mutation(path.relative_to(root).as_posix(), place.lineno, start, end, before, text))
    return found


def tests_of(file: str, root: Path) -> list[str]:
    """The test files of a source file: that of its name and those that import it, or all of its folder."""
    folder, stem = root / "tests" / Path(file).parent, Path(file).stem
    tests = sorted(folder.glob("test_*.py"))
    named = [path for path in tests if path.name == f"test_{stem}.py"]
    imported = [
        path for path in tests if re.search(rf"(difflm|pipelines)\.{stem}\b", path.read_text(encoding="utf-8"))
    ]
    return [str(path) for path in dict.fromkeys([*named, *imported])] or [str(path) for path in tests]


def importable(root: Path, target: Path) -> None:
    """Lay the four folders out as the package that setup.cfg makes of them."""
    shutil.copytree(root / "modeling_difflm", target / "difflm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pipelines", "training", "hub_cards"):
        shutil.copytree(root / name, target / "difflm" / name, ignore=shutil.ignore_patterns("__pycache__"))


def run_tests(tests: list[str], patience: float = PATIENCE) -> str:
    """Run tests in a process of its own: "failed", "survived", or "hung"."""
    process = os.fork()  # torch is imported once, difflm anew in every child
    if process == 0:
        os.setsid()
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        import pytest

        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        os._exit(min(int(pytest.main([*options, *tests])), 100))
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "hung"


def outcome_of(mutation: Mutation, tests: list[str], package: Path, patience: float) -> str:
    """Run tests on the changed file, and put it back."""
    place = package / "difflm" / re.sub(r"^modeling_difflm/", "", mutation.file)
    original = place.read_bytes()
    place.write_bytes(original[: mutation.start] + mutation.text.encode() + original[mutation.end :])
    try:
        return run_tests(tests, patience)
    finally:
        place.write_bytes(original)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutation.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to change")
    parser.add_argument("--samples", type=int, default=60, help="changes to try (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--only", default="", help="only files whose path holds this (default: all published ones)")
    parser.add_argument("--output", type=Path, help="JSON to write (default: none)")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    every = [one for path in published_files(root) for one in mutations(path, root) if arguments.only in one.file]
    chosen = random.Random(arguments.seed).sample(every, min(arguments.samples, len(every)))
    outcomes: dict[str, list[Mutation]] = {"failed": [], "hung": [], "survived": []}
    took: dict[str, float | None] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        importable(root, Path(folder))
        # Before the checkout's own: the copy is what is imported.
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(root))
        os.chdir(root)
        import torch

        torch.set_num_threads(1)
        with contextlib.suppress(ImportError):
            import diffusers.configuration_utils  # noqa: F401
            import hypothesis  # noqa: F401
            import pandas  # noqa: F401
            import transformers.modeling_utils  # noqa: F401
        for place, mutation in enumerate(chosen, start=1):
            if time.monotonic() - started > 60 * arguments.minutes:
                break
            tests = tests_of(mutation.file, root)
            if str(tests) not in took:
                began = time.monotonic()
                outcome = run_tests(tests)
                took[str(tests)] = time.monotonic() - began if outcome == "survived" else None
            unchanged = took[str(tests)]
            if unchanged is None:
                print(f"[{place}/{len(chosen)}] its tests fail without a change: {mutation.file}", flush=True)
                continue
            outcome = outcome_of(mutation, tests, Path(folder), 3 * unchanged + 30)
            outcomes[outcome].append(mutation)
            change = f"{mutation.before} -> {mutation.text}"
            print(f"[{place}/{len(chosen)}] {outcome}: {mutation.file}:{mutation.line}: {change}", flush=True)
    tried = sum(map(len, outcomes.values()))
    noticed_ones = tried - len(outcomes["survived"])
    print(f"{noticed_ones} of {tried} changes were noticed: {100 * noticed_ones / max(tried, 1):.0f} %", flush=True)
    if arguments.output:
        entry = {name: [asdict(one) for one in found] for name, found in outcomes.items()}
        arguments.output.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
