"""Layers of one's own that mix timesteps by hand: attention streams, a loop is one step, others are refused."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_attention import AttentionByHand, LoopByHand, T, over
from tests.model_export.keras.zoo_parts import L, ops, randomise


class Ahead(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Looks one timestep ahead, at the last one but one only."""

    def call(self, x: Any) -> Any:
        return ops.concatenate([x[:, :-2], x[:, -1:], x[:, -1:]], axis=1)


class Summary(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """One answer for the whole sequence: another one for each length, so nothing that can be stepped."""

    def call(self, x: Any) -> Any:
        return ops.einsum("btf,t->bf", x, ops.arange(x.shape[1], dtype="float32"))


class Twice(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Two inputs, one layer of one's own in another."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attend, self.mix = AttentionByHand(), L.Dense(8)

    def call(self, x: Any, y: Any) -> Any:
        t = x.shape[1]
        later = ops.einsum("ts,bsf->btf", ops.tril(ops.ones((t, t))) / t, y)
        return self.attend(x) + self.mix(later)


def test_attention_by_hand_keeps_its_past_keys_and_values() -> None:
    """Each head's are carried; what is normalised or projected behind it needs no state."""
    model = over(AttentionByHand(name="own"))
    randomise(model)  # keys and values of equal weights would be one state
    manifest = export_keras(model, name="m").manifest

    caches = [state for state in manifest.states if ".past" in state.input]
    assert [sorted(state.shape) for state in caches] == [[2, 4, T - 1]] * 2
    assert all(state.input.startswith("own.") for state in caches)
    assert [(state.dtype, state.shape) for state in manifest.states if state not in caches] == [("int64", [])]


def test_a_loop_by_hand_becomes_one_step() -> None:
    """Of the cell's state alone, so it goes on after the timesteps that it was written for."""
    model = over(LoopByHand())
    randomise(model)
    step = StepModel(export_model(model, name="m")[0])
    x = np.random.default_rng(1).standard_normal((1, T + 2, 8)).astype(np.float32)

    (answers,) = step.chunk({"x": x}, step.initial_states(1))[0].values()

    assert [state.shape for state in step.manifest.states] == [[5]]
    np.testing.assert_allclose(answers[:, :T], model(x[:, :T]), atol=1e-5)
    assert np.isfinite(answers).all()


@pytest.mark.parametrize("layer", [Summary, Twice])
def test_numbers_for_each_timestep_of_a_fixed_number_are_refused_with_the_way_out(layer: Any) -> None:
    """A sum over time with weights by position, also where these are a triangle and it would be causal."""
    x = keras.Input((T, 8))
    own = layer(name="own")
    with pytest.raises(RefusedModelError, match="Layer 'own") as caught:
        export_keras(keras.Model(x, own(x, x) if layer is Twice else own(x)), name="m")

    assert re.search(r"write a step rule for \w+: stepwell.register_step_rule", caught.value.fix)


def test_what_looks_ahead_at_the_end_alone_is_refused() -> None:
    with pytest.raises(RefusedModelError, match="as many timesteps as it takes up to a limit only"):
        export_keras(over(Ahead(name="own")), name="m")


def test_products_of_all_timesteps_are_refused_with_the_way_out() -> None:
    class Products(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def call(self, x: Any) -> Any:
            return ops.einsum("btf,bsf->bts", x, x)[..., :1]

    with pytest.raises(RefusedModelError, match=r"\(Products\) compares every timestep with every other") as caught:
        export_keras(over(Products(), None), name="m")

    assert "write a step rule for Products: stepwell.register_step_rule" in caught.value.fix
