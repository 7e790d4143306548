"""The reader of recorded data: formats, columns by name, missing values, order, memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.recorded import RecordedData, RecordedDataError, gathered, open_data
from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.tables import PIECE_ROWS, CsvFile
from stepwell_client.input_columns import ColumnsError
from stepwell_export.runtime.errors import MissingExtraError
from stepwell_export.runtime.manifest import Array, InputSpec
from tests.addons.recorded.files import an_input, write_csv, write_npz

PQ = ["p", "q"]


def by_stream(data: RecordedData) -> dict[str, Array]:
    """Return the rows of the input x of each stream, in the order in which blocks have them."""
    found: dict[int, list[Array]] = {}
    for rows in gathered(data.read(), most_bytes=1 << 14):
        for group in rows.groups(3):
            for block in group.blocks():
                for code, chunk in zip(block.codes.tolist(), block.inputs["x"], strict=True):
                    found.setdefault(code, []).append(chunk)
    return {stream: np.concatenate(found[code]) for stream, code in data.streams.items()}


def read(paths: Path | Sequence[Path], specs: Sequence[InputSpec] = (an_input(),), **choice: Any) -> dict[str, Array]:
    given = [paths] if isinstance(paths, Path) else list(paths)
    data = open_data(given, specs, ColumnChoice(**choice))
    assert sum(map(len, data.read())) == data.check()
    return by_stream(data)


def error_of(path: Path, specs: Sequence[InputSpec] = (an_input(),), **choice: Any) -> RecordedDataError | ColumnsError:
    with pytest.raises((RecordedDataError, ColumnsError)) as caught:
        open_data([path], specs, ColumnChoice(**choice)).check()
    assert isinstance(caught.value, RecordedDataError | ColumnsError)
    return caught.value


@pytest.fixture
def interleaved() -> tuple[dict[str, Array], list[tuple[str, int, float, float]]]:
    """Streams of different lengths, and their rows in a random order that keeps that of each stream."""
    rng = np.random.default_rng(5)
    streams = {f"d{n}": rng.standard_normal((40 * n + 1, 2)).astype(np.float32) for n in range(9)}
    names = rng.permutation([name for name, rows in streams.items() for _ in rows])
    at = dict.fromkeys(streams, 0)
    rows = []
    for name in names.tolist():
        p, q = streams[name][at[name]].tolist()
        rows.append((name, at[name], p, q))
        at[name] += 1
    return streams, rows


def test_a_csv_file_gives_each_stream_its_rows_in_their_order(tmp_path: Path, interleaved: Any) -> None:
    streams, rows = interleaved
    file = write_csv(tmp_path / "a.csv", ["device", "time", "p", "q"], rows)

    found = read(file, stream="device", time="time", inputs={"x": PQ})

    assert found.keys() == streams.keys()
    for name in streams:
        np.testing.assert_array_equal(found[name], streams[name])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_the_separator_is_that_of_the_first_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufeffx[1] , x[0]\r\n1.5,2\r\n\r\n"3",4\r\n'.replace(",", separator), encoding="utf-8")

    [rows] = open_data([path], [an_input()], ColumnChoice()).read()

    assert rows.inputs["x"].tolist() == [[2, 1.5], [4, 3]]


@pytest.mark.parametrize("cell", [" 2.5", "NaN", "-inf", "1_0", "", "é"])
def test_a_large_csv_file_is_read_as_a_small_one(tmp_path: Path, cell: str) -> None:
    """Large pieces are parsed by pyarrow, which has to be installed for that."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; the extra arrow has it")
    some = [(f"ü {i % 7}", i / 3, cell if i == 5 else -i / 7) for i in range(10)]
    many = some + [("later", 1.5, 2)] * PIECE_ROWS
    small, large = (CsvFile(write_csv(tmp_path / f"{len(rows)}.csv", ["s", "p", "q"], rows)) for rows in (some, many))

    [expected] = small.pieces({"s": "U", "p": "f8", "q": "f8"})
    found = next(iter(large.pieces({"s": "U", "p": "f8", "q": "f8"})))

    for name in ("s", "p", "q"):
        assert [str(found[name][i]) for i in range(10)] == [str(one) for one in expected[name]]


@pytest.mark.parametrize("is_dictionary", [True, False])
def test_a_parquet_file_gives_the_same_as_a_csv_file(tmp_path: Path, interleaved: Any, is_dictionary: bool) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    streams, rows = interleaved
    device, time, p, q = zip(*rows, strict=True)
    columns = {
        "device": pa.array(device).dictionary_encode() if is_dictionary else pa.array(device),
        "time": pa.array(time, pa.timestamp("ms")),
        "p": p,
        "q": q,
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")

    found = read(tmp_path / "a.parquet", stream="device", time="time", inputs={"x": PQ})

    assert found.keys() == streams.keys()
    for name in streams:
        np.testing.assert_array_equal(found[name], streams[name])


def test_integers_are_stream_ids_of_a_parquet_file_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"s": [7, 7, None, 8], "x": [1.0, 2.0, 3.0, None]}), tmp_path / "a.parquet")

    found = read(tmp_path / "a.parquet", [an_input(shape=[], missing="nan")], stream="s")

    assert found.keys() == {"7", "", "8"}
    assert found["7"].tolist() == [1, 2]
    assert np.isnan(found["8"][0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_file_has_a_stream_per_row_of_its_arrays(tmp_path: Path, order: str) -> None:
    x = np.random.default_rng(1).standard_normal((7, 300, 2))
    write_npz(tmp_path / "a.npz", x__x=np.asfortranarray(x) if order == "F" else x)

    found = read(tmp_path / "a.npz")

    assert list(found) == [str(n) for n in range(7)]
    np.testing.assert_array_equal(np.stack(list(found.values())), x.astype(np.float32))


def test_several_files_of_a_folder_follow_each_other_and_their_rows_count_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "2.csv", ["s", "x[0]", "x[1]"], [("a", 3, 4), ("b", 5, 6)])
    write_csv(tmp_path / "1.csv", ["x[1]", "s", "x[0]"], [(2, "a", 1)])
    (tmp_path / "notes.txt").write_text("not data")

    data = open_data([tmp_path], [an_input()], ColumnChoice(stream="s"))

    assert np.concatenate([rows.positions for rows in data.read()]).tolist() == [0, 1, 2]
    assert {name: rows.tolist() for name, rows in by_stream(data).items()} == {"a": [[1, 2], [3, 4]], "b": [[5, 6]]}


def test_a_file_without_a_column_of_streams_is_one_stream_of_its_name(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "pump-7.csv", PQ, [(1, 2), (3, 4)])

    assert read(file, inputs={"x": PQ})["pump-7"].tolist() == [[1, 2], [3, 4]]


def test_an_input_without_named_columns_has_those_of_its_labels(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", ["flow", "temp"], [(1, 2)])

    assert read(file, [an_input(labels=["temp", "flow"])])["a"].tolist() == [[2, 1]]


def test_integers_beyond_the_precision_of_floats_are_exact(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", ["x"], [(2**53 + 1,), (-(2**62) - 1,)])

    assert read(file, [an_input(shape=[], dtype="int64")])["a"].tolist() == [2**53 + 1, -(2**62) - 1]


def test_missing_values_are_nan_where_the_manifest_allows_them(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", PQ, [("", "1"), ("2", "NA"), ("nan", "3")])

    found = read(file, [an_input(missing="nan")], inputs={"x": PQ})["a"]

    np.testing.assert_array_equal(found, np.array([[np.nan, 1], [2, np.nan], [np.nan, 3]], np.float32))


@pytest.mark.parametrize(
    ("cells", "dtype", "message"),
    [
        (("1", ""), "float32", "column 'q', row 2: the value is missing; input 'x' takes finite numbers"),
        (("1", "1e39"), "float32", "column 'q', row 2: the value is 1e+39; input 'x' takes finite numbers"),
        (("1", "high"), "float32", "column 'q', row 2: 'high' is not a number"),
        (("1", "1.5"), "int64", "column 'q', row 2: the value is 1.5; input 'x' takes values of int64"),
        (("1", "300"), "int8", "column 'q', row 2: the value is 300; input 'x' takes values of int8"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_column_and_row(
    tmp_path: Path, cells: tuple[str, str], dtype: str, message: str
) -> None:
    file = write_csv(tmp_path / "a.csv", PQ, [(1, 2), cells])

    assert message in error_of(file, [an_input(dtype=dtype)], inputs={"x": PQ}).problem


def test_unknown_columns_are_refused_with_those_that_are_there(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", PQ, [(1, 2)])

    for choice in ({"stream": "device"}, {"time": "when"}, {"inputs": {"x": ["p", "r"]}}, {}):
        assert "a.csv" in error_of(file, **choice).problem
        assert "p, q" in error_of(file, **choice).problem
    assert "the model's inputs are x" in error_of(file, inputs={"y": PQ}).problem
    assert "has 2 numbers and was given 1 column" in error_of(file, inputs={"x": ["p"]}).problem


@pytest.mark.parametrize("times", [("1", "2", "1.5"), ("2026-01-01", "2026-01-01T10:00:00Z", "2026-01-01 09:00")])
def test_a_stream_that_is_not_sorted_by_time_is_named(tmp_path: Path, times: tuple[str, str, str]) -> None:
    first, second, third = times
    rows = [("a", first, 1, 2), ("b", second, 1, 2), ("a", second, 1, 2), ("b", third, 1, 2)]
    file = write_csv(tmp_path / "a.csv", ["s", "t", *PQ], rows)

    error = error_of(file, stream="s", time="t", inputs={"x": PQ})

    assert "Stream 'b' is not sorted by 't': row 4 has" in error.problem


def test_the_order_by_time_is_checked_across_pieces_and_files(tmp_path: Path) -> None:
    write_csv(tmp_path / "1.csv", ["s", "t", *PQ], [("a", t, 0, 0) for t in range(40_000)])
    write_csv(tmp_path / "2.csv", ["s", "t", *PQ], [("b", 0, 0, 0), ("a", 39_998, 0, 0)])

    assert "Stream 'a'" in error_of(tmp_path, stream="s", time="t", inputs={"x": PQ}).problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"p,q\n1,2\n3\n", "row 2: found 1 cells; expected 2"),
        ("a.csv", b"p,q\n\xff\xfe,2\n", "is not a CSV file in UTF-8"),
        ("a.csv", b"", "has no names"),
        ("a.csv", b"p,p\n1,2\n", "some of them twice"),
        ("a.csv", b"p,q\n", "there are no rows"),
        ("a.npz", b"PK\x03\x04 cut off", "is not an NPZ file"),
        ("a.parquet", b"PAR1 cut off", "is not a Parquet file"),
        ("a.xlsx", b"", "expected .csv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    (tmp_path / name).write_bytes(content)

    error = error_of(tmp_path / name, inputs={"x": PQ})

    assert name in error.problem
    assert message in error.problem


@pytest.mark.parametrize("end", [0.5, 1.0], ids=["cut off", "damaged"])
def test_a_damaged_npz_file_is_named_with_the_reason(tmp_path: Path, end: float) -> None:
    content = bytearray(write_npz(tmp_path / "a.npz", x__x=np.ones((2, 300, 2))).read_bytes())
    content[len(content) // 3] ^= 255
    (tmp_path / "a.npz").write_bytes(content[: int(end * len(content))])

    assert f"{tmp_path / 'a.npz'} is not an NPZ file" in error_of(tmp_path / "a.npz").problem


def test_a_parquet_file_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    with pytest.raises(MissingExtraError, match=r"stepwell\[arrow\]"):
        open_data([tmp_path / "a.parquet"], [an_input()], ColumnChoice())


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    """What a process needs at most for eight times the rows is about what it needs for the rows."""

    def write(name: str, n_rows: int) -> None:
        cells = [f"s{n % 50},{n},{n * 0.5}" for n in range(1000)]
        (tmp_path / name).write_text("s,p,q\n" + ("\n".join(cells) + "\n") * (n_rows // 1000))

    def peak_kib(name: str) -> int:
        program = (
            "import resource, sys; from pathlib import Path; from tests.addons.recorded.files import an_input\n"
            "from stepwell.addons.recorded import gathered, open_data\n"
            "from stepwell.addons.recorded.column_choice import ColumnChoice\n"
            "from stepwell.addons.recorded import data; data.KEPT_BYTES = 1 << 20\n"
            "data = open_data([Path(sys.argv[1])], [an_input()], ColumnChoice('s', None, {'x': ['p', 'q']}))\n"
            "data.check(); n = sum(b.size for r in gathered(data.read(), 1 << 20) for g in r.groups(8) "
            "for b in g.blocks())\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, check=True)
        return int(done.stdout)

    write("small.csv", 100_000)
    write("large.csv", 800_000)

    assert peak_kib("large.csv") < peak_kib("small.csv") + 20_000


def test_a_small_recording_is_parsed_once(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("s,p,q\na,1,2\nb,3,4\n")
    data = open_data([path], [an_input()], ColumnChoice(stream="s", inputs={"x": PQ}))
    assert data.check() == 2
    path.unlink()

    found = by_stream(data)
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [[1, 2]], "b": [[3, 4]]}


# ------------------------------------------------------------- identity, ids, columns of NPZ


def source_of(*paths: Path, specs: Sequence[InputSpec] = (an_input(),), **choice: Any) -> str:
    data = open_data(list(paths), specs, ColumnChoice(**choice))
    data.check()
    return data.source_id


def test_rows_have_one_identity_whatever_their_format_and_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(3)
    values = rng.standard_normal((40, 2)).astype(np.float32)
    ids = [f"{n % 3:04}" for n in range(40)]
    rows = [(name, *map(repr, row)) for name, row in zip(ids, values.astype(float).tolist(), strict=True)]
    whole = write_csv(tmp_path / "a.csv", ["device", "p", "q"], rows)
    parts = [write_csv(tmp_path / "b1.csv", ["q", "p", "device"], [row[::-1] for row in rows[:7]])]
    parts += [write_csv(tmp_path / "b2.csv", ["device", "p", "q"], rows[7:])]
    parquet.write_table(pa.table({"device": ids, "p": values[:, 0], "q": values[:, 1]}), tmp_path / "c.parquet")
    npz = write_npz(tmp_path / "d.npz", device=np.array(ids), p=values[:, 0], q=values[:, 1])
    choice: dict[str, Any] = {"stream": "device", "inputs": {"x": PQ}}

    found = {source_of(*files, **choice) for files in ([whole], parts, [tmp_path / "c.parquet"], [npz])}

    assert len(found) == 1
    [(kind, count, digest)] = [one.split(":") for one in found]
    assert (kind, count, len(digest)) == ("rows", "40", 64)


@pytest.mark.parametrize(
    "other",
    [
        [("a", 1, 2), ("b", 3, 4), ("a", 5, 7)],
        [("a", 1, 2), ("a", 5, 6), ("b", 3, 4)],
        [("a", 1, 2), ("a", 3, 4), ("b", 5, 6)],
        [("a", 1, 2), ("b", 3, 4)],
    ],
    ids=["another last row", "another order", "another stream", "fewer rows"],
)
def test_other_rows_have_another_identity(tmp_path: Path, other: list[tuple[str, int, int]]) -> None:
    """The mutants of the identity are here: names and sizes, the first rows alone, the rows without their order."""
    rows = [("a", 1, 2), ("b", 3, 4), ("a", 5, 6)]
    choice: dict[str, Any] = {"stream": "device", "inputs": {"x": PQ}}

    one = source_of(write_csv(tmp_path / "a.csv", ["device", *PQ], rows), **choice)
    another = source_of(write_csv(tmp_path / "a.csv", ["device", *PQ], other), **choice)

    assert one != another


def test_equal_values_at_other_times_are_other_rows(tmp_path: Path) -> None:
    found = set()
    for day in (1, 2):
        rows = [(f"2026-01-0{day}T00:00:0{n}Z", 0, 0) for n in range(3)]
        found.add(source_of(write_csv(tmp_path / "a.csv", ["time", *PQ], rows), time="time", inputs={"x": PQ}))

    assert len(found) == 2


def test_the_beginning_of_grown_data_has_the_identity_that_it_had_before(tmp_path: Path) -> None:
    rows = [(f"d{n % 5}", n, -n) for n in range(90)]
    choice: dict[str, Any] = {"stream": "device", "inputs": {"x": PQ}}
    before = {n: source_of(write_csv(tmp_path / "a.csv", ["device", *PQ], rows[:n]), **choice) for n in (30, 31, 90)}
    data = open_data([write_csv(tmp_path / "a.csv", ["device", *PQ], rows)], [an_input()], ColumnChoice(**choice))
    data.check()

    assert data.source_ids_of_beginnings({31, 30, 90}) == set(before.values())


ODD_IDS = ["0042", "42", "1.10", "48e2", "a:b@c", "-7"]


@pytest.mark.parametrize("ending", ["csv", "quoted csv", "parquet", "npz"])
def test_an_id_is_the_text_as_it_stands(tmp_path: Path, ending: str) -> None:
    values = [[n, n] for n in range(len(ODD_IDS))]
    file = tmp_path / f"data.{ending.rsplit(maxsplit=1)[-1]}"
    if ending == "npz":
        write_npz(file, device=np.array(ODD_IDS), p=np.arange(6.0), q=np.arange(6.0))
    elif ending == "parquet":
        pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
        from pyarrow import parquet

        parquet.write_table(pa.table({"device": ODD_IDS, "p": np.arange(6.0), "q": np.arange(6.0)}), file)
    else:
        quote = '"' * (ending != "csv")
        lines = [f"{quote}{name}{quote},{p},{q}" for name, (p, q) in zip(ODD_IDS, values, strict=True)]
        file.write_text("\n".join(["device,p,q", *lines]))

    data = open_data([file], [an_input()], ColumnChoice(stream="device", inputs={"x": PQ}))
    data.check()
    data.check_stream_ids()

    assert list(data.streams) == ODD_IDS


@pytest.mark.parametrize("name", ["+42", " 42", "4 2", "\uff14\uff12", "", "."])
def test_an_id_that_no_stream_can_have_is_named_with_file_and_row(tmp_path: Path, name: str) -> None:
    file = write_csv(tmp_path / "a.csv", ["device", *PQ], [("a", 1, 2), (name, 3, 4)])
    data = open_data([file], [an_input()], ColumnChoice(stream="device", inputs={"x": PQ}))
    data.check()

    with pytest.raises(RecordedDataError, match=r"a\.csv, row 2: .* is not a stream id"):
        data.check_stream_ids()


def test_fractions_are_no_ids(tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "a.npz", device=np.array([42.0, 43.0]), p=np.zeros(2), q=np.zeros(2))
    choice: dict[str, Any] = {"stream": "device", "inputs": {"x": PQ}}

    assert "which are texts or integers" in error_of(npz, **choice).problem

    pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    from pyarrow import parquet

    parquet.write_table(pa.table({"device": [1.0, 2.0], "p": [1.0, 2.0], "q": [1.0, 2.0]}), tmp_path / "a.parquet")
    problem = error_of(tmp_path / "a.parquet", **choice).problem
    assert "has values of type double; a stream's id is a text or an integer" in problem


def test_times_in_nanoseconds_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
    from pyarrow import parquet

    at = pa.array([1_700_000_000_000_000_001, 1_700_000_000_000_002_003], pa.timestamp("ns"))
    parquet.write_table(pa.table({"t": at, "p": [1.0, 2.0], "q": [1.0, 2.0]}), tmp_path / "a.parquet")

    assert read(tmp_path / "a.parquet", time="t", inputs={"x": PQ})["a"].tolist() == [[1, 1], [2, 2]]


NO_NUMBERS = ["4_2", "\uff14\uff12", "0x2a", "+5", ".5", "-.5", "5.", "5.e3", "007", "-007", " +5", "00", "1.5.", "--5"]
"""Most of them are numbers for Python, NumPy or Arrow; none is one in JSON's grammar."""


@pytest.mark.parametrize(
    ("n_rows", "cells"), [(1, NO_NUMBERS), (PIECE_ROWS, ["4_2", "\uff14\uff12", "0x2a", "+5", ".5", "5.", "007"])]
)
def test_what_json_has_not_as_a_number_is_none(tmp_path: Path, n_rows: int, cells: list[str]) -> None:
    """In a connector's messages, too; a large file is read by Arrow."""
    for cell, dtype in zip(cells, itertools.cycle(["float32", "int64"]), strict=False):
        rows = [("0042", 1, 2)] * (n_rows - 1) + [("+7", 1, cell)]
        file = write_csv(tmp_path / "a.csv", ["note", *PQ], rows)
        problem = error_of(file, [an_input(dtype=dtype)], inputs={"x": PQ}).problem

        assert f"row {n_rows}: {cell.strip()!r} is not a number" in problem


@pytest.mark.parametrize(("n_rows", "end"), [(1, "\n"), (PIECE_ROWS, "\n"), (PIECE_ROWS, "\r\n")])
def test_a_number_of_json_is_the_number_of_a_cell(tmp_path: Path, n_rows: int, end: str) -> None:
    """Texts that begin like other numbers may stand in other columns."""
    numbers = ["0", "-0.5", "48e2", "1E+05", "1e-05", "10", " 5", "100.25 "]
    cells = ["+5", ".5", "007", *numbers]
    file = tmp_path / "a.csv"
    file.write_text(end.join([",".join(f"c{n}" for n in range(len(cells))), *[",".join(cells)] * n_rows]), newline="")

    found = read(file, [an_input(shape=[8])], inputs={"x": [f"c{n}" for n in range(3, 11)]})["a"]

    assert len(found) == n_rows
    assert found[-1].tolist() == np.array([float(one) for one in numbers], np.float32).tolist()


def test_the_message_has_the_number_that_was_meant(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", PQ, [(1, "+.50")])
    problem = error_of(file, [an_input()], inputs={"x": PQ}).problem

    assert problem.endswith("'+.50' is not a number; expected 0.5, as JSON has it.")


def test_an_npz_file_may_have_an_array_for_each_number(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", p=np.arange(6.0).reshape(2, 3), q=-np.arange(6.0).reshape(2, 3))

    found = read(file, inputs={"x": PQ})

    assert found["1"].tolist() == [[3, -3], [4, -4], [5, -5]]


def test_an_array_that_an_npz_file_lacks_is_named(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", p=np.zeros((2, 3)))

    assert "has no column q" in error_of(file, inputs={"x": PQ}).problem
    assert "has no array 'x:x'" in error_of(file).problem
    assert "has no array 'device'" in error_of(file, [an_input(shape=())], stream="device", inputs={"x": ["p"]}).problem
    assert "Columns are named for z" in error_of(file, inputs={"z": ["p"]}).problem
