"""Saving a pipeline so that the folder, and a Hub repository made of it, loads with or without difflm installed.

The layout is diffusers' own, plus the code that reads it: the pipeline's files at the root, each model's file beside
its weights (that is where diffusers looks), and the autoencoder's also at the root (where transformers looks).
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError, validate_repo_id

from .checkpoint_code import code_of, installed_code, write_code
from .checkpoint_safety import (
    COMPONENTS,
    DIGESTS_KEY,
    INDEX,
    SETTINGS,
    read_index,
    read_json,
    seal,
    verify,
    write_json,
)
from .errors import ArgumentError
from .training_digests import DIGESTS_FILE, TrainingDigestsMixin, read_digests, strip_digests, write_digests


# What of a folder is published: these names and no others. Not the latents of the training records, nor checkpoints.
PUBLISHED = ("README.md", "training_log.json", "evaluation.json", "figures/autoencoder.svg", "figures/denoiser.svg")
CONFIGS = ("config.json", "scheduler_config.json")
WEIGHT_TABLES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


class HubSavingMixin(TrainingDigestsMixin):
    """``save_pretrained`` and ``push_to_hub`` of [`DiffLMPipeline`]."""

    def remember_sources(self) -> None:
        """Keep the code that this pipeline runs: the modules' cache may hold another version when it is saved."""
        # Not a module or a config entry: diffusers' __setattr__ leaves other attributes alone.
        self._sources = code_of(self)

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
            raise ArgumentError("A DiffLMPipeline is saved as safetensors, without variants: leave both out.")
        if kwargs and not push_to_hub:
            raise TypeError(f"Unknown arguments of save_pretrained: {', '.join(sorted(kwargs))}.")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
        try:
            super().save_pretrained(partial, max_shard_size=max_shard_size)  # type: ignore[misc]
            for component in self.deferred().values():  # type: ignore[attr-defined]
                component.check()
                copy_component(component.folder, component.name, partial, component.digests)
            self._keep_order(partial)
            write_code(partial, self._sources)
            seal(partial)
            if digests := self._find_digests():
                write_digests(partial, digests)
            follow_umask(partial.rglob("*.safetensors"))
            replace_pipeline(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", target.resolve().name), **kwargs)

    def _keep_order(self, folder: Path) -> None:
        """diffusers sorts the keys of what it saves: those of nested columns are written in their own order."""
        index = read_json(folder / INDEX)
        index["record_schema"] = self.config["record_schema"]  # type: ignore[attr-defined]
        write_json(folder / INDEX, index)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        with_digests: bool = False,
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
        with_digests : bool, default False
            Also publish the digests of the training records, by which whoever guesses a record can tell whether it
            was in the training data; ``exclude_training_copies=True`` then works for others, too.

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
                with_digests=with_digests,
                code=self._sources,
            )


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
    (target / DIGESTS_FILE).unlink(missing_ok=True)  # of the old one's records
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
        raise ArgumentError(f"{repo_id!r} is no repository id (`user/name`): {error}") from error


def download_folder(repo_id: str, **options: Any) -> Path:
    """Download a published pipeline's data, and none of its code; return the snapshot's folder.

    Raises
    ------
    ArgumentError
        If ``repo_id`` is neither a folder nor a repository id.
    FileNotFoundError
        If the repository holds no pipeline, or is not in the cache and the Hub must not or cannot be asked.
    OSError
        huggingface_hub's own errors: no such repository or revision, no access.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ArgumentError(
            f"{repo_id!r} is neither a folder with a saved pipeline nor a repository id (`user/name`)."
        ) from error
    try:
        # The same files whichever way it was loaded before: an offline load checks the cache for just these.
        wanted = [INDEX, DIGESTS_FILE, *(f"{name}/*" for name in COMPONENTS)]
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
    with_digests: bool = False,
    code: Mapping[str, str] | None = None,
) -> Any:
    """Publish a saved pipeline's folder in one commit: readers see the old files or the new ones.

    What difflm wrote is published, by name; other files in the folder stay here, and so do the latents of training
    records and checkpoints. A ``README.md`` in the folder is the card; without one a card is rendered. Parameters as
    in [`HubSavingMixin.push_to_hub`]; ``code`` is what is published as such, by default the installed difflm's: a
    ``.py`` file in the folder may be anyone's.
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
        stage(folder, staging, with_digests=with_digests, code=installed_code() if code is None else code)
        if not (staging / "README.md").is_file():
            (staging / "README.md").write_text(_card(staging, repo_id), encoding="utf-8")
        components = [name for name in COMPONENTS if name in index]
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=staging,
            revision=revision,
            commit_message=commit_message or "Upload DiffLM pipeline",
            create_pr=create_pr,
            # Files of an earlier push that this one no longer has go in the same commit.
            delete_patterns=["*.py", DIGESTS_FILE, *(f"{name}/*" for name in components)],
        )


def stage(folder: Path, staging: Path, *, with_digests: bool, code: Mapping[str, str]) -> None:
    """Copy what is published of a saved pipeline, in today's layout, into an empty folder."""
    index = read_index(folder)
    for name in PUBLISHED:
        path = folder / name
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):  # not a link to somewhere else
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, staging / name)
    for component in (name for name in COMPONENTS if name in index):
        copy_component(folder, component, staging, index.get(DIGESTS_KEY, {}))
    write_json(staging / INDEX, {name: entry for name, entry in index.items() if _is_known(name)})
    write_code(staging, code)
    digests = read_digests(folder) if with_digests else None
    strip_digests(staging)
    seal(staging)
    if digests:
        write_digests(staging, digests)


def copy_component(folder: Path, component: str, target: Path, digests: Mapping[str, str]) -> None:
    """Copy what difflm wrote of a component into the folder of another pipeline; weights are those with digests."""
    (target / component).mkdir()
    wanted = {*CONFIGS, *WEIGHT_TABLES} if "tokenizer" not in component else {*TOKENIZER_FILES}
    for path in (folder / component).iterdir():
        if path.is_file() and (path.name in wanted or f"{component}/{path.name}" in digests):
            shutil.copyfile(path, target / component / path.name)


def _is_known(name: str) -> bool:
    return name in COMPONENTS or name in SETTINGS or name in ("_class_name", "_diffusers_version")


def _card(folder: Path, repo_id: str) -> str:
    """The model card; where difflm is not installed, its metadata and how to use it."""
    try:
        from difflm.hub_cards.cards import model_card
    except ImportError:
        return (
            "---\nlibrary_name: difflm\ntags:\n- difflm\n- synthetic-data\n- tabular\n---\n\n# DiffLM pipeline\n\n"
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)\n'
            "records = pipe(100, seed=0).records\n```\n"
        )
    return str(model_card(folder, repo_id=repo_id, with_digests=(folder / DIGESTS_FILE).is_file()))
