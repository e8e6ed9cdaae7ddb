"""Rules that the whole code base keeps."""

import ast
import builtins
import configparser
import glob
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from difflm import cli


ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "modeling_difflm": "difflm",
    "pipelines": "difflm.pipelines",
    "training": "difflm.training",
    "hub_cards": "difflm.hub_cards",
}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EVERYTHING = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
# The command, and the names that `difflm` resolves lazily, are what reaches up from the root, inside functions only.
COMMAND = {ROOT / "modeling_difflm" / name for name in ("__main__.py", "__init__.py")}
COMMAND |= set((ROOT / "modeling_difflm" / "cli").glob("*.py"))
# What pushes a pipeline renders its card, where difflm is installed.
COMMAND |= {ROOT / "pipelines" / "hub_saving.py"}
MAX_LINES = 500
# Published alone, it cannot leave anything to another file.
MAX_LINES_OF = {"modeling_difflm/modeling_difflm.py": 1225, "modeling_difflm/modeling_draft.py": 650}
RANK = {"modeling_difflm": 0, "pipelines": 1, "training": 2, "hub_cards": 3}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports. ``if TYPE_CHECKING:`` blocks do not count: they never run."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def nodes(path: Path, kind: type) -> list:
    """All nodes of one kind in a file."""
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kind)]


def folder_of(module: str) -> str | None:
    """Folder that an imported module of ours lives in, or None for somebody else's."""
    if module.split(".")[0] != "difflm":
        return None
    for folder in ("pipelines", "training", "hub_cards"):
        if module == FOLDERS[folder] or module.startswith(FOLDERS[folder] + "."):
            return folder
    return "modeling_difflm"


def published_files() -> set[Path]:
    """Files that are copied into a published repository."""
    pipeline = ROOT / "pipelines" / "pipeline_difflm.py"
    siblings = {
        ROOT / "pipelines" / f"{node.module}.py" for node in nodes(pipeline, ast.ImportFrom) if node.level == 1
    }
    models = {ROOT / "modeling_difflm" / f"modeling_{name}.py" for name in ("difflm", "denoiser", "draft")}
    return {pipeline, *siblings, *models}


def test_there_is_something_to_check():
    assert len(SOURCES) > 15


def test_every_folder_of_code_is_installed():
    """A sub-package that setup.cfg does not name works from a checkout and is missing after `pip install`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options"]["packages"].split()
    folders = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    found = {relative(path.parent) for path in SOURCES if path.name == "__init__.py"}
    assert set(folders.values()) == found
    assert set(packages) == set(folders)
    for package, folder in folders.items():
        top, *rest = folder.split("/")
        assert package == ".".join([FOLDERS[top], *rest])
    data = {
        Path(path)
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split()
        for path in glob.glob(str(ROOT / folders[package] / pattern), recursive=True)
    }
    others = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()} - set(SOURCES)
    assert {path for path in others if path.suffix != ".pyc"} <= data


def test_tests_lie_where_what_they_test_lies():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / folder).is_dir(), f"{relative(path)}: there is no folder {folder}"


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_folders_are_never_imported_by_their_own_name(path):
    wrong = {name for name in imports(path) if name.split(".")[0] in FOLDERS}
    assert not wrong, f"import difflm... instead of {wrong}: it would be a second copy of the code"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_go_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    used = {module: folder_of(module) for module in imports(path, top_level_only=path in COMMAND)}
    back = {module for module, target in used.items() if target is not None and RANK[target] > RANK[folder]}
    assert not back, f"{relative(path)} reaches up to {back}"


@pytest.mark.parametrize("name", [f"modeling_difflm/modeling_{name}.py" for name in ("difflm", "denoiser", "draft")])
def test_files_that_are_published_import_nothing_of_ours(name):
    ours = {module for module in imports(ROOT / name) if module.split(".")[0] == "difflm"}
    siblings = [node.module for node in nodes(ROOT / name, ast.ImportFrom) if node.level > 0]
    assert ours <= {"difflm.errors", "difflm.errors.DiffLMError"}  # tried, with a stand-in where difflm is missing
    assert not siblings


def test_siblings_of_the_published_pipeline_need_only_what_it_names():
    """diffusers copies the files that pipeline_difflm.py names; those that a sibling names in turn stay behind."""
    pipeline = ROOT / "pipelines/pipeline_difflm.py"
    siblings = {node.module for node in nodes(pipeline, ast.ImportFrom) if node.level == 1}
    assert siblings, "the pipeline imports its siblings by `from .record_schema import ...`"
    for sibling in siblings:
        path = ROOT / "pipelines" / f"{sibling}.py"
        relative_imports = {node.module for node in nodes(path, ast.ImportFrom) if node.level > 0}
        assert relative_imports <= siblings, f"pipeline_difflm.py must name {relative_imports - siblings}, too"
        tried = [node for block in nodes(path, ast.Try) for node in ast.walk(block)]
        guarded = {node.module for node in tried if isinstance(node, ast.ImportFrom)}
        ours = {module for module in imports(path) if module.split(".")[0] == "difflm"}
        ours = {module for module in ours if not any(module.startswith(str(name)) for name in guarded)}
        assert not ours, f"{sibling} imports {ours}: it could not run from a published repository"


def test_every_error_has_the_one_base():
    """What is raised on purpose can be caught by one name; DiffLMError itself stands in each file that runs alone."""
    classes = [node for path in SOURCES for node in nodes(path, ast.ClassDef)]
    bases = {node.name: {ast.unparse(base).split(".")[-1] for base in node.bases} for node in classes}

    def descends_from(name: str, wanted: Callable[[str], bool]) -> bool:
        return wanted(name) or any(descends_from(base, wanted) for base in bases.get(name, ()))

    def is_builtin(name: str) -> bool:
        found = getattr(builtins, name, None)
        return isinstance(found, type) and issubclass(found, BaseException)

    errors = {name for name in bases if not name.startswith("_") and descends_from(name, is_builtin)}
    assert {"SchemaError", "DecoderMismatchError", "EvaluationError", "AttackUnavailableError"} < errors
    assert [name for name in errors if not descends_from(name, "DiffLMError".__eq__)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_pickled(path):
    found = imports(path)
    # joblib's settings are no harm: ctgan encodes columns by it.
    assert not {name for name in found if name.split(".")[0] in {"pickle", "dill", "cloudpickle"}}
    assert not {"joblib.dump", "joblib.load"} & found
    calls = {ast.unparse(node.func) for node in nodes(path, ast.Call)}
    picklers = {"torch.save", "torch.load", "np.load", "joblib.dump", "joblib.load"}
    assert not picklers & calls, "weights are safetensors, all else JSON or text"


@pytest.mark.parametrize("path", [path for path in EVERYTHING if "tests" not in path.parts], ids=relative)
def test_one_place_chooses_the_device(path):
    if relative(path) in ("modeling_difflm/devices.py", "modeling_difflm/modeling_difflm.py"):
        return
    asked = {ast.unparse(node.func) for node in nodes(path, ast.Call)}
    asked &= {"torch.cuda.is_available", "torch.backends.mps.is_available"}
    assert not asked, "difflm.devices.choose_device knows where models run"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_short(path):
    length = len(path.read_text(encoding="utf-8").splitlines())
    limit = MAX_LINES_OF.get(relative(path), MAX_LINES)
    assert length <= limit, f"{relative(path)} has {length} lines: one role per file"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_assert_is_no_validation(path):
    lines = [node.lineno for node in nodes(path, ast.Assert)]
    assert not lines, f"assert vanishes under python -O: raise an error in {relative(path)}, lines {lines}"


def test_import_difflm_costs_nothing():
    code = (
        "import sys, difflm, difflm.pipelines, difflm.training, difflm.hub_cards\n"
        "sys.exit(' '.join({'torch', 'transformers', 'diffusers', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"import difflm imports {done.stderr}"


def test_public_names_resolve():
    import difflm
    import difflm.pipelines

    for module in (difflm, difflm.pipelines):
        for name in module.__all__:
            assert getattr(module, name) is not None
            assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        difflm.Nonsense  # noqa: B018


def test_public_errors_have_one_base():
    import difflm

    errors = [getattr(difflm, name) for name in difflm.__all__ if name.endswith("Error")]
    assert len(errors) > 3
    assert all(issubclass(error, difflm.DiffLMError) for error in errors)


def test_the_command_is_installed():
    commands = entry_points(group="console_scripts", name="difflm")
    assert [command.value for command in commands] == ["difflm.__main__:main"]
    assert [command.load() for command in commands] == [cli.main]


def test_constraints_cover_what_is_required():
    """Everything that `make test` asks pip for has an exact version, so that it means the same next year."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line and not line.startswith("#")}
    wanted = [line for line in requires("difflm") or [] if "extra ==" not in line or re.search("extra == .dev.", line)]
    names = {re.split(r"[\s<>=!;\[]", line)[0].lower().replace("-", "_") for line in wanted} - {"difflm"}
    assert names - {name.replace("-", "_") for name in pinned} == set()


def test_the_lowest_versions_are_those_that_are_tested():
    """`make lowest` runs on the very versions that setup.cfg claims: a bound that nobody runs is a guess."""
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-lowest.txt").read_text(), flags=re.MULTILINE))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [setup["options"]["install_requires"], *map(setup["options.extras_require"].get, ("evaluation", "gguf"))]
    for line in "\n".join(lists).splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (bound,) = requirement.specifier
            found = tested[requirement.name.lower().replace("_", "-")]
            assert bound.operator == ">=" and Version(bound.version) == Version(found), line


def test_the_project_is_typed_and_licensed():
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
