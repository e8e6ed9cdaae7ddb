"""The sub-commands that publish: ``difflm card``, ``difflm push`` and ``difflm space``."""

import argparse
import errno
import os
import runpy
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any


NAMES = ("card", "push", "space")


def add_hub_commands(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add the sub-commands to the parser of ``difflm``."""
    card = commands.add_parser(
        "card",
        help="write a fitted pipeline's model card",
        description="Write README.md, the model card, and its plots into a pipeline's folder. Figures come from "
        "training_log.json and an evaluation's JSON; what was not measured is left out. Loads no weights.",
        formatter_class=formatter,
    )
    push = commands.add_parser(
        "push",
        help="publish a fitted pipeline on the Hugging Face Hub",
        description="Publish a fitted pipeline in one commit: weights, code, model card; not the latents of its "
        "training records. Log in first with `hf auth login`, or set HF_TOKEN.",
        formatter_class=formatter,
    )
    space = commands.add_parser(
        "space",
        help="open a fitted pipeline in the browser",
        description="Serve the Gradio app that a published Space runs, for a fitted pipeline on this machine.",
        formatter_class=formatter,
    )
    for command in (card, push, space):
        command.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    push.add_argument("repo_id", metavar="USER/NAME", help="repository, created if missing")
    push.add_argument("--private", action="store_true", help="create a private repository (default: public)")
    push.add_argument("--revision", metavar="BRANCH", help="branch, created if missing (default: main)")
    push.add_argument("--message", metavar="TEXT", help="commit message (default: a short one)")
    push.add_argument("--with-space", action="store_true", help="also publish the app as a Space of the same name")
    push.add_argument(
        "--with-dataset",
        metavar="DIR",
        help="also publish the table that `difflm sample PIPELINE -o DIR/` wrote, as a dataset of the same name",
    )
    card.add_argument("--repo-id", metavar="USER/NAME", help="where it will be published (default: the folder's name)")
    for command in (card, push):
        command.add_argument(
            "--license", metavar="ID", help="license of the weights, e.g. cc0-1.0 (default: none stated)"
        )
        command.add_argument(
            "--dataset", metavar="NAME", help="name or Hub id of the training table (default: unnamed)"
        )
        command.add_argument(
            "--evaluation", metavar="JSON", help="measured figures (default: evaluation.json in PIPELINE, if there)"
        )
    space.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    space.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on")
    space.add_argument(
        "--reference", metavar="TABLE", help="real records, CSV or parquet, to plot against (default: no plots)"
    )


def run_hub_command(arguments: argparse.Namespace) -> int:
    """Run one of the sub-commands; returns the exit status."""
    folder = Path(arguments.pipeline)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            errno.ENOENT, "no fitted pipeline here (no model_index.json); run `difflm fit` first", str(folder)
        )
    return {"card": _run_card, "push": _run_push, "space": _run_space}[arguments.command](arguments, folder)


def _write_card(arguments: argparse.Namespace, folder: Path, repo_id: str | None) -> Path:
    from difflm.files import write_text
    from difflm.hub_cards.cards import model_card

    text = str(
        model_card(
            folder,
            repo_id=repo_id,
            license=arguments.license,
            dataset=arguments.dataset,
            evaluation=arguments.evaluation,
        )
    )
    target = folder / "README.md"
    write_text(target, text)
    return target


def _run_card(arguments: argparse.Namespace, folder: Path) -> int:
    print(f"Card in {_write_card(arguments, folder, arguments.repo_id)}. A later `difflm push` publishes it as it is.")
    return 0


def _run_push(arguments: argparse.Namespace, folder: Path) -> int:
    from difflm.pipelines.hub_saving import check_repo_id, push_folder

    check_repo_id(arguments.repo_id)
    if arguments.with_dataset:
        from difflm.pipelines.sharded_sampling import read_run

        # An unfinished table is said before anything is published.
        read_run(arguments.with_dataset)
    if not (folder / "README.md").is_file() or arguments.license or arguments.dataset or arguments.evaluation:
        _write_card(arguments, folder, arguments.repo_id)
    commit = push_folder(
        folder,
        arguments.repo_id,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.message,
    )
    print(f"Published: {commit.commit_url}")
    if arguments.with_space:
        from difflm.hub_cards.publishing import push_space

        print(f"Space: {push_space(folder, arguments.repo_id, private=arguments.private or None).commit_url}")
    if arguments.with_dataset:
        from difflm.hub_cards.publishing import push_dataset

        commit = push_dataset(
            folder,
            arguments.with_dataset,
            arguments.repo_id,
            private=arguments.private or None,
            license=arguments.license,
            dataset=arguments.dataset,
        )
        print(f"Dataset: {commit.commit_url}")
    return 0


def _run_space(arguments: argparse.Namespace, folder: Path) -> int:
    if arguments.reference and not Path(arguments.reference).is_file():
        raise FileNotFoundError(errno.ENOENT, "no such table", arguments.reference)
    os.environ["DIFFLM_PIPELINE"] = str(folder.resolve())
    os.environ["GRADIO_SERVER_NAME"], os.environ["GRADIO_SERVER_PORT"] = arguments.host, str(arguments.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if arguments.reference:
        os.environ["DIFFLM_REFERENCE"] = str(Path(arguments.reference).resolve())
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("The app needs Gradio: `pip install difflm[space]`.") from error
    # The very file that a Space runs.
    with as_file(files("difflm.hub_cards").joinpath("space", "app.py")) as app:
        sys.argv = [str(app)]
        runpy.run_path(str(app), run_name="__main__")
    return 0
