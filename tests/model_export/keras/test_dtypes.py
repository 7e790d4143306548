"""Truths, numbers and constants meet as they do in Keras, and no number of timesteps is written into a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import ops

from stepwell_export.runtime.errors import RefusedModelError
from tests.model_export.keras.proven import export_model


class _Does(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    def __init__(self, function: Callable[[Any], Any], grows: int = 1) -> None:
        super().__init__()
        self.function, self.grows = function, grows

    def call(self, x: Any) -> Any:
        return self.function(x)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*shape[:-1], (shape[-1] or 0) * self.grows)


def _model(layer: Any, *shape: int) -> keras.Model:
    x = keras.Input((None, *(shape or (4,))))
    return keras.Model(x, layer(x))


MEETING: dict[str, Callable[[Any], Any]] = {
    "a value times a truth": lambda x: x * (x > 0),
    "a truth plus a value": lambda x: ops.add(x > 0, x),
    "a truth plus a truth": lambda x: ops.add(x > 0, x > 0.5),
    "a truth times a truth": lambda x: ops.multiply(x > 0, x > 0.5),
    "a truth times a number": lambda x: (x > 0.3) * 2 + ops.where(x > 0, 1, 0) * x,
    "a truth equal to a number": lambda x: ops.equal(x > 0, 1),
    "a choice between a truth and a value": lambda x: ops.where(x, x > 1, x),
    "a choice between truths": lambda x: ops.where(x > 0, x > 1, x < -1),
    "an integer between fractions": lambda x: ops.clip(ops.cast(x * 5, "int32"), -1.5, 2.5),
    "a value and a truth": lambda x: ops.logical_and(x, x > 0.1),
}


def test_truths_and_numbers_meet_as_in_keras() -> None:
    def all_of_them(x: Any) -> Any:
        return ops.concatenate([ops.cast(function(x), "float32") for function in MEETING.values()], -1)

    assert export_model(_model(_Does(all_of_them, grows=len(MEETING))), name="m")[0]


@pytest.mark.parametrize("function", [lambda x: ops.concatenate([x > 0, x], -1), lambda x: ops.stack([x > 0, x], -1)])
def test_truths_stand_beside_numbers_as_numbers(function: Callable[[Any], Any]) -> None:
    assert export_model(_model(_Does(function)), name="m")[0]


def test_a_constant_of_more_axes_than_a_value_is_refused() -> None:
    with pytest.raises(RefusedModelError, match="the timesteps on axis 1"):
        export_model(_model(_Does(lambda x: x + ops.ones((1, 1, 1, 4)))), name="m")


def test_code_may_compute_with_the_open_number_of_timesteps() -> None:
    mean = keras.layers.Lambda(lambda x: ops.sum(x, axis=1) / ops.cast(ops.shape(x)[1], "float32"), output_shape=(4,))

    assert export_model(_model(mean), name="m")[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(_Does(lambda x: ops.concatenate([x, ops.zeros_like(x)], -1), grows=2), (4,), id="zeros"),
        pytest.param(keras.layers.GRU(3, activation="gelu"), (5, 4), id="cell in a loop"),
        pytest.param(keras.layers.Bidirectional(keras.layers.GRU(3, activation="gelu")), (5, 4), id="both directions"),
    ],
)
def test_a_layer_at_each_timestep_begins_with_a_row_for_each_of_them(layer: Any, shape: tuple[int, ...]) -> None:
    assert export_model(_model(keras.layers.TimeDistributed(layer), *shape), name="m")[0]
