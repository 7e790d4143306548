"""LSTM, GRU and RNN operators over one timestep, written out: as onnxruntime runs them, each row as alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from stepwell_export.graph.builder import GraphBuilder, declared  # noqa: E402
from stepwell_export.graph.decompose_rnn import decompose_rnn  # noqa: E402
from stepwell_export.runtime.manifest import Array  # noqa: E402
from stepwell_export.runtime.session import open_session  # noqa: E402

UNITS, FEATURES = 5, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
EVERY = ["Tanh", "Sigmoid", "Relu", "Softsign", "Softplus", "HardSigmoid", "Elu", "LeakyRelu", "Affine"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "lstm_activations": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"], "activation_alpha": [0.3],
                                  "activation_beta": [0.4]}),
    "gru": ("GRU", {}),
    "gru_linear_before_reset": ("GRU", {"linear_before_reset": 1}),
    "gru_activations": ("GRU", {"activations": ["Sigmoid", "Affine"], "activation_alpha": [0.5],
                                "activation_beta": [0.25]}),
    **{f"rnn_{kind}": ("RNN", {"activations": [kind]}) for kind in EVERY},
}  # fmt: skip


def operator(kind: str, attributes: dict[str, Any], *, steps: int = 1, bias: bool = True, opset: int = 20) -> Any:
    """A graph of one operator over `steps` timesteps, with inputs `x` and the states."""
    rng, gates = np.random.default_rng(0), GATES[kind]
    builder = GraphBuilder("op")
    shapes = {"W": (1, gates * UNITS, FEATURES), "R": (1, gates * UNITS, UNITS), "B": (1, 2 * gates * UNITS)}
    weights = [builder.constant(rng.normal(0, 0.5, shape), "float32", what=n) for n, shape in shapes.items()]
    states = ["h", "c"][: 1 + (kind == "LSTM")]
    names = [builder.unique(name) for name in ("y", *(f"{state}_next" for state in states))]
    builder.add(
        kind, ["x", *weights[:2], weights[2] if bias else "", "", *states], names, hidden_size=UNITS, **attributes
    )
    takes = [declared("x", "float32", (steps, FEATURES), 1), *(declared(n, "float32", (1, UNITS), 1) for n in states)]
    gives = [declared(names[0], "float32", (steps, 1, UNITS), 2)]
    gives += [declared(name, "float32", (1, UNITS), 1) for name in names[1:]]
    graph = onnx.helper.make_graph(builder.nodes, "g", takes, gives, builder.constants)
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", opset)])


def feeds(model: Any, rows: int) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {n: rng.standard_normal((shape[0], rows, shape[2])).astype(np.float32) for n, shape in shapes.items()}


def run(model: Any, given: dict[str, Array]) -> list[Array]:
    return [np.asarray(value) for value in open_session(model.SerializeToString(), where="it").run(None, given)]


@pytest.mark.parametrize(
    ("name", "opset", "bias"), [*((name, 20, True) for name in CASES), *((name, 14, False) for name in ("lstm", "gru"))]
)
def test_an_operator_written_out_equals_the_operator(name: str, opset: int, bias: bool) -> None:
    model = operator(*CASES[name], bias=bias, opset=opset)
    written_out = decompose_rnn(model)
    given = feeds(model, 4)

    assert not {node.op_type for node in written_out.graph.node} & GATES.keys()
    for found, expected in zip(run(written_out, given), run(model, given), strict=True):
        assert np.allclose(found, expected, rtol=1e-5, atol=2e-6)
    onnx.checker.check_model(written_out, full_check=True)


@pytest.mark.parametrize("name", ["lstm", "gru_linear_before_reset"])
def test_each_row_of_a_batch_is_what_it_is_alone_bit_for_bit(name: str) -> None:
    written_out = decompose_rnn(operator(*CASES[name]))
    given = feeds(written_out, 32)
    together = run(written_out, given)

    for row in range(32):
        alone = run(written_out, {n: np.ascontiguousarray(value[:, row : row + 1]) for n, value in given.items()})
        assert np.array_equal(together[1][:, row], alone[1][:, 0])


STAY = {
    "several timesteps": operator(*CASES["lstm"], steps=3),
    "clipped": operator("GRU", {"clip": 1.0}),
    "backwards": operator("RNN", {"direction": "reverse"}),
    "another activation": operator("RNN", {"activations": ["ThresholdedRelu"]}),
    "an older opset": operator(*CASES["lstm"], opset=12),
}


@pytest.mark.parametrize("name", STAY)
def test_other_operators_stay_as_they_are(name: str) -> None:
    assert decompose_rnn(STAY[name]) is STAY[name]


def test_an_operator_whose_input_has_an_unknown_rank_stays_as_it_is() -> None:
    model = operator(*CASES["lstm"])
    model.graph.input[0].type.tensor_type.ClearField("shape")

    assert decompose_rnn(model) is model


def test_an_operator_that_is_to_stay_does() -> None:
    model = operator(*CASES["lstm"])

    assert decompose_rnn(model, {"c_next"}) is model


@pytest.mark.parametrize("name", ["gru"])
def test_weights_are_stored_as_they_are_multiplied(name: str) -> None:
    written_out = decompose_rnn(operator(*CASES[name]))
    stored = {tensor.name: list(tensor.dims) for tensor in written_out.graph.initializer}
    gates = GATES[name.partition("_")[0].upper()]

    assert [stored["op/W"], stored["op/R"]] == [[gates * UNITS, FEATURES], [gates * UNITS, UNITS]]
    assert not [
        node.input[0] for node in written_out.graph.node if node.op_type == "Squeeze" and node.input[0] in stored
    ]


def test_weights_of_two_operators_are_stored_once() -> None:
    model = operator(*CASES["rnn_Tanh"])
    again = onnx.NodeProto()
    again.CopyFrom(model.graph.node[0])
    again.output[:] = ["", "h_again"]
    model.graph.node.append(again)
    model.graph.output.append(declared("h_again", "float32", (1, UNITS), 1))
    written_out = decompose_rnn(model)
    given = feeds(model, 4)

    assert [tensor.name for tensor in written_out.graph.initializer].count("op/R") == 1
    for found, expected in zip(run(written_out, given), run(model, given), strict=True):
        assert np.allclose(found, expected, rtol=1e-5, atol=2e-6)
