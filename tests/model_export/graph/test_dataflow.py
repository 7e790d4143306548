"""What a graph's nodes show about its states."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stepwell_export.graph.nodes import Flow, propagate_labels, read_flow
from stepwell_export.runtime.manifest import Array
from tests import graphs

WEIGHTS: dict[str, Array] = {
    "W": np.ones((1, 16, 3), np.float32),
    "R": np.ones((1, 16, 4), np.float32),
    "W2": np.ones((1, 16, 4), np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
}


def flow(text: str) -> Flow:
    return read_flow(onnx.load_model_from_string(graphs.graph_from_text(text, WEIGHTS)).graph)


def reached(text: str) -> dict[str, set[str]]:
    """Return the inputs that reach each output."""
    graph = onnx.load_model_from_string(graphs.graph_from_text(text, WEIGHTS)).graph
    marks = propagate_labels(graph, {value.name: frozenset([value.name]) for value in graph.input})
    return {output.name: set(marks[output.name]) for output in graph.output}


def test_an_output_depends_on_the_inputs_that_lead_to_it() -> None:
    found = reached(
        "g (float[2] a, float[2] b) => (float[2] y, float[2] z) { c = Neg (a)\n y = Add (c, b)\n z = Neg (c) }"
    )

    assert found == {"y": {"a", "b"}, "z": {"a"}}


def test_what_a_branch_looks_at_reaches_what_it_gives() -> None:
    found = reached(
        """g (bool c, float[2] a, float[2] b) => (float[2] y) {
            y = If (c) < then_branch = t () => (float[2] s) { s = Neg (a) }, else_branch = e () => (float[2] r) {
                r = Identity (a) } >
        }"""
    )

    assert found == {"y": {"c", "a"}}


def test_the_states_of_a_fused_operator_are_followed_through_layout() -> None:
    found = flow(
        """g (float[1,B,3] x, float[B,4] a, float[B,4] b) => (float[B,4] p, float[B,4] q, float[1,1,B,4] y) {
            h = Unsqueeze (b, zero)
            c = Unsqueeze (a, zero)
            y, hn, cn = LSTM <hidden_size = 4> (x, W, R, , , h, c)
            p = Squeeze (hn, zero)
            q = Squeeze (cn, zero)
        }"""
    )

    assert found.carried == {"a": ["q"], "b": ["p"]}


def test_the_caches_of_an_attention_are_followed_by_their_places_whatever_they_are_called() -> None:
    found = flow(
        """g (float[1,1,8] x, float[1,2,6,4] a, float[1,2,6,4] b) =>
            (float[1,1,8] y, float[1,2,7,4] p, float[1,2,7,4] q) {
            y, p, q = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, , , , a, b)
        }"""
    )

    assert found.carried == {"a": ["p"], "b": ["q"]}


def test_layers_packed_into_one_state_are_found_together() -> None:
    found = flow(
        """g (float[1,B,3] x, float[2,B,4] hs, float[1,B,4] c) => (float[2,B,4] out, float[1,1,B,4] y) {
            h1 = Slice (hs, zero, one, zero)
            h2 = Slice (hs, one, two, zero)
            y1, n1 = LSTM <hidden_size = 4> (x, W, R, , , h1, c)
            x2 = Squeeze (y1, one)
            y, n2 = LSTM <hidden_size = 4> (x2, W2, R, , , h2, c)
            out = Concat <axis = 0> (n1, n2)
        }"""
    )

    assert found.carried == {"hs": ["out"]}


def test_a_state_that_is_computed_with_before_is_none_of_the_operators() -> None:
    found = flow(
        """g (float[1,B,3] x, float[1,B,4] h) => (float[1,1,B,4] y, float[1,B,4] out) {
            half = Tanh (h)
            y, out = GRU <hidden_size = 4> (x, W, R, , , half)
        }"""
    )

    assert found.carried == {}


@pytest.mark.parametrize(
    "text",
    [
        """g (float[2] a, float[3,2] x) => (float[2] z, float[3,2] ys) {
            z, ys = Scan <num_scan_inputs = 1, body = b (float[2] s, float[2] row) => (float[2] t, float[2] y) {
                t = Add (s, row)
                y = Neg (t)
            }> (a, x)
        }""",
        """g (float[2] a, int64 n, bool go) => (float[2] z) {
            z = Loop <body = b (int64 i, bool on, float[2] s) => (bool still, float[2] t) {
                still = Identity (on)
                t = Neg (s)
            }> (n, go, a)
        }""",
    ],
    ids=["Scan", "Loop"],
)
def test_what_a_loop_carries_is_found(text: str) -> None:
    assert flow(text).carried == {"a": ["z"]}
