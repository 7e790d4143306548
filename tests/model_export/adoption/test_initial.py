"""States start from what a flag sets, or from the file's metadata, or from zeros."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.adoption.axes import ShapedTensor
from stepwell_export.adoption.initial import find_initial
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array
from tests import graphs

H, C = ShapedTensor("h", "float32", (2, 3)), ShapedTensor("c", "float32", (4,))
COUNT = ShapedTensor("n", "int64", ())


def found(*states: ShapedTensor, said: Mapping[str, Any] | None = None, **metadata: Any) -> dict[str, list[float]]:
    values = find_initial(states, said or {}, metadata, [])
    return {name: value.ravel().tolist() for name, value in values.items()}


def asked(*states: ShapedTensor, said: Mapping[str, Any] | None = None, **metadata: Any) -> str:
    with pytest.raises(UnclearModelError) as caught:
        find_initial(states, said or {}, metadata, [])
    return caught.value.problem


# -------------------------------------------------------------------- said


def test_one_number_is_for_the_whole_state() -> None:
    assert found(H, C, said={"c": 2}) == {"c": [2, 2, 2, 2]}


def test_as_many_numbers_as_the_row_has_fill_it_in_any_shape() -> None:
    assert found(H, said={"h": [[1, 2, 3, 4, 5, 6]]}) == {"h": [1, 2, 3, 4, 5, 6]}
    assert find_initial([H], {"h": np.arange(6.0)}, {}, [])["h"].shape == (2, 3)
    assert find_initial([H], {"h": np.arange(6.0)}, {}, [])["h"].dtype == np.float32


@pytest.mark.parametrize("value", ["many", [[1], [2, 3]], float("nan"), 1e39])
def test_what_is_said_must_fit_the_state(value: Any) -> None:
    problem = asked(C, said={"c": value})

    assert problem.startswith("`--init c` is ")
    assert "state 'c' has the row [4] of float32" in problem


def test_a_state_of_integers_takes_no_fractions() -> None:
    assert "`--init n` is" in asked(COUNT, said={"n": 0.5})


def test_a_name_that_is_no_state_is_told() -> None:
    assert asked(H, C, said={"z": 1}) == "`--init` names 'z'; the states are ['h', 'c']."


# -------------------------------------------------------------------- metadata


@pytest.mark.parametrize("key", ["c_init", "init_c", "c.init", "C_INIT", "c_state_init"])
def test_habits_of_naming_an_initial_state_are_known(key: str) -> None:
    metadata: dict[str, Any] = {key: "[1, 2, 3, 4]"}

    assert found(H, C, **metadata) == {"c": [1, 2, 3, 4]}


def test_the_state_inputs_own_word_for_being_one_does_not_matter() -> None:
    assert found(ShapedTensor("conv_cache_in", "float32", (2,)), conv_cache_init="1,2") == {"conv_cache_in": [1, 2]}


@pytest.mark.parametrize(
    "text",
    ["[1, 2, 3, 4]", "1,2,3,4", "1 2 3 4", "[1. 2. 3. 4.]",
     base64.b64encode(np.array([1, 2, 3, 4], "<f4").tobytes()).decode()],
)  # fmt: skip
def test_numbers_are_read_in_the_forms_they_come_in(text: str) -> None:
    assert found(C, c_init=text) == {"c": [1, 2, 3, 4]}


def test_what_is_said_wins_over_the_metadata() -> None:
    assert found(C, said={"c": 5}, c_init="1,2,3,4") == {"c": [5, 5, 5, 5]}


def test_other_metadata_is_no_initial_state() -> None:
    assert found(H, C, c="1,2,3,4", c_size="4", init="1", initializer_c="1,2,3,4", model_type="lstm") == {}


def test_metadata_that_cannot_be_read_is_told() -> None:
    assert asked(C, c_init="ones!") == (
        "Metadata 'c_init' is 'ones!'; expected numbers in JSON, with commas, or as base64 of float32."
    )


def test_metadata_of_another_size_is_told() -> None:
    assert asked(C, c_init="1,2,3").startswith("Metadata 'c_init' is [3] of float32; state 'c' has the row [4]")


PARTS: dict[str, Any] = {"mean_state_size": "2", "mean_init": "1,2", "norm_state_size": "1", "norm_init": "3"}


def test_parts_with_their_sizes_fill_one_packed_state_from_its_start() -> None:
    notes: list[str] = []
    values = find_initial([ShapedTensor("state_in", "float32", (5,))], {}, PARTS, notes)

    assert values["state_in"].tolist() == [1, 2, 3, 0, 0]
    assert notes == ["state_in starts from metadata mean_init, norm_init, in this order, then zeros"]


def test_parts_are_not_spread_over_several_states() -> None:
    assert found(H, C, **PARTS) == {}


def test_a_part_of_another_size_than_the_metadata_says_is_told() -> None:
    problem = asked(ShapedTensor("state_in", "float32", (5,)), **{**PARTS, "mean_init": "1,2,3"})

    assert problem == "Metadata 'mean_init' has 3 numbers; expected 2, as the metadata says."


def test_parts_that_are_larger_than_the_state_are_told() -> None:
    assert "Metadata mean_init, norm_init is [3]" in asked(ShapedTensor("state_in", "float32", (2,)), **PARTS)


# -------------------------------------------------------------------- in a file


def with_metadata(path: Path, build: graphs.Build, metadata: dict[str, str]) -> Path:
    model = onnx.load_model_from_string(build()[0])
    onnx.helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def initial(path: Path, hints: Overrides | None = None) -> dict[str, Array]:
    return {state.input: state.initial() for state in adopt(path, hints=hints, steps=4).manifest.states}


def test_a_files_metadata_reaches_the_manifest(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "pump.onnx", graphs.lstm, {"h_init": "1,2,3,4,5,6,7,8"})

    assert initial(path)["h"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not initial(path)["c"].any()


def test_a_row_behind_another_axis_is_given_without_its_batch_axis(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "pump.onnx", graphs.batch_axis_1, {})
    given = np.arange(6, dtype=np.float32).reshape(2, 1, 3)

    assert initial(path, Overrides(initial={"s": given}))["s"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_windows_past_part_can_start_from_something_too(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "pump.onnx", graphs.moving_sum, {})
    hints = Overrides(windows={"x": 3}, shapes={"x": [2]}, initial={"x.context": [1, 2, 3]})
    [window] = adopt(path, hints=hints).manifest.windows

    assert window.init != "zeros"
    assert window.init.unpack().tolist() == [1, 2, 3]
