"""What is published of a folder: what difflm wrote, by name; of the training records, no more than was asked for."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from difflm import DiffLMPipeline
from difflm.cli import main
from difflm.pipelines.hub_saving import push_folder
from difflm.pipelines.training_digests import DIGESTS_FILE, read_digests, record_digest


FORMAT_1 = Path(__file__).parent.parent / "data" / "format_1"
DECODER = str(FORMAT_1 / "decoder")
STRAY = (
    "secrets.txt",
    "notes.md",
    ".env.json",
    "data.json",
    "evil.py",
    "plot.png",
    "latents.safetensors",
    "difflm_fit.json",
    "figures/private.svg",
    "denoiser/notes.txt",
    "denoiser/rows.safetensors",
    "encoder_tokenizer/data.json",
    "scheduler/.env",
    "checkpoints/state.json",
)


def fill(folder):
    for name in STRAY:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private", encoding="utf-8")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def test_hub_push_leaves_every_file_that_difflm_did_not_write(hub, folder, saved):
    fill(folder)
    (folder / "training_log.json").write_text("{}", encoding="utf-8")
    push_folder(folder, "user/toys", token="hf_user")
    published = set(hub.repos["model", "user/toys"].files)
    assert not published & set(STRAY)
    written = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert written - {DIGESTS_FILE} <= published
    assert published - written <= {"README.md", "training_log.json", ".gitattributes"}


def test_hub_push_publishes_the_installed_code_and_not_what_lies_in_the_folder(hub, folder, saved):
    for path in folder.rglob("*.py"):
        path.write_text("raise SystemExit('evil')\n", encoding="utf-8")
    push_folder(folder, "user/toys", token="hf_user")
    files = hub.repos["model", "user/toys"].files
    for path in saved.rglob("*.py"):
        assert files[path.relative_to(saved).as_posix()] == path.read_bytes()


def test_hub_push_follows_no_link(hub, folder, tmp_path):
    (tmp_path / "private.md").write_text("private", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "denoiser.svg").write_text("private", encoding="utf-8")
    (folder / "README.md").symlink_to(tmp_path / "private.md")
    (folder / "figures").symlink_to(tmp_path / "elsewhere")
    push_folder(folder, "user/toys", token="hf_user")
    assert not [name for name, content in hub.repos["model", "user/toys"].files.items() if content == b"private"]


# -------------------------------------------------------------------- digests of the training records


@pytest.fixture
def with_digests(random_pipeline, small_table, tmp_path, monkeypatch):
    """A saved pipeline that knows its training records."""
    records = random_pipeline.schema.to_records(small_table)
    digests = [record_digest(random_pipeline.schema.serialize(record)) for record in records]
    monkeypatch.setattr(random_pipeline, "_digests", frozenset(digests))
    random_pipeline.save_pretrained(tmp_path / "known")
    return tmp_path / "known"


def test_hub_digests_lie_beside_the_weights_and_are_not_published(hub, with_digests, monkeypatch):
    known = read_digests(with_digests)
    weights = load_file(with_digests / "denoiser" / "diffusion_pytorch_model.safetensors")
    assert known and "record_digests" not in weights
    pipe = DiffLMPipeline.from_pretrained(with_digests)
    assert pipe.training_digests() == known
    pipe.push_to_hub("user/method", token="hf_user")
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    assert main(["push", str(with_digests), "user/command"]) == 0
    needle = next(iter(known))
    for name in ("user/method", "user/command"):
        files = hub.repos["model", name].files
        assert DIGESTS_FILE not in files and not any(needle in content for content in files.values())
        assert b"No digests of the records" in files["README.md"]
    published = DiffLMPipeline.from_pretrained("user/command")
    with pytest.raises(ValueError, match="no digests of its training records"):
        published(1, seed=0, exclude_training_copies=True)


def test_hub_digests_are_published_if_asked_for_and_gone_with_the_next_push(hub, with_digests, monkeypatch):
    known = read_digests(with_digests)
    DiffLMPipeline.from_pretrained(with_digests).push_to_hub("user/method", token="hf_user", with_digests=True)
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    assert main(["push", str(with_digests), "user/command", "--with-digests"]) == 0
    for name in ("user/method", "user/command"):
        assert f"Keyed digests of its {len(known)}".encode() in hub.repos["model", name].files["README.md"]
        pipe = DiffLMPipeline.from_pretrained(name)
        assert pipe.training_digests() == known
        pipe.set_progress_bar_config(disable=True)
        assert len(pipe(2, seed=0, exclude_training_copies=True).records) == 2
    assert main(["push", str(with_digests), "user/command"]) == 0
    assert DIGESTS_FILE not in hub.repos["model", "user/command"].files


def test_hub_digests_of_a_replaced_pipeline_go_with_it(with_digests, saved):
    pipe = DiffLMPipeline.from_pretrained(saved)
    pipe.save_pretrained(with_digests)
    assert read_digests(with_digests) is None


def test_hub_digests_of_format_1_leave_the_denoiser_at_the_next_save_or_push(hub, tmp_path):
    old = shutil.copytree(FORMAT_1 / "values", tmp_path / "old")
    known = read_digests(old)
    assert known
    pipe = DiffLMPipeline.from_pretrained(old, decoder_name_or_path=DECODER)
    assert pipe.training_digests() == known
    pipe.save_pretrained(tmp_path / "new")
    assert read_digests(tmp_path / "new") == known and (tmp_path / "new" / DIGESTS_FILE).is_file()
    push_folder(old, "user/old", token="hf_user")
    files = hub.repos["model", "user/old"].files
    assert DIGESTS_FILE not in files
    for name, text in (("denoiser/config.json", files["denoiser/config.json"].decode()), ("new", "")):
        text = text or (tmp_path / name / "denoiser" / "config.json").read_text(encoding="utf-8")
        assert "digests" not in text
    (tmp_path / "weights").write_bytes(files["denoiser/diffusion_pytorch_model.safetensors"])
    assert "record_digests" not in load_file(tmp_path / "weights")
    assert json.loads(files["model_index.json"])["_difflm_layout"] == 2
    pipe.set_progress_bar_config(disable=True)
    published = DiffLMPipeline.from_pretrained("user/old", decoder_name_or_path=DECODER)
    published.set_progress_bar_config(disable=True)
    assert published(3, seed=1).texts == pipe(3, seed=1).texts


def test_hub_card_lists_what_the_checkpoint_tells(folder):
    from difflm.hub_cards.cards import model_card

    log = {"rows": 54, "disclosure": {"rare_below": 5, "rare_categories_listed": 3, "ranges": "clipped"}}
    (folder / "training_log.json").write_text(json.dumps(log), encoding="utf-8")
    told = str(model_card(folder)).partition("## What this repository tells")[2]
    for words in ("2 values. 3 of them are of fewer than 5 records", "at least 5 records share", "learnt from: 54"):
        assert words in told, told
    (folder / "training_log.json").unlink()
    told = str(model_card(folder)).partition("## What this repository tells")[2]
    assert "exact: the smallest and the largest value" in told


def test_saving_keeps_the_order_of_nested_keys(tmp_path, random_pipeline):
    pipe = DiffLMPipeline.from_pretrained(FORMAT_1 / "json", decoder_name_or_path=DECODER)
    schema = json.loads(json.dumps(pipe.config["record_schema"]))
    nested = next(column for column in schema["columns"] if "json_schema" in column)
    nested["json_schema"] = {"type": "object", "properties": {"z": {"type": "null"}, "a": {"type": "null"}}}
    parts = {name: getattr(pipe, name) for name in ("autoencoder", "denoiser", "scheduler")}
    tokenizers = {name: getattr(pipe, name) for name in ("encoder_tokenizer", "decoder_tokenizer")}
    DiffLMPipeline(**parts, **tokenizers, record_schema=schema).save_pretrained(tmp_path / "out")
    again = DiffLMPipeline.from_pretrained(tmp_path / "out", decoder_name_or_path=DECODER)
    assert list(again.schema.column(nested["name"]).json_schema["properties"]) == ["z", "a"]
