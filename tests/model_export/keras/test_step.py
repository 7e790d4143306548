"""The step graph's face: names, shapes, dtypes, and what one row may do to another."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import onnx
import pytest

from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.keras.sequence import ExportedStep, export_keras
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras import zoo
from tests.model_export.keras.zoo_parts import RS, L, randomise, sequence


def export(model: Any) -> ExportedStep:
    return export_keras(model, name="m")


def load(exported: ExportedStep) -> StepModel:
    return StepModel(decompose_rnn(exported.proto).SerializeToString(), exported.manifest)


def test_the_graph_is_opset_20_and_ir_10_with_a_free_batch_axis_and_no_time_axis() -> None:
    proto = export(zoo.build("lstm_softmax")).proto

    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert (proto.opset_import[0].version, proto.ir_version) == (20, 10)
    assert set(map(tuple, shapes.values())) == {("batch", 4), ("batch", 8), ("batch", 3)}


def test_states_are_named_after_their_layer() -> None:
    model = sequence(L.LSTM(3, name="first", **RS), L.GRU(2, name="second"))

    states = export(model).manifest.states

    assert [(s.input, s.output, s.shape) for s in states] == [
        ("first.h", "first.h_next", [3]), ("first.c", "first.c_next", [3]), ("second.h", "second.h_next", [2]),
    ]  # fmt: skip


def test_states_of_nested_models_carry_the_path() -> None:
    names = [state.input for state in export(zoo.build("nested")).manifest.states]

    assert len(set(names)) == 4
    assert all(name.endswith((".rnn.h", ".rnn.c")) for name in names)


@keras.saving.register_keras_serializable("tests")
class Two(keras.layers.Layer):  # type: ignore[misc]
    """Two recurrent layers with numbered names of a person's choice."""

    def __init__(self) -> None:
        super().__init__(name="two")
        self.first = L.LSTM(3, name="encoder_1", **RS)
        self.second = L.LSTM(3, name="encoder_2", **RS)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def test_numbered_layers_in_the_code_of_another_keep_their_names() -> None:
    names = [state.input for state in export(sequence(Two())).manifest.states]

    assert names == [f"two.encoder_{n}.{state}" for n in (1, 2) for state in "hc"]


def test_a_layer_called_twice_has_two_states() -> None:
    assert [s.input for s in export(zoo.build("shared_layer")).manifest.states] == [
        "twin.h", "twin.c", "twin.h_2", "twin.c_2",
    ]  # fmt: skip


def test_inputs_and_outputs_keep_the_models_names() -> None:
    manifest = export(zoo.build("two_inputs_two_outputs")).manifest

    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("a", [3]), ("b", [5])]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("label", [2]), ("summary", [3])]


def test_outputs_in_a_dict_are_named_by_their_keys() -> None:
    assert {o.name: o.shape for o in export(zoo.build("dict_of_outputs")).manifest.outputs} == {
        "alarm": [2], "speed": [1],
    }  # fmt: skip


def test_returned_states_are_outputs_beside_the_states() -> None:
    manifest = export(zoo.build("return_state")).manifest

    assert [output.name for output in manifest.outputs] == ["rnn", "rnn.last_h", "rnn.last_c"]
    assert [state.input for state in manifest.states] == ["rnn.h", "rnn.c"]


def test_ids_for_an_embedding_are_integers_on_the_wire_though_keras_declares_floats() -> None:
    model = zoo.build("tokens")
    assert model.inputs[0].dtype == "float32"

    spec = export(model).manifest.inputs[0]

    assert (spec.dtype, spec.shape) == ("int32", [])


def test_which_outputs_answer_for_the_sequence_so_far_is_known() -> None:
    assert export(zoo.build("two_inputs_two_outputs")).timed == {"label": True, "summary": False}


@pytest.mark.parametrize("ids", [[-1, 3], [2**31 - 1, 3]])
def test_an_id_outside_the_vocabulary_is_nan_in_its_own_row_alone(ids: list[int]) -> None:
    step = load(export(zoo.build("tokens")))

    outputs, _ = step.step({"ids": np.array(ids, np.int32)}, step.initial_states(2))
    alone, _ = step.step({"ids": np.array(ids[1:], np.int32)}, step.initial_states(1))

    (name,) = outputs
    assert np.isnan(outputs[name][0]).all()
    assert np.array_equal(outputs[name][1:], alone[name])


@pytest.mark.parametrize("name", ["stacked", "tcn"])
def test_a_row_among_31_others_equals_the_row_alone_bit_for_bit(name: str) -> None:
    step = load(export(zoo.build(name)))
    rng = np.random.default_rng(3)
    inputs = {s.name: rng.standard_normal((32, 5, *s.shape)).astype(s.dtype) for s in step.manifest.inputs}

    together, states = step.chunk(inputs, step.initial_states(32))
    alone, state = step.chunk({n: a[7:8] for n, a in inputs.items()}, step.initial_states(1))

    assert all(np.array_equal(together[n][7:8], alone[n]) for n in together)
    assert all(np.array_equal(states[n][7:8], state[n]) for n in states)


def test_equal_constants_are_stored_once() -> None:
    x = keras.Input((None, 4))
    dense = L.Dense(64, "relu")
    model = keras.Model(x, L.Add()([dense(x), dense(L.Dense(4)(x))]))
    randomise(model)

    sizes = [tensor.dims for tensor in export(model).proto.graph.initializer]

    assert sizes.count([4, 64]) == 1


def test_nothing_is_left_in_the_graph_that_nobody_asks_for() -> None:
    """An embedding's mask that no recurrent layer takes leaves nothing behind."""
    model = keras.Sequential([keras.Input((None,)), L.Embedding(5, 2, mask_zero=True), L.Dense(2)])
    proto = export(model).proto

    asked = {name for node in proto.graph.node for name in node.input} | {o.name for o in proto.graph.output}
    assert all(asked.intersection(node.output) for node in proto.graph.node)
    assert all(tensor.name in asked for tensor in proto.graph.initializer)


@pytest.mark.parametrize("name", ["pooling_masked"])
def test_exporting_twice_gives_the_same_bytes(name: str) -> None:
    """Of a layer that is traced, too, whose operations Keras numbers anew each time."""
    model = zoo.build(name)

    assert export(model).proto.SerializeToString() == export(model).proto.SerializeToString()


RESTING: dict[str, tuple[int, ...]] = {
    "Dropout": (4,), "SpatialDropout2D": (5, 4),
    "GaussianNoise": (4,), "ActivityRegularization": (4,),
    "Identity": (4,),
}  # fmt: skip
"""Layers that do nothing outside training, with a row that each takes."""


@pytest.mark.parametrize("layer", RESTING)
def test_a_layer_that_rests_outside_training_adds_nothing(layer: str) -> None:
    arguments = [0.5] if "Dropout" in layer or "Noise" in layer else []
    model = keras.Sequential([keras.Input((None, *RESTING[layer])), getattr(L, layer)(*arguments)])

    assert [node.op_type for node in export(model).proto.graph.node] == ["Identity"]


def test_odd_characters_in_names_become_underscores_and_dots_in_those_of_states() -> None:
    model = keras.Model(x := keras.Input((None, 2), name="room 1: °C"), L.GRU(2, name="a b")(x))

    exported = export(model)

    onnx.checker.check_model(exported.proto)
    assert [exported.manifest.inputs[0].name, exported.manifest.outputs[0].name] == ["room_1___C", "a_b"]
    assert load(exported).manifest.states[0].input == "a.b.h"
