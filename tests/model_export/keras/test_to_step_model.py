"""`to_step_model`: one timestep of a Keras model as a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras import to_step_model
from stepwell_export.keras.reference import samplers
from stepwell_export.keras.sequence import export_keras
from stepwell_export.keras.walk import functional
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from tests.model_export.keras import zoo
from tests.model_export.keras.zoo_attention import causal, over
from tests.model_export.keras.zoo_parts import RS, L, of, sequence

COVERED = [
    "stacked_last", "fixed_reshape", "tokens_masked", "masked_stacked_cells", "masked_nested", "explicit_mask",
    "return_state", "static_input", "shared_layer", "nested", "operations", "tcn", "custom_cell",
    "network_of_each_timestep",
]  # fmt: skip

FUNCTIONS = ("tanh", "sigmoid")


def run(step: Any, inputs: Mapping[str, Array], timed: Mapping[str, bool], steps: int) -> list[dict[str, Array]]:
    """Feed sequences one timestep at a time, states from zeros."""
    rows = len(next(iter(inputs.values())))
    states = {n: np.zeros((rows, *t.shape[1:]), t.dtype) for n, t in step.input.items() if n not in inputs}
    answers = []
    for t in range(steps):
        now = {n: a[:, t : t + 1] if timed[n] else a[:, t] for n, a in inputs.items()}
        answers.append({n: np.asarray(a) for n, a in step(now | states).items()})
        states = {n: answers[-1].pop(f"{n}_next") for n in states}
    return answers


@pytest.mark.parametrize("name", COVERED)
def test_step_by_step_it_equals_the_original(name: str) -> None:
    model = zoo.build(name)
    exported = export_keras(model, name="m")
    steps = 12 if name == "fixed_reshape" else 4
    drawn = list(samplers(exported).values())[-1](np.random.default_rng(0), 2, steps)
    timed = {n: fact.time for n, fact in exported.facts.items()}
    feeds = [drawn[n] if timed[n] else drawn[n][:, 0] for n in timed]
    whole = model.call(keras.tree.pack_sequence_as(functional(model)._inputs_struct, feeds), training=False)

    answers = run(to_step_model(model), drawn, timed, steps)

    for (output, has_time), want in zip(exported.timed.items(), keras.tree.flatten(whole), strict=True):
        got = np.concatenate([a[output] for a in answers], axis=1) if has_time else answers[-1][output]
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=output)


def test_layers_whose_states_are_equal_keep_one_each() -> None:
    """The step graph has the window of two convolutions over one sequence once; a layer's step needs its own."""
    model = of(lambda x: L.Multiply()([L.Conv1D(3, 2, padding="causal", activation=kind)(x) for kind in FUNCTIONS]))
    x = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)

    answers = run(to_step_model(model), {"x": x}, {"x": True}, 4)

    assert len(export_keras(model, name="m").manifest.states) == 1
    found = np.concatenate([next(iter(answer.values())) for answer in answers], axis=1)
    np.testing.assert_allclose(found, model(x), atol=1e-6)


@pytest.mark.parametrize("kind", [L.LSTM, L.GRU, L.SimpleRNN])
def test_layers_of_one_unit_and_one_channel_have_states_that_fit_their_cells(kind: Any) -> None:
    model = sequence(L.Conv1D(1, 2, padding="causal"), L.Conv1D(2, 3, padding="causal"), kind(1, **RS))
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)

    answers = run(to_step_model(model), {"x": x}, {"x": True}, 5)

    found = np.concatenate([next(iter(answer.values())) for answer in answers], axis=1)
    np.testing.assert_allclose(found, model(x), atol=1e-6)


class LeakyCell(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A cell of one unit, whose state has its axis of length 1 for Keras alone."""

    state_size = output_size = 1

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        h = 0.9 * states[0] + 0.1 * x[:, :1]
        return h, [h]


OF_ONE = {
    "masked": lambda: [L.Masking(), L.LSTM(1, **RS)],
    "cells_in_a_stack": lambda: [L.RNN([L.GRUCell(1), L.LSTMCell(1)], return_state=True, **RS)],
    "a_cell_of_its_own": lambda: [L.RNN(LeakyCell(), **RS)],
    "filters": lambda: [L.Reshape((-1, 4, 1)), L.ConvLSTM1D(1, 3, padding="same", **RS), L.Reshape((-1, 4))],
}


@pytest.mark.parametrize("name", OF_ONE)
def test_cells_get_states_of_length_1_in_their_own_shape(name: str) -> None:
    """States of the step graph lack such axes: a cell would fail, or compute with rows in their place."""
    model = sequence(*OF_ONE[name]())
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    x[1, :2] = 0

    answers = run(to_step_model(model), {"x": x}, {"x": True}, 5)

    found = np.concatenate([next(iter(answer.values())) for answer in answers], axis=1)
    np.testing.assert_allclose(found, keras.tree.flatten(model(x))[0], atol=1e-6)


def test_weights_are_shared_and_not_copied() -> None:
    model = zoo.build("stacked")
    step = to_step_model(model)

    assert {id(w) for w in step.trainable_weights} == {id(w) for w in model.trainable_weights}


def test_inputs_and_outputs_are_named_as_in_the_step_graph() -> None:
    model = zoo.build("two_inputs_two_outputs")
    step, manifest = to_step_model(model), export_keras(model, name="m").manifest

    assert set(step.input) == {i.name for i in manifest.inputs} | {s.input for s in manifest.states}
    assert set(step.output) == {o.name for o in manifest.outputs} | {s.output for s in manifest.states}
    assert step.input["a"].shape == (None, 1, 3)


def test_it_can_be_looked_at() -> None:
    lines: list[str] = []

    to_step_model(zoo.build("lstm_softmax")).summary(print_fn=lines.append)

    assert "lstm" in "\n".join(lines)


def test_the_model_itself_is_left_as_it_was() -> None:
    model = zoo.build("nested")
    before = model.to_json()

    to_step_model(model)

    assert model.to_json() == before


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: over(causal(L.MultiHeadAttention(1, 2, name="odd"))), "'odd' .* carries odd"),
        (lambda: sequence(L.Bidirectional(L.LSTM(2, **RS), name="odd")), r"'odd' \(Bidirectional\) cannot be stepped"),
        (lambda: of(lambda x: L.Conv1D(2, 3, name="odd")(L.ZeroPadding1D((2, 0), name="pad")(x))), "'pad'"),
    ],
)  # fmt: skip
def test_what_has_no_form_as_a_keras_layer_is_refused_by_name(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(RefusedModelError, match=words) as caught:
        to_step_model(build())

    assert caught.value.fix


def test_the_package_gives_it_without_importing_a_framework_before_it_is_called() -> None:
    import stepwell_export

    assert stepwell_export.to_step_model is to_step_model
    assert isinstance(to_step_model(zoo.build("simple_relu")), keras.Model)
