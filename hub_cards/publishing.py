"""Publishing the Space beside a pipeline, and example repositories from a fitted folder."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from difflm.cli_info import read_json
from difflm.pipelines.hub_saving import check_repo_id


SPACE_FILES = ("app.py", "requirements.txt")


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
    for name in SPACE_FILES:
        (target / name).write_text(source.joinpath(name).read_text(encoding="utf-8"), encoding="utf-8")
    (target / "pipeline.json").write_text(json.dumps({"repo_id": repo_id}) + "\n", encoding="utf-8")
    decoder = str(read_json(Path(folder) / "autoencoder" / "config.json").get("decoder_name_or_path") or "")
    if decoder.startswith("package://"):
        package = decoder.removeprefix("package://").partition("/")[0].replace("_", "-")
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
