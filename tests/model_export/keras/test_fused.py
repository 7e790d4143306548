"""Recurrent layers of Keras run a whole chunk in one operator, where one equals them."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.chunk.graph import dynamic_graphs, dynamic_manifest
from model_export.keras.sequence import export_keras
from model_export.step_model import StepModel
from model_export.verify.tolerance import Tolerance
from tests.model_export.keras import zoo

FUSED = [
    "lstm_softmax", "lstm_last", "lstm_no_bias", "gru_reset_before", "gru_no_bias", "gru_reset_before_no_bias",
    "simple_relu", "stacked", "cells", "nested", "shared_layer",
]  # fmt: skip
LOOPED = ["tokens_masked", "masked_stacked_cells", "custom_cell", "custom_activation", "return_state"]
AT_ONCE, INSIDE = "all timesteps at once", "timestep by timestep inside one run"


@pytest.mark.parametrize(("name", "how"), [*((n, AT_ONCE) for n in FUSED), *((n, INSIDE) for n in LOOPED)])
def test_a_chunk_equals_its_steps(name: str, how: str) -> None:
    exported = export_keras(zoo.build(name), name=name)
    step = StepModel(exported.proto.SerializeToString(), exported.manifest)
    rng = np.random.default_rng(0)
    data = {spec.name: rng.integers(0, 3, (3, 20, *spec.shape)).astype(spec.dtype) for spec in exported.manifest.inputs}
    want = step.chunk(data, step.initial_states(3))
    (found_how, proto, _), *_ = dynamic_graphs(exported.proto, exported.manifest)
    model = StepModel(proto.SerializeToString(), dynamic_manifest(exported.manifest))

    assert found_how == how
    for found, expected in zip(model.chunk(data, model.initial_states(3)), want, strict=True):
        assert all(Tolerance(1e-5, 1e-4).holds(found[key], expected[key]) for key in expected)
