"""What a model's Python code decides by a value or by a size is refused, with the layer and the line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.keras import convert, register_step_rule
from stepwell_export.keras.own_layers import STEP_RULES
from stepwell_export.keras.sequence import ExportedStep, export_keras
from stepwell_export.runtime.errors import RefusedModelError
from tests.model_export.keras.zoo_parts import L, ops


class Alarm(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer whose code is a function of the layer and the tensor, and whose shape Keras does not have to find out."""

    def __init__(self, code: Callable[[Any, Any], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.code = code
        self.seen = 0
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        return self.code(self, x)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def export(code: Callable[[Any, Any], Any], steps: int | None = None, **more: Any) -> ExportedStep:
    x = keras.Input((steps, 3), **more)
    return export_keras(keras.Model(x, L.GRU(2, return_sequences=True)(Alarm(code, name="alarm")(x))), name="m")


def is_real(x: Any) -> bool:
    """Return whether a tensor is no symbol of Keras: where code looks, it is run another way than it is walked."""
    return not keras.backend.is_keras_tensor(x)


def loud_if_real(_: Any, x: Any) -> Any:
    if is_real(x) and ops.max(x) > 8:
        return x * 2
    return x


def loud_by_a_number(_: Any, x: Any) -> Any:
    try:
        loud = float(ops.max(x)) > 8
    except Exception:  # noqa: BLE001  # what people write so that a layer works in graphs, too
        loud = False
    return x * 2 if loud else x


def loud_by_an_array(_: Any, x: Any) -> Any:
    try:
        loud = np.asarray(x).max() > 8
    except Exception:  # noqa: BLE001  # as above
        loud = False
    return x * 2 if loud else x


def loud_by_keras(_: Any, x: Any) -> Any:
    try:
        loud = ops.convert_to_numpy(x).max() > 8
    except Exception:  # noqa: BLE001  # as above
        loud = False
    return x * 2 if loud else x


def rows_that_count(_: Any, x: Any) -> Any:
    return x[:, : int(ops.max(x))] if is_real(x) else x


def chosen_by_a_list(_: Any, x: Any) -> Any:
    return [x, x * 2][int(x[0, 0, 0] > 8)] if is_real(x) else x


BY_VALUE = [loud_if_real, loud_by_a_number, loud_by_an_array, loud_by_keras, rows_that_count, chosen_by_a_list]


@pytest.mark.parametrize("code", BY_VALUE)
def test_a_decision_by_a_value_is_refused_with_the_layer_and_the_line(code: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(
        RefusedModelError, match=r"'alarm' \(Alarm\).*value of a tensor \(test_code_decisions.py:\d+"
    ) as info:
        export(code)
    assert "ops.where" in info.value.fix


def test_a_fourier_transform_over_time_is_refused_with_the_line_that_calls_it() -> None:
    def spectrum(_: Any, x: Any) -> Any:
        return ops.irfft(ops.rfft(ops.moveaxis(x, 1, 2)))

    with pytest.raises(RefusedModelError, match=r"'alarm' .*test_code_decisions.py:\d+: `return ops.irfft\(ops.rfft"):
        export(spectrum)


def test_a_condition_that_is_part_of_the_computation_is_no_decision() -> None:
    def code(_: Any, x: Any) -> Any:
        return ops.where(x > 8, x * 2, x)

    assert export(code).manifest.states


# ---------------------------------------------------------------- lengths


BY_LENGTH: dict[str, Callable[[Any, Any], Any]] = {
    "long_ones": lambda _, x: x * 2 if x.shape[1] is not None and x.shape[1] > 2500 else x,
    "exactly_one_length": lambda _, x: x * 2 if x.shape[1] == 4096 else x,
    "another_length": lambda _, x: x if x.shape[1] != 4096 else x * 2,
    "whole_hours": lambda _, x: x * 2 if is_real(x) and (x.shape[1] or 0) % 3600 == 0 else x,
    "not_whole_hours": lambda _, x: x if not is_real(x) or x.shape[1] % 3600 else x * 2,
    "one_of_some_lengths": lambda _, x: x * 2 if x.shape[1] in {2048, 4096} else x,
    "at_most_so_long": lambda _, x: x if not is_real(x) else x * (1.0 if min(x.shape[1], 5000) < 5000 else 2.0),
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_decision_by_an_open_number_of_timesteps_is_refused_with_the_line(name: str) -> None:
    with pytest.raises(RefusedModelError, match=r"'alarm' \(Alarm\).*number of timesteps \(test_code_decisions.py:\d+"):
        export(BY_LENGTH[name])


@pytest.mark.parametrize("name", ["long_ones", "one_of_some_lengths"])
def test_a_model_of_a_declared_length_that_decides_by_it_is_compared_on_that_many_alone(name: str) -> None:
    assert export(BY_LENGTH[name], 6).bounded


def test_a_model_of_a_declared_length_that_does_not_decide_by_it_is_compared_on_any_number() -> None:
    assert not export(lambda _, x: x * 2, 6).bounded


def test_a_decision_by_the_number_of_rows_is_refused() -> None:
    def code(_: Any, x: Any) -> Any:
        return x * 2 if x.shape[0] == 16 else x

    with pytest.raises(RefusedModelError, match="number of rows"):
        export(code)


def test_a_subclassed_model_that_was_built_for_a_length_and_decides_by_it_is_compared_on_that_many_alone() -> None:
    class Own(keras.Model):  # type: ignore[misc]  # Keras has no types
        def call(self, x: Any) -> Any:
            return x * 2 if x.shape[1] > 2500 else x

    model = Own(name="own")
    model(np.zeros((1, 6, 3), np.float32))
    assert export_keras(model, name="m").bounded


# ---------------------------------------------------------------- states of Python


def counted(layer: Any, x: Any) -> Any:
    layer.seen += 1
    return x * float(layer.seen)


def counted_in_a_variable(layer: Any, x: Any) -> Any:
    layer.count.assign(layer.count + 1)
    return x * 2


def called_back(_: Any, x: Any) -> Any:
    if keras.backend.is_keras_tensor(x):
        return x
    return jax.pure_callback(lambda a: a * (2 if a.max() > 8 else 1), x, x)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (counted, "something else when it is run again"),
        (counted_in_a_variable, "'alarm'.*assigns its variable 'count'"),
        (called_back, r"callback of JAX \(test_code_decisions.py"),
    ],
)
def test_code_that_is_no_computation_is_refused(code: Callable[[Any, Any], Any], words: str) -> None:
    with pytest.raises(RefusedModelError, match=words):
        export(code)


def test_a_layer_with_a_step_rule_may_decide_by_values_and_the_others_may_not() -> None:
    class Ruled(Alarm):
        """A layer whose code is replaced by a rule."""

        def call(self, x: Any) -> Any:
            return super().call(x)

    register_step_rule(Ruled)(lambda layer, state, x: (state, x))
    try:
        x = keras.Input((None, 3))
        y = Ruled(loud_if_real, name="ruled")(x)
        assert export_keras(keras.Model(x, y), name="m")
        with pytest.raises(RefusedModelError, match="'alarm'"):
            export_keras(keras.Model(x, Alarm(loud_if_real, name="alarm")(y)), name="m")
    finally:
        STEP_RULES.pop(Ruled)


def test_an_export_leaves_jax_and_keras_as_they_were() -> None:
    def state() -> list[Any]:
        size = type(jax.export.symbolic_shape("n")[0])
        error = jax.errors.ConcretizationTypeError
        return [
            vars(size).get("__eq__"), vars(size).get("__ne__"), vars(size).get("__bool__"), error.__init__,
            vars(keras.KerasTensor).get("__eq__"), keras.random.SeedGenerator.next,
        ]  # fmt: skip

    before = state()
    for code in (loud_if_real, BY_LENGTH["long_ones"], counted):
        with pytest.raises(RefusedModelError):
            export(code)
    assert state() == before


# ---------------------------------------------------------------- subclasses that compute something else


class LimitedLSTM(L.LSTM):  # type: ignore[misc]  # Keras has no types
    """Runs its loop over inputs that are limited."""

    def inner_loop(self, sequence: Any, *args: Any, **kwargs: Any) -> Any:
        return super().inner_loop(ops.clip(sequence, -8, 8), *args, **kwargs)


class LoudAttention(L.MultiHeadAttention):  # type: ignore[misc]  # Keras has no types
    """Attends to large scores alone."""

    def _masked_softmax(self, scores: Any, attention_mask: Any = None) -> Any:
        return ops.where(scores > 8, 1.0, super()._masked_softmax(scores, attention_mask))


class StackedTwice(L.StackedRNNCells):  # type: ignore[misc]  # Keras has no types
    """Runs its cells, and doubles what they give."""

    def call(self, inputs: Any, states: Any, training: bool = False, **kwargs: Any) -> Any:
        y, states = super().call(inputs, states, training=training, **kwargs)
        return ops.where(y > 0.5, 2 * y, y), states


SUBCLASSES = {
    "a_loop": (None, LimitedLSTM(3, name="odd")),
    "an_attention": (12, lambda x: LoudAttention(2, 4, name="odd")(x, x, use_causal_mask=True)),
    "a_stack_of_cells": (
        None,
        L.RNN(StackedTwice([L.LSTMCell(3), L.GRUCell(2)]), return_sequences=True, name="odd"),
    ),
}
"""The number of timesteps that a model declares, and its one layer."""


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_that_computes_something_else_has_no_rule_of_its_parent(name: str) -> None:
    length, layer = SUBCLASSES[name]
    x = keras.Input((length, 4))
    model = keras.Model(x, layer(x))
    data = np.random.default_rng(0).normal(0, 20, (2, 12, 4)).astype(np.float32)
    try:
        made = convert(model, name="m")
    except RefusedModelError as exc:
        assert "odd" in exc.layer  # noqa: PT017  # either is right
        return
    verify_model(made, user_data={made.manifest.inputs[0].name: data})


def test_a_subclass_that_only_describes_itself_has_the_rule_of_its_parent() -> None:
    class Named(L.LSTM):  # type: ignore[misc]  # Keras has no types
        def get_config(self) -> Any:
            return {**super().get_config(), "site": "north"}

        def describe(self) -> str:
            return "north"

    x = keras.Input((None, 4))
    assert "LSTM" in {node.op_type for node in export_keras(keras.Model(x, Named(3)(x)), name="m").proto.graph.node}
