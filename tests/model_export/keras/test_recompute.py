"""Layers of one's own that mix timesteps: run again over all of them where they are causal, refused where not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from model_export.errors import RefusedModelError
from model_export.keras.sequence import export_keras
from model_export.step_model import StepModel
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


def test_it_keeps_its_past_inputs_and_nothing_else() -> None:
    """The attempt to step it leaves no state behind; the position is shared with all layers."""
    manifest = export_keras(over(AttentionByHand(name="own")), name="m").manifest

    assert [(state.input, state.shape) for state in manifest.states] == [
        ("stepwell.position", []),
        ("own.past", [T, 8]),
    ]


def test_only_what_mixes_timesteps_runs_over_all_of_them() -> None:
    a, b = keras.Input((T, 8), name="a"), keras.Input((T, 8), name="b")
    model = keras.Model([a, b], Twice(name="own")(a, b))
    randomise(model)

    graph, report = export_model(model, name="m")

    assert report.parity.max_abs < 1e-5
    assert {s.input for s in StepModel(graph).manifest.states} >= {"own.past", "own.past_2"}


def test_after_the_last_timestep_it_answers_nan() -> None:
    model = over(LoopByHand())
    randomise(model)
    step = StepModel(export_model(model, name="m")[0])
    x = np.ones((1, T + 2, 8), np.float32)

    (answers,) = step.chunk({"x": x}, step.initial_states(1))[0].values()

    assert np.isfinite(answers[:, :T]).all()
    assert np.isnan(answers[:, T:]).all()


@pytest.mark.parametrize("layer", [Ahead, Summary])
def test_what_is_not_causal_is_refused_for_what_it_does_over_time(layer: Any) -> None:
    with pytest.raises(RefusedModelError, match=rf"Layer 'own' \({layer.__name__}\) cannot be stepped: ") as caught:
        export_keras(over(layer(name="own")), name="m")

    assert "register_step_rule" in caught.value.fix


def test_without_a_declared_number_of_timesteps_it_is_refused() -> None:
    class Products(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def call(self, x: Any) -> Any:
            return ops.einsum("btf,bsf->bts", x, x)[..., :1]

    with pytest.raises(RefusedModelError, match="over the time axis"):
        export_keras(over(Products(), None), name="m")
