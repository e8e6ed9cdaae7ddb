"""Build what `difflm push` would publish of a fitted pipeline, without its weights: card, plots, index, Space.

python examples/published/build.py out/ user/difflm-penguins --dataset palmerpenguins --license cc0-1.0
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from difflm.hub_cards.cards import model_card
from difflm.hub_cards.publishing import write_space


HERE = Path(__file__).resolve().parent
# All that a card is rendered from.
READ = ("model_index.json", "training_log.json", "evaluation.json", "autoencoder/config.json", "denoiser/config.json")


def build(fitted: Path, target: Path, repo_id: str, license: str | None = None, dataset: str | None = None) -> None:
    """Write ``target/model`` and ``target/space`` from a fitted folder."""
    for name in READ:
        if (fitted / name).is_file():
            (target / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fitted / name, target / "model" / name)
    card = model_card(target / "model", repo_id=repo_id, license=license, dataset=dataset)
    (target / "model" / "README.md").write_text(str(card), encoding="utf-8")
    write_space(fitted, repo_id, target / "space")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fitted", type=Path, help="folder that `difflm fit` wrote")
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--license")
    parser.add_argument("--dataset")
    parser.add_argument("--target", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    build(arguments.fitted, arguments.target, arguments.repo_id, arguments.license, arguments.dataset)
