"""A front end writes the layer of a node into it: refusals name the layer, and no step graph has it."""

from __future__ import annotations

import onnx
import pytest

from stepwell_export.graph.nodes import LAYER, all_nodes, described, layer_of, set_layer, subgraphs
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming import convert
from stepwell_export.streaming.normal_form.plain_form import load_graph
from stepwell_export.streaming.normal_form.unrolled_loops import with_loops_rolled
from tests.model_export.streaming.zoo import ZOO
from tests.model_export.streaming.zoo_masked import masked_lstm
from tests.model_export.streaming.zoo_parts import graph
from tests.model_export.streaming.zoo_refused import REFUSED

WORDS = "Layer 'own' (Own)"


def of_layer(model: onnx.ModelProto, *operators: str) -> onnx.ModelProto:
    """Return a model whose nodes of some operators are of a layer."""
    model.ir_version = 10
    set_layer([node for node in model.graph.node if node.op_type in operators], WORDS)
    return model


@pytest.mark.parametrize(
    ("name", "operator", "told"),
    [
        ("reverse", "LSTM", f"{WORDS} is reverse over time"),
        ("same_padding", "Conv", "looks 1 timestep(s) ahead; layer 'own' (Own) pads or shifts it"),
        ("divided_by_length", "Div", f"{WORDS} uses 'n', which depends on the number of timesteps"),
        ("scan_backwards", "Scan", f"{WORDS} runs backwards over time"),
    ],
)
def test_a_refusal_names_the_layer_of_a_node(name: str, operator: str, told: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        convert(of_layer(REFUSED[name].build(), operator), name=name)

    assert told in caught.value.problem


def test_nodes_that_an_operator_is_written_out_to_are_of_its_layer() -> None:
    text = """(float[batch, time, 4] x) => (float[batch, time, 4] y) {
        y = Attention <is_causal = 1, q_num_heads = 1, kv_num_heads = 1> (x, x, x)
    }"""
    plain = load_graph(of_layer(graph(text, opset=23), "Attention"), {}).graph

    assert {described(node) for node in plain.graph.node} == {WORDS}


def test_functions_and_loops_that_are_rolled_up_keep_the_layer() -> None:
    functions = '<domain: "own", opset_import: ["": 17]> Twice (a) => (b) { b = Add (a, a) }'
    text = "(float[batch, time, 4] x) => (float[batch, time, 4] y) { d = own.Twice (x) y = Tanh (d) }"
    model = of_layer(graph(text, head=', "own": 1', functions=functions), "Tanh")
    set_layer(model.functions[0].node, WORDS)
    plain = load_graph(model, {}).graph

    assert [described(node) for node in plain.graph.node] == [WORDS, WORDS]


def test_a_layer_is_not_in_the_step_graph() -> None:
    model = masked_lstm()
    expected = convert(model, name="masked").proto.SerializeToString(deterministic=True)
    bodies = [inner for node in model.graph.node for body in subgraphs(node) for inner in body.node]
    set_layer([*model.graph.node, *bodies], WORDS)
    made = convert(model, name="masked").proto

    assert made.SerializeToString(deterministic=True) == expected
    assert not any(entry.key == LAYER for node in all_nodes(made.graph) for entry in node.metadata_props)


def test_an_unrolled_loop_is_of_the_layer_of_its_nodes() -> None:
    model = of_layer(ZOO["unrolled"].build(), "Gather", "MatMul", "Add", "Tanh", "Unsqueeze")
    for node in model.graph.node:
        node.name = "own/rnn" if layer_of(node) else ""
    [scan] = [node for node in with_loops_rolled(load_graph(model, {}).graph).graph.node if node.op_type == "Scan"]

    assert described(scan) == WORDS
    assert [state.input for state in convert(model, name="unrolled").manifest.states] == ["own.rnn.state_0"]
