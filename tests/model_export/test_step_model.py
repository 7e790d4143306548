"""`StepModel`: rows in, rows out, on graphs of every build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.chunk.selection import dynamic_graph, dynamic_manifest
from stepwell_export.runtime.errors import ManifestError, ModelLoadError, ModelTimeoutError
from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest, PackedTensor, sidecar_of
from stepwell_export.runtime.step_model import MOST_ROWS, MOST_STEPS, StepModel, nearly_equal
from tests import graphs

HONEST: dict[str, graphs.Build] = {
    "two_inputs": graphs.two_inputs,
    "latch": graphs.latch,
    "lstm": graphs.lstm,
    "batch_axis_1": graphs.batch_axis_1,
    "time_axis": graphs.time_axis,
    "scaled": graphs.scaled,
    "moving_sum": graphs.moving_sum,
}
SINGLE: dict[str, graphs.Build] = {
    "no_batch_axis": graphs.no_batch_axis,
    "lying_batch": graphs.lying_batch,
    "mixing_rows": graphs.mixing_rows,
}


def load(build: graphs.Build, **changes: Any) -> StepModel:
    graph, manifest = build()
    return StepModel(graph, manifest.model_copy(update=changes))


def sequence(model: StepModel, rows: int, steps: int) -> dict[str, Array]:
    """Return random inputs of shape `(rows, steps, *shape)`, integers from 0 to 9."""
    rng = np.random.default_rng(7)
    return {s.name: rng.integers(0, 2 if s.dtype == "bool" else 10, (rows, steps, *s.shape)).astype(s.dtype)
            for s in model.manifest.inputs}  # fmt: skip


def run_alone(model: StepModel, inputs: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    rows = len(next(iter(inputs.values())))
    parts = [model.chunk({n: a[r : r + 1] for n, a in inputs.items()}, model.initial_states(1)) for r in range(rows)]
    return (
        {n: np.concatenate([p[0][n] for p in parts]) for n in parts[0][0]},
        {n: np.concatenate([p[1][n] for p in parts]) for n in parts[0][1]},
    )


# -------------------------------------------------------------------- stepping


def test_the_fold_equals_its_python_reference_past_the_64_bit_wrap() -> None:
    model = load(graphs.fold)
    xs = [3, -5, 0, 2**40, 17, 9, -(2**62), 1]

    outputs, states = model.chunk({"x": np.array(xs, np.int64).reshape(1, -1, 1)}, model.initial_states(1))

    assert outputs["y"].ravel().tolist() == graphs.fold_reference(xs)
    assert states["h"].tolist() == [[graphs.fold_reference(xs)[-1]]]


@pytest.mark.parametrize("build", HONEST.values(), ids=HONEST)
def test_rows_together_equal_each_row_alone(build: graphs.Build) -> None:
    model = load(build)
    inputs = sequence(model, rows=5, steps=4)
    together = model.chunk(inputs, model.initial_states(5))
    alone = run_alone(model, inputs)

    assert model.batched
    for found, expected in zip(together, alone, strict=True):
        assert all(nearly_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("build", SINGLE.values(), ids=SINGLE)
def test_a_graph_that_cannot_run_rows_together_runs_them_one_by_one(build: graphs.Build) -> None:
    model = load(build)
    inputs = sequence(model, rows=3, steps=4)
    outputs, states = model.chunk(inputs, model.initial_states(3))

    assert not model.batched
    assert np.array_equal(outputs["y"], np.cumsum(inputs["x"], axis=1))
    assert np.array_equal(states["s"], inputs["x"].sum(axis=1))


def test_rows_that_mix_in_the_state_alone_are_found() -> None:
    """At the first step all states are equal, so their mean is too; a probe of one step sees nothing."""
    nodes = "mean = ReduceMean <axes = [0], keepdims = 1> (s) s_next = Add (mean, x) y = Identity (s_next)"

    assert not StepModel(*graphs.of_nodes(nodes, 1)).batched


def test_a_fixed_batch_of_one_runs_rows_one_by_one() -> None:
    graph = graphs.graph_from_text("""
        fixed (float[1,2] x, float[1,2] s) => (float[1,2] y, float[1,2] s_next) {
            s_next = Add (s, x)
            y = Identity (s_next)
        }""")
    model = StepModel(graph, graphs.total()[1])
    outputs, _ = model.step({"x": np.array([[1, 2], [3, 4]], np.float32)}, model.initial_states(2))

    assert not model.batched
    assert outputs["y"].tolist() == [[1, 2], [3, 4]]


def test_no_more_rows_than_batch_max_are_run_together() -> None:
    """Counted by a graph whose output is the number of rows it was given; the probe is told it is random."""
    graph = graphs.graph_from_text("""
        rows (float[B,1] x, float[B,1] s) => (int64[B,1] y, float[B,1] s_next) {
            s_next = Add (s, x)
            shape = Shape (x)
            zero = Constant <value = int64[1] {0}> ()
            rows = Gather (shape, zero)
            none = Cast <to = 7> (s_next)
            nothing = Sub (none, none)
            y = Add (nothing, rows)
        }""")
    total = graphs.total(1)[1]
    y = total.outputs[0].model_copy(update={"dtype": "int64", "kind": "random"})
    batch = total.batch.model_copy(update={"max": 3})
    model = StepModel(graph, total.model_copy(update={"outputs": [y], "batch": batch}))
    outputs, states = model.step({"x": np.arange(8, dtype=np.float32)[:, None]}, model.initial_states(8))

    assert outputs["y"].ravel().tolist() == [3, 3, 3, 3, 3, 3, 2, 2]
    assert states["s"].ravel().tolist() == list(range(8))


def test_the_batch_is_on_axis_0_wherever_the_graph_has_it() -> None:
    model = load(graphs.batch_axis_1)
    _, states = model.step({"x": np.array([[1, 2, 3], [4, 5, 6]], np.float32)}, model.initial_states(2))

    assert states["s"].tolist() == [[[1, 2, 3], [2, 4, 6]], [[4, 5, 6], [8, 10, 12]]]


def test_a_constant_is_fed_by_the_model() -> None:
    model = load(lambda: graphs.scaled(gain=7))
    outputs, _ = model.step({"x": np.array([[1, 2]], np.float32)}, model.initial_states(1))

    assert outputs["y"].tolist() == [[7, 14]]


def test_a_stream_starts_from_the_manifests_initial_state() -> None:
    model = load(lambda: graphs.count(start=40))
    outputs, _ = model.chunk({"x": np.zeros((2, 2, 1), np.float32)}, model.initial_states(2))

    assert outputs["y"].ravel().tolist() == [41, 42, 41, 42]
    assert model.initial_state == np.int64(40).tobytes()


def test_random_outputs_are_answered_and_ignored_ones_left_out() -> None:
    model = load(graphs.noisy)
    outputs, _ = model.step({"x": np.zeros((2, 2), np.float32)}, model.initial_states(2))

    assert (sorted(outputs), model.batched) == (["draw", "y"], True)


def test_one_graph_output_can_be_answered_and_carried() -> None:
    graph, manifest = graphs.total()
    also = manifest.outputs[0].model_copy(update={"name": "s_next"})
    model = StepModel(graph, manifest.model_copy(update={"outputs": [*manifest.outputs, also]}))
    outputs, states = model.step({"x": np.ones((1, 2), np.float32)}, model.initial_states(1))

    assert outputs["s_next"].tolist() == states["s"].tolist() == [[1, 1]]


def test_half_precision_graphs_may_round_when_rows_run_together() -> None:
    graph = graphs.graph_from_text(
        """
        half (float16[B,64] x, float16[B,64] s) => (float16[B,64] y, float16[B,64] s_next) {
            mixed = MatMul (x, W)
            s_next = Add (mixed, s)
            y = Tanh (s_next)
        }""",
        {"W": np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float16)},
    )
    text = graphs.total(64)[1].to_json().replace("float32", "float16")

    assert StepModel(graph, Manifest.from_json(text, where="a test")).batched


# -------------------------------------------------------------------- a time axis in the graph


def with_time(build: graphs.Build) -> StepModel:
    """The same model with a time axis of any length in its graph."""
    graph, manifest = build()
    _, proto, _ = dynamic_graph(onnx.load_from_string(graph), manifest)
    return StepModel(proto.SerializeToString(), dynamic_manifest(manifest))


def test_a_graph_with_a_time_axis_runs_a_chunk_in_one_run() -> None:
    assert with_time(graphs.lstm).chunked
    assert not load(graphs.lstm).chunked


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (3, MOST_STEPS), (2, 2 * MOST_STEPS + 7), (300, 60)])
def test_a_chunk_of_any_length_and_any_number_of_rows_equals_its_steps(rows: int, steps: int) -> None:
    """More timesteps than fit into one run take several, and so do more rows than `batch.max`."""
    model, stepwise = with_time(graphs.fold), load(graphs.fold)
    inputs = sequence(model, rows, steps)
    outputs, states = model.chunk(inputs, model.initial_states(rows))
    want, after = stepwise.chunk(inputs, stepwise.initial_states(rows))

    assert np.array_equal(outputs["y"], want["y"])
    assert np.array_equal(states["h"], after["h"])


def test_no_run_of_a_long_chunk_has_more_rows_times_timesteps_than_allowed() -> None:
    """Counted by the graph itself: its output is how many timesteps its run has."""
    graph = graphs.graph_from_text("""
        lengths (float[B,T,1] x, float[B,1] s) => (int64[B,T,1] y, float[B,1] s_next) {
            both = Shape <start = 0, end = 2> (x)
            one = Constant <value = int64[1] {1}> ()
            shape = Concat <axis = 0> (both, one)
            steps = Shape <start = 1, end = 2> (x)
            y = Expand (steps, shape)
            axes = Constant <value = int64[1] {1}> ()
            sum = ReduceSum <keepdims = 0> (x, axes)
            s_next = Add (s, sum)
        }""")
    total = graphs.total(1)[1]
    y = total.outputs[0].model_copy(update={"dtype": "int64"})
    time = total.time.model_copy(update={"chunk": "dynamic"})
    model = StepModel(graph, total.model_copy(update={"outputs": [y], "time": time}))
    outputs, _ = model.chunk({"x": np.ones((200, 100, 1), np.float32)}, model.initial_states(200))

    assert sorted(set(outputs["y"][0].ravel().tolist())) == [100 - MOST_ROWS // 200, MOST_ROWS // 200]


def test_a_time_axis_stands_behind_the_batch_axis_wherever_that_is() -> None:
    graph = graphs.graph_from_text("""
        wide (float[2,B,T] x, float[B,2] s) => (float[2,B,T] y, float[B,2] s_next) {
            axes = Constant <value = int64[1] {2}> ()
            sum = ReduceSum <keepdims = 0> (x, axes)
            turned = Transpose <perm = [1, 0]> (sum)
            s_next = Add (s, turned)
            y = Neg (x)
        }""")
    total = graphs.total()[1]
    axis_1 = {"batch_axis": 1}
    changed = {
        "inputs": [total.inputs[0].model_copy(update=axis_1)], "outputs": [total.outputs[0].model_copy(update=axis_1)],
        "time": total.time.model_copy(update={"chunk": "dynamic"}),
    }  # fmt: skip
    model = StepModel(graph, total.model_copy(update=changed))
    x = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    outputs, states = model.chunk({"x": x}, model.initial_states(3))
    step, _ = model.step({"x": x[:, 0]}, model.initial_states(3))

    assert np.array_equal(outputs["y"], -x)
    assert np.array_equal(states["s"], x.sum(axis=1))
    assert np.array_equal(step["y"], -x[:, 0])


# -------------------------------------------------------------------- windows


def test_a_window_puts_the_last_elements_in_front() -> None:
    model = load(lambda: graphs.moving_sum(new=2, context=3))
    outputs, states = model.chunk({"x": np.arange(1, 9, dtype=np.float32).reshape(1, 4, 2)}, model.initial_states(1))

    assert outputs["y"].ravel().tolist() == [1 + 2, 1 + 2 + 3 + 4, 2 + 3 + 4 + 5 + 6, 4 + 5 + 6 + 7 + 8]
    assert states["x.context"].tolist() == [[6, 7, 8]]


def test_a_window_longer_than_the_new_part_reaches_several_steps_back() -> None:
    model = load(lambda: graphs.moving_sum(new=1, context=4))
    outputs, _ = model.chunk({"x": np.ones((1, 7, 1), np.float32)}, model.initial_states(1))

    assert outputs["y"].ravel().tolist() == [1, 2, 3, 4, 5, 5, 5]


def test_a_window_may_start_from_given_elements() -> None:
    graph, manifest = graphs.moving_sum(new=2, context=3)
    init = PackedTensor.pack(np.array([10, 20, 30], np.float32))
    windows = [manifest.windows[0].model_copy(update={"init": init})]
    model = StepModel(graph, manifest.model_copy(update={"windows": windows}))
    outputs, _ = model.step({"x": np.ones((1, 2), np.float32)}, model.initial_states(1))

    assert outputs["y"].tolist() == [[62]]


# -------------------------------------------------------------------- packed rows


@pytest.mark.parametrize("build", [*HONEST.values(), graphs.no_batch_axis], ids=[*HONEST, "no_batch_axis"])
def test_packed_states_come_back_bit_for_bit(build: graphs.Build) -> None:
    model = load(build)
    _, states = model.chunk(sequence(model, rows=3, steps=3), model.initial_states(3))
    packed = model.pack(states, rows=3)
    back = model.unpack(packed)

    assert packed.shape == (3, model.state_bytes)
    assert {name: (a.dtype, a.tobytes()) for name, a in back.items()} == {
        name: (a.dtype, a.tobytes()) for name, a in states.items()
    }


def test_rows_from_a_read_only_buffer_can_be_stepped() -> None:
    """What the store gives back is such a buffer, at any byte offset."""
    model = load(graphs.lstm)
    raw = b"?" + bytes(model.pack(model.initial_states(2), rows=2))
    packed = np.frombuffer(raw, np.uint8, offset=1).reshape(2, model.state_bytes)
    outputs, _ = model.step({"x": np.ones((2, 4), np.float32)}, model.unpack(packed))

    assert np.array_equal(outputs["y"][0], outputs["y"][1])


def test_a_half_stored_state_takes_half_the_bytes_and_is_rounded() -> None:
    model = load(graphs.total_half)
    states = {"s": np.array([[1 / 3, 1e9]], np.float32)}
    back = model.unpack(model.pack(states, rows=1))["s"]

    assert (model.state_bytes, back.dtype.name) == (4, "float32")
    assert back.tolist() == [[float(np.float16(1 / 3)), float("inf")]]


# -------------------------------------------------------------------- loading


def test_a_sidecar_wins_over_the_file(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)
    sidecar_of(path).write_text(graphs.fold()[1].model_copy(update={"name": "mine"}).to_json())

    assert StepModel(path).manifest.name == "mine"


def test_a_graph_without_manifest_is_refused_with_the_way_out() -> None:
    with pytest.raises(ManifestError) as caught:
        StepModel(graphs.fold()[0])

    assert METADATA_KEY in caught.value.problem
    assert "stepwell adopt" in caught.value.fix


def test_a_broken_sidecar_is_named(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)
    sidecar_of(path).write_text("{")
    with pytest.raises(ManifestError) as caught:
        StepModel(path)

    assert "pump.onnx.stepwell.json" in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"not a graph", graphs.fold()[0][:100]], ids=["empty", "text", "cut short"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        StepModel(path)

    assert "broken.onnx" in caught.value.problem


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        StepModel(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"name": "x"', '"name": "z"', "input 'z' is not in the graph"),
        ('"out": "h_next"', '"out": "h_last"', "output 'h_last' is not in the graph, which has ['h_next', 'y']"),
        ("int64", "int32", "input 'h' is int32 in the manifest and int64 in the graph"),
    ],
)
def test_a_manifest_that_does_not_fit_the_graph_is_refused(old: str, new: str, told: str) -> None:
    graph, manifest = graphs.fold()
    with pytest.raises(ManifestError) as caught:
        StepModel(graph, Manifest.from_json(manifest.to_json().replace(old, new), where="a test"))

    assert told in caught.value.problem


def test_a_wrong_state_shape_is_refused_at_load() -> None:
    graph, manifest = graphs.total(2)
    wrong = manifest.states[0].model_copy(update={"shape": [3]})
    with pytest.raises(ModelLoadError):
        StepModel(graph, manifest.model_copy(update={"states": [wrong]}))


def test_a_state_that_grows_is_refused_at_load() -> None:
    """Its shape is right at the first step alone; only feeding it back shows that."""
    graph = graphs.graph_from_text("""
        grows (float[B,1] x, float[B,N] s) => (float[B,1] y, float[B,M] s_next) {
            s_next = Concat <axis = 1> (s, x)
            y = Identity (x)
        }""")
    with pytest.raises(ModelLoadError) as caught:
        StepModel(graph, graphs.total(1)[1])

    assert "shape [1, 2] for 's'; expected 1 rows of [1]" in caught.value.problem


def test_the_fingerprint_names_graph_weights_and_states() -> None:
    graph, manifest = graphs.lstm()
    same = StepModel(graph, manifest).fingerprint
    half = [state.model_copy(update={"store_dtype": "float16"}) for state in manifest.states]

    assert len(same) == 8
    assert StepModel(graph, manifest).fingerprint == same
    assert StepModel(*graphs.lstm(seed=1)).fingerprint != same
    assert StepModel(graph, manifest.model_copy(update={"states": half})).fingerprint != same


def test_the_fingerprint_follows_the_constants_and_initial_states() -> None:
    assert load(lambda: graphs.scaled(3)).fingerprint != load(lambda: graphs.scaled(4)).fingerprint
    assert load(lambda: graphs.count(1)).fingerprint != load(lambda: graphs.count(2)).fingerprint


# -------------------------------------------------------------------- time limits and failures


def endless(model: StepModel) -> dict[str, Array]:
    return {s.name: np.full((1, *s.shape), 10**12, s.dtype) for s in model.manifest.inputs}


@pytest.fixture
def endless_call() -> Iterator[tuple[StepModel, Future[object]]]:
    """A model, and a call of it in another thread that never ends by itself."""
    model = load(graphs.slow)
    with ThreadPoolExecutor(1) as threads:
        call: Future[object] = threads.submit(model.step, endless(model), model.initial_states(1))
        yield model, call
        while not call.done():  # terminate finds no call before it has begun
            model.terminate()
            wait([call], timeout=0.01)


def is_ended(call: Future[object], end: Callable[[], None]) -> bool:
    """Call `end` until the other thread's call is over, for some seconds at most."""
    for _ in range(500):
        end()
        if wait([call], timeout=0.01).done:
            return isinstance(call.exception(), ModelTimeoutError)
    return False


def test_terminate_ends_a_call_in_another_thread(endless_call: tuple[StepModel, Future[object]]) -> None:
    model, call = endless_call

    assert is_ended(call, model.terminate)


def test_a_call_beside_it_does_not_hide_the_one_to_end(endless_call: tuple[StepModel, Future[object]]) -> None:
    model, call = endless_call

    def run_beside_and_terminate() -> None:
        model.step({"x": np.ones((1, 1), np.int64)}, model.initial_states(1))
        model.terminate()

    assert is_ended(call, run_beside_and_terminate)


def test_calls_that_have_not_gone_on_for_so_long_are_left_alone(
    endless_call: tuple[StepModel, Future[object]],
) -> None:
    model, call = endless_call

    assert not wait([call], timeout=0.1).done
    model.terminate(longer_than=60)
    assert not wait([call], timeout=0.1).done


def test_a_late_terminate_does_not_end_the_next_call() -> None:
    model = load(graphs.slow)
    one = {"x": np.ones((1, 1), np.int64)}
    model.step(one, model.initial_states(1))
    model.terminate()
    outputs, _ = model.step(one, model.initial_states(1))

    assert outputs["y"].tolist() == [[1]]


def test_values_that_onnxruntime_refuses_are_told_as_our_own_error() -> None:
    graph = graphs.graph_from_text(
        """
        embed (int64[B] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
            row = Gather <axis = 0> (table, x)
            s_next = Add (s, row)
            y = Identity (s_next)
        }""",
        {"table": np.eye(2, dtype=np.float32)},
    )
    manifest = graphs.total()[1]
    x = manifest.inputs[0].model_copy(update={"dtype": "int64", "shape": []})
    model = StepModel(graph, manifest.model_copy(update={"inputs": [x]}))
    with pytest.raises(ModelLoadError):
        model.step({"x": np.array([5], np.int64)}, model.initial_states(1))


@pytest.mark.parametrize(("in_state", "after"), [(True, [True, True]), (False, [True, False])])
def test_nan_is_passed_on_as_it_is(in_state: bool, after: list[bool]) -> None:
    model = load(lambda: graphs.nan_at(3, in_state=in_state))
    outputs, _ = model.chunk({"x": np.ones((1, 4, 1), np.float32)}, model.initial_states(1))

    assert np.isnan(outputs["y"].ravel()).tolist() == [False, False, *after]


def test_onnxruntime_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    load(graphs.lying_batch)

    assert capfd.readouterr().err == ""
