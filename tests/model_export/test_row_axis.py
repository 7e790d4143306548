"""A graph for one row gets an axis of rows whatever its shapes, recurrent nodes and caches have written into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.converted import with_manifest
from stepwell_export.row_axis import with_row_axis
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.streaming.zoo_parts import graph


def ints(*values: int) -> object:
    return np.array(values, np.int64)


def batchified(folder: Path, model: onnx.ModelProto) -> StepModel:
    """Adopt a graph, and let its rows run together; both are compared over 17 rows."""
    path = folder / "one.onnx"
    onnx.save(model, path)
    found = adopt_file(path, changes=["batchify"], target=folder / "many.onnx")
    model_ = StepModel(found.path)
    assert model_.batched
    assert found.manifest.batch.why == ""
    assert_rows_apart(model_)
    return model_


def test_a_recurrence_with_fixed_initial_states_and_flattened_caches_runs_rows_together(tmp_path: Path) -> None:
    batchified(tmp_path, graph(
        """(float[1, 6, 1, 2] x, float[1, 12] cache) => (float[1, 6, 1, 2] y, float[1, 12] cache_next) {
            flat = Reshape (x, over_bands)
            within, last = GRU <hidden_size = 2, direction = "bidirectional"> (flat, W, R, B, , start)
            past = Reshape (cache, as_states)
            turned = Transpose <perm = [2, 1, 0, 3]> (within)
            bands = Reshape (turned, one_step)
            over, next = GRU <hidden_size = 2> (bands, W1, R1, , , past)
            out = Reshape (over, back)
            y = Add (out, x)
            cache_next = Reshape (next, flattened)
        }""",
        over_bands=ints(6, 1, 2), as_states=ints(1, 6, 2), one_step=ints(1, 6, 4), back=ints(1, 6, 1, 2),
        flattened=ints(1, 12), start=np.full((2, 1, 2), 0.3, np.float32),
        W=(2, 6, 2), R=(2, 6, 2), B=(2, 12), W1=(1, 6, 4), R1=(1, 6, 2),
    ))  # fmt: skip


def test_convolutions_and_scattered_caches_run_rows_together(tmp_path: Path) -> None:
    model = batchified(tmp_path, graph(
        """(float[1, 3, 1, 4] x, float[2, 1, 3, 1, 4] cache) => (float[1, 3, 1, 4] y, float[2, 1, 3, 1, 4] cache_next) {
            old = Gather <axis = 0> (cache, first)
            both = Concat <axis = 2> (old, x)
            normal = BatchNormalization (both, scale, shift, mean, var)
            seen = Conv <kernel_shape = [2, 3], pads = [0, 1, 0, 1]> (normal, K)
            slope = PRelu (seen, S)
            padded = Pad (slope, pads)
            cut = Slice (padded, start, end, axes)
            level = ReduceMean <axes = [1, 3], keepdims = 1> (cut)
            line = Squeeze (cut, axes2)
            turned = Transpose <perm = [1, 0]> (line)
            kept = Unsqueeze (turned, zero)
            seq = Transpose <perm = [1, 0, 2]> (kept)
            h, last = GRU <hidden_size = 3> (seq, W, R, , , state)
            rows = Squeeze (h, one)
            rows2 = Transpose <perm = [1, 2, 0]> (rows)
            wide = Unsqueeze (rows2, two)
            loud = Mul (wide, level)
            y = Add (loud, x)
            next = Unsqueeze (x, zero)
            cache_next = ScatterND (cache, places, next)
        }""",
        first=np.int64(0), K=(3, 3, 2, 3), S=(3, 1, 1), scale=(3,), shift=(3,), mean=(3,),
        var=np.ones(3, np.float32), pads=ints(0, 0, 0, 1, 0, 0, 0, 1), start=ints(1), end=ints(5), axes=ints(3),
        axes2=ints(0, 2), zero=ints(0), one=ints(1), two=ints(2), W=(1, 9, 3), R=(1, 9, 3),
        state=np.full((1, 1, 3), 0.1, np.float32), places=np.array([[0]], np.int64),
    ))  # fmt: skip
    assert model.manifest.states[0].batch_axis == 1


def test_an_operator_without_a_rule_is_named() -> None:
    model = graph("(float[1, 3] x, float[1, 3] h) => (float[1, 3] y, float[1, 3] h_next) { "
                  "y = Hardmax (x) h_next = Add (h, y) }")  # fmt: skip
    spec = {"dtype": "float32", "shape": [3]}
    manifest = Manifest.model_validate({
        "inputs": [{"name": "x", **spec}], "states": [{"in": "h", "out": "h_next", **spec}],
        "outputs": [{"name": "y", **spec}], "batch": {"mode": "single"},
    })  # fmt: skip
    StepModel(with_manifest(model.SerializeToString(), manifest))

    with pytest.raises(RefusedModelError, match="Node 'y' \\(Hardmax\\) cannot be given an axis of rows"):
        with_row_axis(model, manifest)
