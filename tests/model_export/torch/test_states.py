"""The states of a module over whole sequences are named after its layers."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch import convert
from tests.model_export.torch import zoo
from tests.model_export.torch.zoo_parts import nn, of, whole

pytestmark = pytest.mark.torch

STATES = {
    "bare": {"GRU.h": [5]},
    "projected": {"layer.state_0": [5], "layer.state_1": [5], "layer.state_2": [8], "layer.state_3": [8]},
    "both_of_two": {"gru.h": [5], "gru.h_2": [5]},
    "cells_in_a_loop": {"loop.state_0": [4], "loop.state_1": [5], "loop.state_2": [8], "loop.state_3": [8]},
    "started_by_an_input": {"gru.h": [6], "timesteps": []},
    "frequency_both_ways": {"over_time.h": [5, 4], "over_time.c": [5, 4]},
    "transformer": {"attend.Transpose_1.past": [2, 5, 4], "attend.Transpose_2.past": [2, 5, 4], "timesteps": []},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_named_after_its_layer_and_has_the_batch_first(name: str) -> None:
    manifest = zoo.made(name).manifest

    assert {state.input: state.shape for state in manifest.states} == STATES[name]
    assert [state.output for state in manifest.states] == [f"{state.input}_next" for state in manifest.states]
    assert {state.batch_axis for state in manifest.states} <= {0}


def test_a_learned_initial_state_is_what_a_stream_begins_with() -> None:
    states = zoo.made("learned_start").manifest.states

    assert [state.initial().tolist() for state in states] == zoo.build("learned_start").module.h0[:, 0].tolist()


def test_a_state_that_is_called_as_an_input_gets_another_name() -> None:
    spec = whole(of(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 5, batch_first=True)))
    spec = type(spec)(spec.module, inputs={"lstm.h": spec.inputs["x"]}, time_axis=1)

    assert [state.input for state in convert(spec, name="names").manifest.states] == ["lstm.h_2", "lstm.c"]


def test_outputs_are_named_by_keys_fields_and_positions() -> None:
    manifest = zoo.made("two_in_two_out").manifest

    assert {output.name: (output.dtype, output.shape) for output in manifest.outputs} == {
        "speed": ("float32", [1]),
        "alarm": ("bool", []),
        "nested_0": ("float32", [8]),
        "nested_1_0": ("int64", []),
    }


def test_layers_of_a_sequential_module_are_named_by_their_places() -> None:
    inner = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(3, 3, 3, dilation=2))
    module = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 3, 3), inner)

    made = convert(whole(module, 2, 4, 9, time_axis=2), name="places")

    assert [state.input for state in made.manifest.states] == ["1.past", "2.1.past"]


def test_layers_of_a_module_that_is_one_layer_are_counted() -> None:
    made = convert(whole(nn.LSTM(4, 5, 2, batch_first=True)), name="layers")

    assert [state.input for state in made.manifest.states] == ["LSTM.h", "LSTM.c", "LSTM.h_2", "LSTM.c_2"]


def test_past_keys_and_values_of_attention_are_named_after_its_layer() -> None:
    states = zoo.made("causal_encoder").manifest.states

    pasts = [state.input for state in states if state.input.endswith(".past")]

    assert {name.partition(".self_attn.")[0] for name in pasts} == {"encoder.layers.0", "encoder.layers.1"}


def test_a_layer_that_is_called_twice_in_a_row_is_no_step() -> None:
    """The second call goes on from the first one's state, within one timestep."""

    def run(m: Any, x: Any) -> Any:
        y, h = m.gru(x)
        return m.gru(y, h)[0]

    with pytest.raises(RefusedModelError, match="which the sequence decides"):
        convert(whole(of(run, gru=nn.GRU(4, 4, batch_first=True))), name="twice")
