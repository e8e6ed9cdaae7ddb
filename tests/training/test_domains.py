"""A domain is one file: tables, and two that are made up here as code and tools will be, in the steps of a fit."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from difflm.pipelines.record_schema import RecordSchema
from difflm.training.domains import DOMAINS, CardWords, Domain, Reading, find_domain
from difflm.training.fitting import fit
from difflm.training.policy import Policy
from difflm.training.preparation import prepare
from tests.conftest import tiny_preset


class Code(Domain):
    """Functions of a folder of Python files, as raw text; a file is on one side of the split."""

    name = "code"
    record_formats = ("text",)
    words = CardWords(source="folder", record="function", tags=("code",))

    def read(self, source: Any, *, record_format: str, max_characters: int = 10_000, **options: Any) -> Reading:
        texts, files, known, twice = [], [], set(), 0
        for path in sorted(Path(source).glob("*.py")):
            for text in path.read_text(encoding="utf-8").split("\n\n\n"):
                key = "".join(text.split())
                if key in known:
                    twice += 1
                    continue
                known.add(key)
                texts.append(text.strip())
                files.append(path.name)
        schema = RecordSchema.for_text(max_characters)
        records = [{"text": text} for text in texts]
        left_out = {"that are near duplicates": twice} if twice else {}
        return Reading(records, schema, range(len(texts)), groups=files, left_out=left_out)

    def read_held_out(self, source: Any, schema: RecordSchema, **options: Any) -> list[dict[str, Any]]:
        return self.read(source, record_format="text", **options).records

    def problem(self, record: Mapping[str, Any]) -> str | None:
        try:
            ast.parse(record["text"])
        except SyntaxError:
            return "do not parse"
        return None


class Tools(Domain):
    """Definitions with nested parameters; a service is on one side of the split."""

    name = "tools"
    record_formats = ("json",)
    words = CardWords(source="service", record="tool")

    def read(self, source: Any, *, record_format: str, **options: Any) -> Reading:
        return self._reading(source, range(len(source)))

    def _reading(self, source: Sequence[Any], places: Sequence[int]) -> Reading:
        rows = [{name: value for name, value in row.items() if name != "service"} for row in source]
        schema = RecordSchema.infer(rows, record_format="json", text_columns=("name",))
        groups = [row["service"] for row in source]
        return Reading(schema.to_records(rows), schema, places, groups=groups, source=source)

    def read_held_out(self, source: Any, schema: RecordSchema, **options: Any) -> list[dict[str, Any]]:
        return schema.to_records([{name: row[name] for name in schema.names} for row in source])

    def select(self, reading: Reading, rows: Sequence[int]) -> Reading:
        return self._reading([reading.source[row] for row in rows], [reading.places[row] for row in rows])


def test_domains_are_found_by_name():
    assert find_domain("tables") is DOMAINS["tables"]
    own = Code()
    assert find_domain(own) is own
    with pytest.raises(ValueError, match="domain='pictures' is not one of tables"):
        find_domain("pictures")


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_a_domain_names_what_exists(domain):
    assert domain.record_formats and domain.words.record and domain.words.source


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        functions = [f"def f{number}_{part}(x):\n    return x + {part}" for part in range(4)]
        (tmp_path / f"file{number}.py").write_text("\n\n\n".join(functions))
    (tmp_path / "copy.py").write_text((tmp_path / "file0.py").read_text().replace(" + ", "  +  "))
    (tmp_path / "broken.py").write_text("def broken(:\n    pass\n\n\ndef f9_0(x):\n    return x")
    return tmp_path


def test_code_is_fitted_as_text_by_file(folder, model_folders, tmp_path):
    preset = tiny_preset(model_folders)
    with pytest.warns(UserWarning, match="4 that are near duplicates, 1 that do not parse"):
        prepared = prepare(folder, preset, domain=Code(), seed=1)
    assert prepared.settings.record_format == "text"  # whatever the preset says
    held_out = {record["text"].split("_")[0] for record in prepared.held_out}
    assert not held_out & {record["text"].split("_")[0] for record in prepared.train}
    with pytest.warns(UserWarning, match="Left out"):
        pipeline = fit(folder, tmp_path / "out", domain=Code(), preset=preset, show_progress=False)
    log = json.loads((tmp_path / "out" / "training_log.json").read_text(encoding="utf-8"))
    assert (log["domain"], log["rows"] + log["validation_rows"]) == ("code", 21)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(2, seed=0, max_attempts=1).texts) <= 2


def test_tools_are_split_by_service_and_long_ones_dropped(model_folders):
    tools = [
        {
            "service": f"service {row % 4}",
            "name": f"tool {row}",
            "parameters": {"type": "object", "depth": row % 3} | ({"notes": "x" * 500} if row == 5 else {}),
        }
        for row in range(24)
    ]
    with pytest.warns(UserWarning, match="Left out: 1 of more than 200 tokens"):
        prepared = prepare(
            tools, tiny_preset(model_folders), domain=Tools(), max_length=200, overlong="drop", seed=0
        )
    names = [{record["name"] for record in part} for part in (prepared.train, prepared.held_out)]
    services = [{tool["service"] for tool in tools if tool["name"] in part} for part in names]
    assert len(services[1]) == 1 and not services[0] & services[1]
    assert "tool 5" not in names[0] | names[1]
    assert "notes" not in json.dumps(prepared.schema.to_dict())  # of the long record alone


class TestSplits:
    def reading(self, count: int, groups: Sequence[Any] | None = None) -> Reading:
        return Reading([{"a": row} for row in range(count)], RecordSchema.for_text(), range(count), groups=groups)

    @pytest.mark.parametrize(("count", "held_out"), [(2, 1), (19, 1), (20, 2), (60, 6), (30_000, 1000)])
    def test_a_tenth_is_held_out(self, count, held_out):
        train, rest = DOMAINS["tables"].split(self.reading(count), 0, Policy())
        assert len(rest) == held_out
        assert sorted([*train, *rest]) == list(range(count))
        assert (train, rest) == (sorted(train), sorted(rest))

    def test_the_policy_says_how_many(self):
        split = DOMAINS["tables"].split(self.reading(100), 0, Policy(validation_share=0.3, max_validation_records=20))
        assert len(split[1]) == 20

    def test_groups_stay_together(self):
        groups = [row // 7 for row in range(70)]
        train, held_out = Code().split(self.reading(70, groups), 3, Policy())
        assert len(held_out) == 7 and len({groups[row] for row in held_out}) == 1
        assert sorted([*train, *held_out]) == list(range(70))

    def test_one_group_cannot_be_split(self):
        with pytest.raises(ValueError, match="All 5 records belong to one folder"):
            Code().split(self.reading(5, ["a.py"] * 5), 0, Policy())


class TestSmallAndOddTables:
    @pytest.fixture
    def preset(self, model_folders):
        return tiny_preset(model_folders)

    @pytest.mark.parametrize(
        "table",
        [
            pd.DataFrame({"a": [1, 2]}),
            pd.DataFrame({"only": ["x", "y", "x"]}),
            pd.DataFrame({"same": [1.5, 1.5], "none": [None, None]}),
            [{"a": 1}, {"b": "x"}],
        ],
        ids=["two rows", "one column", "nothing varies", "other keys"],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_small_tables_are_fitted(self, preset, table, tmp_path):
        pipeline = fit(table, tmp_path / "out", preset=preset, show_progress=False)
        pipeline.set_progress_bar_config(disable=True)
        assert len(pipeline(3, seed=0).records) == 3

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ((row for row in [{"a": 1}, {"a": 2}]), "cannot read records from generator"),
            ([{"a": 1}], "one row"),
            ([], "no columns"),
            (None, "NoneType"),
            ([[1], [2]], "row 0 .* is list, not a dict"),
        ],
        ids=["generator", "one row", "empty", "None", "lists"],
    )
    def test_what_is_no_table_is_refused(self, preset, data, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            fit(data, tmp_path / "out", preset=preset)
        assert not (tmp_path / "out").exists()

    def test_validation_data_of_other_columns(self, preset, small_table, tmp_path):
        with pytest.raises(ValueError, match="the validation data does not fit the training data: .*tame"):
            fit(small_table, tmp_path / "out", preset=preset, validation=small_table.drop(columns="tame"))

    def test_one_row_of_validation_data_is_enough(self, preset, small_table):
        assert len(prepare(small_table, preset, validation=small_table[:1]).held_out) == 1

    def test_options_of_files_are_no_options_of_frames(self, preset, small_table, tmp_path):
        small_table.to_csv(tmp_path / "table.csv", sep=";", index=False)
        with pytest.raises(ValueError, match="delimiter: only for reading a file, not for DataFrame"):
            prepare(small_table, preset, read_options={"delimiter": ";"})
        prepared = prepare(tmp_path / "table.csv", preset, read_options={"delimiter": ";"})
        assert list(prepared.schema.names) == list(small_table.columns)
