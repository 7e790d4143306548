"""What is random in a model file is found without the onnx package, and nothing random is served as a value."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime import random_ops
from stepwell_export.runtime.errors import ManifestError, ModelLoadError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.random_ops import random_outputs
from stepwell_export.runtime.step_model import StepModel
from tests import graphs

GRAPHS = {
    "none": "g (float[2] x) => (float[2] y) { y = Neg (x) }",
    "each": """
        g (float[B,2] x)
            => (float[B,2] a, float[B,2] b, float[B,2] c, float[2] d, float[2] e, int32[B,1] f, float[B,2] z) {
            a = RandomNormalLike (x)  b = RandomUniformLike (x)  c = Bernoulli (x)
            d = RandomNormal <shape = [2]> ()  e = RandomUniform <shape = [2]> ()  f = Multinomial (x)
            z = Neg (x)
        }""",
    "through other nodes": """
        g (float[B,2] x) => (float[B,2] y, float[B,2] z) {
            noise = RandomNormalLike (x)
            a = Add (x, noise)
            y = Neg (a)
            z = Neg (x)
        }""",
    "in a branch": """
        g (bool c, float[2] x) => (float[2] y, float[2] z) {
            y = If (c) <
                then_branch = t () => (float[2] a) { a = RandomNormalLike (x) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
            z = Neg (x)
        }""",
    "into a branch": """
        g (bool c, float[2] x) => (float[2] y) {
            noise = RandomNormalLike (x)
            y = If (c) <
                then_branch = t () => (float[2] a) { a = Neg (noise) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
        }""",
    "given by a branch as it is": """
        g (bool c, float[2] x) => (float[2] y) {
            noise = RandomNormalLike (x)
            y = If (c) < then_branch = t () => (noise) { }, else_branch = e () => (float[2] b) { b = Identity (x) } >
        }""",
    "beside a branch": """
        g (bool c, float[2] x) => (float[2] y, float[2] noise) {
            noise = RandomNormalLike (x)
            y = If (c) <
                then_branch = t () => (float[2] a) { a = Neg (x) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
        }""",
    "dropout that is switched by an input": """
        g (float[2] x, bool training) => (float[2] y, float[2] z) {
            half = Constant <value_float = 0.5> ()
            y = Dropout (x, half, training)
            z = Dropout (x, half)
        }""",
}
REACHED = {
    "none": {},
    "each": {
        "a": "RandomNormalLike", "b": "RandomUniformLike", "c": "Bernoulli",
        "d": "RandomNormal", "e": "RandomUniform", "f": "Multinomial",
    },
    "through other nodes": {"y": "RandomNormalLike"},
    "in a branch": {"y": "RandomNormalLike"},
    "into a branch": {"y": "RandomNormalLike"},
    "given by a branch as it is": {"y": "RandomNormalLike"},
    "beside a branch": {"noise": "RandomNormalLike"},
    "dropout that is switched by an input": {"y": "Dropout"},
}  # fmt: skip
"""The random operator that reaches an output, by graph and output."""
FUNCTIONS = """
    <ir_version: 8, opset_import: ["": 17, "own": 1]>
    g (float[2] x, float[2] a) => (float[2] y, float[2] z, float[2] n) {
        y, z = own.outer (x, a)
        n = own.plain (a)
    }
    <opset_import: ["": 17, "own": 1], domain: "own"> outer (a, b) => (c, d) {
        c = own.inner (a)
        d = own.plain (b)
    }
    <opset_import: ["": 17], domain: "own"> inner (a) => (b) { noise = RandomNormalLike (a)  b = Add (a, noise) }
    <opset_import: ["": 17], domain: "own"> plain (noise) => (b) { b = Neg (noise) }
"""


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize(("name", "text"), GRAPHS.items(), ids=GRAPHS)
def test_random_outputs_are_those_that_a_random_operator_reaches(tmp_path: Path, name: str, text: str) -> None:
    found = random_outputs(write(tmp_path / "m.onnx", graphs.graph_from_text(text)))

    assert {output: operator.split()[0] for output, operator in found.items()} == REACHED[name]


@pytest.mark.parametrize("name", ["through other nodes", "into a branch"])
def test_the_order_of_the_nodes_in_the_file_makes_no_difference(name: str) -> None:
    """onnxruntime sorts the nodes of a graph."""
    proto = onnx.load_model_from_string(graphs.graph_from_text(GRAPHS[name]))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))

    assert random_outputs(proto.SerializeToString()).keys() == REACHED[name].keys()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        random_outputs(write(tmp_path / "model.onnx", b"no model"))


def test_chance_in_a_function_reaches_what_follows_from_it_and_no_other_result(tmp_path: Path) -> None:
    """A function's names are its own: `a` and `noise` mean something else in each."""
    path = write(tmp_path / "m.onnx", parser.parse_model(FUNCTIONS).SerializeToString())

    assert list(random_outputs(path)) == ["y"]


@pytest.mark.parametrize(("value", "is_random"), [(False, False), (True, True)])
@pytest.mark.parametrize("how", ["initializer", "node"])
def test_dropout_that_is_off_for_good_is_no_chance(how: str, value: bool, is_random: bool) -> None:
    flag = onnx.helper.make_tensor("on", onnx.TensorProto.BOOL, [], [value])
    proto = onnx.load_model_from_string(
        graphs.graph_from_text(
            "g (float[2] x) => (float[2] y) { r = Constant <value_float = 0.5> ()  y = Dropout (x, r, on) }"
        )
    )
    if how == "initializer":
        proto.graph.initializer.append(flag)
    else:
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["on"], value=flag))

    assert bool(random_outputs(proto.SerializeToString())) == is_random


def test_a_number_in_the_place_of_an_operators_name_hides_no_chance() -> None:
    """Protocol buffers pass over it; the name before it counts."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {GRAPHS["through other nodes"]}')
    model.graph.node[0].MergeFromString(bytes([4 << 3, ord("S")]))

    assert random_outputs(model.SerializeToString()).keys() == {"y"}


def test_a_function_that_calls_itself_is_refused() -> None:
    proto = parser.parse_model(FUNCTIONS)
    proto.functions[1].node[0].CopyFrom(onnx.helper.make_node("inner", ["a"], ["noise"], domain="own"))

    with pytest.raises(ModelLoadError, match="functions"):
        random_outputs(proto.SerializeToString())


def test_functions_that_multiply_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of thirty calls the one before twice."""
    proto = parser.parse_model(FUNCTIONS)
    opsets, before = proto.functions[2].opset_import, "inner"
    for n in range(30):
        twice = [onnx.helper.make_node(before, ["a"], [name], domain="own") for name in ("b", "c")]
        proto.functions.append(onnx.helper.make_function("own", f"f{n}", ["a"], ["b"], twice, opsets))
        before = f"f{n}"
    proto.graph.node.append(onnx.helper.make_node(before, ["x"], ["more"], domain="own"))

    monkeypatch.setattr(random_ops, "_MOST_NODES", 10_000)
    with pytest.raises(ModelLoadError, match="more than 10000 nodes"):
        random_outputs(proto.SerializeToString())


@given(st.data())
def test_a_damaged_model_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(parser.parse_model(FUNCTIONS).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = random_outputs(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except ModelLoadError:
        return
    assert isinstance(found, dict)


# ---------------------------------------------------------------- what is served


def declared(build: Callable[[], graphs.Built], **kinds: str) -> tuple[bytes, Manifest]:
    """A graph with a manifest that somebody wrote by hand."""
    graph, manifest = build()
    outputs = [one.model_copy(update={"kind": kinds.get(one.name, one.kind)}) for one in manifest.outputs]
    return graph, manifest.model_copy(update={"outputs": outputs})


def test_a_random_output_that_is_declared_a_value_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"RandomNormalLike .*'draw', which the manifest declares as a value"):
        StepModel(*declared(graphs.noisy, draw="value"))


@pytest.mark.parametrize("kind", ["random", "ignore"])
def test_a_random_output_that_is_declared_as_such_is_served(kind: str) -> None:
    assert StepModel(*declared(graphs.noisy, draw=kind)).manifest.outputs[1].kind == kind


def test_a_random_state_is_refused() -> None:
    graph = graphs.graph_from_text("""
        walk (float[B,2] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
            noise = RandomNormalLike (x)
            s_next = Add (s, noise)
            y = Identity (x)
        }""")

    with pytest.raises(ModelLoadError, match=r"RandomNormalLike .* reaches the state 's_next'"):
        StepModel(graph, graphs.total()[1])


async def test_a_file_with_a_hand_written_manifest_is_not_served(tmp_path: Path) -> None:
    shelf = ModelRegistry([tmp_path])
    graphs.write_model(tmp_path, "noisy", lambda: declared(graphs.noisy, draw="value"))

    report = await shelf.reload()

    assert (report.loaded, shelf.names()) == ([], [])
    assert "'draw'" in report.failed[0]


def test_the_onnx_package_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(ManifestError):
        StepModel(*declared_noisy)


declared_noisy = declared(graphs.noisy, draw="value")
