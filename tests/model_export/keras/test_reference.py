"""Keras as the original: from zero states, on any batch and length, leaving the user's model as it was."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras.reference import KerasReference
from stepwell_export.keras.replacements import may_spread_timesteps
from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import ParityError, RefusedModelError, TensorError
from stepwell_export.verify.parity import PrefixAnswers
from tests.model_export.keras import zoo
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_parts import L


def test_the_state_of_a_stateful_model_is_left_as_it_was() -> None:
    model = zoo.build("stateful_one_step")
    model(np.ones((1, 1, 4), np.float32))
    before = [np.asarray(state.value) for state in model.layers[0].states]

    export_model(model, name="m")

    assert model.layers[0].stateful
    assert all(state.any() for state in before)
    assert all(np.array_equal(a, b.value) for a, b in zip(before, model.layers[0].states, strict=True))


def test_the_step_graph_goes_the_way_of_a_stateful_model_fed_step_by_step() -> None:
    """What people do with Keras itself: batch size 1, one timestep a call."""
    from stepwell_export.runtime.step_model import StepModel

    model = zoo.build("stateful_one_step")
    graph, _ = export_model(model, name="m")
    step = StepModel(graph)
    x = np.random.default_rng(0).standard_normal((1, 8, 4)).astype(np.float32)
    model.layers[0].reset_state()

    want = np.stack([np.asarray(model(x[:, t : t + 1])) for t in range(8)], axis=1)
    got, _ = step.chunk({"x": x}, step.initial_states(1))

    np.testing.assert_allclose(next(iter(got.values())), want, atol=1e-6)


def test_an_answer_for_the_whole_sequence_is_asked_for_true_beginnings() -> None:
    model = zoo.build("lstm_last")
    original = KerasReference(model, export_keras(model, name="m"))
    x = np.random.default_rng(0).standard_normal((2, 20, 4)).astype(np.float32)

    (answers,) = original({"x": x}).values()

    assert isinstance(answers, PrefixAnswers)
    assert list(answers.steps) == [1, 2, 3, 17, 20]
    np.testing.assert_allclose(answers.values[:, 2], model(x[:, :3]), atol=1e-7)


def test_a_model_of_one_length_says_so_when_it_gets_another() -> None:
    model = zoo.build("fixed_reshape")
    original = KerasReference(model, export_keras(model, name="m"))

    with pytest.raises(TensorError, match="have 20 timesteps; expected 12"):
        original({"x": np.zeros((1, 20, 6), np.float32)})


def test_a_model_of_one_length_is_verified_over_that_length() -> None:
    assert export_model(zoo.build("fixed_reshape"), name="m")[1].parity.steps == 12


def test_a_network_at_each_timestep_is_asked_about_all_of_them_at_once_and_left_as_it_was() -> None:
    """Keras compiles a copy of it for each timestep."""
    model = zoo.build("frames")
    original = KerasReference(model, export_keras(model, name="m"))
    x = np.random.default_rng(0).standard_normal((2, 5, *model.input_shape[2:])).astype(np.float32)

    (answers,) = original({model.inputs[0].name: x}).values()

    assert isinstance(answers, np.ndarray)
    np.testing.assert_allclose(answers, model(x), atol=1e-6)
    assert original.longest is None
    assert not any("call" in vars(layer) for layer in model.layers)


def test_a_network_that_mixes_the_rows_of_its_batch_is_asked_about_one_timestep_after_the_other() -> None:
    class Mixing(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def call(self, x: object) -> object:
            return x - keras.ops.mean(x, axis=0, keepdims=True)

        def compute_output_shape(self, shape: object) -> object:
            return shape

    x = keras.Input((None, 3))
    model = keras.Model(x, L.TimeDistributed(Mixing())(x))

    assert not may_spread_timesteps(model, np.random.default_rng(0).random((2, 4, 3), np.float32))


def test_a_compiled_predict_of_the_users_is_left_alone() -> None:
    model = zoo.build("simple_relu")
    x = np.zeros((1, 3, 4), np.float32)
    model.predict_on_batch(x)
    theirs = model.predict_function

    KerasReference(model, export_keras(model, name="m"))({"x": x})

    assert model.predict_function is theirs


def test_a_tolerance_below_rounding_fails_and_names_the_timestep() -> None:
    with pytest.raises(ParityError, match=r"Output '\w+' first differs at timestep \d+ \(random data"):
        export_model(zoo.build("gru_600"), name="m", atol=1e-12, rtol=0)


def test_progress_and_report_say_what_was_done_and_against_what() -> None:
    seen: list[tuple[str, int, int]] = []

    _, report = export_model(zoo.build("simple_relu"), name="m", long_steps=0, progress=lambda *p: seen.append(p))

    assert (seen[0][0], seen[-1]) == ("tracing the model", ("driven: rare values", 1, 1))
    assert report.parity.against == f"keras {keras.__version__} {keras.backend.backend()}"
    assert report.parity.sequences == ["random"], "nothing in it is masked"


def test_a_static_input_is_the_same_at_every_timestep_of_the_drawn_data() -> None:
    from stepwell_export.keras.reference import samplers

    drawn = samplers(export_keras(zoo.build("static_input"), name="m"))["random"](np.random.default_rng(0), 3, 5)

    assert (drawn["who"] == drawn["who"][:, :1]).all()
    assert not (drawn["x"] == drawn["x"][:, :1]).all()


def test_ids_are_drawn_from_the_smallest_table_they_are_looked_up_in() -> None:
    from stepwell_export.keras.reference import samplers

    ids = keras.Input((None,), name="ids")
    model = keras.Model(ids, L.Concatenate()([L.Embedding(50, 2)(ids), L.Embedding(7, 2)(ids)]))

    drawn = samplers(export_keras(model, name="m"))["random"](np.random.default_rng(0), 9, 64)

    assert (drawn["ids"].min(), drawn["ids"].max()) == (0, 6)


@pytest.mark.parametrize(("layer", "count"), [(L.LSTM, 2)])
def test_an_initial_state_of_three_rows_is_refused_by_its_layer(layer: type[Any], count: int) -> None:
    """Such a model takes three sequences together and no other number; a stream is one row."""
    x = keras.Input(batch_shape=(3, None, 4))
    rows = [keras.ops.convert_to_tensor(np.eye(3, 5, dtype=np.float32)) for _ in range(count)]
    model = keras.Model(x, layer(5, name="cell")(x, initial_state=rows if count > 1 else rows[0]))

    with pytest.raises(RefusedModelError, match=r"Layer 'cell.* cannot be traced: .*\(3, \d+\)"):
        export_model(model, name="m")
