"""The comparison with the file catches a plain form that means something else: it is on one side alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
import pytest
from onnx import helper

from stepwell_export.converted import verify_model
from stepwell_export.graph.nodes import all_nodes
from stepwell_export.runtime.errors import ParityError
from stepwell_export.streaming import convert
from stepwell_export.streaming.normal_form.plain_form import load_graph
from stepwell_export.streaming.normal_form.unrolled_loops import with_loops_rolled
from stepwell_export.streaming.step import make_step
from stepwell_export.verify.onnx_original import OnnxOriginal
from tests.model_export.streaming.zoo import ZOO

Mutate = Callable[[onnx.ModelProto], None]


def nodes(model: onnx.ModelProto, kind: str) -> Iterable[onnx.NodeProto]:
    """Return the nodes of an operator, those of bodies included."""
    found = [node for node in all_nodes(model.graph) if node.op_type == kind]
    assert found
    return found


def attribute(kind: str, name: str, value: object) -> Mutate:
    """Return what sets an attribute of an operator."""

    def mutate(model: onnx.ModelProto) -> None:
        for node in nodes(model, kind):
            kept = [one for one in node.attribute if one.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return mutate


def other_operator(kind: str, other: str) -> Mutate:
    """Return what puts another operator in the place of one."""

    def mutate(model: onnx.ModelProto) -> None:
        for node in nodes(model, kind):
            node.op_type = other

    return mutate


def without_input(kind: str, place: int) -> Mutate:
    """Return what leaves out an input of an operator."""

    def mutate(model: onnx.ModelProto) -> None:
        for node in nodes(model, kind):
            assert node.input[place]
            node.input[place] = ""

    return mutate


def with_choices_swapped(kind: str) -> Mutate:
    """Return what swaps the last two inputs of an operator."""

    def mutate(model: onnx.ModelProto) -> None:
        for node in nodes(model, kind):
            node.input[-2], node.input[-1] = node.input[-1], node.input[-2]

    return mutate


def with_weights_negated(name: str) -> Mutate:
    """Return what negates a weight."""

    def mutate(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), name))

    return mutate


MUTANTS: dict[str, tuple[str, Mutate]] = {
    "an_attribute_lost": ("gru", attribute("GRU", "linear_before_reset", 0)),
    "another_activation": ("lstm", attribute("LSTM", "activations", ["Sigmoid", "Tanh", "Sigmoid"])),
    "a_bias_dropped": ("lstm", without_input("LSTM", 3)),
    "a_weight_negated": ("lstm_layout_1", with_weights_negated("R")),
    "a_learned_start_dropped": ("learned_initial_state", without_input("GRU", 5)),
    "an_inner_operator_of_a_function": ("function", other_operator("Sigmoid", "HardSigmoid")),
    "a_sum_without_its_own_timestep": ("cumsum", attribute("CumSum", "exclusive", 1)),
    "another_body_of_a_rolled_loop": ("unrolled", other_operator("Tanh", "Sigmoid")),
    "another_body_of_a_loop": ("loop_of_torch", other_operator("Tanh", "Softsign")),
    "a_mask_turned_round": ("masked_lstm", with_choices_swapped("Where")),
    "padding_of_another_value": ("pad_then_conv", attribute("Pad", "mode", "edge")),
}
"""What a pass may get wrong, in a graph of the zoo."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_plain_form_is_caught_by_the_file(name: str) -> None:
    zoo, mutate = MUTANTS[name]
    file = ZOO[zoo].build()
    step = make_step(file, name="right")
    original = OnnxOriginal(file, step.inputs.inputs, step.outputs, only_steps=step.only_length)
    plain = with_loops_rolled(load_graph(file, {}).graph)
    mutate(plain)
    for value in plain.graph.input:  # the plain form has forgotten what was declared
        value.CopyFrom(next(one for one in file.graph.input if one.name == value.name))

    with pytest.raises(ParityError):
        verify_model(convert(plain, name="wrong", original=original), long_steps=0)
