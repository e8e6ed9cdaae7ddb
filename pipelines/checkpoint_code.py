"""The code that is saved with a pipeline, so that it loads where difflm is not installed."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from .checkpoint_safety import COMPONENTS, INDEX, MODELS, OPTIONAL, read_json, write_json


MODEL_MODULES = {component: module for component, (module, _) in MODELS.items()}
AUTO_MAP = {"AutoConfig": "modeling_difflm.DiffLMConfig", "AutoModel": "modeling_difflm.DiffLMModel"}


def code_of(pipeline: Any) -> dict[str, str]:
    """The files that a pipeline's classes were defined by: path in a checkpoint to content, as far as readable."""
    classes = {name: pipeline.component_class(name) for name in MODELS if pipeline.has_component(name)}
    return _read(_source_file(type(pipeline)), {name: _source_file(cls) for name, cls in classes.items()})


def installed_code() -> dict[str, str]:
    """The same of the difflm that is installed.

    Raises
    ------
    ImportError
        If none is: this file then runs from a published repository.
    """
    try:
        from difflm import modeling_denoiser, modeling_difflm, modeling_draft
    except ImportError as error:
        raise ImportError("Pushing a folder needs the difflm package: `pip install difflm`.") from error
    modules = {"autoencoder": modeling_difflm, "denoiser": modeling_denoiser, "draft": modeling_draft}
    models = {name: Path(str(module.__file__)) for name, module in modules.items()}
    return _read(Path(__file__).with_name("pipeline_difflm.py"), models)


def _read(pipeline_file: Path, model_files: Mapping[str, Path]) -> dict[str, str]:
    siblings = {f"{name}.py": pipeline_file.with_name(f"{name}.py") for name in _sibling_names(pipeline_file)}
    files = {"pipeline_difflm.py": pipeline_file, **siblings}
    files |= {f"{component}/{MODEL_MODULES[component]}.py": path for component, path in model_files.items()}
    sources = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    return {name: _unfollowed(text) if name in siblings else text for name, text in sources.items()}


def _unfollowed(source: str) -> str:
    """The code of a sibling, its imports of siblings written in a way that diffusers does not follow.

    From the Hub diffusers fetches what a file names by ``from .x import``, then what that names, and so on: a few
    requests for every path from file to file, and for ever where two name each other. ``pipeline_difflm.py`` names
    them all.
    """
    return re.sub(r"^(\s*from \.)(?=\w)", r"\1 ", source, flags=re.MULTILINE)


def _source_file(cls: type) -> Path:
    return Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or "/nonexistent")


def _sibling_names(path: Path) -> list[str]:
    """Modules beside ``path`` that it imports (``from .records import ...``)."""
    if not path.is_file():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
    return sorted(found)


def write_code(folder: Path, sources: Mapping[str, str]) -> None:
    """Put the code into a saved pipeline and make the index and the autoencoder's config name it.

    Raises
    ------
    OSError
        If a model's or the pipeline's code is not among ``sources``.
    """
    index = read_json(folder / INDEX)
    absent = {name for name in OPTIONAL if index.get(name, [None])[0] is None}
    models = {name: f"{name}/{module}.py" for name, module in MODEL_MODULES.items() if name not in absent}
    sources = {name: text for name, text in sources.items() if "/" not in name or name in models.values()}
    needed = ["pipeline_difflm.py", *models.values()]
    if missing := [name for name in needed if name not in sources]:
        raise OSError(f"The source code {', '.join(missing)} is not readable: nothing saved.")
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    root_copy = MODEL_MODULES["autoencoder"] + ".py"
    (folder / root_copy).write_text(sources[f"autoencoder/{root_copy}"], encoding="utf-8")
    index["_class_name"] = ["pipeline_difflm", "DiffLMPipeline"]
    for name in absent:
        index.pop(name, None)
    if "draft" in absent:  # earlier versions know neither
        index.pop("writer", None)
    for name, entry in index.items():
        if name in MODELS:
            index[name] = [MODEL_MODULES[name], entry[1]]
        elif isinstance(entry, list) and name in COMPONENTS and hasattr(diffusers, str(entry[1])):
            # Some schedulers (KarrasVeScheduler) are saved with a library name that cannot be loaded.
            index[name] = ["diffusers", entry[1]]
    # Where it was loaded from is nobody's business, least of all a local path.
    index.pop("_name_or_path", None)
    write_json(folder / INDEX, index)
    configs = [f"{name}/config.json" for name in models if name != "autoencoder"]
    for name in (*configs, "scheduler/scheduler_config.json"):
        settings = read_json(folder / name)
        settings.pop("_name_or_path", None)
        write_json(folder / name, settings)
    config = read_json(folder / "autoencoder" / "config.json")
    config["auto_map"] = AUTO_MAP
    if isinstance(config.get("encoder_config"), dict):  # none where the draft encodes all columns
        config["encoder_config"].pop("_name_or_path", None)
    write_json(folder / "autoencoder" / "config.json", config)
