"""Scan and Loop over time become the nodes of their body: masks, names of states, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.graph.nodes import renamed, replace_items, subgraphs
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from stepwell_export.verify.runners import stepped
from tests.model_export.streaming.zoo import ZOO
from tests.model_export.streaming.zoo_masked import MASKED, masked_lstm, masked_stack
from tests.model_export.streaming.zoo_parts import X, graph, ints
from tests.model_export.streaming.zoo_recurrent import SCAN_BODY

OVER_TIME = ["scan", "loop_of_keras", "unrolled"]


def masked(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
    """Return sequences of which half of the timesteps are masked, and the first five of every second row."""
    x = rng.standard_normal((rows, steps, 4)).astype(np.float32)
    x[rng.random((rows, steps)) < 0.5] = MASKED
    x[::2, :5] = MASKED
    return {"x": x}


def scanned(text: str, body: str, **weights: Any) -> onnx.ModelProto:
    """Return a graph around a Scan named `rnn` over axis 1 of `(batch, time, 4)`, from a state of zeros."""
    return graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            shape = Shape (x) rows = Slice (shape, s0, s1) size = Concat <axis = 0> (rows, five)
            z = ConstantOfShape (size) {text}
            [rnn] hT, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = {body}> (z, x)
        }}""",
        s0=ints(0), s1=ints(1), five=ints(5), Wx=(4, 5), Wh=(5, 5), **weights,
    )  # fmt: skip


@pytest.mark.parametrize("name", OVER_TIME)
def test_a_step_graph_has_the_nodes_of_a_loop_in_the_place_of_it(name: str) -> None:
    nodes = convert(ZOO[name].build(), name=name).proto.graph.node

    assert not {"Scan", "Loop"}.intersection(node.op_type for node in nodes)


@pytest.mark.parametrize("build", [masked_stack])
def test_a_masked_recurrence_equals_itself_on_masked_sequences(build: Any) -> None:
    made = convert(build(), name="masked", samplers={"masked": masked})
    _, report = verify_model(made, long_steps=100)

    assert report.parity.max_abs <= 1e-5
    assert report.chunk is not None
    assert report.chunk.chunk == "dynamic"
    assert not report.weak


@pytest.mark.parametrize("name", ["masked_lstm", "loop_of_keras"])
def test_a_row_of_a_loop_gives_bit_for_bit_what_it_gives_alone(name: str) -> None:
    content, _ = verify_model(convert(ZOO[name].build(), name=name), long_steps=0)
    model, rng = StepModel(content), np.random.default_rng(3)
    inputs = {spec.name: rng.standard_normal((32, 6, *spec.shape)).astype(spec.dtype) for spec in model.manifest.inputs}
    inputs["x"][::3, :2] = MASKED

    together, _ = stepped(model, inputs)
    alone, _ = stepped(model, {name: values[9:10] for name, values in inputs.items()})

    assert all(np.array_equal(together[output][9:10], alone[output]) for output in together)


def test_a_state_has_the_name_that_the_body_gives_it() -> None:
    """Names of a body that begin with that of the node are the states' own; `plain` has them without slashes.

    The output before is the state h, so that there are two.
    """
    model = masked_lstm()
    node = next(node for node in model.graph.node if node.op_type == "Scan")
    node.name = "own/rnn"
    body, names = next(subgraphs(node)), {"h": "own/rnn.h", "c": "own/rnn.0.c"}
    for value in body.input:
        value.name = names.get(value.name, value.name)
    replace_items(body.node, [renamed(inner, names, name="own/rnn") for inner in body.node])
    made = convert(model, name="named")
    verify_model(made, long_steps=0)

    assert [state.input for state in made.manifest.states] == ["own.rnn.h", "own.rnn.0.c"]


def test_nodes_of_one_layer_number_its_states() -> None:
    """A layer that is called twice gives two nodes of its name, of which onnxruntime takes one in a graph."""
    model = ZOO["stacked_with_states"].build()
    for node in model.graph.node:
        node.name = "twin" if node.op_type == "LSTM" else node.name
    made = convert(model, name="twins")
    verify_model(made, long_steps=0)

    assert [state.input for state in made.manifest.states] == ["twin.h", "twin.c", "twin.h_2", "twin.c_2"]


def test_a_loop_that_takes_the_whole_sequence_in_each_turn_is_refused() -> None:
    body = SCAN_BODY.replace(
        "a = MatMul (xi, Wx)", "every = ReduceSum (x, s1) e = Squeeze (every, s1) a = MatMul (e, Wx)"
    )

    with pytest.raises(RefusedModelError, match=r"Node 'rnn' \(Scan\) takes all timesteps of 'x' at every timestep"):
        convert(scanned("", body), name="whole")


def test_a_loop_that_takes_the_end_of_a_sequence_in_each_turn_is_refused() -> None:
    body = SCAN_BODY.replace("a = MatMul (xi, Wx)", "both = Add (xi, last) a = MatMul (both, Wx)")
    text = "sums = ReduceSum (x, s1) last = Squeeze (sums, s1)"

    with pytest.raises(RefusedModelError, match=r"Node 'rnn' \(Scan\) needs 'last', which is known after the last"):
        convert(scanned(text, body), name="end")


def test_a_body_may_have_weights_of_its_own() -> None:
    model = scanned("", SCAN_BODY.replace("Wh", "own"))
    body = next(subgraphs(next(node for node in model.graph.node if node.op_type == "Scan")))
    weight = np.random.default_rng(2).standard_normal((5, 5)).astype(np.float32) / 3
    body.initializer.append(onnx.numpy_helper.from_array(weight, "own"))
    _, report = verify_model(convert(model, name="own"), long_steps=100)

    assert report.parity.max_abs <= 1e-5


def test_a_scan_over_equal_timesteps_is_a_recurrence() -> None:
    """A decoder that is fed nothing but its state."""
    model = graph(
        """(float[batch, time, 4] x) => (float[batch, time, 5] y) {
            shape = Shape (x) rows = Slice (shape, s0, s1) two = Slice (shape, s0, s2)
            size = Concat <axis = 0> (rows, five) long = Concat <axis = 0> (two, four)
            z = ConstantOfShape <value = float[1] {0.5}> (size) ones = ConstantOfShape <value = float[1] {1.0}> (long)
            hT, h = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = """ + SCAN_BODY + """> (z, ones)
            added = MatMul (x, V)
            y = Add (h, added)
        }""",
        s0=ints(0), s1=ints(1), s2=ints(2), five=ints(5), four=ints(4), Wx=(4, 5), Wh=(5, 5), V=(4, 5),
    )  # fmt: skip
    _, report = verify_model(convert(model, name="fed_nothing"), long_steps=100)

    assert report.parity.max_abs <= 1e-5


def test_states_may_be_counters_flags_and_what_others_were() -> None:
    """An integer, a truth value, and a state that is another one of the timestep before."""
    body = """
        body (float[n, 4] a, float[n, 4] b, int64[n, 1] count, bool[n, 1] high, float[n, 4] xi)
        => (float[n, 4] an, float[n, 4] bn, int64[n, 1] cn, bool[n, 1] hn, float[n, 4] yi) {
            an = Identity (xi)
            bn = Identity (a)
            cn = Add (count, s1)
            turn = Cast <to = 1> (cn)
            first = Slice (xi, s0, s1, s1)
            above = Greater (first, half)
            hn = Or (high, above)
            flag = Cast <to = 1> (hn)
            difference = Sub (xi, b)
            mean = Div (difference, turn)
            yi = Mul (mean, flag)
        }
    """
    model = graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            shape = Shape (x) rows = Slice (shape, s0, s1)
            wide = Concat <axis = 0> (rows, four) narrow = Concat <axis = 0> (rows, s1)
            z = ConstantOfShape (wide) none = ConstantOfShape <value = int64[1] {{0}}> (narrow)
            never = Cast <to = 9> (none)
            aT, bT, cT, hT, y = Scan <num_scan_inputs = 1, scan_input_axes = [-2], scan_output_axes = [-2],
                body = {body}> (z, z, none, never, x)
        }}""",
        s0=ints(0), s1=ints(1), four=ints(4), half=np.float32(0.5),
    )  # fmt: skip
    made = convert(model, name="states")
    content, report = verify_model(made, long_steps=100)

    assert report.parity.max_abs <= 1e-5
    assert StepModel(content).batched
    assert [state.dtype for state in made.manifest.states] == ["float32", "float32", "int64", "bool"]


def counted(turns: str, text: str = "", body: str = "", **weights: Any) -> onnx.ModelProto:
    """Return a Loop named `loop` of as many turns as `turns`, over the sequence `u` of `(batch, time, 4)`."""
    return graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            {text}
            sx = Shape (u) steps = Gather <axis = 0> (sx, one) rows = Slice (sx, zeros, ones)
            size = Concat <axis = 0> (rows, five) h0 = ConstantOfShape (size) less = Sub (steps, one)
            [loop] hT, yt = Loop ({turns}, yes, h0) <body =
                body (int64 i, bool go, float[b, 5] h) => (bool on, float[b, 5] hn, float[b, 5] yi) {{
                    xi = Gather <axis = 1> (u, i) a = MatMul (xi, Wx) b = MatMul (h, Wh) s = Add (a, b)
                    hn = Tanh (s) yi = Identity (hn) on = Identity (go) {body}
                }}>
            y = Transpose <perm = [1, 0, 2]> (yt)
        }}""",
        zeros=ints(0), ones=ints(1), one=np.int64(1), five=ints(5), yes=np.array(True), Wx=(4, 5), Wh=(5, 5),
        most=ints(2**62), **weights,
    )  # fmt: skip


def test_a_loop_of_other_than_one_turn_for_each_timestep_is_refused() -> None:
    with pytest.raises(RefusedModelError, match=r"Node 'loop' \(Loop\) has 1 turn\(s\) fewer than there are timesteps"):
        convert(counted("less", "u = Identity (x)"), name="fewer")


def test_a_loop_that_is_none_over_time_may_use_a_shape() -> None:
    """The same three turns in each timestep, with a shape that has the number of timesteps among its sizes."""
    model = graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            shape = Shape (x) c = CumSum (x, one)
            y = Loop (three, yes, c) <body =
                body (int64 i, bool go, float[b, t, 4] h) => (bool on, float[b, t, 4] hn) {{
                    wide = Expand (half, shape) k = Mul (h, wide) hn = Tanh (k) on = Identity (go)
                }}>
        }}""",
        one=np.int64(1), three=np.int64(3), yes=np.array(True), half=np.float32(0.5),
    )  # fmt: skip
    _, report = verify_model(convert(model, name="turns"), long_steps=100)

    assert report.parity.max_abs <= 1e-5
