"""`addons/recorded/row_rules.py`: recorded rows by their times, as a connector makes timesteps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.recorded import RecordedDataError, open_data
from stepwell.addons.recorded.columns import ColumnChoice
from stepwell.addons.recorded.row_rules import RowRules
from stepwell_export.runtime.manifest import InputSpec

X = InputSpec.model_validate({"name": "x", "dtype": "float32", "shape": [1]})


def read(folder: Path, text: str, rules: RowRules | None) -> Any:
    (folder / "rows.csv").write_text(text)
    data = open_data([folder / "rows.csv"], [X], ColumnChoice("id", "t", {"x": ["x"]}), rules)
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
    assert data.source_id.startswith("rows:4:")


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
