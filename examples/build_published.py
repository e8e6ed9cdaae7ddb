"""Build what is published of a fitted pipeline: a model repository, a dataset repository and a Space.

After `make demo`, without arguments: `python examples/build_published.py`. What `difflm push` would also publish and
is left out here: the weights, and the code beside them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from demo import penguins_csv

from difflm import DiffLMPipeline
from difflm.files import write_json
from difflm.hub_cards.cards import model_card
from difflm.hub_cards.publishing import SPACE_CODE, write_dataset, write_space
from difflm.pipelines.sharded_sampling import sample_shards
from difflm.training.data import read_table
from difflm.training.evaluation.figures import evaluate_tables
from difflm.training.evaluation.tables import TableSpec


PUBLISHED = Path(__file__).resolve().parent / "published"
# All that a card is rendered from.
READ = ("model_index.json", "training_log.json", "evaluation.json", "autoencoder/config.json", "denoiser/config.json")


def build_cards(
    fitted: Path, target: Path, repo_id: str, license: str | None = None, dataset: str | None = None
) -> None:
    """Write ``target/model`` and ``target/space``; reads no weights."""
    for name in READ:
        if (fitted / name).is_file():
            (target / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fitted / name, target / "model" / name)
    card = model_card(target / "model", repo_id=repo_id, license=license, dataset=dataset)
    (target / "model" / "README.md").write_text(str(card), encoding="utf-8")
    write_space(fitted, repo_id, target / "space")
    for name in SPACE_CODE:
        (target / "space" / name).unlink()


def build_dataset(
    fitted: Path, target: Path, repo_id: str, num_rows: int, real: str | Path, **names: str | None
) -> None:
    """Sample ``target/dataset`` and measure it beside the real rows: ``evaluation.json`` of the model."""
    pipeline = DiffLMPipeline.from_pretrained(fitted)
    with tempfile.TemporaryDirectory() as shards:
        for _ in sample_shards(pipeline, shards, num_rows, seed=0):
            pass
        shutil.rmtree(target / "dataset", ignore_errors=True)
        write_dataset(fitted, shards, repo_id, target / "dataset", **names)
    training_rows = read_table(real)
    rows = read_table(next((target / "dataset" / "data").glob("*.parquet")))
    evaluation = evaluate_tables(training_rows, rows, TableSpec.infer(training_rows)).to_dict()
    # The only thing in it that differs from run to run.
    evaluation["details"].pop("seconds")
    (target / "model").mkdir(exist_ok=True)
    write_json(target / "model" / "evaluation.json", evaluation, indent=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fitted", type=Path, nargs="?", default="demo/pipeline", help="folder that `difflm fit` wrote")
    parser.add_argument("repo_id", nargs="?", default="user/difflm-penguins", help="user/name of all three")
    parser.add_argument("--license", default="cc0-1.0")
    parser.add_argument("--dataset", default="palmerpenguins", help="name of the training table")
    parser.add_argument("--real", default=penguins_csv(), help="the training table")
    parser.add_argument("--rows", type=int, default=1000, help="records to sample")
    parser.add_argument("--target", type=Path, default=PUBLISHED, help="folder to write to")
    arguments = parser.parse_args()
    names = {"license": arguments.license, "dataset": arguments.dataset}
    build_dataset(arguments.fitted, arguments.target, arguments.repo_id, arguments.rows, arguments.real, **names)
    build_cards(arguments.fitted, arguments.target, arguments.repo_id, **names)
