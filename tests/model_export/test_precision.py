"""Fewer bits than the original's are held against it like anything else, and their effect is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_export.candidate import Candidate, prove
from model_export.errors import ParityError, RefusedModelError
from model_export.manifest import Array
from model_export.precision import FULL, Precision, saved, store_as
from model_export.step_model import StepModel
from model_export.stored_model import StoredStepModel
from tests import graphs


def candidate(build: graphs.Build) -> Candidate:
    """Return a candidate whose original is the step graph itself, states kept in full."""
    graph, manifest = build()
    model = StepModel(graph, manifest)

    def original(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        rows = len(next(iter(inputs.values())))
        return model.chunk(inputs, model.initial_states(rows))[0]

    return Candidate(onnx.load_model_from_string(graph), manifest, original, "itself")


def wide_lstm() -> graphs.Built:
    return graphs.lstm(16, 64)


@pytest.mark.parametrize(
    ("precision", "atol", "rtol"),
    [
        (FULL, 1e-5, 1e-4),
        (Precision("fp16"), 2e-3, 2e-3),
        (Precision("int8"), 1e-1, 1e-1),
        (Precision(store_dtype="float16"), 5e-3, 5e-3),
        (Precision("fp16", "float16"), 5e-3, 5e-3),
        (Precision("int8", "float16"), 1e-1, 1e-1),
    ],
)
def test_the_tolerance_follows_the_precision(precision: Precision, atol: float, rtol: float) -> None:
    assert (precision.atol, precision.rtol) == (atol, rtol)


@pytest.mark.parametrize("precision", [Precision("fp16"), Precision("int8"), Precision(store_dtype="float16")])
def test_the_report_says_by_how_much_the_answers_moved(precision: Precision) -> None:
    lowered = precision.lower(candidate(wide_lstm))
    _, report = prove(lowered, atol=precision.atol, rtol=precision.rtol)

    assert 1e-5 < report.parity.max_abs < precision.atol
    assert report.parity.atol == precision.atol


@pytest.mark.parametrize("precision", [Precision("fp16"), Precision("int8"), Precision(store_dtype="float16")])
def test_full_precision_is_not_claimed(precision: Precision) -> None:
    with pytest.raises(ParityError):
        prove(precision.lower(candidate(wide_lstm)))


def test_what_became_smaller_is_told_in_bytes() -> None:
    full = candidate(wide_lstm)
    sizes = saved(full, Precision("int8", "float16").lower(full))

    assert sizes["bytes_per_stream"] == (512, 256)
    assert sizes["file"][1] * 3 < sizes["file"][0]
    assert saved(full, FULL.lower(full)) == {}


def test_the_manifest_says_what_the_weights_are_stored_as(tmp_path: Path) -> None:
    content, _ = prove(Precision("fp16").lower(candidate(wide_lstm)), atol=1e-2)
    (tmp_path / "m.onnx").write_bytes(content)

    assert StepModel(tmp_path / "m.onnx").manifest.model_dump()["weights"] == "fp16"


def test_states_of_integers_keep_their_type() -> None:
    manifest = store_as(graphs.nan_at(5)[1], "float16")

    assert [state.store_dtype for state in manifest.states] == ["float16", "int64"]


def test_a_model_without_a_float_state_is_refused() -> None:
    with pytest.raises(RefusedModelError) as caught:
        store_as(graphs.fold()[1], "float16")

    assert "no state in float32 or float64" in caught.value.problem


def test_rounding_is_seen_at_every_timestep() -> None:
    """A running sum of 0.001 stands still in float16 once the step is below half a unit; 64 timesteps show it."""
    model = StoredStepModel(*graphs.total_half())
    states = model.initial_states(1)
    for _ in range(64):
        _, states = model.step({"x": np.full((1, 2), 0.001, np.float32)}, states)
    exact = StoredStepModel(*graphs.total())
    _, kept = exact.chunk({"x": np.full((1, 64, 2), 0.001, np.float32)}, exact.initial_states(1))

    assert np.abs(states["s"] - 0.064).max() > 1e-4
    np.testing.assert_allclose(kept["s"], 0.064, rtol=1e-5)


def test_a_state_beyond_float16_fails_the_proof() -> None:
    def far() -> graphs.Built:
        graph = graphs.graph_from_text(
            """g (float[B,1] x, float[B,1] s) => (float[B,1] y, float[B,1] s_next) {
                far = Constant <value = float[1] {30000.0}> ()
                s_next = Add (s, far)
                y = Add (s_next, x)
            }"""
        )
        return graph, graphs.total(1)[1]

    with pytest.raises(ParityError):
        prove(Precision(store_dtype="float16").lower(candidate(far)), atol=1.0, rtol=0.1)
