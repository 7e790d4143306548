"""The file of predictions: formats, rows that are not known, and what an interrupted run leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.backfill.partial_predictions import BackfillError, PartialPredictionsFile
from stepwell.addons.backfill.writers import writer_of
from stepwell_export.runtime.manifest import OutputSpec

OUTPUTS = [OutputSpec(name="y", dtype="float32", shape=[2]), OutputSpec(name="n", dtype="int64", shape=[])]
Y = np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 3
N = np.arange(6).reshape(2, 3) + 2**60
POSITIONS = np.array([[0, 2, 4], [1, 3, 5]])


def slots(path: Path, **identity: Any) -> PartialPredictionsFile:
    return PartialPredictionsFile(path, 6, OUTPUTS, {"source": "a", **identity})


def filled(path: Path, *, unknown: tuple[int, int] = (0, 0)) -> PartialPredictionsFile:
    """Return predictions of two streams of three rows; the second one was at step 7 before."""
    predictions = slots(path)
    predictions.write(POSITIONS, np.array([1, 0]), np.array([3, 10]), np.array(unknown), {"y": Y, "n": N})
    return predictions


def finish(predictions: PartialPredictionsFile) -> int:
    return predictions.finish(["left", "right"], writer_of(predictions.path))


def test_a_csv_file_has_a_line_per_row_in_the_order_of_the_data(tmp_path: Path) -> None:
    assert finish(filled(tmp_path / "out.csv")) == 0

    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["stream", "step", "y[0]", "y[1]", "n"]
    assert [line[:2] for line in lines[1:4]] == [["right", "1"], ["left", "8"], ["right", "2"]]
    assert np.array([[float(cell) for cell in line[2:4]] for line in lines[1::2]], np.float32).tolist() == Y[0].tolist()
    assert [int(line[4]) for line in lines[1:]] == N.T.ravel().tolist()


def test_columns_have_the_labels_of_the_output_as_in_replay(tmp_path: Path) -> None:
    outputs = [OutputSpec(name="next", dtype="float32", shape=[2], labels=["temperature", "flow"]), OUTPUTS[1]]

    assert PartialPredictionsFile(tmp_path / "out.csv", 6, outputs, {}).columns == [
        "stream", "step", "next[temperature]", "next[flow]", "n"
    ]  # fmt: skip


def test_an_npz_file_has_an_array_per_column(tmp_path: Path) -> None:
    finish(filled(tmp_path / "out.npz"))

    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["stream"].tolist() == ["right", "left"] * 3
        assert arrays["step"].tolist() == [1, 8, 2, 9, 3, 10]
        assert arrays["y[1]"].tolist() == Y[..., 1].T.ravel().tolist()
        assert arrays["n"].tolist() == N.T.ravel().tolist()


def test_a_parquet_file_has_the_same_columns_and_null_where_nothing_is_known(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install 'stepwell[arrow]'")

    assert finish(filled(tmp_path / "out.parquet", unknown=(1, 0))) == 1

    columns = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert columns["stream"] == ["right", "left"] * 3
    assert columns["step"] == [1, 8, 2, 9, 3, 10]
    assert columns["n"] == [None, *N.T.ravel().tolist()[1:]]
    assert columns["y[0]"][0] is None


def test_what_is_not_known_is_empty_in_csv_and_nan_in_npz(tmp_path: Path) -> None:
    assert [finish(filled(tmp_path / name, unknown=(0, 2))) for name in ("out.csv", "out.npz")] == [2, 2]

    assert (tmp_path / "out.csv").read_text().splitlines()[2] == "left,8,,,"
    with np.load(tmp_path / "out.npz") as arrays:
        assert np.isnan(arrays["y[0]"]).tolist() == [False, True, False, True, False, False]


def test_an_interrupted_run_leaves_its_rows_for_the_next_one(tmp_path: Path) -> None:
    first = slots(tmp_path / "out.csv")
    first.write(POSITIONS[:1], np.array([1]), np.array([3]), np.array([0]), {"y": Y[:1], "n": N[:1]})
    del first

    second = slots(tmp_path / "out.csv")

    assert second.pending(np.arange(6)).tolist() == [False, True] * 3
    assert not (tmp_path / "out.csv").exists()


def test_a_file_is_not_replaced_and_another_runs_rows_are_not_continued(tmp_path: Path) -> None:
    finish(filled(tmp_path / "done.csv"))
    filled(tmp_path / "other.csv")

    with pytest.raises(BackfillError, match="exists"):
        slots(tmp_path / "done.csv")
    with pytest.raises(BackfillError, match="from a run with other data"):
        slots(tmp_path / "other.csv", source="b")


def test_an_ending_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackfillError, match=r"expected one of \.csv, \.parquet, \.npz"):
        writer_of(tmp_path / "out.xlsx")
