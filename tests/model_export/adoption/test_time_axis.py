"""A graph that takes any number of timesteps is served in chunks, where a chunk equals single steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwell_export.adoption.autoconfigure import adopt, write_sidecar
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.step_model import StepModel
from tests import graphs


def adopted(folder: Path, text: str, *, initial: Array | None = None) -> tuple[StepModel, Manifest]:
    path = folder / "found.onnx"
    path.write_bytes(graphs.graph_from_text(text, lstm_weights()))
    hints = Overrides(initial={} if initial is None else {"h": initial})
    write_sidecar(path, adopt(path, hints=hints, steps=5).manifest)
    model = StepModel(path)
    return model, model.manifest


def lstm_weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "W": rng.normal(size=(1, 16, 3)).astype(np.float32),
        "R": rng.normal(size=(1, 16, 4)).astype(np.float32),
        "b": rng.normal(size=(1, 32)).astype(np.float32),
        "one": np.array([1]),
        "inner": np.array([1, 2]),
    }


def without_batch_axis(symbol: str) -> str:
    """Write a graph as voice activity detectors come: time is axis 0, and h and c have one row written into them."""
    return f"""g (float[{symbol},3] x, float[1,1,4] h, float[1,1,4] c)
        => (float[{symbol},4] y, float[1,1,4] hn, float[1,1,4] cn) {{
        xt = Unsqueeze (x, one)
        yt, hn, cn = LSTM <hidden_size = 4> (xt, W, R, b, , h, c)
        y = Squeeze (yt, inner)
    }}"""


BATCH_FIRST = """g (float[batch,seq,3] x, float[1,batch,4] h, float[1,batch,4] c)
    => (float[batch,seq,4] y, float[1,batch,4] hn, float[1,batch,4] cn) {
    xt = Transpose <perm = [1,0,2]> (x)
    yt, hn, cn = LSTM <hidden_size = 4> (xt, W, R, b, , h, c)
    ys = Squeeze (yt, one)
    y = Transpose <perm = [1,0,2]> (ys)
}"""


def assert_chunk_equals_steps(model: StepModel, rows: int) -> None:
    x = np.random.default_rng(1).normal(size=(rows, 9, 3)).astype(np.float32)
    states, steps = model.initial_states(rows), []
    for t in range(9):
        answers, states = model.step({"x": x[:, t]}, states)
        steps.append(answers["y"])
    answers, after = model.chunk({"x": x}, model.initial_states(rows))

    np.testing.assert_allclose(answers["y"], np.stack(steps, axis=1), atol=1e-6)
    np.testing.assert_allclose(after["h"], states["h"], atol=1e-6)


@pytest.mark.parametrize("symbol", ["time", "N", "batch"])
def test_a_graph_without_batch_axis_takes_chunks_whatever_its_axis_is_called(tmp_path: Path, symbol: str) -> None:
    model, manifest = adopted(tmp_path, without_batch_axis(symbol))

    assert (manifest.time.chunk, manifest.batch.mode) == ("dynamic", "single")
    assert [(i.shape, i.batch_axis) for i in manifest.inputs] == [([3], None)]
    assert [(s.shape, s.batch_axis) for s in manifest.states] == [([1, 1, 4], None)] * 2
    assert_chunk_equals_steps(model, rows=1)
    assert_chunk_equals_steps(model, rows=2)


def test_single_numbers_along_time_are_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "sum.onnx"
    path.write_bytes(
        graphs.graph_from_text(
            """g (float[T] x, float[1] h) => (float[T] y, float[1] h_next) {
                row = Unsqueeze (x, inner)
                h_next, rows = Scan <num_scan_inputs = 1, body = step (float[1] s, float[1] now)
                    => (float[1] s_next, float[1] answer) { s_next = Add (s, now) answer = Identity (s_next) }> (h, row)
                y = Squeeze (rows, inner)
            }""",
            {"inner": np.array([1])},
        )
    )
    write_sidecar(path, adopt(path).manifest)
    model = StepModel(path)
    answers, _ = model.chunk({"x": np.array([[[1], [2], [3]]], np.float32)}, model.initial_states(1))

    assert model.chunked
    assert answers["y"].ravel().tolist() == [1, 3, 6]


def test_a_time_axis_behind_the_batch_axis_takes_chunks_of_many_rows(tmp_path: Path) -> None:
    model, manifest = adopted(tmp_path, BATCH_FIRST)

    assert (manifest.time.chunk, manifest.batch.mode) == ("dynamic", "stack")
    assert (manifest.inputs[0].shape, manifest.inputs[0].graph_shape) == ([3], None)
    assert_chunk_equals_steps(model, rows=3)


def test_what_a_state_starts_from_keeps_its_place_without_batch_axis(tmp_path: Path) -> None:
    start = np.array([1, 2, 3, 4], np.float32)
    model, _ = adopted(tmp_path, without_batch_axis("time"), initial=start)

    np.testing.assert_array_equal(model.initial_states(1)["h"].ravel(), start)


def test_an_axis_of_rows_is_not_taken_for_time(tmp_path: Path) -> None:
    (tmp_path / "pump.onnx").write_bytes(graphs.lstm()[0])

    assert adopt(tmp_path / "pump.onnx").manifest.time.chunk == "step"


def test_an_open_axis_along_which_a_chunk_differs_from_steps_is_not_taken(tmp_path: Path) -> None:
    """Each timestep is added to the state it was given, not to what the one before left."""
    _, manifest = adopted(
        tmp_path,
        """g (float[B,T,3] x, float[B,3] h) => (float[B,T,3] y, float[B,3] h_next) {
            row = Unsqueeze (h, one)
            y = Add (x, row)
            h_next = ReduceMean <axes = [1], keepdims = 0> (y)
        }""",
    )

    assert manifest.time.chunk == "step"


def test_an_answer_without_time_axis_keeps_the_graph_at_single_steps(tmp_path: Path) -> None:
    _, manifest = adopted(
        tmp_path,
        """g (float[B,T,3] x, float[B,3] h) => (float[B,3] y, float[B,3] h_next) {
            sum = ReduceMean <axes = [1], keepdims = 0> (x)
            h_next = Add (h, sum)
            y = Identity (h_next)
        }""",
    )

    assert manifest.time.chunk == "step"


def running(features: int, part: str) -> str:
    """Return a graph with a sum over time, of which each chunk makes y in the way of a part."""
    x, h = f"float[B,T,{features}]", f"float[B,{features}]"
    return f"""g ({x} x, {h} h) => ({x} y, {h} h_next) {{
        one = Constant <value = int64[1] {{1}}> ()
        zero = Constant <value = int64[1] {{0}}> ()
        h_next, sums = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = step ({h} before, {h} now) => ({h} after, {h} answer) {{
                after = Add (before, now)
                answer = Identity (after)
            }}> (h, x)
        {part}
    }}"""


RARE = {
    "divided by the largest value above 1,000": """
        limit = Constant <value = float {1000.0}> ()
        size = Abs (x)
        peak = ReduceMax <axes = [1], keepdims = 1> (size)
        gain = Max (peak, limit)
        y = Div (sums, gain)""",
    "the value of 100 timesteps ago": """
        pads = Constant <value = int64[6] {0, 100, 0, 0, -100, 0}> ()
        late = Pad (x, pads)
        y = Add (sums, late)""",
    "doubled above 300 timesteps": """
        shape = Shape <start = 1, end = 2> (x)
        length = Squeeze (shape)
        limit = Constant <value = int64 {300}> ()
        is_long = Greater (length, limit)
        y = If (is_long) <
            then_branch = a () => (float[B,T,3] doubled) { doubled = Add (sums, sums) },
            else_branch = b () => (float[B,T,3] same) { same = Identity (sums) }
        >""",
    "an alarm for the whole chunk": """
        limit = Constant <value = float {50.0}> ()
        is_high = Greater (x, limit)
        alarm = Cast <to = 1> (is_high)
        any = ReduceMax <axes = [1], keepdims = 1> (alarm)
        y = Add (sums, any)""",
    "an alarm of the first timestep at a value that no sample has": """
        limit = Constant <value = float {12345678.0}> ()
        start = Slice (x, zero, one, one)
        is_high = Greater (start, limit)
        alarm = Cast <to = 1> (is_high)
        y = Add (sums, alarm)""",
    "the state before the chunk at a value that no sample has": """
        limit = Constant <value = float {12345678.0}> ()
        is_high = Greater (h, limit)
        alarm = Cast <to = 1> (is_high)
        row = Unsqueeze (alarm, one)
        y = Add (sums, row)""",
    "a softmax over the timesteps of a chunk that is nearly nothing": """
        tiny = Constant <value = float {1e-30}> ()
        share = Softmax <axis = 1> (x)
        little = Mul (share, tiny)
        y = Add (sums, little)""",
}


@pytest.mark.parametrize("part", RARE.values(), ids=list(RARE))
def test_a_graph_whose_chunks_differ_from_steps_for_something_rare_runs_single_steps(tmp_path: Path, part: str) -> None:
    _, manifest = adopted(tmp_path, running(3, part))

    assert manifest.time.chunk == "step"


@pytest.mark.parametrize(
    "part",
    [
        "y = Identity (sums)",
        "half = Constant <value = float {0.5}> () low = Mul (x, half) t = Tanh (low) y = Add (sums, t)",
        "turned = Transpose <perm = [1,0,2]> (sums) a = Softmax <axis = 2> (turned) y = Transpose <perm = [1,0,2]> (a)",
        "more = Concat <axis = 2> (sums, x) y, rest = Split <axis = 2> (more)",
    ],
)
def test_a_graph_that_does_the_same_for_every_timestep_takes_chunks(tmp_path: Path, part: str) -> None:
    model, manifest = adopted(tmp_path, running(3, part))

    assert manifest.time.chunk == "dynamic"
    assert_chunk_equals_steps(model, rows=3)


def test_a_recurrence_that_starts_from_the_middle_of_a_state_runs_single_steps(tmp_path: Path) -> None:
    """What is done to the state before a chunk is done once, not once for each timestep."""
    text = running(3, "y = Identity (sums)").replace("> (h, x)", "> (fading, x)")
    half = "keep = Constant <value = float {0.9999999}> () fading = Mul (h, keep)"
    _, manifest = adopted(tmp_path, text.replace("h_next, sums", f"{half}\n h_next, sums"))

    assert manifest.time.chunk == "step"
