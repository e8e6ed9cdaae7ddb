"""The ``difflm`` command. What it calls to fit and to sample is replaced by stand-ins."""

import argparse
import errno
import inspect
import json
import shlex
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pandas as pd
import pytest

from difflm import cli
from difflm.cli.command import build_parser, user_message
from difflm.cli.fit import fit_arguments, last_checkpoint
from difflm.cli.sample import condition_pair, typed_condition
from difflm.pipelines.arrow_tables import to_arrow
from difflm.pipelines.errors import SchemaError
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.data import read_table


RECORDS = [
    {"name": 'Ann, "the\nfirst"', "age": 31, "member": True},
    {"name": "Bøb", "age": None, "member": False},
]
SCHEMA = RecordSchema.infer(pd.DataFrame({"age": [30, 40, 50] * 20, "city": ["Ulm", "Köln", None] * 20}))


class FakeOutput:
    valid_first_attempt = 0.995
    report = "nothing was rejected"
    schema = RecordSchema.infer(pd.DataFrame(RECORDS).astype({"age": "Int64"}))

    def __init__(self, records):
        self.records = records

    def to_pandas(self):
        return self.schema.to_pandas(self.schema.to_records(self.records))

    def to_arrow(self, *, big_integers):
        return to_arrow(self.to_pandas(), self.schema, big_integers=big_integers)


class FakePipeline:
    """Stands in for DiffLMPipeline: remembers what it was asked and returns as many records as it has."""

    schema = SCHEMA

    def __init__(self, records=RECORDS):
        self.records = records
        self.calls, self.loaded = [], []

    def to(self, device):
        self.device = device
        return self

    def who_writes(self, writer="auto", **keywords):
        return "lm" if writer == "auto" else writer

    def __call__(self, **keywords):
        self.calls.append(keywords)
        return FakeOutput(self.records)


@pytest.fixture
def pipeline(monkeypatch):
    pipe = FakePipeline()
    stand_in = types.SimpleNamespace(from_pretrained=lambda source, **options: pipe.loaded.append(options) or pipe)
    module = types.ModuleType("difflm.pipelines.pipeline_difflm")
    module.DiffLMPipeline = stand_in
    monkeypatch.setitem(sys.modules, "difflm.pipelines.pipeline_difflm", module)
    return pipe


@pytest.fixture
def fake_fit(monkeypatch):
    """Replace the fit by a function that the test sets in ``behaviour``; its arguments are kept in ``calls``."""
    state = types.SimpleNamespace(calls=[], behaviour=lambda: None)

    def fit(data, output_dir, **keywords):
        state.calls.append((data, output_dir, keywords))
        return state.behaviour()

    module = types.ModuleType("difflm.training.fitting")
    module.fit = fit
    monkeypatch.setitem(sys.modules, "difflm.training.fitting", module)
    return state


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,x\n2,y\n")
    return path


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"record_schema": SCHEMA.to_dict()}))
    return folder


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices


class TestHelp:
    @pytest.mark.parametrize("command", [[], ["fit"], ["sample"], ["info"]])
    def test_help_imports_nothing_heavy(self, command):
        code = (
            "import sys\nfrom difflm.cli import main\n"
            f"try:\n    main({[*command, '--help']!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'torch', 'transformers', 'diffusers', 'pandas', 'numpy', 'datasets'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: difflm")

    def test_runs_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "difflm", "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("difflm ")

    @pytest.mark.parametrize("command", ["fit", "sample", "info"])
    def test_every_option_has_help_and_says_its_default(self, command):
        parser = subcommands()[command]
        for action in parser._actions:
            if not action.option_strings or action.dest == "help":
                continue
            text = parser.formatter_class(prog="x")._get_help_string(action)
            assert action.help, f"{action.option_strings} has no help"
            assert "default" in text or "(required)" in text, f"{action.option_strings} hides its default: {text}"

    def test_a_command_is_required(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            cli.main([])
        assert "fit,sample,evaluate,info" in capsys.readouterr().err


class TestFit:
    def test_options_left_out_are_left_to_the_preset(self, fake_fit, table, capsys):
        assert cli.main(["fit", str(table), "-o", "out"]) == 0
        assert fake_fit.calls == [
            (str(table), "out", {"preset": "small", "seed": 0, "resume": False, "overwrite": False})
        ]
        assert "difflm sample out" in capsys.readouterr().out

    def test_options_given_are_passed_on(self, fake_fit, table):
        words = "--preset tiny --encoder e --decoder d --injection soft_prompt --record-format values --epochs 2.5"
        words += " --max-minutes 3 --batch-size 4 --seed 5 --condition-columns a b --text-columns b"
        words += f" --validation {table} --rare-categories drop --rare-below 9 --ranges clipped --resume --overwrite"
        assert cli.main(["fit", str(table), "--output-dir", "out", *words.split()]) == 0
        assert fake_fit.calls[0][2] == {
            "preset": "tiny",
            "encoder": "e",
            "decoder": "d",
            "injection": "soft_prompt",
            "record_format": "values",
            "epochs": 2.5,
            "max_minutes": 3.0,
            "batch_size": 4,
            "seed": 5,
            "condition_columns": ["a", "b"],
            "text_columns": ["b"],
            "validation": str(table),
            "rare_categories": "drop",
            "rare_below": 9,
            "ranges": "clipped",
            "resume": True,
            "overwrite": True,
        }

    def test_condition_columns_can_be_none(self, fake_fit, table):
        cli.main(["fit", str(table), "-o", "out", "--condition-columns", "none"])
        assert fake_fit.calls[0][2]["condition_columns"] == ()

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["--batch-size", "0"], "at least 1"),
            (["--max-minutes", "-1"], "above 0"),
            (["--max-minutes", "inf"], "above 0"),
            (["--preset", "huge"], "invalid choice"),
        ],
    )
    def test_wrong_options_are_refused(self, fake_fit, table, words, reason, capsys):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["fit", str(table), "-o", "out", *words])
        assert reason in capsys.readouterr().err
        assert fake_fit.calls == []

    def test_the_fit_takes_every_option(self, table):
        from difflm.training.fitting import fit

        every = "--encoder e --decoder d --injection soft_prompt --record-format values --epochs 1 --max-minutes 1"
        every += " --rare-categories merge --rare-below 3 --ranges rounded"
        every += " --batch-size 1 --condition-columns a --text-columns b --validation v --delimiter tab"
        every += " --encoding utf-8 --na-values x --decimal , --thousands . --category-columns c --max-decimals 3"
        every += " --max-length 9 --overlong drop --device cuda:1 --dtype float32 --writer lm"
        arguments = build_parser().parse_args(["fit", str(table), "-o", "out", *every.split()])
        inspect.signature(fit).bind(arguments.data, arguments.output_dir, **fit_arguments(arguments))
        options = {action.dest for action in subcommands()["fit"]._actions} - {"help", "data", "output_dir"}
        given = fit_arguments(arguments)
        assert given["read_options"]["delimiter"] == "\t"
        assert set(given) - {"read_options"} | set(given["read_options"]) == options

    def test_one_line_of_options_reads_a_table_as_read_table_does(self, fake_fit, tmp_path):
        path = tmp_path / "german.csv"
        path.write_bytes("stadt|preis\nKöln|1.000,5\nk.A.|2,5\n".encode("latin-1"))
        words = "--encoding latin-1 --delimiter | --decimal , --thousands . --na-values k.A."
        assert cli.main(["fit", str(path), "-o", "out", *words.split()]) == 0
        frame = read_table(path, **fake_fit.calls[0][2]["read_options"])
        assert frame["stadt"].isna().tolist() == [False, True]
        assert frame["preis"].tolist() == [1000.5, 2.5]

    def test_missing_table(self, fake_fit, capsys):
        assert cli.main(["fit", "nowhere.csv", "-o", "out"]) == 2
        assert capsys.readouterr().err == "difflm: error: nowhere.csv: no such table\n"
        assert fake_fit.calls == []

    def test_ctrl_c_names_the_checkpoint_and_how_to_resume(self, fake_fit, table, tmp_path, capsys):
        out = tmp_path / "my out"

        def behaviour():
            (out / "autoencoder" / "checkpoint-40").mkdir(parents=True)
            raise KeyboardInterrupt

        fake_fit.behaviour = behaviour
        assert cli.main(["fit", str(table), "-o", str(out), "--overwrite"]) == 130
        error = capsys.readouterr().err
        assert str(out / "autoencoder" / "checkpoint-40") in error
        assert f"resume with: difflm fit {table} -o '{out}' --resume\n" in error

    def test_ctrl_c_before_any_checkpoint(self, fake_fit, table, tmp_path, capsys):
        def behaviour():
            raise KeyboardInterrupt

        fake_fit.behaviour = behaviour
        out = str(tmp_path / "out")
        for more in ([], ["--overwrite"]):
            assert cli.main(["fit", str(table), "-o", out, *more]) == 130
            again = shlex.join(["difflm", "fit", str(table), "-o", out, *more])
            assert capsys.readouterr().err.endswith(f"nothing to resume\nstart again with: {again}\n")

    def test_no_space_left(self, fake_fit, table, capsys):
        def behaviour():
            raise OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")

        fake_fit.behaviour = behaviour
        assert cli.main(["fit", str(table), "-o", "out"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "no space left on the disk for out/model.safetensors" in error
        assert "--resume" in error


class TestErrors:
    def test_our_refusal_is_one_line(self):
        with pytest.raises(SchemaError) as caught:
            RecordSchema.infer(pd.DataFrame())
        message = user_message(caught.value)
        assert message
        assert "\n" not in message

    def test_a_defect_is_not_hidden(self, fake_fit, table):
        def behaviour():
            return [1, 2][5]

        fake_fit.behaviour = behaviour
        with pytest.raises(IndexError):
            cli.main(["fit", str(table), "-o", "out"])

    def test_a_value_error_from_elsewhere_is_not_hidden(self):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads("{")
        assert user_message(caught.value) is None

    def test_traceback_on_demand(self, fake_fit):
        with pytest.raises(FileNotFoundError):
            cli.main(["--traceback", "fit", "nowhere.csv", "-o", "out"])

    @pytest.mark.filterwarnings("always")
    def test_a_warning_is_one_line(self, fake_fit, table, capsys):
        fake_fit.behaviour = lambda: warnings.warn("column 'plz' is kept\nas text", stacklevel=1)
        assert cli.main(["fit", str(table), "-o", "out"]) == 0
        assert "difflm: warning: column 'plz' is kept as text\n" in capsys.readouterr().err
        shown = warnings.showwarning
        cli.main(["--traceback", "fit", str(table), "-o", "out"])
        assert "difflm: warning" not in capsys.readouterr().err
        assert warnings.showwarning is shown, "the process's own way is left as it was"


class TestSample:
    def test_jsonl_keeps_the_records(self, pipeline, saved, tmp_path, capsys):
        target = tmp_path / "rows.jsonl"
        assert cli.main(["sample", str(saved), "-n", "2", "-o", str(target)]) == 0
        assert [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] == RECORDS
        assert "2 records" in capsys.readouterr().out

    @pytest.mark.parametrize("ending", ["csv", "parquet", "CSV"])
    def test_tables_keep_the_values(self, pipeline, saved, tmp_path, ending):
        target = tmp_path / f"rows.{ending}"
        assert cli.main(["sample", str(saved), "-n", "2", "-o", str(target)]) == 0
        read = pd.read_parquet(target) if ending == "parquet" else pd.read_csv(target, dtype={"age": "Int64"})
        pd.testing.assert_frame_equal(read, FakeOutput(RECORDS).to_pandas(), check_dtype=False)
        assert sorted(tmp_path.iterdir()) == sorted([target, saved])

    def test_options_reach_the_pipeline(self, pipeline, saved, tmp_path):
        words = "-n 2 --seed 3 --batch-size 4 --temperature 0.7 --top-p 0.9 --top-k 5 --steps 6 --guidance-scale 2"
        words += " --max-attempts 7 --condition city=Ulm --no-constrained"
        assert cli.main(["sample", str(saved), "-o", str(tmp_path / "r.csv"), *words.split()]) == 0
        assert pipeline.calls == [
            {
                "num_samples": 2,
                "seed": 3,
                "batch_size": 4,
                "max_attempts": 7,
                "temperature": 0.7,
                "top_p": 0.9,
                "top_k": 5,
                "num_inference_steps": 6,
                "condition": {"city": "Ulm"},
                "constrained": False,
                "within_range": True,
                "guidance_scale": 2.0,
                "unique": False,
                "exclude_training_copies": False,
            }
        ]

    def test_options_left_out_are_the_pipelines_own_defaults(self, pipeline, saved, tmp_path, monkeypatch):
        cli.main(["sample", str(saved), "-o", str(tmp_path / "r.csv")])
        monkeypatch.undo()
        from difflm.pipelines.pipeline_difflm import DiffLMPipeline

        parameters = inspect.signature(DiffLMPipeline.__call__).parameters
        passed = {name: value for name, value in pipeline.calls[0].items() if name not in ("num_samples", "seed")}
        assert passed == {name: parameters[name].default for name in passed}

    def test_too_few_valid_records_are_written_and_reported(self, pipeline, saved, tmp_path, capsys):
        target = tmp_path / "rows.jsonl"
        assert cli.main(["sample", str(saved), "-n", "3", "-o", str(target)]) == 1
        assert len(target.read_text(encoding="utf-8").splitlines()) == 2
        assert "only 2 of 3 records" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("rows.xlsx", "must end in .parquet, .csv or .jsonl"),
            ("no/rows.csv", "no such folder"),
            ("old.csv", "exists"),
        ],
    )
    def test_a_bad_output_is_refused_before_sampling(self, pipeline, saved, tmp_path, name, reason, capsys):
        (tmp_path / "old.csv").write_text("precious")
        assert cli.main(["sample", str(saved), "-o", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
        assert pipeline.calls == []
        assert (tmp_path / "old.csv").read_text() == "precious"

    def test_overwrite(self, pipeline, saved, tmp_path):
        target = tmp_path / "old.jsonl"
        target.write_text("old")
        assert cli.main(["sample", str(saved), "-n", "2", "-o", str(target), "--overwrite"]) == 0
        assert "Ann" in target.read_text(encoding="utf-8")

    def test_a_folder_without_a_pipeline(self, pipeline, tmp_path, capsys):
        assert cli.main(["sample", str(tmp_path), "-o", str(tmp_path / "r.csv")]) == 2
        assert "run `difflm fit` first" in capsys.readouterr().err


class TestCondition:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["city=Ulm"], {"city": "Ulm"}),
            (["city=Ulm", "city=Köln"], {"city": ["Ulm", "Köln"]}),
            (["city=null"], {"city": None}),
            (["city=a=b"], {"city": "a=b"}),
            (["age=40"], {"age": 40}),
            (["age=40..50"], {"age": (40, 50)}),
        ],
    )
    def test_values_get_the_type_of_their_column(self, words, expected):
        typed = typed_condition([condition_pair(word) for word in words], SCHEMA)
        assert typed == expected
        assert [type(value) for value in typed.values()] == [type(value) for value in expected.values()]

    def test_boolean(self):
        schema = RecordSchema.infer(pd.DataFrame({"member": [True, False] * 5}))
        for text, value in (("true", True), ("True", True), ("FALSE", False), ("false", False)):
            assert typed_condition([("member", text)], schema)["member"] is value
        with pytest.raises(ValueError, match="'member' is boolean; give true, false or null"):
            typed_condition([("member", "yes")], schema)

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            ([("town", "Ulm")], "no column 'town'; the columns are age, city"),
            ([("age", "old")], "give a number"),
            ([("age", "30..40"), ("age", "50")], "one range"),
        ],
    )
    def test_refusals(self, words, reason):
        with pytest.raises(ValueError, match=reason):
            typed_condition(words, SCHEMA)

    def test_malformed(self, pipeline, saved, tmp_path, capsys):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["sample", str(saved), "-o", str(tmp_path / "r.csv"), "--condition", "Ulm"])
        assert "COLUMN=VALUE" in capsys.readouterr().err


def test_last_checkpoint_is_the_newest(tmp_path):
    import os

    assert last_checkpoint(tmp_path) is None
    for age, name in ((10, "a/checkpoint-900"), (5, "b/checkpoint-2")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    assert last_checkpoint(tmp_path) == Path(tmp_path / "b/checkpoint-2")
