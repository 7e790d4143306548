"""What becomes of the states of an older version, and which translations are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from stepwell_export.replacing import Replaced, check_translation, read_version, replaced
from stepwell_export.runtime.errors import FileError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.graphs import (
    Built,
    batch_axis_1,
    fold,
    graph_from_text,
    lstm,
    no_batch_axis,
    with_manifest,
    write_model,
)

WIDEN = """
    widen (float[B,8] h, float[B,8] c) => (float[B,12] h_new, float[B,12] c_new) {
        zeros = Constant <value = int64[4] {0, 0, 0, 4}> ()
        h_new = Pad (h, zeros)
        c_new = Pad (c, zeros)
    }"""


def content(built: Built) -> bytes:
    return with_manifest(*built)


def renamed_lstm(units: int) -> bytes:
    """An LSTM whose states are h2 and c2."""
    graph, manifest = lstm(units=units)
    model = onnx.load_model_from_string(graph)
    other = {"h": "h2", "c": "c2"}
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
    for value in model.graph.input:
        value.name = other.get(value.name, value.name)
    states = [spec.model_copy(update={"input": other[spec.input]}) for spec in manifest.states]
    return with_manifest(bytes(model.SerializeToString()), manifest.model_copy(update={"states": states}))


def translation_of(text: str, h: str = "h2", c: str = "c2") -> bytes:
    """Return a translation whose outputs have these names."""
    return graph_from_text(text.replace("h_new", h).replace("c_new", c))


def test_equal_states_are_compatible_whatever_the_weights(tmp_path: Path) -> None:
    old = write_model(tmp_path, "pump", lstm, version=3)

    found, translation = replaced(Replaced(old), content(lstm(seed=9)), tmp_path / "new.onnx")

    assert (found.states, found.version, found.reasons, found.translation) == ("compatible", 3, [], None)
    assert translation is None


def test_each_state_that_differs_is_named_with_both_shapes(tmp_path: Path) -> None:
    old = write_model(tmp_path, "pump", lstm)

    wider, _ = replaced(Replaced(old), content(lstm(units=12)), tmp_path / "new.onnx")
    other, _ = replaced(Replaced(old), content(fold()), tmp_path / "new.onnx")

    assert wider.states == "incompatible"
    assert wider.reasons == [f"state '{name}' is float32[12], and was float32[8]" for name in ("c", "h")]
    assert other.reasons == ["state 'c' is gone: float32[8]", "state 'h' is int64[1], and was float32[8]"]


def test_a_translation_is_accepted_if_it_computes_the_new_states(tmp_path: Path) -> None:
    old = StepModel(write_model(tmp_path, "old", lstm))

    check_translation(translation_of(WIDEN), old, StepModel(renamed_lstm(12)), where="here")

    session = ort.InferenceSession(translation_of(WIDEN))
    feeds: dict[str, Array] = {name: np.ones((2, 8), np.float32) for name in ("h", "c")}
    assert session.run(["h2"], feeds)[0].sum() == 16


def test_an_output_may_have_the_name_of_the_states_output_where_both_states_have_one_name(tmp_path: Path) -> None:
    """A graph cannot compute a tensor `h` of an input `h`."""
    old, new = StepModel(write_model(tmp_path, "old", lstm)), StepModel(content(lstm(units=12)))

    check_translation(translation_of(WIDEN, "h_next", "c_next"), old, new, where="here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WIDEN.replace("0, 4}", "0, 3}").replace("12", "11"), "computes the state 'h2' as float32[3, 11]"),
        (WIDEN.replace("h_new = Pad (h, zeros)", "big = Pad (h, zeros) h_new = Reciprocal (big)"), "NaN or infinity"),
        (WIDEN.replace("float[B,8] c)", "float[B,8] d)").replace("(c,", "(d,"), "takes ['d', 'h']"),
        (WIDEN.replace("float[B,8]", "float[1,8]"), "fails on states of the older version"),
    ],
)  # fmt: skip
def test_a_translation_that_does_not_compute_the_new_states_is_refused(tmp_path: Path, text: str, message: str) -> None:
    old, new = StepModel(write_model(tmp_path, "old", lstm)), StepModel(renamed_lstm(12))

    with pytest.raises(RefusedModelError, match=re.escape(message)):
        check_translation(translation_of(text), old, new, where="here")


@pytest.mark.parametrize("build", [batch_axis_1, no_batch_axis])
def test_states_have_the_batch_axis_of_the_step_graph(tmp_path: Path, build: object) -> None:
    """A copy of the states is a translation between two equal versions, wherever their batch axis is."""
    assert callable(build)
    model = StepModel(write_model(tmp_path, "same", build))
    tensor = onnx.helper.make_tensor_value_info
    tensors = [tensor(field.name, onnx.helper.np_dtype_to_tensor_dtype(field.dtype), None) for field in model.fields]
    graph = onnx.helper.make_graph([], "copy", tensors, tensors)

    translation = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)

    check_translation(translation.SerializeToString(), model, model, where="here")


def test_the_version_is_that_of_the_folder() -> None:
    assert read_version(Path("models/pump/12/model.onnx")) == 12
    assert read_version(Path("models/pump.onnx")) == 1
    assert read_version(Path("3/pump.onnx")) == 1


def test_a_version_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected the version that is replaced"):
        replaced(Replaced(tmp_path / "old.onnx"), content(lstm()), tmp_path / "new.onnx")
