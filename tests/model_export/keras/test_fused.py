"""Recurrent layers of Keras run a whole chunk in one operator, where one equals them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.chunk.selection import dynamic_graph, dynamic_manifest
from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.tolerance import Tolerance
from tests.model_export.keras import zoo
from tests.model_export.keras.zoo_attention import T, over
from tests.model_export.keras.zoo_parts import RS, L, randomise

FUSED = ["lstm_softmax", "lstm_last", "gru_reset_before_no_bias", "simple_relu", "shared_layer"]
LOOPED = ["tokens_masked", "custom_cell", "return_state", "cells"]
AT_ONCE, INSIDE = "all timesteps at once", "timestep by timestep inside one run"


@pytest.mark.parametrize(("name", "how"), [*((n, AT_ONCE) for n in FUSED), *((n, INSIDE) for n in LOOPED)])
def test_a_chunk_equals_its_steps(name: str, how: str) -> None:
    exported = export_keras(zoo.build(name), name=name)
    step = StepModel(exported.proto.SerializeToString(), exported.manifest)
    rng = np.random.default_rng(0)
    data = {spec.name: rng.integers(0, 3, (3, 20, *spec.shape)).astype(spec.dtype) for spec in exported.manifest.inputs}
    want = step.chunk(data, step.initial_states(3))
    found_how, proto, _ = dynamic_graph(exported.proto, exported.manifest)
    model = StepModel(proto.SerializeToString(), dynamic_manifest(exported.manifest))

    assert found_how == how
    for found, expected in zip(model.chunk(data, model.initial_states(3)), want, strict=True):
        assert all(Tolerance(1e-5, 1e-4).holds(found[key], expected[key]) for key in expected)


class ByPosition(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Scales each of T timesteps by its own row."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(T, 8), name="rows")

    def call(self, x: Any) -> Any:
        return x * self.rows[: keras.ops.shape(x)[1]]


def tokens() -> Any:
    return keras.Sequential([keras.Input((None,), dtype="int32"), L.Embedding(4, 3), L.LSTM(3, **RS)])


@pytest.mark.parametrize(
    ("build", "data", "finite"),
    [
        (lambda: over(lambda x: L.GRU(3, **RS)(L.LSTM(4, **RS)(ByPosition()(x)))), np.ones((2, T + 3, 8), "f"), T),
        (tokens, np.array([[0, 1, 2, 3, 4, 0, 1]], np.int32), 4),
    ],
    ids=["behind_the_last_position", "an_id_outside_the_table"],
)
def test_a_chunk_gives_no_numbers_where_its_steps_give_none(build: Callable[[], Any], data: Any, finite: int) -> None:
    """The operators of onnxruntime give numbers for inputs that are NaN."""
    model = build()
    randomise(model)
    exported = export_keras(model, name="m")
    _, proto, _ = dynamic_graph(exported.proto, exported.manifest)
    chunks = StepModel(proto.SerializeToString(), dynamic_manifest(exported.manifest))
    (spec,) = exported.manifest.inputs

    answers, states = chunks.chunk({spec.name: data.astype(spec.dtype)}, chunks.initial_states(len(data)))[:2]

    (found,) = answers.values()
    assert np.isfinite(found[:, :finite]).all()
    assert np.isnan(found[:, finite:]).all()
    assert all(np.isnan(state).all() for name, state in states.items() if name.rpartition(".")[2] in {"h", "c"})
