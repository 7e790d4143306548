"""`AutoStep` finds the states of a module, and steps it as it runs over whole sequences."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch import AutoStep, convert, export_step
from tests.model_export.torch import zoo
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch

STATES = {
    "stacked": {"lstm.h": [8], "lstm.c": [8], "lstm.h_2": [8], "lstm.c_2": [8], "gru.h": [6]},
    "bare": {"GRU.h": [5]},
    "projected": {"layer.h": [2, 5], "layer.c": [2, 8]},
    "both_of_two": {"gru.h": [5], "gru.h_2": [5]},
    "cells_in_a_loop": {"lstm.h": [8], "lstm.c": [8], "gru.h": [5], "rnn.h": [4]},
    "started_by_an_input": {"gru.h": [6], "timesteps": []},
    "frequency_both_ways": {"over_time.h": [5, 4], "over_time.c": [5, 4]},
    "causal_network": {"first.past": [4, 2], "second.past": [6, 4]},
    "transformer": {"attend.keys": [2, 6, 4], "attend.values": [2, 6, 4], "attend.filled": [6]},
    "without_memory": {},
}


def timestep(name: str) -> tuple[Any, list[Any]]:
    """Return a module of the zoo as an `AutoStep`, and one timestep for it."""
    spec = zoo.build(name)
    return AutoStep(spec.module.eval(), time_axis=spec.time_axis or 0), [x[:, 0] for x in spec.inputs.values()]


def stepped(module: Any, x: Any) -> Any:
    """Run `(batch, T, features)` timestep by timestep through an `AutoStep` of one output."""
    states = [value.repeat_interleave(len(x), 0) for value in module.initial_states(x[:, 0]).values()]
    answers = []
    for now in x.unbind(1):
        answer, *states = module(now, *states)
        answers.append(answer)
    return torch.stack(answers, 1)


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_named_after_its_layer_and_has_the_batch_first(name: str) -> None:
    manifest = zoo.made(name).manifest

    assert {state.input: state.shape for state in manifest.states} == STATES[name]
    assert [state.output for state in manifest.states] == [f"{state.input}_next" for state in manifest.states]
    assert {state.batch_axis for state in manifest.states} <= {0}


def test_a_learned_initial_state_is_what_a_stream_begins_with() -> None:
    states = zoo.made("learned_start").manifest.states

    assert [state.initial().tolist() for state in states] == zoo.build("learned_start").module.h0[:, 0].tolist()


def test_steps_equal_the_whole_sequence() -> None:
    module, _ = timestep("stacked")
    x = torch.randn(3, 9, 4)

    torch.testing.assert_close(stepped(module, x), module.module(x), atol=1e-6, rtol=1e-5)


def test_the_wrapped_module_runs_on_as_it_did() -> None:
    module, example = timestep("stacked")
    module(*example, *(value.expand(2, *value.shape[1:]) for value in module.initial_states(*example).values()))

    assert "forward" not in vars(module.module.lstm)


def test_without_an_example_it_asks_for_one() -> None:
    with pytest.raises(RuntimeError, match="initial_states"):
        AutoStep(nn.GRU(4, 5))(torch.zeros(2, 4))


def test_export_step_takes_it_without_states() -> None:
    module, (x,) = timestep("stacked")
    made = export_step(module, {"x": x}, name="pump", output_names=["wear"])
    _, report = verify_model(made, long_steps=100)

    assert [state.input for state in made.manifest.states] == ["lstm.h", "lstm.c", "gru.h"]
    assert [output.name for output in report.outputs] == ["wear"]


def test_a_state_that_is_called_as_an_input_gets_another_name() -> None:
    spec = whole(nn.LSTM(4, 5, proj_size=3, batch_first=True))
    spec = type(spec)(spec.module, inputs={"h": spec.inputs["x"]}, time_axis=1)

    assert [state.input for state in convert(spec, name="names").manifest.states] == ["h_state", "c"]


def test_outputs_are_named_by_keys_fields_and_positions() -> None:
    manifest = zoo.made("two_in_two_out").manifest

    assert {output.name: (output.dtype, output.shape) for output in manifest.outputs} == {
        "speed": ("float32", [1]),
        "alarm": ("bool", []),
        "nested_0": ("float32", [8]),
        "nested_1_0": ("int64", []),
    }


def test_a_module_whose_timesteps_do_not_equal_its_sequences_is_refused() -> None:
    module = of(lambda m, x: m.gru(x)[0].cumsum(1), gru=nn.GRU(4, 4, batch_first=True))

    with pytest.raises(RefusedModelError, match="depends on more of the past than the recurrent layers carry"):
        AutoStep(module.eval()).initial_states(torch.randn(2, 4))


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


def test_what_was_refused_once_is_refused_again() -> None:
    step = AutoStep(of(lambda m, x: m.gru(x)[0].cumsum(1), gru=nn.GRU(4, 4, batch_first=True)).eval())
    with pytest.raises(RefusedModelError, match="depends on more of the past"):
        step.initial_states(torch.randn(2, 4))

    with pytest.raises(RefusedModelError, match="depends on more of the past"):
        step.initial_states(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="initial_states"):
        step(torch.zeros(2, 4), torch.zeros(2, 4))


def test_a_layer_that_is_called_twice_in_a_row_is_no_step() -> None:
    """The second call goes on from the first one's state, within one timestep."""

    def run(m: Any, x: Any) -> Any:
        y, h = m.gru(x)
        return m.gru(y, h)[0]

    with pytest.raises(RefusedModelError, match="which the sequence decides"):
        convert(whole(of(run, gru=nn.GRU(4, 4, batch_first=True))), name="twice")
