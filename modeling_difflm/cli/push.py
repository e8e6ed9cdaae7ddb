"""``difflm push``: publish a fitted pipeline on the Hugging Face Hub."""

import argparse
from typing import Any

from difflm.cli.card import add_card_options, write_card
from difflm.cli.options import HelpFormatter, check_pipeline


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    push = commands.add_parser(
        "push",
        help="publish a fitted pipeline on the Hugging Face Hub",
        description="Publish a fitted pipeline in one commit: weights, code, model card; not the latents or "
        "digests of its training records, nor other files that lie in its folder. Log in first with "
        "`hf auth login`, or set HF_TOKEN.",
        formatter_class=HelpFormatter,
    )
    push.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
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
    push.add_argument(
        "--with-digests",
        action="store_true",
        help="also publish the digests of the training records: others can then exclude copies of them, and test "
        "whether a record that they guess was among them (default: they stay here)",
    )
    add_card_options(push)
    push.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Publish; return the exit status."""
    folder = check_pipeline(arguments.pipeline)
    from difflm.pipelines.hub_saving import check_repo_id, push_folder

    check_repo_id(arguments.repo_id)
    if arguments.with_dataset:
        from difflm.pipelines.sharded_sampling import read_run

        # An unfinished table is said before anything is published.
        read_run(arguments.with_dataset)
    stated = arguments.license or arguments.dataset or arguments.evaluation or arguments.with_digests
    if not (folder / "README.md").is_file() or stated:
        write_card(arguments, folder, arguments.repo_id, with_digests=arguments.with_digests)
    commit = push_folder(
        folder,
        arguments.repo_id,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.message,
        with_digests=arguments.with_digests,
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
