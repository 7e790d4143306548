"""Graphs with a time axis: made of step graphs of every build, and equal to their single steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from stepwell_export.chunk.analysis import NoChunkError
from stepwell_export.chunk.selection import (
    AT_ONCE,
    INSIDE,
    TIME,
    choose_chunk,
    dynamic_graph,
    dynamic_manifest,
    too_heavy,
)
from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import chunked, stepped
from stepwell_export.verify.tolerance import Tolerance
from stepwell_export.weights import Weights, compress_weights
from tests import graphs

STRICT = Tolerance(1e-5, 1e-5)


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> None:
    """Measure as exports by users do: here are the tests of what is measured."""


def stateful(name: str, text: str, state: list[int], weights: dict[str, Array] | None = None) -> graphs.Built:
    """A graph with one input `x` of [2], one state `s` and one output `y` of [2]."""
    graph = graphs.graph_from_text(f"{name} (float[B,2] x, float[B,{','.join(map(str, state))}] s) => "
                                   f"(float[B,2] y, float[B,{','.join(map(str, state))}] s_next) {{{text}}}",
                                   weights)  # fmt: skip
    total = graphs.total()[1]
    states = [total.states[0].model_copy(update={"shape": state})]
    return graph, total.model_copy(update={"states": states})


def ring(dilation: int = 3) -> graphs.Built:
    """The sum of this timestep, and of those `dilation` and twice `dilation` timesteps ago: a ring buffer."""
    back = 2 * dilation
    return stateful(
        "ring",
        f"""one = Constant <value = int64[1] {{1}}> ()
            end = Constant <value = int64[1] {{{back + 1}}}> ()
            new = Unsqueeze (x, one)
            window = Concat <axis = 1> (s, new)
            s_next = Slice (window, one, end, one)
            at = Constant <value = int64[3] {{0, {dilation}, {back}}}> ()
            taps = Gather <axis = 1> (window, at)
            y = ReduceSum <keepdims = 0> (taps, one)""",
        [back, 2],
    )


def ring_behind() -> graphs.Built:
    """A ring buffer with channels in front of the timesteps, all of them looked at."""
    return stateful(
        "ring_behind",
        """two = Constant <value = int64[1] {2}> ()
           one = Constant <value = int64[1] {1}> ()
           far = Constant <value = int64[1] {1000}> ()
           new = Unsqueeze (x, two)
           window = Concat <axis = 2> (s, new)
           s_next = Slice (window, one, far, two)
           y = ReduceMax <axes = [2], keepdims = 0> (window)""",
        [2, 4],
    )


def delay() -> graphs.Built:
    """This timestep minus the last one."""
    return stateful("delay", "y = Sub (x, s)\n s_next = Tanh (x)", [2])


def lstm_operator(hidden: int = 3) -> graphs.Built:
    """ONNX's own LSTM on one timestep, batch on axis 1 inside."""
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 4 * hidden, 2), "R": (1, 4 * hidden, hidden), "V": (hidden, 2)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    state = f"float[B,{hidden}]"
    graph = graphs.graph_from_text(
        f"""
        op (float[B,2] x, {state} h, {state} c) => (float[B,2] y, {state} h_next, {state} c_next) {{
            zero = Constant <value = int64[1] {{0}}> ()
            both = Constant <value = int64[2] {{0, 1}}> ()
            seq = Unsqueeze (x, zero)
            h0 = Unsqueeze (h, zero)
            c0 = Unsqueeze (c, zero)
            all, h1, c1 = LSTM <hidden_size = {hidden}> (seq, W, R, , , h0, c0)
            h_next = Squeeze (h1, zero)
            c_next = Squeeze (c1, zero)
            seen = Squeeze (all, both)
            y = MatMul (seen, V)
        }}""",
        weights,
    )
    manifest = graphs.lstm(2, hidden)[1]
    return graph, manifest.model_copy(update={"states": manifest.states[:2]})


def recurrent_operator(operator: str, activations: list[str]) -> graphs.Built:
    """An operator on one timestep with these activations; a pair of states is one of 8."""
    rng = np.random.default_rng(0)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    weights = {"W": (1, gates * 4, 2), "R": (1, gates * 4, 4), "V": (4, 2)}
    names = ", ".join(f'"{name}"' for name in activations)
    pair = operator == "LSTM"
    return stateful(
        operator.lower(),
        f"""zero = Constant <value = int64[1] {{0}}> ()
            both = Constant <value = int64[2] {{0, 1}}> ()
            seq = Unsqueeze (x, zero)
            before = Unsqueeze (s, zero)
            {"h, c = Split <axis = 2> (before)" if pair else "h = Identity (before)"}
            all, {"h1, c1" if pair else "h1"} = {operator} <hidden_size = 4, activations = [{names}]>
                (seq, W, R, , , h{", c" if pair else ""})
            after = {"Concat <axis = 2> (h1, c1)" if pair else "Identity (h1)"}
            s_next = Squeeze (after, zero)
            seen = Squeeze (all, both)
            y = MatMul (seen, V)""",
        [8 if pair else 4],
        {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in weights.items()},
    )


def two_loops() -> graphs.Built:
    """A running sum of the answers of a leaky cell, which hangs on nothing behind it."""
    graph = graphs.graph_from_text("""
        two (float[B,2] x, float[B,2] s, float[B,2] t) => (float[B,2] y, float[B,2] s_next, float[B,2] t_next) {
            seen = Tanh (x)
            sum = Add (s, seen)
            s_next = Sin (sum)
            wide = Exp (s_next)
            t_next = Add (t, wide)
            late = Add (t, s)
            y = Sub (late, wide)
        }""")
    total = graphs.total()[1]
    second = total.states[0].model_copy(update={"input": "t", "output": "t_next"})
    return graph, total.model_copy(update={"states": [total.states[0], second]})


def means(weight: str, divisor: str) -> graphs.Built:
    """A running mean, weighted by a sigmoid of the first feature, or one that divides by what a state counts."""
    graph = graphs.graph_from_text(f"""
        means (float[B,2] x, float[B] s, float[B,2] t) => (float[B,2] y, float[B] s_next, float[B,2] t_next) {{
            zero = Constant <value = int64 {{0}}> ()
            last = Constant <value = int64[1] {{1}}> ()
            one = Constant <value = float[1] {{1}}> ()
            first = Gather <axis = 1> (x, zero)
            gate = Sigmoid (first)
            total = Add (s, {weight})
            s_next = Identity (total)
            far = Sub (x, t)
            {divisor}
            t_next = Add (t, part)
            y = Add (t_next, t)
        }}""")
    total = graphs.total()[1]
    counted = total.states[0].model_copy(update={"shape": []})
    mean = total.states[0].model_copy(update={"input": "t", "output": "t_next"})
    return graph, total.model_copy(update={"states": [counted, mean]})


WEIGHTED = "share = Div (gate, total) wide = Unsqueeze (share, last) part = Mul (far, wide)"
COUNTED = "wide = Unsqueeze (total, last) part = Div (far, wide)"
COUNTED_TWICE = (
    "only = Constant <value = float {1}> () again = Add (only, s) wide = Unsqueeze (again, last) part = Div (far, wide)"
)
"""As the streaming pass writes it: the count that divides is another node than the one that the state becomes."""

GRAPHS: dict[str, tuple[graphs.Build, str]] = {
    "weighted_mean": (lambda: means("gate", WEIGHTED), AT_ONCE),
    "mean_by_another_count": (lambda: means("one", COUNTED_TWICE), AT_ONCE),
    "other_count": (lambda: means("gate", COUNTED), INSIDE),
    "two_inputs": (graphs.two_inputs, INSIDE),
    "latch": (graphs.latch, INSIDE), "lstm": (graphs.lstm, INSIDE),
    "time_axis": (graphs.time_axis, AT_ONCE), "two_loops": (two_loops, INSIDE),
    "ring": (ring, AT_ONCE), "ring_behind": (ring_behind, AT_ONCE), "delay": (delay, AT_ONCE),
    "lstm_operator": (lstm_operator, AT_ONCE),
}  # fmt: skip


def made(build: graphs.Build) -> tuple[str, onnx.ModelProto]:
    graph, manifest = build()
    how, proto, _ = dynamic_graph(onnx.load_from_string(graph), manifest)
    return how, proto


def load(proto: onnx.ModelProto, manifest: Manifest) -> StepModel:
    return StepModel(proto.SerializeToString(), dynamic_manifest(manifest))


def sequence(manifest: Manifest, rows: int, steps: int) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {s.name: rng.integers(0, 2 if s.dtype == "bool" else 5, (rows, steps, *s.shape)).astype(s.dtype)
            for s in manifest.inputs}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_a_chunk_equals_its_steps(name: str) -> None:
    build, want_how = GRAPHS[name]
    graph, manifest = build()
    data = sequence(manifest, 3, 11)
    want = stepped(StepModel(graph, manifest), data)

    how, proto = made(build)
    model = load(proto, manifest)
    assert how == want_how
    for lengths in ([11], [1, 2, 5]):
        for found, expected in zip(chunked(model, data, lengths), want, strict=True):
            assert all(STRICT.holds(found[key], expected[key]) for key in expected)


SELDOM = {
    "the largest of all rows": "m = ReduceMax <axes = [0]> (a) d = Max (m, eight) y = Div (h, d)",
    "an operator whose rows are not known": "y = CenterCropPad <axes = [1]> (h, two)",
}  # fmt: skip


@pytest.mark.parametrize("name", SELDOM)
def test_a_graph_whose_rows_may_meet_runs_chunks_step_by_step(name: str, tmp_path: Path) -> None:
    """A chunk runs timesteps as rows, so they would meet as well: at a loud timestep, or in a long chunk."""
    weights: dict[str, Array] = {
        "eight": np.array(80, np.float32), "many": np.array(1e3, np.float32), "zero": np.array(0), "two": np.array([2])
    }  # fmt: skip
    text = f"k = Tanh (s) s_next = Add (k, x) h = Tanh (s_next) a = Abs (s_next) {SELDOM[name]}"
    graph, manifest = stateful("seldom", text, [2], {key: value for key, value in weights.items() if key in text})
    model = onnx.load_from_string(graph)
    model.opset_import[0].version = 18 if "CenterCropPad" in text else 17
    sample = {"x": np.random.default_rng(0).standard_normal((3, 64, 2)).astype(np.float32)}

    _, chosen, choice = choose_chunk(model, manifest, [sample], STRICT, folder=tmp_path)

    assert (chosen.manifest.time.chunk, choice.chunk) == ("step", "step")
    assert choice.why.startswith("timesteps cannot be run at once: ")


@pytest.mark.parametrize(("weight", "divisor"), [("gate", WEIGHTED), ("one", COUNTED)])
def test_a_mean_of_a_long_stream_keeps_its_digits_in_a_chunk(weight: str, divisor: str) -> None:
    """Added up, the values of that stream would leave no digits for those of the chunk."""
    graph, manifest = means(weight, divisor)
    proto = dynamic_graph(onnx.load_from_string(graph), manifest)[1]
    model = load(proto, manifest)
    states = {"s": np.full(1, 2**22, np.float32), "t": np.full((1, 2), 3, np.float32)}
    x = np.full((1, 500, 2), 40, np.float32)

    _, after = model.chunk({"x": x}, states)

    np.testing.assert_allclose(after["t"] - 3, 37 * 500 / (2**22 + 500), rtol=1e-3)


def test_what_is_no_number_before_an_operator_is_none_behind_it_in_a_chunk_as_well() -> None:
    """A root of a negative number: onnxruntime's operators with a bias make numbers of it."""
    graph, manifest = lstm_operator(4)
    proto = onnx.load_from_string(graph)
    for node in proto.graph.node:
        node.input[:] = ["root" if name == "x" else name for name in node.input]
        if node.op_type == "LSTM":
            node.input[3] = "B"
    proto.graph.node.insert(0, onnx.helper.make_node("Sqrt", ["x"], ["root"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 32), 0.1, np.float32), "B"))
    step = StepModel(decompose_rnn(proto).SerializeToString(), manifest)
    _, timed, _ = dynamic_graph(proto, manifest)
    data = np.abs(np.random.default_rng(0).standard_normal((3, 12, 2))).astype(np.float32)
    data[1, 4, 0] = -1

    want, _ = stepped(step, {"x": data})
    got, _ = chunked(load(timed, manifest), {"x": data}, [12])

    assert np.isnan(want["y"][1, 4:]).all()
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["two_inputs", "lstm", "ring", "weighted_mean", "lstm_operator"])
def test_a_single_step_is_bit_for_bit_that_of_the_step_graph(name: str) -> None:
    graph, manifest = GRAPHS[name][0]()
    data = sequence(manifest, 2, 5)
    alone = decompose_rnn(onnx.load_from_string(graph))
    want, states = stepped(StepModel(alone.SerializeToString(), manifest), data)

    got, after = stepped(load(made(GRAPHS[name][0])[1], manifest), data)

    assert all(np.array_equal(got[key], want[key]) for key in want)
    assert all(np.array_equal(after[key], states[key]) for key in states)


def test_onnxruntime_takes_the_branch_away_for_single_steps(tmp_path: Path) -> None:
    """What a single step costs is what the step graph costs, but for the axis of length 1."""
    _, proto = made(graphs.lstm)
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name(TIME, 1)
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    ort.InferenceSession(proto.SerializeToString(), options)

    assert "If" not in {node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node}


def test_a_dilated_window_is_not_made_whole() -> None:
    """Only the timesteps that are looked at are gathered, not the 200 between them."""
    _, proto = made(lambda: ring(100))
    model = load(proto, ring(100)[1])
    data = sequence(model.manifest, 1, 300)

    assert "Gather" not in {node.op_type for node in _chunk_branch(proto).node if "window" in node.input}
    assert STRICT.holds(chunked(model, data, [300])[0]["y"], stepped(StepModel(*ring(100)), data)[0]["y"])


def _chunk_branch(proto: onnx.ModelProto) -> onnx.GraphProto:
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    branch: onnx.GraphProto = next(a.g for a in choice.attribute if a.name == "else_branch")
    return branch


REFUSED = {
    "noisy": (graphs.noisy, "it draws random numbers"),
    "batch_axis_1": (graphs.no_batch_axis, "it runs one row at a time"),
    "moving_sum": (graphs.moving_sum, "it has host-side windows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_chunks_are_not_made_of_says_why(name: str) -> None:
    build, why = REFUSED[name]
    with pytest.raises(NoChunkError, match=why):
        made(build)


def test_an_old_opset_says_why() -> None:
    graph, manifest = graphs.total()
    proto = onnx.load_from_string(graph)
    proto.opset_import[0].version = 13
    with pytest.raises(NoChunkError, match="opset is 13"):
        dynamic_graph(proto, manifest)


ACTIVATIONS = ["Tanh", "Sigmoid", "Relu", "LeakyRelu", "Elu", "Softsign", "Softplus", "HardSigmoid", "Affine"]
FORMS = [("RNN", [kind]) for kind in ACTIVATIONS]
FORMS += [("GRU", ["Sigmoid", "Tanh"]), ("GRU", ["HardSigmoid", "Softsign"])]
FORMS += [("LSTM", ["Sigmoid", "Tanh", "Tanh"]), ("LSTM", ["Softsign", "Elu", "Softplus"])]


@pytest.mark.parametrize(("operator", "activations"), FORMS)
def test_a_chunk_of_tiny_and_of_large_values_equals_its_steps(operator: str, activations: list[str]) -> None:
    """Inside some of its operators, onnxruntime rounds activations near zero to 3e-8."""
    graph, manifest = recurrent_operator(operator, activations)
    proto = onnx.load_from_string(graph)
    step = StepModel(decompose_rnn(proto).SerializeToString(), manifest)
    chunks = load(dynamic_graph(proto, manifest)[1], manifest)
    x = np.random.default_rng(7).standard_normal((1, 12, 2))
    for scale in (1e-9, 1e-5, 1, 100):
        data = {"x": (x * scale).astype(np.float32)}
        for found, want in zip(*(m.chunk(data, m.initial_states(1)) for m in (chunks, step)), strict=True):
            for key in want:
                np.testing.assert_allclose(found[key], want[key], rtol=0, atol=1e-5 * np.abs(want[key]).max())


# -------------------------------------------------------------------- choosing


def test_a_ring_buffer_is_worth_a_time_axis(tmp_path: Path) -> None:
    graph, manifest = ring()
    data = sequence(manifest, 3, 20)
    _, chosen, choice = choose_chunk(onnx.load_from_string(graph), manifest, [data], STRICT, folder=tmp_path)

    assert (chosen.manifest.time.chunk, choice.chunk, choice.why) == ("dynamic", "dynamic", AT_ONCE)
    assert choice.gain > 3
    assert [(timing.rows, timing.steps) for timing in choice.timings] == [(1, 1), (1, 100), (32, 1), (32, 100)]


def test_a_chunk_that_differs_from_its_steps_is_not_taken(tmp_path: Path) -> None:
    """Rows that depend on how many there are: onnxruntime runs it, but a chunk is not its steps."""
    built = stateful(
        "counts",
        """n = Shape <start = 0, end = 1> (x)
           rows = Cast <to = 1> (n)
           sum = Add (s, x)
           s_next = Identity (sum)
           y = Mul (x, rows)""",
        [2],
    )
    _, chosen, choice = choose_chunk(
        onnx.load_from_string(built[0]), built[1], [sequence(built[1], 2, 5)], STRICT, folder=tmp_path
    )

    assert chosen.manifest.time.chunk == choice.chunk
    assert choice.why != AT_ONCE


@pytest.mark.parametrize(
    ("how", "products", "why"),
    [
        (AT_ONCE, 500_000, None),
        (AT_ONCE, 500_001, "each timestep multiplies 500,001 numbers"),
        (INSIDE, 150_000, None),
        (INSIDE, 150_001, "each timestep multiplies 150,001 numbers"),
    ],
)
def test_chunks_are_taken_by_the_size_of_the_loops(how: str, products: int, why: str | None) -> None:
    found = too_heavy(how, products)

    assert (found is None) == (why is None)
    assert (why or "") in (found or "")


@pytest.mark.parametrize("weights", [None, "fp16"])
def test_a_wide_recurrence_stays_a_step_graph(weights: Weights | None, tmp_path: Path) -> None:
    """However its weights are stored."""
    graph, manifest = graphs.lstm(2, 400)
    proto = onnx.load_from_string(graph)
    _, chosen, choice = choose_chunk(
        compress_weights(proto, weights) if weights else proto, manifest, [], STRICT, folder=tmp_path
    )

    assert (chosen.manifest.time.chunk, choice.chunk) == ("step", "step")
    assert "little is gained" in choice.why


def test_a_fault_in_the_making_of_a_chunk_is_reported_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyError("s_next")

    graph, manifest = ring()
    monkeypatch.setattr("stepwell_export.chunk.selection.dynamic_graph", fail)

    _, chosen, choice = choose_chunk(onnx.load_from_string(graph), manifest, [], STRICT, folder=tmp_path)

    assert chosen.manifest.time.chunk == "step"
    assert choice.why.startswith(
        "A fault of Stepwell, not of the model: making a graph with a time axis failed (KeyError"
    )
