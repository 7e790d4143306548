"""Masked timesteps: kept states, repeated answers, and no mask that is silently ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell_export.keras.reference import KerasReference, samplers
from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.parity import verify_parity
from tests.model_export.keras import zoo
from tests.model_export.keras.zoo_parts import RS, L, SkipZeros, randomise, sequence


def pair() -> tuple[Any, Any]:
    """Return a model with a Masking layer and the same one, same weights, without."""
    with_mask = sequence(L.Masking(), L.LSTM(5, **RS))
    without = sequence(L.LSTM(5, **RS))
    randomise(with_mask)
    without.set_weights(with_mask.get_weights())
    return with_mask, without


def run(model: Any, x: Array) -> tuple[Array, dict[str, Array]]:
    exported = export_keras(model, name="m")
    step = StepModel(exported.proto.SerializeToString(), exported.manifest)
    outputs, states = step.chunk({"x": x}, step.initial_states(len(x)))
    return next(iter(outputs.values())), states


def test_a_masked_timestep_repeats_the_answer_and_keeps_the_states() -> None:
    model, _ = pair()
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    y, states = run(model, x)

    x_masked = np.concatenate([x, np.zeros((2, 3, 4), np.float32)], axis=1)
    y_masked, states_masked = run(model, x_masked)

    assert np.array_equal(y_masked[:, 5:], np.repeat(y[:, -1:], 3, axis=1))
    assert all(np.array_equal(states[name], states_masked[name]) for name in states)


def test_a_masked_first_timestep_answers_zeros() -> None:
    y, _ = run(pair()[0], np.zeros((1, 1, 4), np.float32))

    assert not y.any()


def test_one_row_is_masked_and_its_neighbour_is_not() -> None:
    model, _ = pair()
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    x[0, 2] = 0

    y, _ = run(model, x)

    assert np.array_equal(y[0, 2], y[0, 1])
    assert not np.allclose(y[1, 2], y[1, 1])


def test_a_graph_that_ignores_the_mask_does_not_pass() -> None:
    """Random data alone would let it pass: nothing in it is masked. Driven data are, as the mask is a decision."""
    with_mask, without = pair()
    exported = export_keras(with_mask, name="m")
    wrong = export_keras(without, name="m")
    wrong.manifest.outputs[0].name = wrong.proto.graph.output[0].name
    step = StepModel(wrong.proto.SerializeToString(), wrong.manifest)
    original = KerasReference(with_mask, exported)
    named = {wrong.manifest.outputs[0].name: exported.manifest.outputs[0].name}

    def renamed(inputs: Any) -> Any:
        answers = original(inputs)
        return {mine: answers[theirs] for mine, theirs in named.items()}

    draw = samplers(exported)
    for samples, kind in ({"random": draw["random"]}, "driven data"), (draw, "masked data"):
        with pytest.raises(ParityError, match=kind):
            verify_parity(renamed, step, against="keras", samplers=samples, seeds=[0])


@pytest.mark.parametrize("name", ["tokens_masked"])
def test_a_model_with_masks_is_verified_with_masked_timesteps(name: str) -> None:
    exported = export_keras(zoo.build(name), name="m")

    drawn = samplers(exported)["masked"](np.random.default_rng(0), 3, 64)

    spec = exported.manifest.inputs[0]
    masked = (drawn[spec.name] == exported.facts[spec.name].mask_value).reshape(3, 64, -1).all(axis=-1)
    assert 0.1 < masked.mean() < 0.6
    assert masked[0, 0]


def test_an_attribute_of_a_custom_layer_is_not_read_as_the_value_that_masks() -> None:
    layer = SkipZeros()
    layer.mask_value = "the first feature is zero"

    exported = export_keras(sequence(layer, L.GRU(3, **RS)), name="m")

    assert exported.facts["x"].mask_value == 0
