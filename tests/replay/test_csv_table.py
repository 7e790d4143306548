"""`CsvTable` reads what a recording has, and names the line and the value of what it cannot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from service.client import ClientError, TensorInfo
from service.replay.csv_table import CsvTable, ReplayError, TableRow

MOTION = TensorInfo("motion", "float32", [2], ["x", "y"])
FLAG = TensorInfo("flag", "bool", [])
COUNT = TensorInfo("count", "int8", [])


def table(folder: Path, text: str) -> CsvTable:
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return CsvTable(path)


def values(rows: list[TableRow], name: str = "motion") -> list[object]:
    return [row.inputs[name].tolist() for row in rows]


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    data = table(tmp_path, "y,t,x\n1,0.5,2\n3,1.5,4\n")

    rows = list(data.rows([MOTION], time_column="t"))

    assert (data.count, data.columns) == (2, ["y", "t", "x"])
    assert values(rows) == [[2, 1], [4, 3]]
    assert [(row.number, row.seconds) for row in rows] == [(1, 0.5), (2, 1.5)]
    assert rows[0].inputs["motion"].dtype == np.float32


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_that_of_the_header(tmp_path: Path, separator: str) -> None:
    data = table(tmp_path, "\ufeffx , y\r\n1.5,2\r\n\r\n".replace(",", separator))

    assert values(list(data.rows([MOTION]))) == [[1.5, 2]]


def test_each_row_may_have_a_stream(tmp_path: Path) -> None:
    data = table(tmp_path, 'pump,x,y\n"a",1,2\nb,3,4\n')

    assert [row.stream for row in data.rows([MOTION], stream_column="pump")] == ["a", "b"]


def test_an_empty_cell_is_a_missing_value(tmp_path: Path) -> None:
    [row] = table(tmp_path, "x,y\n1,\n").rows([MOTION])

    assert math.isnan(row.inputs["motion"][1])


def test_types_are_those_of_the_inputs(tmp_path: Path) -> None:
    [row] = table(tmp_path, "flag,count\nTrue,-7\n").rows([FLAG, COUNT])

    assert (row.inputs["flag"].dtype.name, bool(row.inputs["flag"])) == ("bool", True)
    assert (row.inputs["count"].dtype.name, int(row.inputs["count"])) == ("int8", -7)


def test_times_may_be_dates(tmp_path: Path) -> None:
    data = table(tmp_path, "t,x,y\n2026-01-31T12:00:00Z,1,2\n2026-01-31T13:00:01+01:00,1,2\n")

    first, second = (row.seconds for row in data.rows([MOTION], time_column="t"))

    assert second - first == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no header"),
        ("x,x\n", "has the column 'x' twice"),
        ("x,y\n1,2\n1,two\n", "line 3: found 'two', expected a number for input 'motion'"),
        ("x,y\n1\n", "line 2: found 1 values, expected 2"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        list(table(tmp_path, text).rows([MOTION]))


@pytest.mark.parametrize(("cell", "words"), [("1.5", "found '1.5', expected an integer"), ("300", "exceeds int8")])
def test_a_value_that_the_input_does_not_hold_is_refused(tmp_path: Path, cell: str, words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        list(table(tmp_path, f"count\n{cell}\n").rows([COUNT]))


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    data = table(tmp_path, "a,b\n1,2\n")

    with pytest.raises(ClientError, match="made of the columns x, y; the table has a, b"):
        data.rows([MOTION])
    with pytest.raises(ReplayError, match="has no column 't'"):
        data.rows([MOTION], ["a", "b"], time_column="t")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ReplayError, match="cannot be read"):
        CsvTable(tmp_path / "absent.csv")
    with pytest.raises(ReplayError, match="is not UTF-8"):
        CsvTable(tmp_path / "binary.csv")
