"""``difflm card``: write a fitted pipeline's model card."""

import argparse
from pathlib import Path
from typing import Any

from difflm.cli.options import HelpFormatter, check_pipeline


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    card = commands.add_parser(
        "card",
        help="write a fitted pipeline's model card",
        description="Write README.md, the model card, and its plots into a pipeline's folder. Figures come from "
        "training_log.json and an evaluation's JSON; what was not measured is left out. Loads no weights.",
        formatter_class=HelpFormatter,
    )
    card.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    card.add_argument("--repo-id", metavar="USER/NAME", help="where it will be published (default: the folder's name)")
    add_card_options(card)
    card.set_defaults(run=run)


def add_card_options(command: argparse.ArgumentParser) -> None:
    """Add what a card states beside the figures."""
    command.add_argument("--license", metavar="ID", help="license of the weights, e.g. cc0-1.0 (default: none stated)")
    command.add_argument("--dataset", metavar="NAME", help="name or Hub id of the training table (default: unnamed)")
    command.add_argument(
        "--evaluation", metavar="JSON", help="measured figures (default: evaluation.json in PIPELINE, if there)"
    )


def write_card(
    arguments: argparse.Namespace, folder: Path, repo_id: str | None, *, with_digests: bool = False
) -> Path:
    """Write the card that the options ask for into ``folder``; return its path."""
    from difflm.files import write_text
    from difflm.hub_cards.cards import model_card

    text = str(
        model_card(
            folder,
            repo_id=repo_id,
            license=arguments.license,
            dataset=arguments.dataset,
            evaluation=arguments.evaluation,
            with_digests=with_digests,
        )
    )
    target = folder / "README.md"
    write_text(target, text)
    return target


def run(arguments: argparse.Namespace) -> int:
    """Write the card; return the exit status."""
    card = write_card(arguments, check_pipeline(arguments.pipeline), arguments.repo_id)
    print(f"Card in {card}. A later `difflm push` publishes it as it is.")
    return 0
