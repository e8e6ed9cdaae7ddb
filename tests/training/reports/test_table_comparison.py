"""Column comparisons against values worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from difflm.training.reports.table_comparison import (
    compare_columns,
    format_comparison,
    format_table,
    mean_shape_error_percent,
    shape_error_percent,
)


def test_equal_columns_have_no_error():
    for values in ([1.0, 2.0, 3.0], ["a", "b", "b"], [True, False, True]):
        column = pd.Series(values)
        assert shape_error_percent(column, column.sample(frac=1, random_state=0)) == pytest.approx(0)


def test_numbers_by_the_kolmogorov_smirnov_distance():
    # The cumulative shares are furthest apart (3/4 against 1/4) between 2 and 3.
    assert shape_error_percent(pd.Series([1, 1, 2, 4]), pd.Series([1.0, 3.0, 4.0, 4.0])) == pytest.approx(50)


def test_categories_by_the_total_variation_distance():
    real, synthetic = pd.Series(["a", "a", "a", "b"]), pd.Series(["a", "b", "c", "c"])
    assert shape_error_percent(real, synthetic) == pytest.approx(50)
    assert shape_error_percent(pd.Series([True, True]), pd.Series([True, False])) == pytest.approx(50)


def test_missing_values_are_left_out_of_the_shape_and_counted_apart():
    real = pd.DataFrame({"x": [1.0, 2.0, None, None]})
    synthetic = pd.DataFrame({"x": pd.array([1, 2, 1, 2], dtype="Int64")})
    (row,) = compare_columns(real, synthetic)
    assert row.shape_error_percent == pytest.approx(0)
    assert (row.real_null_percent, row.synthetic_null_percent) == (50.0, 0.0)


def test_nothing_but_missing_values_is_the_worst():
    empty = pd.Series([None, None], dtype="float64")
    assert shape_error_percent(pd.Series([1.0, 2.0]), empty) == 100
    assert shape_error_percent(empty, empty) == 0


def test_nullable_and_plain_dtypes_compare():
    assert shape_error_percent(pd.Series([1.0, 2.0]), pd.Series([1, 2], dtype="Int64")) == pytest.approx(0)
    assert shape_error_percent(pd.Series(["a"], dtype="category"), pd.Series(["a"])) == pytest.approx(0)


def test_a_missing_column_and_an_empty_table_are_refused():
    real = pd.DataFrame({"x": [1], "y": [2]})
    with pytest.raises(ValueError, match="lacks the columns y"):
        compare_columns(real, real[["x"]])
    with pytest.raises(ValueError, match="at least one row"):
        compare_columns(real, real[:0])


def test_the_printed_table_lines_up_and_states_the_mean():
    real = pd.DataFrame({"x": np.arange(8.0), "species": ["Adelie"] * 6 + ["Gentoo"] * 2})
    comparison = compare_columns(real, real.assign(species=["Adelie"] * 8))
    lines = format_comparison(comparison).splitlines()
    assert lines[-1] == "mean shape error: 12.5 %"
    assert mean_shape_error_percent(comparison) == pytest.approx(12.5)
    assert "Adelie 75 %, Gentoo 25 %" in lines[3]
    assert lines[2].startswith("x ")
    assert "3.5 ± 2.29" in lines[2]
    assert {len(line) for line in lines[:4]} == {len(lines[0])}


def test_numbers_are_right_aligned():
    text = format_table([{"a": "long name", "b": 1.25}, {"a": "x", "b": 100.0}], {"a": "name", "b": "n"})
    assert text.splitlines()[2:] == ["long name    1.2", "x          100.0"]
