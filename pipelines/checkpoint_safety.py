"""What a saved pipeline may name and hold, checked before anything of it is imported or loaded.

A checkpoint is data of somebody else's: it must neither choose the code that runs nor reach out of its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from .errors import DamagedPipelineError


INDEX = "model_index.json"
# 1: digests of the training records are a buffer of the denoiser. 2: they are a file of their own. 3: with a draft,
# without which the records would be other ones; a pipeline without one is still written as 2.
LAYOUT_VERSION = 3
LAYOUT_WITHOUT_DRAFT = 2
# Private keys of model_index.json: diffusers ignores names that begin with an underscore.
LAYOUT_KEY = "_difflm_layout"
DIGESTS_KEY = "_sha256"
# What may stand in an index: our models by module and class, others' by library and a class that is checked.
MODELS = {
    "autoencoder": ("modeling_difflm", "DiffLMModel"),
    "denoiser": ("modeling_denoiser", "DiffLMDenoiser"),
    "draft": ("modeling_draft", "ColumnDraft"),
}
SCHEDULERS = ("KarrasVeScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
TOKENIZERS = ("encoder_tokenizer", "decoder_tokenizer")
# Where the draft encodes all columns there is no text encoder.
OPTIONAL = ("draft", "encoder_tokenizer")
COMPONENTS = (*MODELS, "scheduler", *TOKENIZERS)
SETTINGS = ("record_schema", "condition_classes", "max_new_tokens", "writer")
# transformers and diffusers follow these to other weights or files, or to code on the Hub.
CONFIGURATIONS = ("config.json", ".index.json")
DIVERTING = ("adapter_config.json",)
DIVERTING_SETTINGS = ("transformers_weights", "quantization_config", "fast_tokenizer_files")
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")


class UnsafePipelineError(DamagedPipelineError):
    """A saved pipeline names code, or files outside its folder; nothing of it was loaded."""


def verify(folder: Path, components: Collection[str] | None = None) -> dict[str, Any]:
    """Check a saved pipeline before anything of it is loaded; return its index.

    Parameters
    ----------
    folder : Path
    components : collection of str, optional
        Those whose weights are to be loaded; default: all.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    UnsafePipelineError
        If it names a class that is none of a pipeline's, or a file outside its folder.
    DamagedPipelineError
        If the layout is newer than this code, or a weight file is missing, cut off or altered.
    """
    index = read_index(folder)
    check_digests(folder, weight_digests(index, components))
    return index


def weight_digests(index: Mapping[str, Any], components: Collection[str] | None = None) -> dict[str, str]:
    """Weight files and their SHA-256 as the index has them, of all or of some components."""
    return {
        name: digest
        for name, digest in index.get(DIGESTS_KEY, {}).items()
        if components is None or name.partition("/")[0] in components
    }


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise DamagedPipelineError unless a saved pipeline's files are those of these digests."""
    for name, digest in digests.items():
        path = file_inside(folder, name)
        if not path.is_file():
            raise DamagedPipelineError(f"{path} is missing: copy or download the pipeline anew.")
        if _sha256(path) != digest:
            raise DamagedPipelineError(
                f"{path} is not the file that was saved (its SHA-256 differs: cut off or altered): copy or download "
                "the pipeline anew (force_download=True)."
            )


def read_index(folder: Path) -> dict[str, Any]:
    """The index, if it and the files beside it name nothing but a pipeline's own; reads JSON files alone.

    Raises
    ------
    FileNotFoundError, UnsafePipelineError, DamagedPipelineError
        See [`verify`].
    """
    _check_links(folder)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} holds no {INDEX}: it is not a saved pipeline.")
    index = read_json(folder / INDEX)
    layout = index.get(LAYOUT_KEY, 1)
    if not isinstance(layout, int) or layout > LAYOUT_VERSION:
        raise DamagedPipelineError(
            f"{folder} has layout version {layout}; this difflm reads up to {LAYOUT_VERSION}: upgrade with "
            "`pip install -U difflm`."
        )
    for name, entry in index.items():
        _check_entry(folder / INDEX, name, entry)
    if not isinstance(index.get(DIGESTS_KEY, {}), dict):
        raise DamagedPipelineError(f"{folder / INDEX}: {DIGESTS_KEY} is no table of digests: copy the pipeline anew.")
    for name in COMPONENTS:
        for path in sorted((folder / name).glob("*.json")):
            if path.name in DIVERTING:
                raise UnsafePipelineError(f"{path} is no file of a saved pipeline: it names other weights. Remove it.")
            if path.name.endswith(CONFIGURATIONS):
                _check_settings(path, read_json(path))
    return index


def source_folder(autoencoder: Any) -> Path | None:
    """The saved pipeline that a loaded autoencoder is a part of, if it was loaded from one."""
    folder = Path(str(getattr(autoencoder, "name_or_path", ""))).parent
    return folder if (folder / INDEX).is_file() else None


def _check_entry(path: Path, name: str, entry: Any) -> None:
    if name.startswith("_"):
        return
    if name in SETTINGS:
        # diffusers takes a list for a component, whatever its name.
        if isinstance(entry, list):
            raise UnsafePipelineError(f"{path}: {name} is a list: it is none that difflm wrote.")
        return
    if name not in COMPONENTS:
        raise UnsafePipelineError(
            f"{path} names {name!r}, which is no part of a DiffLMPipeline; the parts are {', '.join(COMPONENTS)}."
        )
    library, class_name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    if name in MODELS:
        allowed = (library, class_name) == MODELS[name]
    elif name == "scheduler":
        allowed = library == "diffusers" and class_name in SCHEDULERS
    else:
        allowed = library == "transformers" and isinstance(class_name, str) and class_name.isidentifier()
    if not allowed:
        wanted = dict.fromkeys(TOKENIZERS, "a tokenizer of transformers")
        wanted |= {"scheduler": f"{', '.join(SCHEDULERS)} of diffusers"}
        wanted |= {component: f"{model} of {module}" for component, (module, model) in MODELS.items()}
        raise UnsafePipelineError(
            f"{path} asks for {entry!r} as {name}, which may only be {wanted[name]}: nothing was "
            "imported. Save the pipeline anew with difflm, or do not use this one."
        )


def library_class(component: str, class_name: str) -> Any:
    """The scheduler's or a tokenizer's class, as the index names it.

    Raises
    ------
    UnsafePipelineError
        If the installed library has no such class, or it is another kind of thing.
    """
    library: Any = diffusers if component == "scheduler" else transformers
    base: type = SchedulerMixin if component == "scheduler" else PreTrainedTokenizerBase
    found = getattr(library, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UnsafePipelineError(
            f"{class_name!r}, the pipeline's {component}, is no {base.__name__} of the installed {library.__name__} "
            f"{library.__version__}."
        )
    return found


# -------------------------------------------------------------------- files


def file_inside(folder: Path, name: Any) -> Path:
    """The file in ``folder`` that a checkpoint names.

    Raises
    ------
    UnsafePipelineError
        If the name leads out of the folder.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise UnsafePipelineError(f"{folder} names the file {name!r}, which does not lie in it: nothing was loaded.")
    return folder / name


def _is_plain(name: str) -> bool:
    """Whether a relative path stays below where it starts, on any system."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and ":" not in name and "\0" not in name and not {"", "..", "."} & set(parts)


def _check_links(folder: Path) -> None:
    """Refuse links out of the folder. The Hub's cache is made of links, to ``blobs`` beside ``snapshots``."""
    root = folder.resolve()
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    for path in _links(folder):
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise UnsafePipelineError(f"{path} links to {target}, out of the pipeline's folder: copy the file there.")


def _links(folder: Path) -> Iterator[Path]:
    for name in (INDEX, *COMPONENTS):
        if (folder / name).is_symlink():
            yield folder / name
        for parent, folders, files in os.walk(folder / name):
            yield from (path for path in (Path(parent, item) for item in (*folders, *files)) if path.is_symlink())


def _check_settings(path: Path, value: Any) -> None:
    """Refuse settings by which transformers would load code, or files of another place."""
    if isinstance(value, list):
        for item in value:
            _check_settings(path, item)
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        texts = [text for text in (item.values() if isinstance(item, Mapping) else [item]) if isinstance(text, str)]
        if key in DIVERTING_SETTINGS and item is not None:
            problem = "difflm never writes it"
        elif any(name in key for name in IMPLEMENTATIONS) and any("/" in text for text in texts):
            problem = "it would be code from the Hub"
        elif key.endswith("_file") and any(not _is_plain(text) for text in texts):
            problem = "it does not lie in the pipeline's folder"
        elif key == "weight_map" and any(not _is_plain(text) or "/" in text for text in texts):
            problem = "weights lie beside their table"
        else:
            # The vocabulary of a tokenizer is long, and its words are anyone's.
            if key not in ("model", "added_tokens"):
                _check_settings(path, item)
            continue
        raise UnsafePipelineError(f"{path} sets {key} to {str(item)[:100]!r}: {problem}. Nothing was loaded.")


# -------------------------------------------------------------------- writing


def seal(folder: Path) -> None:
    """Record the layout's version and every weight file's SHA-256 in the index."""
    index = read_json(folder / INDEX)
    index[LAYOUT_KEY] = LAYOUT_VERSION if "draft" in index else LAYOUT_WITHOUT_DRAFT
    index[DIGESTS_KEY] = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for component in COMPONENTS
        for path in sorted((folder / component).glob("*.safetensors"))
    }
    write_json(folder / INDEX, index)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; DamagedPipelineError names the file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedPipelineError(f"{path} is no readable JSON file ({error}): copy the pipeline anew.") from error
    if not isinstance(content, dict):
        raise DamagedPipelineError(f"{path} holds no JSON object: copy the pipeline anew.")
    return content


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
