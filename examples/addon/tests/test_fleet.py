"""Each part of the package, where it is installed."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from stepwell_fleet.deadband import Deadband
from stepwell_fleet.leaky import Leaky

import stepwell
from stepwell import testing


class TestSpool(testing.BrokerLaws):
    """The laws of every broker."""

    acknowledges = False

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"spool://{tmp_path}"


def test_a_deadband_and_a_leaky_layer_are_one_step_graph(tmp_path: Path) -> None:
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, Leaky(0.5, name="leaky")(x))
    exported = stepwell.export(stepwell.Pipeline([stepwell.stages.Deadband(0.5), model]), tmp_path / "fleet.onnx")
    graph = stepwell.StepModel(exported.path)
    values, states = np.random.default_rng(1).normal(size=(20, 3)).astype("float32"), graph.initial_states(1)
    level = np.zeros(3)

    for now, kept in zip(values, Deadband(0.5).reference(values[None])[0], strict=True):
        outputs, states = graph.step({"x": now[None]}, states)
        level = 0.5 * level + kept
        np.testing.assert_allclose(outputs["leaky"][0], level, atol=1e-5)
