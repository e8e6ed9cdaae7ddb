"""Saving a pipeline so that the folder, and a Hub repository made of it, loads with or without difflm installed.

The layout is diffusers' own, plus the code that reads it: the pipeline's files at the root, each model's file beside
its weights (that is where diffusers looks), and the autoencoder's also at the root (where transformers looks).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError, validate_repo_id


INDEX = "model_index.json"
LAYOUT_VERSION = 1
# Private keys of model_index.json: diffusers ignores names that begin with an underscore.
LAYOUT_KEY = "_difflm_layout"
DIGESTS_KEY = "_sha256"
MODEL_MODULES = {"autoencoder": "modeling_difflm", "denoiser": "modeling_denoiser"}
AUTO_MAP = {"AutoConfig": "modeling_difflm.DiffLMConfig", "AutoModel": "modeling_difflm.DiffLMModel"}
# What of a fitted folder is published; not the training records' latents, nor checkpoints.
PUBLISHED = ("*.json", "*.py", "*.md", "*.txt", "*.png", "*.svg")
NOT_PUBLISHED = ("difflm_fit.json", "latents.safetensors")
# Besides the index these files are written, and on a push replaced, as one.
COMPONENTS = ("autoencoder", "denoiser", "scheduler", "encoder_tokenizer", "decoder_tokenizer")


class DamagedPipelineError(ValueError):
    """A saved pipeline is incomplete, altered, or of a newer layout; the message names the file and the remedy."""


class HubSavingMixin:
    """``save_pretrained`` and ``push_to_hub`` of [`DiffLMPipeline`]."""

    def remember_sources(self) -> None:
        """Keep the code that this pipeline runs: the modules' cache may hold another version when it is saved."""
        pipeline_file = _source_file(type(self))
        names = [pipeline_file.stem, *_sibling_names(pipeline_file)]
        sources = {f"{name}.py": pipeline_file.with_name(f"{name}.py") for name in names}
        for component, module in MODEL_MODULES.items():
            sources[f"{component}/{module}.py"] = _source_file(type(getattr(self, component)))
        # Not a module or a config entry: diffusers' __setattr__ leaves other attributes alone.
        self._sources = {name: path.read_text(encoding="utf-8") for name, path in sources.items() if path.is_file()}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save to a folder that loads anywhere; whole or not at all.

        Parameters
        ----------
        save_directory : path
            Created if missing. A pipeline in it is replaced; other files stay.
        max_shard_size : int or str, optional
            Of one weight file, as in diffusers.
        push_to_hub : bool, default False
            Also push, see [`push_to_hub`]; ``repo_id`` defaults to the folder's name.
        **kwargs
            Of [`push_to_hub`].
        """
        if not kwargs.pop("safe_serialization", True) or kwargs.pop("variant", None) is not None:
            raise ValueError("A DiffLMPipeline is saved as safetensors, without variants: leave both arguments out.")
        if kwargs and not push_to_hub:
            raise TypeError(f"Unknown arguments of save_pretrained: {', '.join(sorted(kwargs))}.")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
        try:
            super().save_pretrained(partial, max_shard_size=max_shard_size)  # type: ignore[misc]
            self._write_code(partial)
            seal(partial)
            follow_umask(partial.rglob("*.safetensors"))
            replace_pipeline(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", target.resolve().name), **kwargs)

    def _write_code(self, folder: Path) -> None:
        missing = [name for name in MODEL_MODULES if f"{name}/{MODEL_MODULES[name]}.py" not in self._sources]
        if missing or "pipeline_difflm.py" not in self._sources:
            raise OSError(f"The source code of {', '.join(missing) or 'the pipeline'} is not readable: nothing saved.")
        write_code(folder, self._sources)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Publish the pipeline with a model card, in one commit.

        Parameters
        ----------
        repo_id : str
            ``user/name``; created if missing.
        private : bool, optional
            Of a repository that is created; default: the account's.
        token : str or bool, optional
            Default: the one of `hf auth login`.
        revision : str, optional
            A branch, created if missing. Default: ``main``.
        commit_message : str, optional
        create_pr : bool, default False

        Returns
        -------
        huggingface_hub.CommitInfo
        """
        check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            fitted = Path(str(self.config.get("_name_or_path") or ""))  # type: ignore[attr-defined]
            for name in ("training_log.json", "evaluation.json", "README.md"):
                if (fitted / INDEX).is_file() and (fitted / name).is_file():
                    shutil.copy2(fitted / name, folder)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )


# -------------------------------------------------------------------- code


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
    """Put the code into a saved pipeline and make the index and the autoencoder's config name it."""
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    root_copy = MODEL_MODULES["autoencoder"] + ".py"
    (folder / root_copy).write_text(sources[f"autoencoder/{root_copy}"], encoding="utf-8")
    index = _read_json(folder / INDEX)
    index["_class_name"] = ["pipeline_difflm", "DiffLMPipeline"]
    for name, entry in index.items():
        if name in MODEL_MODULES:
            index[name] = [MODEL_MODULES[name], entry[1]]
        elif isinstance(entry, list) and name in COMPONENTS and hasattr(diffusers, str(entry[1])):
            # Some schedulers (KarrasVeScheduler) are saved with a library name that cannot be loaded.
            index[name] = ["diffusers", entry[1]]
    # Where it was loaded from is nobody's business, least of all a local path.
    index.pop("_name_or_path", None)
    _write_json(folder / INDEX, index)
    config = _read_json(folder / "autoencoder" / "config.json")
    encoder_config = dict(config.get("encoder_config") or {})
    encoder_config.pop("_name_or_path", None)
    config |= {"encoder_config": encoder_config, "auto_map": AUTO_MAP}
    _write_json(folder / "autoencoder" / "config.json", config)


# -------------------------------------------------------------------- digests


def seal(folder: Path) -> None:
    """Record the layout's version and every weight file's SHA-256 in the index."""
    index = _read_json(folder / INDEX)
    index[LAYOUT_KEY] = LAYOUT_VERSION
    index[DIGESTS_KEY] = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for component in COMPONENTS
        for path in sorted((folder / component).glob("*.safetensors"))
    }
    _write_json(folder / INDEX, index)


def verify(folder: Path) -> dict[str, Any]:
    """Check a saved pipeline before anything of it is loaded; return its index.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    DamagedPipelineError
        If the layout is newer than this code, or a weight file is missing, cut off or altered.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} holds no {INDEX}: it is not a saved pipeline.")
    index = _read_json(folder / INDEX)
    layout = index.get(LAYOUT_KEY, LAYOUT_VERSION)
    if not isinstance(layout, int) or layout > LAYOUT_VERSION:
        raise DamagedPipelineError(
            f"{folder} has layout version {layout}; this difflm reads up to {LAYOUT_VERSION}: upgrade with "
            "`pip install -U difflm`."
        )
    for name, digest in index.get(DIGESTS_KEY, {}).items():
        path = folder / name
        if not path.is_file():
            raise DamagedPipelineError(f"{path} is missing: copy or download the pipeline anew.")
        if _sha256(path) != digest:
            raise DamagedPipelineError(
                f"{path} is not the file that was saved (its SHA-256 differs: cut off or altered): copy or download "
                "the pipeline anew (force_download=True)."
            )
    return index


def verify_source(autoencoder: Any) -> None:
    """[`verify`] the pipeline that a loaded autoencoder is a part of, if it was loaded from one."""
    folder = Path(str(getattr(autoencoder, "name_or_path", ""))).parent
    if (folder / INDEX).is_file():
        verify(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -------------------------------------------------------------------- folders and the Hub


def follow_umask(paths: Iterable[Path]) -> None:
    """Give files the mode of any new file: safetensors makes its own readable for their owner alone."""
    for path in paths:
        probe = path.with_name(f".{path.name}.mode")
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
        probe.unlink()


def replace_pipeline(source: Path, target: Path) -> None:
    """Move a whole saved pipeline into ``target``; the index comes last: a folder without it is unfinished."""
    (target / INDEX).unlink(missing_ok=True)
    for item in sorted(source.iterdir(), key=lambda path: path.name == INDEX):
        destination = target / item.name
        if destination.is_dir():
            shutil.rmtree(destination)
        os.replace(item, destination)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless ``repo_id`` is a Hub id whose code diffusers can run."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository id (`user/name`): {error}") from error


def download_folder(repo_id: str, **options: Any) -> Path:
    """Download a published pipeline's data, and none of its code; return the snapshot's folder.

    Raises
    ------
    ValueError
        If ``repo_id`` is neither a folder nor a repository id.
    FileNotFoundError
        If the repository holds no pipeline, or is not in the cache and the Hub must not or cannot be asked.
    OSError
        huggingface_hub's own errors: no such repository or revision, no access.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is neither a folder with a saved pipeline nor a repository id (`user/name`)."
        ) from error
    try:
        # The same files whichever way it was loaded before: an offline load checks the cache for just these.
        wanted = [INDEX, *(f"{name}/*" for name in COMPONENTS)]
        folder = Path(snapshot_download(repo_id, allow_patterns=wanted, ignore_patterns=["*.py"], **options))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id!r} is not in the local cache and the Hub was not asked or not reached: go online, leave "
            f"local_files_only out, or check the name. ({error})"
        ) from error
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"The repository {repo_id!r} holds no {INDEX}: it is not a saved pipeline.")
    return folder


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Publish a saved pipeline's folder in one commit: readers see the old files or the new ones.

    The latents of training records and checkpoints stay here. A ``README.md`` in the folder is the card; without one
    a card is rendered. Parameters as in [`HubSavingMixin.push_to_hub`].
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    index = verify(folder)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as staging_name:
        staging = Path(staging_name)
        components = [name for name in COMPONENTS if isinstance(index.get(name), list)]
        for name in components:
            shutil.copytree(folder / name, staging / name, ignore=shutil.ignore_patterns("__pycache__"))
        for pattern in PUBLISHED:
            for path in folder.glob(pattern):
                if path.name not in NOT_PUBLISHED:
                    shutil.copy2(path, staging)
        if (folder / "figures").is_dir():
            shutil.copytree(folder / "figures", staging / "figures")
        if not (staging / "README.md").is_file():
            (staging / "README.md").write_text(_card(staging, repo_id), encoding="utf-8")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=staging,
            revision=revision,
            commit_message=commit_message or "Upload DiffLM pipeline",
            create_pr=create_pr,
            # Files of an earlier push that this one no longer has go in the same commit.
            delete_patterns=["*.py", *(f"{name}/*" for name in components)],
        )


def _card(folder: Path, repo_id: str) -> str:
    """The model card; where difflm is not installed, its metadata and how to use it."""
    try:
        # By string: this file is published beside the weights, where difflm may be missing.
        cards = importlib.import_module("difflm.hub_cards.cards")
    except ImportError:
        return (
            "---\nlibrary_name: difflm\ntags:\n- difflm\n- synthetic-data\n- tabular\n---\n\n# DiffLM pipeline\n\n"
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)\n'
            "records = pipe(100, seed=0).records\n```\n"
        )
    return str(cards.model_card(folder, repo_id=repo_id))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedPipelineError(f"{path} is no readable JSON file ({error}): copy the pipeline anew.") from error
    if not isinstance(content, dict):
        raise DamagedPipelineError(f"{path} holds no JSON object: copy the pipeline anew.")
    return content


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
