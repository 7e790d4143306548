"""The manifest: what it keeps, what it refuses, and with which message."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import DTYPES, Array, ConstantSpec, Manifest, PackedTensor

# The example of the contract, section 2, with a value for each choice.
CONTRACT = """
{"format": 1, "name": "pump", "time": {"chunk": "step"},
 "inputs":  [{"name": "x", "dtype": "float32", "shape": [16], "batch_axis": 0}],
 "states":  [{"in": "h", "out": "h_next", "dtype": "float32", "shape": [32], "batch_axis": 0, "init": "zeros", "store_dtype": "float32"}],
 "outputs": [{"name": "y", "dtype": "float32", "shape": [1], "batch_axis": 0, "kind": "value"}],
 "constants": {"sr": {"dtype": "int64", "value": 16000}},
 "windows": [{"input": "x", "context": 64, "axis": 0, "init": "zeros"}],
 "feedback": {"x": "y"},
 "batch": {"mode": "stack", "max": 256},
 "verified": {"against": "keras 3.15.1", "steps": 64, "max_abs": 2.2e-8, "atol": 1e-5, "rtol": 1e-4, "sequences": ["random", "masked", "user"]}}
"""  # noqa: E501


def contract(**changes: Any) -> str:
    return json.dumps({**json.loads(CONTRACT), **changes})


def read(text: str | bytes) -> Manifest:
    return Manifest.from_json(text, where="pump.onnx")


def refusal(text: str | bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        read(text)
    assert caught.value.fix
    return caught.value.problem


def state(**changes: Any) -> dict[str, Any]:
    return {"in": "h", "out": "h_next", "dtype": "float32", "shape": [3], **changes}


def test_the_contracts_example_comes_back_key_for_key() -> None:
    written = json.loads(read(CONTRACT).to_json())

    assert {key: written[key] for key in json.loads(CONTRACT)} == {
        **json.loads(CONTRACT),
        "inputs": [{**json.loads(CONTRACT)["inputs"][0], "graph_shape": None, "missing": "refuse"}],
        "outputs": [{**json.loads(CONTRACT)["outputs"][0], "graph_shape": None}],
    }


def test_missing_optional_keys_have_the_contracts_defaults() -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": [2]}
    found = read(json.dumps({"inputs": [tensor], "outputs": [{**tensor, "name": "y"}], "states": [state()]}))

    assert found.time.chunk == "step"
    assert (found.batch.mode, found.batch.max) == ("stack", 256)
    assert (found.inputs[0].batch_axis, found.outputs[0].kind) == (0, "value")
    assert (found.states[0].batch_axis, found.states[0].init, found.states[0].store_dtype) == (0, "zeros", "float32")
    assert (found.constants, found.windows, found.feedback, found.verified) == ({}, [], {}, None)


@pytest.mark.parametrize("place", ["", "inputs.0", "states.0", "outputs.0", "batch", "verified", "time"])
def test_unknown_keys_are_kept(place: str) -> None:
    document = json.loads(CONTRACT)
    part = document
    for step in filter(None, place.split(".")):
        part = part[int(step)] if step.isdigit() else part[step]
    part["colour"] = {"of": ["the", 1]}

    written: Any = json.loads(read(json.dumps(document)).to_json())
    for step in filter(None, place.split(".")):
        written = written[int(step)] if step.isdigit() else written[step]
    assert written["colour"] == {"of": ["the", 1]}


@pytest.mark.parametrize("text", ["", "[]", "null", "{", b"\xff\xfe", '"x"', '{"inputs": 3}'])
def test_what_is_no_manifest_is_refused_by_name_of_the_file(text: str | bytes) -> None:
    assert refusal(text).startswith("The manifest in pump.onnx is wrong at ")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format"),
        ({"name": "../pump"}, "name is '../pump'"),
        ({"name": ""}, "name is ''"),
        ({"inputs": []}, "inputs is empty"),
        ({"inputs": [{"name": "x", "dtype": "floaty", "shape": [1]}]}, "dtype is 'floaty'; expected one of float32"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": ["16"]}]}, "inputs.0.shape.0"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}, "inputs.0.shape.0"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [16.0]}]}, "inputs.0.shape.0"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [16], "batch_axis": 2}]}, "batch_axis 2"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [16], "graph_shape": [2, 4]}]}, "same number"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1], "labels": 5}]}, "labels 5; expected"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1], "labels": [1]}]}, "labels [1]"),
        ({"outputs": [{"name": "y", "dtype": "float32", "shape": [1], "unit": 5}]}, "unit 5; expected a text"),
        ({"states": [state(), state()]}, "input 'h' is declared 2 times"),
        ({"states": [state(), state(**{"in": "c"})]}, "state output 'h_next' is declared 2 times"),
        ({"states": [state(**{"in": "x"})]}, "input 'x' is declared 2 times"),
        ({"states": [state(**{"in": "sr"})]}, "input 'sr' is declared 2 times"),
        ({"states": [state(batch_axis=2)]}, "batch_axis 2; its row has 1 axes"),
        ({"states": [state(init="ones")]}, "states.0.init"),
        ({"states": [state(init={"d": "float32", "s": [2], "b": "AAAAAAAAAAA="})]}, "expected float32[3]"),
        ({"states": [state(init={"d": "float32", "s": [3], "b": "AAAA"})]}, "needs 12"),
        ({"states": [state(init={"d": "float32", "s": [3], "b": "?"})]}, "states.0.init"),
        ({"states": [state(store_dtype="int8")]}, "store_dtype int8; expected float32"),
        ({"states": [state(dtype="int64", store_dtype="int32")]}, "store_dtype int32; expected int64"),
        ({"states": [state(dtype="int64", store_dtype="float16")]}, "store_dtype float16; expected int64"),
        ({"outputs": [{"name": "y", "dtype": "float32", "shape": [1], "kind": "maybe"}]}, "outputs.0.kind"),
        ({"constants": {"sr": {"dtype": "int64", "value": 1.5}}}, "value is 1.5; expected what int64 can hold"),
        ({"constants": {"sr": {"dtype": "int64", "value": "16000"}}}, "value is '16000'"),
        ({"constants": {"sr": {"dtype": "int8", "value": 300}}}, "value is 300"),
        ({"constants": {"sr": {"dtype": "float32", "value": [[1], [1, 2]]}}}, "value is [[1], [1, 2]]"),
        ({"windows": [{"input": "z", "context": 64}]}, "no such input; inputs are ['x']"),
        ({"windows": [{"input": "x", "context": 64, "axis": 1}]}, "axis 1 is not in its row shape [16]"),
        ({"windows": [{"input": "x", "context": 0}]}, "windows.0.context"),
        ({"windows": [{"input": "x", "context": 1}, {"input": "x", "context": 2}]}, "declared twice"),
        ({"states": [state(**{"in": "x.context"})]}, "that name is the window's"),
        ({"batch": {"mode": "stack", "max": 0}}, "batch.max"),
        ({"batch": {"mode": "many"}}, "batch.mode"),
        ({"every": "0s"}, "every is '0s'; expected a duration"),
        ({"verified": {"against": "keras"}}, "verified.steps"),
    ],
)
def test_a_contradiction_is_told_with_the_value_found(changes: dict[str, Any], told: str) -> None:
    assert told in refusal(contract(**changes))


def test_a_windowed_input_has_no_graph_shape() -> None:
    """The past part is joined in the graph's axes; another row shape would make `axis` ambiguous."""
    spec = {"name": "x", "dtype": "float32", "shape": [16], "graph_shape": [1, 16]}

    assert "its input has graph_shape [1, 16]; expected none" in refusal(contract(inputs=[spec]))


def test_a_windows_initial_part_has_the_context_as_length() -> None:
    window = {"input": "x", "context": 2, "init": PackedTensor.pack(np.zeros(3, np.float32)).model_dump()}

    assert "has init float32[3]; expected float32[2]" in refusal(contract(windows=[window]))


def test_an_output_may_also_be_a_states_output() -> None:
    output = {"name": "h_next", "dtype": "float32", "shape": [32]}

    assert read(contract(outputs=[output])).answered[0].name == "h_next"


def test_ignored_outputs_are_not_answered() -> None:
    y = {"name": "y", "dtype": "float32", "shape": [1]}
    outputs = [{**y, "name": "z", "kind": "ignore"}, y, {**y, "name": "draw", "kind": "random"}]

    assert [output.name for output in read(contract(outputs=outputs)).answered] == ["y", "draw"]


def test_row_bytes_follow_shape_and_stored_dtype() -> None:
    found = read(contract(states=[state(shape=[2, 3], store_dtype="float16")]))

    assert (found.inputs[0].row_bytes, found.states[0].row_bytes) == (64, 12)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    raw=st.binary(min_size=512, max_size=512),
)
def test_a_packed_tensor_comes_back_bit_for_bit(dtype: str, shape: list[int], raw: bytes) -> None:
    size = int(np.prod(shape, dtype=int))
    array: Array = np.frombuffer(raw, np.uint8)[:size].reshape(shape).astype(dtype)
    if dtype != "bool":
        array = np.frombuffer(raw, dtype)[:size].reshape(shape)

    packed = PackedTensor.model_validate_json(PackedTensor.pack(array).model_dump_json())
    back = packed.unpack()

    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_packed_tensor_is_little_endian_and_in_c_order() -> None:
    big_endian = np.array([[1, 2], [3, 4]], ">u2").T

    assert PackedTensor.pack(big_endian).b == PackedTensor.pack(np.array([[1, 3], [2, 4]], "<u2")).b


def test_an_unpacked_tensor_is_writable() -> None:
    back = PackedTensor.pack(np.zeros(2, np.float32)).unpack()
    back[0] = 1

    assert back.tolist() == [1, 0]


@pytest.mark.parametrize(("value", "shape"), [(16000, ()), ([16000], (1,)), ([[1, 2], [3, 4]], (2, 2))])
def test_a_constants_shape_follows_from_its_value(value: Any, shape: tuple[int, ...]) -> None:
    array = ConstantSpec(dtype="int64", value=value).array()

    assert (array.shape, array.dtype.name) == (shape, "int64")


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 64])
def test_a_name_of_the_contracts_letters_is_taken(name: str) -> None:
    assert read(contract(name=name)).name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a b", "é", "a\n", "x" * 65])
def test_a_name_of_other_letters_is_refused(name: str) -> None:
    assert "name is" in refusal(contract(name=name))


def test_values_are_never_coerced() -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({**json.loads(CONTRACT), "batch": {"max": "256"}})
