"""What a model file runs and opens is read from its bytes; what leads out of its folder or runs code is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stepwell_export.runtime.describe import graph_size
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.operator_scan import Contents, check_operators, contents_of, weight_files
from stepwell_export.runtime.step_model import StepModel
from tests.graphs import fold, lstm, total, with_manifest, write_model

SECRET = np.arange(8, dtype=np.float32).tobytes()


def model(*nodes: onnx.NodeProto, functions: list[onnx.FunctionProto] | None = None) -> bytes:
    """A file with these nodes, enough for reading it."""
    graph = helper.make_graph(list(nodes), "g", [], [])
    made = helper.make_model(graph, functions=functions or [])
    return bytes(made.SerializeToString())


def node(operator: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, [], [], domain=domain, **attributes)


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "b", [], [])


def walked(proto: onnx.ModelProto) -> set[tuple[str, str]]:
    """Every operator of a model, as the onnx package finds them."""

    def of(nodes: Iterator[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
        for one in nodes:
            yield one.domain, one.op_type
            for attribute in one.attribute:
                for graph in [attribute.g, *attribute.graphs]:
                    yield from of(iter(graph.node))

    found = set(of(iter(proto.graph.node)))
    for function in proto.functions:
        found |= set(of(iter(function.node)))
    return found


def length(n: int) -> bytes:
    """A number as protocol buffers write it."""
    return bytes([n & 0x7F | 0x80]) + length(n >> 7) if n > 0x7F else bytes([n])


# ------------------------------------------------------------------- reading


@pytest.mark.parametrize("build", [fold, lstm, total])
def test_operators_are_those_that_the_onnx_package_finds(build: Callable[[], tuple[bytes, object]]) -> None:
    graph = build()[0]

    assert contents_of(graph).operators == walked(onnx.load_model_from_string(graph))


def test_operators_are_found_in_branches_and_in_functions() -> None:
    function = helper.make_function("ours", "F", [], [], [node("Deep", "far")], [])
    graph = model(
        node("If", then_branch=branch(node("Loop", body=branch(node("Hidden", "evil"))))), functions=[function]
    )

    contents = contents_of(graph)

    assert contents.operators == {("", "If"), ("", "Loop"), ("evil", "Hidden"), ("far", "Deep")}
    assert contents.functions == {("ours", "F")}


def test_weights_outside_are_found_wherever_a_tensor_may_stand() -> None:
    def outside(location: str) -> TensorProto:
        tensor = numpy_helper.from_array(np.zeros(8, np.float32), "w")
        onnx.external_data_helper.set_external_data(tensor, location)
        return tensor

    inner = branch(node("Constant", value=outside("in-attribute")))
    inner.initializer.append(outside("in-branch"))
    proto = onnx.load_model_from_string(model(node("If", then_branch=inner)))
    proto.graph.initializer.append(outside("in-graph"))
    sparse = onnx.SparseTensorProto(values=outside("sparse"), indices=outside("indices"), dims=[8])
    proto.graph.sparse_initializer.append(sparse)

    assert contents_of(proto.SerializeToString()).weights == {
        *("in-attribute", "in-branch", "in-graph", "sparse", "indices"),
    }


def read_or_refused(content: bytes) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(ModelLoadError):
        assert isinstance(contents_of(content), Contents)


@pytest.mark.parametrize("where", ["input", "weight", "cast", "branch"])
def test_float16_is_found_in_inputs_weights_and_casts(where: str) -> None:
    half = numpy_helper.from_array(np.zeros(1, np.float16), "w")
    nodes = {
        "input": helper.make_node("Neg", ["x"], ["y"]),
        "weight": helper.make_node("Constant", [], ["y"], value=half),
        "cast": helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16),
        "branch": node("If", then_branch=branch(node("Constant", value=half)), else_branch=branch()),
    }
    element_type = TensorProto.FLOAT16 if where == "input" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", element_type, [1])]
    made = helper.make_model(helper.make_graph([nodes[where]], "g", inputs, []))

    assert contents_of(made.SerializeToString()).has_float16


def test_a_file_of_float32_and_integers_has_no_float16() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64), node("Concat", axis=10)]
    weights = [numpy_helper.from_array(np.zeros(10, np.float32), "w")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [10])]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, [], weights))

    assert not contents_of(made.SerializeToString()).has_float16


def test_a_field_that_is_encoded_in_another_way_hides_nothing() -> None:
    """Protocol buffers pass over a number where a text is declared; the text before it counts."""
    one, two = 0x08, 0x10  # the tags of a number as field 1 and as field 2
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "../elsewhere.bin")
    weight.external_data[0].MergeFromString(bytes([one, ord("k"), two, ord("v")]))
    node = helper.make_node("Stranger", ["x"], ["y"], domain="elsewhere")
    node.MergeFromString(bytes([4 << 3, ord("S"), 7 << 3, ord("d")]))
    content = helper.make_model(helper.make_graph([node], "g", [], [], [weight])).SerializeToString()
    onnx_reads = onnx.load_from_string(content).graph

    found = contents_of(content)

    assert onnx_reads.initializer[0].external_data[0].value == "../elsewhere.bin"
    assert found.weights == {"../elsewhere.bin"}
    assert found.operators == {("elsewhere", "Stranger")}


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refused(content)


@given(st.data())
def test_a_damaged_model_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(lstm()[0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_nesting_without_end_is_refused() -> None:
    content = b""
    for field in (1, 5, 6) * 40:  # a graph's node's attribute's graph, from within
        content = bytes([{1: 6, 5: 5, 6: 1}[field] << 3 | 2]) + length(len(content)) + content

    with pytest.raises(ModelLoadError, match="deeper than"):
        contents_of(b"\x3a" + length(len(content)) + content)


# ------------------------------------------------------------------- operators


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("PyOp", "ai.onnx.contrib"),
        ("Add", "my.company"),
        ("ATen", "org.pytorch.aten"),
        ("EPContext", "com.microsoft"),
        ("PythonOp", "com.microsoft"),
        ("Adam", "ai.onnx.preview.training"),
    ],
)
def test_an_operator_from_elsewhere_is_refused_by_name(operator: str, domain: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{operator}.*{domain}"):
        check_operators(model(node("If", then_branch=branch(node(operator, domain)))))


@pytest.mark.parametrize(
    ("operator", "domain"), [("Add", ""), ("Scaler", "ai.onnx.ml"), ("FusedConv", "com.microsoft")]
)
def test_operators_of_onnxruntime_are_taken(operator: str, domain: str) -> None:
    assert check_operators(model(node(operator, domain))).operators == {(domain, operator)}


def test_a_function_of_the_file_itself_is_taken_for_what_is_in_it() -> None:
    good = helper.make_function("ours", "F", [], [], [node("Add")], [])
    bad = helper.make_function("ours", "F", [], [], [node("Evil", "theirs")], [])

    check_operators(model(node("F", "ours"), functions=[good]))
    with pytest.raises(ModelLoadError, match="Evil"):
        check_operators(model(node("F", "ours"), functions=[bad]))


# ------------------------------------------------------------------- files of weights


def weighed(folder: Path, location: str) -> Path:
    """A running sum whose one weight (a scale of 1) is said to lie at a location."""
    graph, manifest = total()
    proto = onnx.load_model_from_string(with_manifest(graph, manifest))
    scale = numpy_helper.from_array(np.ones(2, np.float32), "scale")
    onnx.external_data_helper.set_external_data(scale, location, offset=0, length=8)
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    proto.graph.initializer.append(scale)
    proto.graph.node[0].input[0] = "scaled"
    proto.graph.node.insert(0, helper.make_node("Mul", ["x", "scale"], ["scaled"]))
    file = folder / "total.onnx"
    file.write_bytes(proto.SerializeToString())
    return file


@pytest.mark.parametrize("location", ["weights.bin", "deeper/weights.bin"])
def test_weights_in_the_models_folder_are_taken_and_count_as_the_model(tmp_path: Path, location: str) -> None:
    weights = tmp_path / location
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(np.ones(2, np.float32).tobytes())
    file = weighed(tmp_path, location)
    first = StepModel(file)

    weights.write_bytes(np.zeros(2, np.float32).tobytes())

    assert first.weight_files == weight_files(file, contents_of(file)) == [weights]
    assert StepModel(file).fingerprint != first.fingerprint


def test_a_stray_file_beside_the_model_is_no_part_of_it(tmp_path: Path) -> None:
    file = weighed(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    before = StepModel(file).fingerprint, graph_size(file)["bytes"]

    (tmp_path / "total.onnx.mydata").write_bytes(b"notes")

    assert (StepModel(file).fingerprint, graph_size(file)["bytes"]) == before


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "a/../../secret", "", ".", "a\\b", "none.bin", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_that_lead_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "models"
    folder.mkdir()

    with pytest.raises(ModelLoadError, match="keeps weights in"):
        check_operators(weighed(folder, location))


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "linked folder", "fifo"])
def test_weights_that_are_a_link_to_elsewhere_are_refused(tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights.bin").write_bytes(SECRET)
    folder = tmp_path / "models"
    folder.mkdir()
    location = "weights.bin"
    if how == "symbolic link":
        (folder / location).symlink_to(outside / location)
    elif how == "hard link":
        (folder / location).hardlink_to(outside / location)
    elif how == "linked folder":
        (folder / "deeper").symlink_to(outside)
        location = "deeper/weights.bin"
    else:
        os.mkfifo(folder / location)

    with pytest.raises(ModelLoadError, match="keeps weights in"):
        StepModel(weighed(folder, location))


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("no model")

    with pytest.raises(ModelLoadError, match=r"m\.onnx is no ONNX model"):
        contents_of(tmp_path / "m.onnx")


def test_reading_takes_no_time_to_speak_of(tmp_path: Path) -> None:
    """Whatever the weights weigh: they are passed over."""
    file = write_model(tmp_path, "lstm", lstm)

    assert contents_of(file) == contents_of(file.read_bytes())
