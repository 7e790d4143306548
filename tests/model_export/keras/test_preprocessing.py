"""Preprocessing layers inside a model: exact at their edges, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_parts import L
from tests.model_export.keras.zoo_preprocessing import BOUNDS, over

AUGMENTATION = [L.RandomContrast(0.3), L.RandomFlip(), L.Solarization(0.5)]


def step(layer: Any, x: Array) -> Array:
    """Run an exported layer over timesteps without any state: `(T, *row)` to `(T, *row)`."""
    graph, _ = export_model(over(layer, x.shape[1:], x.dtype.name), name="m")
    answers, _ = StepModel(graph).step({"x": x}, {})
    return next(iter(answers.values()))


def test_a_number_on_a_bound_falls_where_keras_puts_it() -> None:
    """Infinities and NaN as well."""
    x = np.array([[b] for b in (*BOUNDS, -np.inf, np.inf, np.nan, 0.1)], np.float32)
    layer = L.Discretization(BOUNDS)

    np.testing.assert_array_equal(step(layer, x), layer(x))


@pytest.mark.parametrize("mode", ["one_hot", "multi_hot", "count"])
def test_a_class_outside_the_table_sets_no_place(mode: str) -> None:
    x = np.array([[1, 1], [0, 7], [-1, 3]], np.int32)
    layer = L.CategoryEncoding(4, output_mode=mode)
    wrapped = L.TimeDistributed(layer) if mode != "one_hot" else layer

    np.testing.assert_array_equal(step(wrapped, x), layer(x))


def test_several_classes_of_a_timestep_are_counted_place_by_place_over_the_sequence_as_keras_does() -> None:
    model = over(L.CategoryEncoding(4, output_mode="count"), (3,), "int32")

    assert export_model(model, name="m")[1].parity.max_abs == 0


@pytest.mark.parametrize("layer", AUGMENTATION, ids=lambda layer: type(layer).__name__)
def test_augmentation_rests(layer: Any) -> None:
    x = np.random.default_rng(0).random((5, 6, 6, 3)).astype(np.float32)

    np.testing.assert_array_equal(step(L.TimeDistributed(layer), x), x)


class WithoutTensorFlow:
    """Makes a layer whose constructor needs TensorFlow, without it: only its class counts here."""

    vocabulary_dtype = "int64"

    def __init__(self) -> None:
        keras.Layer.__init__(self, name="odd")

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, "int32")


class Words(WithoutTensorFlow, L.StringLookup):  # type: ignore[misc]  # Keras has no types
    """A table of words."""


class Text(WithoutTensorFlow, L.TextVectorization):  # type: ignore[misc]  # Keras has no types
    """A tokenizer."""


def frame(layer: Any) -> Any:
    return over(L.TimeDistributed(layer), (6, 6, 3))


# name: (model, class, words of the reason)
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "words": (lambda: over(Words(), (1,), "int32"), "Words", "tensorflow"),
    "text": (lambda: over(Text(), (1,), "int32"), "Text", "tensorflow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_preprocessing_that_cannot_be_stepped_is_refused_by_name(name: str) -> None:
    build, cls, reason = REFUSED[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert f"Layer 'odd' ({cls}) cannot be traced: " in caught.value.problem
    assert reason in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize("layer", [L.Resizing(3, 3), L.CenterCrop(3, 3)])
def test_an_image_of_each_timestep_is_prepared_as_in_keras(layer: Any) -> None:
    assert export_model(frame(layer), name="m")[1].parity.max_abs < 1e-4
