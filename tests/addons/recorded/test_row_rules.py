"""`addons/recorded/row_rules.py`: recorded rows by their times, as a connector makes timesteps of them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.recorded import RecordedDataError, open_data
from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.row_rules import RowRules
from stepwell_client.input_columns import ColumnsError
from stepwell_export.runtime.manifest import InputSpec

X = InputSpec.model_validate({"name": "x", "dtype": "float32", "shape": [1]})


N = InputSpec.model_validate({"name": "x", "dtype": "int64", "shape": [1]})


def read(folder: Path, text: str, rules: RowRules | None, spec: InputSpec = X, unit: Any = "s") -> Any:
    (folder / "rows.csv").write_text(text)
    data = open_data([folder / "rows.csv"], [spec], ColumnChoice("id", "t", {"x": ["x"]}, unit), rules)
    data.check()
    [rows] = data.read()
    names = list(data.streams)
    assert rows.times is not None
    found = [(names[code], at, x) for code, at, x in zip(rows.codes, rows.times, rows.inputs["x"][:, 0], strict=True)]
    return sorted(found), data


def test_rows_are_timesteps_in_the_order_of_their_times_and_late_ones_are_left_out(tmp_path: Path) -> None:
    text = "id,t,x\na,10,1\na,8,2\nb,1,3\na,20,4\na,9,5\n"
    found, data = read(tmp_path, text, RowRules.of("5s", None, {}, "hold", 60))
    assert found == [("a", 8, 2), ("a", 10, 1), ("a", 20, 4), ("b", 1, 3)]
    assert data.n_late == 1
    assert re.fullmatch(r"rows:5:[0-9a-f]{64}#time", data.source_id)


def test_rows_become_ticks(tmp_path: Path) -> None:
    rules = RowRules.of(None, "1s", {"": "mean"}, "hold", 1)
    found, _ = read(tmp_path, "id,t,x\na,0.5,1\na,1,2\na,1.5,\na,9.5,4\n", rules)
    assert found == [("a", 1, 1.5), ("a", 2, 1.5), ("a", 3, 1.5), ("a", 10, 4)]


def test_rows_that_are_not_sorted_are_an_error_without_an_order(tmp_path: Path) -> None:
    with pytest.raises(RecordedDataError, match="not sorted"):
        read(tmp_path, "id,t,x\na,2,1\na,1,2\n", None)


@pytest.mark.parametrize(
    "words", [("5", None, {}, "hold"), (None, "0", {}, "hold"), (None, "1s", {"": "first"}, "hold")]
)
def test_a_rule_that_is_none_is_refused(words: tuple[Any, Any, Any, str]) -> None:
    with pytest.raises(RecordedDataError, match="expected"):
        RowRules.of(*words, 60)


ORDER = RowRules.of("5s", None, {}, "hold", 60)


def test_the_timesteps_of_all_streams_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    _, data = read(tmp_path, "id,t,x\nb,9,1\na,9,2\na,7,3\nb,8,4\n", ORDER)
    [rows] = data.read()
    assert rows.inputs["x"][:, 0].tolist() == [3, 4, 1, 2]
    assert rows.positions.tolist() == [0, 1, 2, 3]


def test_a_row_before_1970_is_left_out_and_counted(tmp_path: Path) -> None:
    found, data = read(tmp_path, "id,t,x\na,-1,1\na,2,2\n", ORDER)
    assert (found, data.n_left_out) == ([("a", 2, 2)], 1)


def test_a_time_ahead_of_the_clock_is_a_time_of_recorded_data(tmp_path: Path) -> None:
    tomorrow = int(time.time()) + 86_400
    found, data = read(tmp_path, f"id,t,x\na,{tomorrow},1\n", ORDER)
    assert (found, data.n_left_out) == ([("a", tomorrow, 1)], 0)


def test_rows_of_a_tick_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    found, data = read(tmp_path, "id,t,x\na,0.5,\na,1.5,2\n", RowRules.of(None, "1s", {}, "hold", 60))
    assert (found, data.n_left_out) == ([("a", 2, 2)], 1)


def test_rows_of_which_none_is_a_timestep_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordedDataError, match="None of 1 row is a timestep"):
        read(tmp_path, "id,t,x\na,0.5,\n", RowRules.of(None, "1s", {}, "hold", 60))


def test_an_empty_cell_of_an_integer_input_does_not_count(tmp_path: Path) -> None:
    big = 2**60 + 1
    found, _ = read(tmp_path, f"id,t,x\na,0.4,{big}\na,0.5,\na,1.5,2\n", RowRules.of(None, "1s", {}, "hold", 60), N)
    assert found == [("a", 1, big), ("a", 2, 2)]


@pytest.mark.parametrize(
    ("unit", "time", "expected"),
    [
        ("s", "12.5", 12.5),
        ("ms", "12500", 12.5),
        ("us", "12500000", 12.5),
        ("ns", "1234567890123456501", 1234567890.123457),
    ],
)
def test_numbers_are_times_in_their_unit(tmp_path: Path, unit: str, time: str, expected: float) -> None:
    found, _ = read(tmp_path, f"id,t,x\na,{time},1\n", ORDER, unit=unit)
    assert found == [("a", expected, 1)]


def test_a_time_in_iso_8601_is_rounded_to_the_nearest_microsecond(tmp_path: Path) -> None:
    found, _ = read(tmp_path, "id,t,x\na,1970-01-01T00:00:01.0000017Z,1\n", ORDER)
    assert found == [("a", 1.000002, 1)]


def test_a_parquet_time_in_nanoseconds_is_rounded_to_the_nearest_microsecond(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (STEPWELL_EXTRAS=arrow)")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"t": pa.array([1_000_001_700], pa.timestamp("ns", "UTC")), "x": [1.0]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    data = open_data([tmp_path / "rows.parquet"], [X], ColumnChoice(None, "t", {"x": ["x"]}), ORDER)
    [rows] = data.read()
    assert rows.times is not None
    assert rows.times.tolist() == [1.000002]


def test_an_npz_file_without_the_array_of_the_times_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((1, 3, 1), np.float32))
    with pytest.raises(ColumnsError, match="no array 't' with the times; it has x"):
        open_data([tmp_path / "rows.npz"], [X], ColumnChoice(None, "t"), ORDER)


def test_what_a_stream_has_of_an_interrupted_run_is_found_among_more_timesteps(tmp_path: Path) -> None:
    """The first four rows are a at 1, 2 and 4, and b at 3; if a has 1 and 2 of these, one at 3.5 changes nothing."""
    _, data = read(tmp_path, "id,t,x\na,1,1\na,2,2\nb,3,3\na,4,4\nb,4,5\na,3.5,6\n", ORDER)
    assert data.end_after_beginning(4, "a", 1) == 2
    assert data.end_after_beginning(4, "b", 2) == 3
    assert data.end_after_beginning(4, "a", 3) is None


@pytest.mark.parametrize("time", ["1772366400000", "1772366400000000"])
def test_a_time_after_the_year_9999_is_refused_as_one_of_another_unit(tmp_path: Path, time: str) -> None:
    with pytest.raises(RecordedDataError, match=r"after the year 9999.*--time-unit"):
        read(tmp_path, f"id,t,x\na,{time},1\n", ORDER)
