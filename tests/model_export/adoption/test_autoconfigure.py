"""`adopt` finds what a graph takes, gives and carries, proves it, and reports what is open."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.autoconfigure import Adoption, adopt, write_sidecar
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.runtime.errors import (
    ManifestError,
    RefusedModelError,
    StepwellError,
    UnclearModelError,
)
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests import graphs
from tests.published import FOLDER, NAMES, published


def adopt_built(folder: Path, build: graphs.Build, **hints: Any) -> Adoption:
    graph, manifest = build()
    return adopt_graph(folder, graph, name=manifest.name, **hints)


def adopt_graph(folder: Path, graph: bytes, *, name: str = "found", **hints: Any) -> Adoption:
    path = folder / f"{name}.onnx"
    path.write_bytes(graph)
    return adopt(path, hints=Overrides(**hints), steps=5)


def adopt_text(folder: Path, text: str, **hints: Any) -> Adoption:
    return adopt_graph(folder, graphs.graph_from_text(text), **hints)


def asked(error: type[StepwellError], folder: Path, text: str, **hints: Any) -> tuple[str, str]:
    with pytest.raises(error) as caught:
        adopt_text(folder, text, **hints)
    return caught.value.problem, caught.value.fix


def described(manifest: Any) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(manifest.to_json())
    return {key: value for key, value in parts.items() if key not in {"verified", "batch"}}


# -------------------------------------------------------------------- what is found


@pytest.mark.parametrize(
    ("build", "hints", "batched"),
    [
        (graphs.two_inputs, {}, True),
        (graphs.latch, {}, True),
        (graphs.lstm, {}, True),
        (graphs.batch_axis_1, {}, True),
        (graphs.no_batch_axis, {}, False),
        (graphs.mixing_rows, {}, False),
        (graphs.time_axis, {}, True),
        (graphs.scaled, {"constants": {"gain": 3}}, True),
        (graphs.moving_sum, {"windows": {"x": 3}, "shapes": {"x": [2]}}, True),
        (graphs.noisy, {"outputs": {"draw": "random", "scrap": "ignore"}}, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_is_described_as_its_builder_does(
    tmp_path: Path, build: graphs.Build, hints: dict[str, Any], batched: bool
) -> None:
    found = adopt_built(tmp_path, build, **hints)

    assert described(found.manifest) == described(build()[1])
    assert found.batched is batched
    assert found.manifest.batch.mode == ("stack" if batched else "single")


def test_the_report_says_what_was_compared_and_claims_no_original(tmp_path: Path) -> None:
    verified = adopt_built(tmp_path, graphs.lstm).manifest.verified

    assert verified is not None
    assert (verified.against, verified.steps) == ("itself: rows alone and together", 5)
    assert verified.max_abs <= 1e-6


def test_a_graph_that_runs_one_row_at_a_time_has_no_report(tmp_path: Path) -> None:
    assert adopt_built(tmp_path, graphs.lying_batch).manifest.verified is None


def test_the_flags_told_lead_to_the_same_manifest_with_nothing_guessed(tmp_path: Path) -> None:
    first = adopt_built(tmp_path, graphs.lstm)
    again = adopt_built(tmp_path, graphs.lstm, states={"h": "h_next", "c": "c_next"})

    assert first.flags == again.flags == ["--state", "h=h_next", "--state", "c=c_next"]
    assert (first.how, again.how) == ({"h": "name", "c": "name"}, {"h": "said", "c": "said"})
    assert first.manifest == again.manifest


def test_a_manifest_lies_beside_the_file_and_the_file_is_not_touched(tmp_path: Path) -> None:
    graph, _ = graphs.fold()
    path = tmp_path / "pump.onnx"
    path.write_bytes(graph)
    sidecar = write_sidecar(path, adopt(path).manifest)
    outputs, _ = StepModel(path).step({"x": np.array([[5]], np.int64)}, StepModel(path).initial_states(1))

    assert sidecar.name == "pump.onnx.stepwell.json"
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(graph).digest()
    assert outputs["y"].ravel().tolist() == graphs.fold_reference([5])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pump.onnx", "pump.onnx.stepwell.json"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("pump.onnx", "pump"),
        ("my pump (2).onnx", "my-pump-2-"),
        ("pump/3/model.onnx", "pump"),
        ("model.onnx", "model"),
    ],
)
def test_the_name_is_the_files_or_the_folders(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graphs.fold()[0])

    assert adopt(path).manifest.name == name


def test_a_batch_axis_of_one_without_symbols_is_found(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[1,3] x, float[2,1,3] s) => (float[1,3] y, float[2,1,3] s_next) {
            s_next = Add (s, x)
            y = Neg (x)
        }""",
    )

    assert (found.manifest.states[0].batch_axis, found.manifest.states[0].shape) == (1, [2, 3])
    assert not found.batched


def test_what_was_not_compared_is_reported_with_the_integers_that_the_graph_takes(tmp_path: Path) -> None:
    text = """g (int64[B] x, float[B] s) => (float[B] y, float[B] s_next) {
        row = Gather (table, x)
        s_next = Add (s, row)
        y = Neg (s_next)
    }"""
    graph = graphs.graph_from_text(text, {"table": np.arange(200, dtype=np.float32)})

    assert "integers from 0 to 100)" in adopt_graph(tmp_path, graph).unknown


def test_a_graph_that_fails_on_rare_values_is_adopted_with_what_was_not_compared(tmp_path: Path) -> None:
    text = """g (float[B] x, float[B] s) => (float[B] y, float[B] s_next) {
        place = Cast <to = 7> (x)
        row = Gather (table, place)
        s_next = Add (s, row)
        y = Neg (s_next)
    }"""
    graph = graphs.graph_from_text(text, {"table": np.arange(8, dtype=np.float32)})

    assert "random numbers around 0 alone" in adopt_graph(tmp_path, graph).unknown


def test_an_output_that_is_declared_without_shape_is_measured(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,3] x, float[2,B,3] state) => (float[D0,D1] y, float[D0,D1,D2] stateN) {
            stateN = Add (state, x)
            y = Neg (x)
        }""",
    )

    assert found.manifest.outputs[0].shape == [3]
    assert (found.manifest.states[0].output, found.manifest.states[0].batch_axis) == ("stateN", 1)
    assert found.batched


def test_a_time_axis_by_its_symbol_is_one_timestep_long(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,time,3] x, float[B,1,3] s) => (float[B,time,3] y, float[B,1,3] s_next) {
            s_next = Add (s, x)
            y = Neg (x)
        }""",
    )

    assert (found.manifest.inputs[0].shape, found.manifest.inputs[0].graph_shape) == ([3], [1, 3])


OF_SIX = """
    of_six (float[batch, sequence] x, float[2, batch, 4] h) => (float[batch, 4] y, float[a, batch, b] h_next) {
        row = MatMul (x, W)
        rows = Unsqueeze (row, zero)
        h_next = Add (h, rows)
        y = Identity (row)
    }"""
"""A row of six numbers on an axis whose name sounds like time."""


def of_six(folder: Path, **hints: Any) -> Adoption:
    weights = {"W": np.ones((6, 4), np.float32), "zero": np.array([0])}
    return adopt_graph(folder, graphs.graph_from_text(OF_SIX, weights), **hints)


@pytest.mark.parametrize(
    ("hints", "row", "graph_row"),
    [
        ({"shapes": {"x": [6]}}, (6,), (6,)),
        ({"shapes": {"x": [2, 3]}}, (2, 3), (6,)),
        ({"windows": {"x": 2}, "shapes": {"x": [4]}}, (4,), (4,)),
    ],
)
def test_a_shape_that_is_said_overrules_a_name_that_sounds_like_time(
    tmp_path: Path, hints: dict[str, Any], row: tuple[int, ...], graph_row: tuple[int, ...]
) -> None:
    found = of_six(tmp_path, **hints)

    [spec] = found.manifest.inputs
    assert (spec.row_shape, spec.graph_row_shape, found.batched) == (row, graph_row, True)


def test_a_row_that_has_to_be_longer_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError) as caught:
        of_six(tmp_path)

    assert "declared [batch, sequence]; the length of one row is not known, and with 1" in caught.value.problem
    assert "`--shape x=LENGTH`" in caught.value.fix


def test_an_axis_that_is_said_to_be_time_is_one_timestep_long(tmp_path: Path) -> None:
    text = """
        g (float[m, k, 2] x, float[m, 2] s) => (float[m, k, 2] y, float[m, 2] s_next) {
            axis = Constant <value = int64[1] {1}> ()
            now = Squeeze (x, axis)
            s_next = Add (s, now)
            y = Unsqueeze (s_next, axis)
        }"""
    with pytest.raises(UnclearModelError):
        adopt_text(tmp_path, text)

    found = adopt_text(tmp_path, text, time_axes={"x": 1}, batch_axes={"x": 0})

    assert (found.manifest.inputs[0].row_shape, found.manifest.inputs[0].graph_row_shape) == ((2,), (1, 2))
    assert {"--time-axis", "--batch-axis"} <= set(found.flags)


def test_an_axis_that_is_said_to_be_the_batch_is_it_whatever_its_name(tmp_path: Path) -> None:
    text = """
        g (float[batch, b2, 2] x, float[b2, batch, 2] s) => (float[b2, batch, 2] y, float[b2, batch, 2] s_next) {
            turned = Transpose <perm = [1, 0, 2]> (x)
            s_next = Add (s, turned)
            y = Identity (s_next)
        }"""

    found = adopt_text(tmp_path, text, batch_axes={"x": 1, "s": 0}, shapes={"x": [3, 2], "s": [3, 2]})

    assert (found.manifest.inputs[0].batch_axis, found.manifest.states[0].batch_axis) == (1, 0)
    assert found.batched


def test_an_output_that_no_row_changes_is_left_out_and_told(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,3] x, float[B,3] s) => (float[B,3] y, float[1] version, float[B,3] s_next) {
            version = Constant <value = float[1] {2.0}> ()
            s_next = Add (s, x)
            y = Neg (s_next)
        }""",
    )

    assert [(output.name, output.kind) for output in found.manifest.outputs] == [("y", "value"), ("version", "ignore")]
    assert found.batched
    assert "version is the same for every row" in found.notes[0]


def test_a_state_output_is_answered_too_when_it_is_asked_for(tmp_path: Path) -> None:
    found = adopt_built(tmp_path, graphs.total, states={"s": "s_next"}, outputs={"s_next": "value"})

    assert [output.name for output in found.manifest.answered] == ["y", "s_next"]


def test_a_shape_that_is_said_is_the_row_on_the_wire(tmp_path: Path) -> None:
    found = adopt_built(tmp_path, graphs.lstm, shapes={"x": [2, 2], "y": [2, 1]})

    assert (found.manifest.inputs[0].shape, found.manifest.inputs[0].graph_shape) == ([2, 2], [4])
    assert (found.manifest.outputs[0].shape, found.manifest.outputs[0].graph_shape) == ([2, 1], [2])


def test_a_window_on_a_fixed_length_leaves_the_rest_as_the_new_part(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,8] x) => (float[B,1] y) {
            axis = Constant <value = int64[1] {1}> ()
            y = ReduceSum <keepdims = 1> (x, axis)
        }""",
        windows={"x": 3},
    )

    assert (found.manifest.inputs[0].shape, found.manifest.windows[0].context) == ([5], 3)


def test_the_batch_axis_of_a_time_first_graph_is_found(tmp_path: Path) -> None:
    """As PyTorch exports an LSTM: x is [time, batch, features], h and c are [layers, batch, units]."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "W": rng.normal(size=(1, 16, 3)).astype(np.float32),
        "R": rng.normal(size=(1, 16, 4)).astype(np.float32),
        "b": rng.normal(size=(1, 32)).astype(np.float32),
    }
    graph = graphs.graph_from_text(
        """g (float[seq_len,batch,3] x, float[1,batch,4] h0, float[1,batch,4] c0)
            => (float[seq_len,1,batch,4] y, float[1,batch,4] hn, float[1,batch,4] cn) {
            y, hn, cn = LSTM <hidden_size = 4> (x, W, R, b, , h0, c0)
        }""",
        weights,
    )
    found = adopt_graph(tmp_path, graph)
    x, y = found.manifest.inputs[0], found.manifest.outputs[0]

    assert [(state.input, state.output, state.batch_axis) for state in found.manifest.states] == [
        ("h0", "hn", 1),
        ("c0", "cn", 1),
    ]
    assert (x.shape, x.graph_shape, x.batch_axis) == ([3], [1, 3], 1)
    assert (y.shape, y.graph_shape, y.batch_axis) == ([4], [1, 1, 4], 2)
    assert found.batched


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,2] x, float[B,2] level) => (float[B,2] y, float[B,2] level_next) {
            log = Log (level)
            y = Add (log, x)
            up = Abs (x)
            level_next = Add (level, up)
        }""",
    )

    assert [note for note in found.notes if note.startswith("Output 'y' is not finite")]


def test_a_leading_time_axis_without_batch_axis_is_one_timestep_long(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[T,3] x, float[1,3] h) => (float[T,3] y, float[1,3] h_next) {
            h_next = Add (h, x)
            y = Neg (x)
        }""",
    )
    x = found.manifest.inputs[0]

    assert (x.shape, x.graph_shape, x.batch_axis) == ([3], [1, 3], None)
    assert not found.batched


def test_single_numbers_can_be_sent_and_carried(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float x, int64 n, float[3] h) => (float[3] y, int64 n_next, float[3] h_next) {
            one = Constant <value = int64 {1}> ()
            n_next = Add (n, one)
            h_next = Add (h, x)
            y = Neg (h_next)
        }""",
        shapes={"x": []},
    )

    assert found.manifest.inputs[0].shape == []
    assert [(state.input, state.shape) for state in found.manifest.states] == [("n", []), ("h", [3])]


# -------------------------------------------------------------------- what is asked or refused


def test_a_sampling_rate_is_asked_for(tmp_path: Path) -> None:
    problem, fix = asked(
        UnclearModelError,
        tmp_path,
        """g (float[B,3] x, float[B,3] s, int64 sr) => (float[B,3] y, float[B,3] s_next) {
            rate = Cast <to = 1> (sr)
            y = Div (x, rate)
            s_next = Add (s, x)
        }""",
    )

    assert "'sr' (int64) looks like a sampling rate" in problem
    assert "--constant sr=16000" in fix


def test_a_single_number_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_built(tmp_path, graphs.scaled)

    assert "--constant gain=VALUE" in caught.value.fix


STATE_FIRST = """g (float[B,H] s, float[B,F] x) => (float[B,H] y, float[B,H] s_next)
    <float[3,8] w = {WEIGHTS}>
    {
        wx = MatMul (x, w)
        s_next = Add (s, wx)
        y = Neg (s_next)
    }""".replace("WEIGHTS", ", ".join(["0.5"] * 24))


def test_the_length_of_an_input_is_asked_for_before_that_of_a_state(tmp_path: Path) -> None:
    """A person knows what is sent; the length of a state is a matter of the graph."""
    problem, fix = asked(UnclearModelError, tmp_path, STATE_FIRST)

    assert problem == "Input 'x' is declared [B, F]; the length of one row is not known."
    assert "Say what is sent with each timestep: `--shape x=LENGTH`" in fix


def test_the_length_of_a_state_is_not_called_what_is_sent(tmp_path: Path) -> None:
    problem, fix = asked(UnclearModelError, tmp_path, STATE_FIRST, shapes={"x": [3]})

    assert problem.startswith("State 's' is declared [B, H]; the length of one row is not known")
    assert fix.startswith("Say how long a row of the state is: `--shape s=LENGTH`")


@pytest.mark.parametrize("inputs", ["float[B,N] x, float[B,N] s"])
def test_a_length_that_the_graph_declares_equal_is_not_asked_for_again(tmp_path: Path, inputs: str) -> None:
    text = f"""g ({inputs}) => (float[B,N] y, float[B,N] s_next) {{
        s_next = Add (s, x)
        y = Neg (s_next)
    }}"""
    found = adopt_text(tmp_path, text, shapes={"x": [5]})

    assert [(state.input, state.shape) for state in found.manifest.states] == [("s", [5])]


def test_a_pair_of_different_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_built(tmp_path, graphs.lstm, states={"h": "y"})

    assert "'h' is float32 [1, 8], but 'y' is float32 [1, 2]" in caught.value.problem


def test_a_graph_without_states_is_refused(tmp_path: Path) -> None:
    problem, fix = asked(RefusedModelError, tmp_path, "g (float[B,2] x) => (float[B,2] y) { y = Neg (x) }")

    assert "No state was found" in problem
    assert "stepwell export" in fix


def test_a_graph_without_an_input_to_send_is_refused(tmp_path: Path) -> None:
    text = "g (float[B,2] s) => (float[B,2] s_next) { s_next = Neg (s) }"
    problem, _ = asked(UnclearModelError, tmp_path, text, states={"s": "s_next"})

    assert "Every input" in problem


def test_chance_in_an_answer_is_refused_until_it_is_declared(tmp_path: Path) -> None:
    with pytest.raises(RefusedModelError) as caught:
        adopt_built(tmp_path, graphs.noisy)

    assert "RandomNormalLike" in caught.value.problem
    assert "--output draw=random" in caught.value.fix


def test_chance_in_a_state_is_refused_whatever_is_said(tmp_path: Path) -> None:
    text = """g (float[B,2] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
        noise = RandomNormalLike (x)
        s_next = Add (s, noise)
        y = Neg (s_next)
    }"""
    problem, _ = asked(RefusedModelError, tmp_path, text, outputs={"y": "random"})

    assert "reaches state output 's_next'" in problem


@pytest.mark.parametrize(
    ("hints", "flag"),
    [
        ({"states": {"z": "h_next"}}, "--state"),
        ({"constants": {"z": 1}}, "--constant"),
        ({"windows": {"z": 1}}, "--window"),
        ({"shapes": {"z": [1]}}, "--shape"),
        ({"time_axes": {"z": None}}, "--time-axis"),
    ],
)
def test_a_name_that_the_graph_has_not_is_told(tmp_path: Path, hints: dict[str, Any], flag: str) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_built(tmp_path, graphs.lstm, **hints)

    assert caught.value.problem.startswith(f"`{flag}` names 'z'; the graph has [")


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        ({"constants": {"gain": 1.5}}, "Constant 'gain' is 1.5; the graph takes int64."),
        ({"constants": {"gain": [3, 4]}}, "Constant 'gain' has shape [2]; the graph declares []."),
        ({"constants": {"gain": 3, "s": 0}, "states": {"s": "s_next"}}, "'s' is said to be a constant and to change."),
        ({"constants": {"gain": 3}, "shapes": {"x": [3]}}, "Shape [3] was given for 'x', whose row is declared [2]."),
        ({"constants": {"gain": 3}, "shapes": {"y": [3]}}, "Shape [3] was given for output 'y', whose row is [2]."),
        ({"constants": {"gain": 3}, "shapes": {"x": [1, 3]}}, "Shape [1, 3] was given for 'x'"),
        ({"constants": {"gain": 3}, "windows": {"x": 2}}, "Input 'x' is 2 long and its window 2"),
        ({"windows": {"gain": 2}}, "Input 'gain' has a row without axes; a window needs one."),
        ({"constants": {"gain": 3}, "batch_axes": {"x": 2}}, "`--batch-axis x=2`: the input has 2 axes."),
        ({"constants": {"gain": 3}, "time_axes": {"x": 1}}, "`--time-axis x=1`: that axis is declared 2 long"),
        (
            {"constants": {"gain": 3}, "time_axes": {"x": 0}, "batch_axes": {"x": 0}},
            "Axis 0 of 'x' is said to be both the batch and time.",
        ),
    ],
)
def test_what_is_said_must_fit_the_graph(tmp_path: Path, hints: dict[str, Any], told: str) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_built(tmp_path, graphs.scaled, **hints)

    assert told in caught.value.problem


def test_a_constant_takes_the_declared_rank(tmp_path: Path) -> None:
    found = adopt_text(
        tmp_path,
        """g (float[B,3] x, float[B,3] s, int64[1] sr) => (float[B,3] y, float[B,3] s_next) {
            rate = Cast <to = 1> (sr)
            y = Div (x, rate)
            s_next = Add (s, x)
        }""",
        constants={"sr": 16000},
    )

    assert found.manifest.constants["sr"].value == [16000]


def test_a_file_that_has_a_manifest_inside_is_left_alone(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)
    with pytest.raises(ManifestError):
        adopt(path)

    assert adopt(path, replace=True).manifest.name == "pump"


def test_a_graph_of_texts_is_refused(tmp_path: Path) -> None:
    problem, _ = asked(RefusedModelError, tmp_path, "g (string[B,1] x) => (string[B,1] y) { y = Identity (x) }")

    assert "Input 'x'" in problem
    assert "tensor(string)" in problem


# -------------------------------------------------------------------- published models


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_equals_its_authors_answers_step_by_step(tmp_path: Path, name: str) -> None:
    one = published(name)
    path = tmp_path / one.file.name
    shutil.copyfile(one.file, path)
    write_sidecar(path, adopt(path, hints=one.hints).manifest)
    model = StepModel(path)
    states = model.initial_states(1)

    for x, y in zip(one.xs, one.ys, strict=True):
        outputs, states = model.step({one.given: x[None]}, states)
        np.testing.assert_allclose(outputs[one.answered].ravel(), y, rtol=0, atol=1e-5)
    assert model.batched is (name == "silero-vad/silero_vad")


SILERO = ("silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_half", "silero_vad_v3", "silero_vad_v4")
"""Graphs of silero-vad that declare `[batch, sequence]`: three from its wheel, two from its repository's tags."""


def silero(name: str) -> Path:
    """Return a graph of silero-vad; skips the test where it is not there."""
    spec = find_spec("silero_vad")
    folders = [
        FOLDER / "silero-vad",
        *(Path(place) / "data" for place in (spec and spec.submodule_search_locations) or ()),
    ]
    found = [path for folder in folders if (path := folder / f"{name}.onnx").is_file()]
    if not found:
        pytest.skip(f"{name}.onnx is neither in ../shared/models/silero-vad nor in an installed silero-vad")
    return found[0]


@pytest.mark.parametrize("name", SILERO)
def test_a_published_row_on_an_axis_called_sequence_is_adopted(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.onnx"
    shutil.copyfile(silero(name), path)
    takes = {value.name for value in onnx.load(str(path)).graph.input}
    constants = {"sr": 16000} if "sr" in takes else {}

    found = adopt(path, hints=Overrides(constants=constants, windows={"input": 64}, shapes={"input": [512]}))

    assert [(spec.name, spec.row_shape) for spec in found.manifest.inputs] == [("input", (512,))]


def test_a_step_that_never_ends_is_ended_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell_export.runtime.session.TRIAL_SECONDS", 0.2)
    text = """m (float[B, 2] x, float[B, 2] s) => (float[B, 2] y, float[B, 2] s_next) {
        s_next = Add (x, s)
        turns = Constant <value_int = 9223372036854775807> ()
        size = ReduceMax <keepdims = 0> (s_next)
        goes_on = IsNaN (size)
        still = Not (goes_on)
        y = Loop <body = turn (int64 i, bool c, float[B, 2] v) => (bool c_out, float[B, 2] v_out) {
            c_out = Identity (c)
            v_out = Neg (v)
        }> (turns, still, s_next)
    }"""

    problem, _ = asked(RefusedModelError, tmp_path, text)

    assert "still running after 0.2 seconds on " in problem


def test_a_cache_that_grows_with_every_timestep_is_refused_with_what_to_export_instead(tmp_path: Path) -> None:
    text = """decoder (float[batch,1,4] x, float[batch,past_length,4] past_key)
        => (float[batch,1,4] y, float[batch,total_length,4] present_key) {
        y = Tanh (x)
        present_key = Concat <axis = 1> (past_key, y)
    }"""
    path = tmp_path / "decoder.onnx"
    path.write_bytes(graphs.graph_from_text(text))

    with pytest.raises(RefusedModelError, match="'past_key' is a cache that grows") as caught:
        adopt(path)

    assert "StepSpec(length=N)" in caught.value.fix
