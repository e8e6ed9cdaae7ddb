import csv
import gzip
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.pipelines.errors import SchemaError
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.data import TableError, as_dataframe, read_table


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


FRAME = pd.DataFrame(
    {
        "name": ['say "hi", twice', "line\nbreak", "naïve 🐧"],
        "count": [1, 2, 3],
        "rate": [0.1, 2.675, 1e-7],
        "missing": [1.0, np.nan, 3.0],
    }
)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl", "json", "CSV"])
def test_every_ending_reads_the_same_table(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    if ending == "parquet":
        FRAME.to_parquet(path)
    elif ending in ("jsonl", "json"):
        FRAME.to_json(path, orient="records", lines=ending == "jsonl", double_precision=15, force_ascii=False)
    else:
        FRAME.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    pd.testing.assert_frame_equal(read_table(path), FRAME)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(2**63), 2**63 - 1),
            st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(lambda text: f"<{text}>"),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_a_written_csv_is_read_to_the_last_digit(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "digits.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "c"), *rows])
    frame = read_table(path)
    assert list(zip(*(frame[name].tolist() for name in "abc"), strict=True)) == rows


def test_decimals_of_a_csv_are_those_written(write):
    frame = read_table(write("a.csv", "x\n0.1\n12.35\n0.07\n"))
    assert RecordSchema.infer(frame).column("x").decimals == 2


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_large_integers_beside_missing_values_are_exact(write, tmp_path, ending):
    if ending == "parquet":
        path = tmp_path / "a.parquet"
        Dataset.from_dict({"x": [2**60 + 1, None, -5], "y": [1, 2, 3]}).to_parquet(path)
    else:
        rows = [{"x": 2**60 + 1, "y": 1}, {"x": None, "y": 2}, {"x": -5, "y": 3}]
        lines = "\n".join(map(json.dumps, rows))
        content = {"csv": f"x,y\n{2**60 + 1},1\n,2\n-5,3\n", "jsonl": lines, "json": json.dumps(rows)}[ending]
        path = write(f"a.{ending}", content)
    frame = read_table(path)
    assert frame["x"].dtype == "Int64"
    assert frame["x"].dropna().tolist() == [2**60 + 1, -5]


def test_numbers_with_leading_zeros_are_text_and_say_so(write):
    path = write("a.csv", "zip,n,empty,code\n01234,0,,-0.5\n99999,10,,0.5\n,7,,3\n")
    with pytest.warns(UserWarning, match=r"leading zeros .* --text-columns zip \(text_columns=\['zip'\]\)"):
        frame = read_table(path)
    assert frame["zip"].tolist()[:2] == ["01234", "99999"]
    assert frame["zip"].isna().tolist() == [False, False, True]
    assert [frame["n"].dtype, frame["code"].dtype] == ["int64", "float64"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(read_table(path, text_columns=["zip"]), frame)
    with pytest.raises(TableError, match="no column 'zap'; the columns are 'zip', 'n'"):
        read_table(path, text_columns=["zap"])


@pytest.mark.parametrize(
    ("cells", "option", "numbers"),
    [
        (["1,234", "12", "1,234,567.5"], {"thousands": ","}, [1234, 12, 1234567.5]),
        (["1_000", "2", "30_000"], {"thousands": "_"}, [1000, 2, 30000]),
        (["1,5", "2,25", "-3"], {"decimal": ","}, [1.5, 2.25, -3]),
        (["1.234,5", "2,25", "-3"], {"decimal": ",", "thousands": "."}, [1234.5, 2.25, -3]),
    ],
)
def test_numbers_that_are_read_as_text_are_named_with_the_remedy(write, cells, option, numbers):
    path = write("a.tsv", "x\ty\n" + "".join(f"{cell}\tb\n" for cell in cells))
    command = " ".join(f"--{name} '{value}'" for name, value in option.items())
    keywords = ", ".join(f"{name}='{value}'" for name, value in option.items())
    with pytest.warns(UserWarning, match=re.escape(f"{command} ({keywords})")):
        assert read_table(path)["x"].tolist() == cells
    assert read_table(path, **option)["x"].tolist() == numbers


@pytest.mark.parametrize("cells", [["12%", "7.5 %"], ["$1,200.50", "-$3"], ["5 €", "1.000,00 €"]])
def test_numbers_with_signs_are_named(write, cells):
    path = write("a.tsv", "x\ty\n" + "".join(f"{cell}\tb\n" for cell in cells))
    with pytest.warns(UserWarning, match="column 'x' is text like .* take the signs off"):
        assert read_table(path)["x"].tolist() == cells


def test_integers_of_more_than_64_bits_are_integers(write):
    frame = read_table(write("a.csv", f"x,y,z\n{10**25},{2**63},\n-3,{2**64 - 1},{10**25}\n"))
    assert frame["x"].tolist() == [10**25, -3]
    assert frame["y"].dtype == "uint64"
    assert frame["z"].tolist()[1] == 10**25
    assert [column.kind for column in RecordSchema.infer(frame).columns] == ["integer"] * 3


def test_long_digits_with_leading_zeros_are_text(write):
    path = write("a.csv", f"x,y\n{10**25},1\n0{10**24},2\n")
    with pytest.warns(UserWarning, match="leading zeros .*--text-columns x"):
        assert read_table(path)["x"].tolist() == [str(10**25), f"0{10**24}"]


def test_text_with_commas_is_no_number(write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table(write("a.tsv", "x\ty\n1,5\tyes\nb\tno\n"))


def test_what_counts_as_missing_can_be_chosen(write):
    path = write("a.csv", "country,n\nNA,1\n,2\n")
    assert read_table(path)["country"].isna().tolist() == [True, True]
    assert read_table(path, na_values=[""])["country"].isna().tolist() == [False, True]


def test_other_delimiters_and_encodings(write):
    path = write("a.csv", "name;n\ncafé;1\nthé;2\n".encode("latin-1"))
    assert read_table(path, delimiter=";", encoding="latin-1")["name"].tolist() == ["café", "thé"]
    assert list(read_table(write("b.csv", "a,b\n1,2\n3,4\n".encode("utf-8-sig"))).columns) == ["a", "b"]


def test_fields_longer_than_the_csv_limit(write):
    limit = csv.field_size_limit()
    assert read_table(write("a.csv", "a,b\n" + "x" * 200_000 + ",1\ny,2\n"))["a"].str.len().tolist() == [200_000, 1]
    assert csv.field_size_limit() == limit


def test_constant_and_empty_columns_are_allowed(write):
    frame = read_table(write("a.csv", "constant,empty,n\nx,,1\nx,,2\n"))
    with pytest.warns(UserWarning, match="'empty' has no values"):
        schema = RecordSchema.infer(frame)
    assert [column.kind for column in schema.columns] == ["category", "null", "integer"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", ["a.csv is empty"]),
        ("a.parquet", "", ["a.parquet is empty"]),
        ("a.xlsx", "x", ["'.xlsx'", ".csv, .tsv, .parquet, .jsonl, .json", "pandas.read_excel"]),
        ("a.feather", "x", ["'.feather'", "convert it"]),
        ("a", "x", ["without an ending", ".csv"]),
        ("a.csv.gz", "x", ["'.gz'", "unpack it"]),
        ("a.csv", gzip.compress(b"a,b\n1,2\n3,4\n", mtime=0), ["packed with gzip, not .csv", "unpack it"]),
        ("a.csv", b"PK\x03\x04\x14\x00\x00\x00", ["Excel", "pandas.read_excel"]),
        ("a.jsonl", b"PAR1\x15\x04", ["a parquet file, not .jsonl", "rename it to .parquet"]),
        ("a.csv", "a,b\nx\0y,1\nz,2\n", ["line 2 holds a NUL", "--encoding"]),
        ("a.csv", "a,b\n", ["no rows, only column names", "at least 2"]),
        ("a.csv", "a,b\n1,2\n", ["one row", "at least 2"]),
        ("a.csv", "\n\n", ["no header"]),
        ("a.csv", " , \n1,2\n3,4\n", ["no header"]),
        ("a.csv", "a,b,a\n1,2,3\n4,5,6\n", ["'a' occurs 2 times in the header", "rename"]),
        ("a.csv", "a,b\n1,2\n3\n", ["line 3", "1 fields", "has 2"]),
        ("a.csv", "a,b\n1,2,3\n4,5,6\n", ["line 2", "3 fields", "has 2", "quote"]),
        ("a.csv", 'a,b\n"x\ny",2\n3,4,5\n', ["line 4", "3 fields"]),
        ("a.csv", b"a,b\ncaf\xe9,1\nx,2\n", ["not utf-8", "0xe9", "latin-1", "iconv"]),
        ("a.jsonl", b'{"a": "caf\xe9"}\n{"a": 1}\n', ["not utf-8", "0xe9"]),
        ("a.parquet", "a,b\n1,2\n", ["not a readable parquet file"]),
        ("a.jsonl", '{"a": 1}\n{"a": \n', ["line 2", "not JSON"]),
        ("a.jsonl", '{"a": 1}\n[1]\n', ["line 2", "expected an object, found list"]),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', ["line 2", "'a' occurs twice"]),
        ("a.jsonl", '{"a": 1}\n', ["one row"]),
        ("a.jsonl", "\n\n", ["no rows"]),
        ("a.json", "[]", ["no rows"]),
        ("a.json", '{"a": [1, 2]}', ["array of objects"]),
        ("a.json", "[1, 2]", ["array of objects"]),
        ("a.json", "[{]", ["not JSON"]),
        ("a.jsonl", "{}\n{}\n", ["no columns"]),
    ],
)
def test_files_that_are_no_table_are_refused(write, name, content, words):
    with pytest.raises(TableError) as error:
        read_table(write(name, content))
    for word in [name, *words]:
        assert word in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(TableError, match="is a folder"):
        read_table(tmp_path)


def test_repeated_parquet_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"]), tmp_path / "a.parquet"
    )
    with pytest.raises(TableError, match="'a' occurs 2 times"):
        read_table(tmp_path / "a.parquet")


def test_a_column_without_a_name_warns(write):
    with pytest.warns(UserWarning, match="column 1 has no name"):
        frame = read_table(write("a.csv", ",x\n0,5\n1,6\n"))
    assert list(frame.columns) == ["Unnamed: 0", "x"]


@pytest.mark.parametrize(("delimiter", "name"), [(";", ";"), ("\t", "tab"), ("|", r"\|")])
def test_another_delimiter_is_found_and_said(write, delimiter, name):
    text = delimiter.join(["name", "price"]) + "\n" + delimiter.join(['"a, b"', "1,5"]) + "\n"
    path = write("a.csv", text + delimiter.join(["c", "2,5"]) + "\n")
    with pytest.warns(UserWarning, match=f"delimiter '{name}' .2 columns.*--delimiter"):
        frame = read_table(path, decimal=",")
    assert frame.to_dict("list") == {"name": ["a, b", "c"], "price": [1.5, 2.5]}


@pytest.mark.parametrize(
    "text", ["a;b,c|d\n1;2,3|4\n5;6,7|8\n", "note\na;b\nc\n", "a;b|c\n1;2|3\n4;5|6\n", 'a\n"x;y"\n"z;w"\n']
)
def test_where_two_delimiters_or_none_fit_the_comma_is_kept(write, text):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is read with")
        frame = read_table(write("a.csv", text))
    assert len(frame.columns) == len(text.splitlines()[0].split(","))


def test_a_column_that_may_hold_a_delimiter_warns(write):
    with pytest.warns(UserWarning, match="is the delimiter ';'.*--delimiter"):
        read_table(write("a.csv", "a;b\n1;2\n3\n"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_order_mark_tells_the_encoding(write, encoding, ending):
    text = "name,n\ncafé,1\nthé,2\n" if ending == "csv" else '{"name": "café", "n": 1}\n{"name": "thé", "n": 2}\n'
    frame = read_table(write(f"a.{ending}", text.encode(encoding)))
    assert frame.to_dict("list") == {"name": ["café", "thé"], "n": [1, 2]}


def test_an_encoding_that_does_not_exist_or_does_not_fit(write):
    path = write("a.csv", "a,b\n1,2\n3,4\n")
    with pytest.raises(TableError, match="no encoding 'utf-9'"):
        read_table(path, encoding="utf-9")
    with pytest.raises(TableError, match="not utf-16 text.*--encoding latin-1"):
        read_table(path, encoding="utf-16")


def test_index_levels_of_a_parquet_file_are_columns(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": list("xyz"), "v": [0.5, 1.5, 2.5]})
    frame.set_index(["a", "b"]).to_parquet(tmp_path / "multi.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "multi.parquet"), frame, check_dtype=False)
    frame.iloc[1:].to_parquet(tmp_path / "rows.parquet")  # row numbers are no column
    assert list(read_table(tmp_path / "rows.parquet").columns) == ["a", "b", "v"]
    with pytest.warns(UserWarning, match=r"index level 'a' is left out: .*reset_index"):
        as_dataframe(frame.set_index("a"))
    frame.set_index(pd.Index(["k", "l", "m"])).to_parquet(tmp_path / "labels.parquet")
    with pytest.warns(UserWarning, match=r"index level '0 \(without a name: k, \.\.\.\)' is left out"):
        read_table(tmp_path / "labels.parquet")


def test_infinite_numbers_are_found_by_row_and_column(write):
    frame = read_table(write("a.csv", "a,b\n1.5,1\ninf,2\n"))
    with pytest.raises(SchemaError, match="column 'a' holds inf in row 1"):
        RecordSchema.infer(frame)


@pytest.mark.parametrize(
    "data",
    [
        FRAME,
        FRAME.set_index(pd.Index(["x", "y", "z"])),
        Dataset.from_pandas(FRAME),
        FRAME.astype(object).where(FRAME.notna(), None).to_dict("records"),
    ],
    ids=["frame", "index", "dataset", "list"],
)
def test_tables_in_memory(data):
    pd.testing.assert_frame_equal(as_dataframe(data), FRAME)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([], TableError, "no columns"),
        (pd.DataFrame({"a": []}), TableError, "no rows"),
        (pd.DataFrame({"a": [1]}), TableError, "at least 2 rows"),
        (pd.DataFrame([[1, 2], [3, 4]]), SchemaError, "not a string"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), SchemaError, "more than once"),
        ("table.csv", SchemaError, "read_table"),
    ],
)
def test_tables_in_memory_that_are_refused(data, error, words):
    with pytest.raises(error, match=words):
        as_dataframe(data)
    if error is TableError and len(data):
        assert len(as_dataframe(data, min_rows=len(data))) == len(data)
