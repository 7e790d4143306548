"""States that are equal only together, or behind much of a graph, are carried once, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import helper

from stepwell_export.graph.builder import GraphBuilder
from stepwell_export.graph.unit_axes import without_equal_tensors
from stepwell_export.runtime.manifest import InputSpec, OutputSpec, StateSpec

Emit = Callable[[GraphBuilder, str, str], str]


def _stepped(emits: Sequence[Emit]) -> tuple[onnx.ModelProto, list[StateSpec]]:
    """Return a step graph with one state for each function, which gets the input and a state that follows it."""
    graph = GraphBuilder("s")
    x = graph.add_input(InputSpec(name="x", dtype="float32", shape=[4]))
    states = [graph.state(f"h{place}", (4,)) for place, _ in enumerate(emits)]
    made = [emit(graph, x, state.input) for emit, state in zip(emits, states, strict=True)]
    for state, tensor in zip(states, made, strict=True):
        graph.next_state(state, tensor)
    graph.add_output(OutputSpec(name="y", dtype="float32", shape=[4]), graph.op("Sum", *made))
    return graph.proto("m"), graph.states


def _kept(*emits: Emit) -> list[str]:
    model, states, _ = without_equal_tensors(*_stepped(emits))
    onnx.checker.check_model(model, full_check=True)
    return [state.input for state in states]


def _gates(graph: GraphBuilder, x: str, state: str) -> str:
    value = graph.op("Add", x, state)
    for _ in range(60):
        value = graph.op("Mul", value, graph.op("Sigmoid", value))
    return value


def _deep(graph: GraphBuilder, x: str, state: str) -> str:
    value = graph.op("Add", x, state)
    for _ in range(5000):
        value = graph.op("Sigmoid", value)
    return value


def test_twin_states_are_found_behind_many_nodes_that_use_a_tensor_twice() -> None:
    assert _kept(_gates, _gates, lambda graph, x, state: graph.op("Add", x, state)) == ["h0", "h2"]


def test_twin_states_are_found_behind_a_long_chain_of_nodes() -> None:
    assert _kept(_deep, _deep) == ["h0"]


def test_two_pairs_of_states_that_need_each_other_become_one() -> None:
    graph = GraphBuilder("s")
    x = graph.add_input(InputSpec(name="x", dtype="float32", shape=[4]))
    a, b, c, d = (graph.state(name, (4,)) for name in "abcd")
    for state, other in ((a, b), (c, d)):
        graph.next_state(state, graph.op("Add", x, other.input))
        graph.next_state(other, graph.op("Mul", x, state.input))
    graph.add_output(OutputSpec(name="y", dtype="float32", shape=[4]), graph.op("Sub", a.input, c.input))
    model, states, _ = without_equal_tensors(graph.proto("m"), graph.states)
    onnx.checker.check_model(model, full_check=True)
    assert [state.input for state in states] == ["a", "b"]


def test_states_of_different_branches_with_a_first_output_left_out_stay_apart() -> None:
    def branch(constant: float) -> Emit:
        def emit(graph: GraphBuilder, x: str, state: str) -> str:
            value = graph.op("Add", x, graph.op("Mul", state, graph.constant(constant, "float32")))
            result = onnx.ValueInfoProto(name=graph.unique("inner"))
            body = helper.make_graph([helper.make_node("Neg", [value], [result.name])], "body", [], [result])
            unused = onnx.ValueInfoProto(name=graph.unique("inner"))
            body.node.append(helper.make_node("Abs", [value], [unused.name]))
            body.output.insert(0, unused)
            truth, name = graph.constant(True, "bool"), graph.unique("chosen")
            graph.add("If", [truth], ["", name], then_branch=body, else_branch=_renamed(body, graph))
            return name

        return emit

    _, states, _ = without_equal_tensors(*_stepped([branch(1.0), branch(2.0)]))
    assert [state.input for state in states] == ["h0", "h1"]


def _renamed(body: onnx.GraphProto, graph: GraphBuilder) -> onnx.GraphProto:
    copy = onnx.GraphProto()
    copy.CopyFrom(body)
    for node, value in zip(copy.node, reversed(copy.output), strict=True):
        node.output[0] = value.name = graph.unique("inner")
    return copy
