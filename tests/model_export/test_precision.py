"""Fewer bits than the original's are held against it like anything else, and their effect is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.precision import FULL, Precision, narrow_store, saved, store_as
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped
from stepwell_export.weights import Weights
from tests import graphs
from tests.published import NAMES, published


def candidate(build: graphs.Build) -> ConvertedModel:
    """Return a candidate whose original is the step graph itself, states kept in full."""
    graph, manifest = build()
    model = StepModel(graph, manifest)

    def original(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        rows = len(next(iter(inputs.values())))
        return model.chunk(inputs, model.initial_states(rows))[0]

    return ConvertedModel(onnx.load_model_from_string(graph), manifest, original, "itself")


def wide_lstm() -> graphs.Built:
    return graphs.lstm(8, 32)


@pytest.mark.parametrize(
    ("precision", "atol", "rtol"),
    [
        (FULL, 1e-5, 1e-4),
        (Precision("fp16"), 5e-3, 5e-3),
        (Precision("int8"), 1e-1, 1e-1),
        (Precision("int8", "float16"), 1e-1, 1e-1),
    ],
)
def test_the_tolerance_follows_the_precision(precision: Precision, atol: float, rtol: float) -> None:
    assert (precision.atol, precision.rtol) == (atol, rtol)


@pytest.mark.parametrize("precision", [Precision("fp16"), Precision("int8"), Precision(store_dtype="float16")])
def test_the_report_says_by_how_much_the_answers_moved(precision: Precision) -> None:
    lowered = precision.lower(candidate(wide_lstm))
    _, report = verify_model(lowered, atol=precision.atol, rtol=precision.rtol, long_steps=100)

    assert 1e-5 < report.parity.max_abs < precision.atol
    assert report.parity.atol == precision.atol


@pytest.mark.parametrize("precision", [Precision("fp16")])
def test_full_precision_is_not_claimed(precision: Precision) -> None:
    with pytest.raises(ParityError):
        verify_model(precision.lower(candidate(wide_lstm)), long_steps=100)


def test_what_became_smaller_is_told_in_bytes() -> None:
    full = candidate(wide_lstm)
    sizes = saved(full, Precision("int8", "float16").lower(full))

    assert sizes["bytes_per_stream"] == (256, 128)
    assert sizes["file"][1] * 3 < sizes["file"][0]
    assert saved(full, FULL.lower(full)) == {}


def test_the_manifest_says_what_the_weights_are_stored_as(tmp_path: Path) -> None:
    content, _ = verify_model(Precision("fp16").lower(candidate(wide_lstm)), atol=1e-2, long_steps=100)
    (tmp_path / "m.onnx").write_bytes(content)

    assert StepModel(tmp_path / "m.onnx").manifest.model_dump()["weights"] == "fp16"


@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_a_model_without_large_weights_is_refused(weights: Weights) -> None:
    with pytest.raises(RefusedModelError) as caught:
        Precision(weights).lower(candidate(graphs.total))

    assert f"no float32 weight large enough to be smaller as {weights}" in caught.value.problem


def test_states_of_integers_keep_their_type() -> None:
    manifest = store_as(graphs.nan_at(5)[1], "float16")

    assert [state.store_dtype for state in manifest.states] == ["float16", "int64"]


def test_a_model_without_a_float_state_is_refused() -> None:
    with pytest.raises(RefusedModelError) as caught:
        store_as(graphs.fold()[1], "float16")

    assert "no state in float32 or float64" in caught.value.problem


def test_a_sum_that_stands_still_in_the_store_fails_the_proof() -> None:
    """In float16 a sum of small numbers no longer grows once they are below half a unit of it; in full it does."""

    def slow_sum() -> graphs.Built:
        nodes = "small = Constant <value = float[1] {0.01}> () s_next = Add (s, small) y = Add (s_next, x)"
        return graphs.of_nodes(nodes, 1)

    precision = Precision(store_dtype="float16")
    with pytest.raises(ParityError):
        verify_model(precision.lower(candidate(slow_sum)), atol=precision.atol, rtol=precision.rtol)


def test_the_effect_of_a_narrower_store_is_measured() -> None:
    graph, manifest = wide_lstm()
    narrow, effect = narrow_store(graph, manifest, "float16", steps=20)

    assert [state.store_dtype for state in narrow.states] == ["float16", "float16"]
    assert (effect.dtype, effect.saved, effect.steps) == ("float16", (256, 128), 20)
    assert 0 < effect.max_abs < 5e-3


def test_an_answer_that_moves_too_far_refuses_the_narrower_store() -> None:
    nodes = (
        "s_next = Add (s, x) many = Constant <value = float[1] {1000.0}> () large = Mul (s_next, many) y = Sin (large)"
    )

    with pytest.raises(ParityError) as caught:
        narrow_store(*graphs.of_nodes(nodes, 1), "float16")
    assert "With states stored as float16, output 'y' moves by" in caught.value.problem


def test_a_state_beyond_float16_fails_the_proof() -> None:
    def far() -> graphs.Built:
        nodes = "far = Constant <value = float[1] {30000.0}> () s_next = Add (s, far) y = Add (s_next, x)"
        return graphs.of_nodes(nodes, 1)

    with pytest.raises(ParityError):
        verify_model(Precision(store_dtype="float16").lower(candidate(far)), atol=1.0, rtol=0.1, long_steps=100)


# -------------------------------------------------------------------- published models on recorded speech


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "precision", [Precision("fp16"), Precision("int8"), Precision(store_dtype="float16")], ids=["fp16", "int8", "store"]
)
def test_a_published_model_moves_by_less_than_the_default_tolerance(name: str, precision: Precision) -> None:
    one = published(name)
    full = adopt(one.file, hints=one.hints, steps=4).manifest

    def nothing(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return {}

    lowered = precision.lower(ConvertedModel(onnx.load(str(one.file)), full, nothing, "its authors' answers"))
    model = StepModel(lowered.proto.SerializeToString(), lowered.manifest)
    answers, _ = stepped(model, {one.given: one.xs.reshape(1, len(one.xs), *full.inputs[0].shape)})
    off = np.abs(answers[one.answered].reshape(one.ys.shape) - one.ys)

    assert off.max() > 1e-6
    assert (off <= precision.atol + precision.rtol * np.abs(one.ys)).all()
