"""Which state goes with which: by naming habits, by the only shape that fits, or asked for."""

from __future__ import annotations

import pytest

from stepwell_export.adoption.axes import ShapedTensor
from stepwell_export.adoption.pairing import pair_states, related
from stepwell_export.graph.nodes import Flow
from stepwell_export.runtime.errors import UnclearModelError


def tensors(**shapes: tuple[int, ...]) -> list[ShapedTensor]:
    return [ShapedTensor(name, "float32", shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x", "x_next"),
        ("x", "xN"),
        ("x", "new_x"),
        ("x", "nextX"),
        ("x_in", "x"),
        ("in_x", "out_x"),
        ("h0", "hn"),
        ("prev_h", "cur_h"),
        ("initial_h", "Y_h"),
        ("past_k", "present_k"),
        ("cache_in_0", "cache_out_0"),
        ("input_3", "output_3"),
        ("lstm.h", "lstm.h_next"),
        ("rnn/state_in:0", "rnn/state_out:0"),
        ("recurrentIn", "recurrentOut"),
        ("last", "last_next"),
        ("same", "same"),
    ],
)
def test_naming_habits_relate_a_state_to_its_next_value(before: str, after: str) -> None:
    assert related(before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x", "y"),
        ("input", "output"),
        ("input_2", "output_3"),
        ("cache_in_1", "cache_out_10"),
        ("h", "c_next"),
        ("input_3", "tf_op_layer_stack_2"),
        ("h0", "c0"),
        ("h1", "h2"),
    ],
)
def test_other_names_are_not_related(before: str, after: str) -> None:
    assert not related(before, after)


def test_states_are_paired_by_name_and_the_rest_is_sent_and_answered() -> None:
    found = pair_states(tensors(x=(1, 4), h0=(1, 8), c0=(1, 8)), tensors(y=(1, 4), cn=(1, 8), hn=(1, 8)))

    assert (found.states, found.how) == ({"h0": "hn", "c0": "cn"}, {"h0": "name", "c0": "name"})


def test_shapes_are_not_believed_against_the_names() -> None:
    with pytest.raises(UnclearModelError) as caught:
        pair_states(tensors(x=(1, 4), level=(4,)), tensors(y=(1, 2), level_out=(1, 4)))

    assert "'level_out' (float32 [1, 4]) follows 'x'; by its name, 'level', which is float32 [4]" in str(caught.value)


def test_names_that_go_together_are_not_paired_where_the_shape_differs() -> None:
    found = pair_states(tensors(x=(1, 4), h=(1, 8)), tensors(x_out=(1, 2), h_out=(1, 8)))

    assert found.states == {"h": "h_out"}


def test_without_a_name_the_only_shape_that_fits_is_taken() -> None:
    found = pair_states(tensors(a=(1, 4), b=(1, 8)), tensors(c=(1, 2), d=(1, 8)))

    assert (found.states, found.how) == ({"b": "d"}, {"b": "shape"})


def test_where_all_could_be_states_what_comes_first_is_sent_and_answered() -> None:
    found = pair_states(tensors(audio_in=(1, 4), cache_in=(1, 8)), tensors(audio_out=(1, 4), cache_out=(1, 8)))

    assert found.states == {"cache_in": "cache_out"}
    assert "audio_in and audio_out come first" in found.notes[0]


def test_where_all_could_be_states_and_another_input_is_sent_all_are() -> None:
    found = pair_states(tensors(h=(1, 4)), tensors(h_next=(1, 4)), all_may_be_states=True)

    assert found.states == {"h": "h_next"}


def test_where_all_could_be_states_in_another_order_it_is_asked() -> None:
    with pytest.raises(UnclearModelError) as caught:
        pair_states(tensors(a=(1, 4), b=(1, 8)), tensors(c=(1, 8), d=(1, 4)))

    assert "a -> d, b -> c" in caught.value.problem


def test_two_outputs_with_names_that_go_with_one_state_are_asked_for() -> None:
    with pytest.raises(UnclearModelError) as caught:
        pair_states(tensors(x=(1, 4), h=(1, 8)), tensors(h_out=(1, 8), h_next=(1, 8)))

    assert "'h' could be followed by 'h_out', 'h_next'" in caught.value.problem


# -------------------------------------------------------------------- by what the graph does


def test_an_operators_own_state_is_paired_whatever_the_names_are() -> None:
    carried = Flow(carried={"a": ["q"], "b": ["p"]})
    found = pair_states(tensors(x=(1, 4), a=(1, 8), b=(1, 8)), tensors(y=(1, 2), p=(1, 8), q=(1, 8)), flow=carried)

    assert (found.states, found.how) == ({"a": "q", "b": "p"}, {"a": "operator", "b": "operator"})


def test_an_operators_state_of_another_shape_is_no_pair() -> None:
    carried = Flow(carried={"a": ["p"]})

    assert pair_states(tensors(x=(1, 4), a=(1, 8)), tensors(p=(1, 1, 8)), flow=carried).states == {}


def test_an_operator_decides_between_two_outputs_of_fitting_name() -> None:
    carried = Flow(carried={"h": ["h_next"]})
    found = pair_states(tensors(x=(1, 4), h=(1, 8)), tensors(h_out=(1, 8), h_next=(1, 8)), flow=carried)

    assert found.states == {"h": "h_next"}


def test_an_operator_that_contradicts_a_name_is_a_question() -> None:
    carried = Flow(carried={"h": ["c_next"]})
    with pytest.raises(UnclearModelError) as caught:
        pair_states(tensors(x=(1, 4), h=(1, 8)), tensors(h_next=(1, 8), c_next=(1, 8)), flow=carried)

    assert "by the operator whose state it is, by 'c_next'" in caught.value.problem
    assert "--state h=c_next" in caught.value.fix


def question(inputs: list[ShapedTensor], outputs: list[ShapedTensor], flow: Flow | None = None) -> UnclearModelError:
    with pytest.raises(UnclearModelError) as caught:
        pair_states(inputs, outputs, flow=flow)
    return caught.value


def test_the_flags_of_a_question_have_the_states_that_are_not_in_question() -> None:
    """`--state` switches detection off: with the flags of the rivals alone, the others would be inputs."""
    asked = question(
        tensors(x=(1, 4), a=(1, 8), b=(1, 8), h=(1, 6)),
        tensors(y=(1, 2), p=(1, 8), q=(1, 8), z=(1, 6)),
        Flow(carried={"h": ["z"]}),
    )

    assert "--state h=z --state IN=OUT" in asked.fix


def test_copies_are_named_as_taps_of_a_shift_register() -> None:
    asked = question(
        tensors(x=(1, 4), a=(1, 8), b=(1, 8)), tensors(y=(1, 2), p=(1, 8), q=(1, 8)), Flow(copied={"q": "a"})
    )

    assert "'q' is a copy of 'a', as in a shift register" in asked.problem


@pytest.mark.parametrize(
    ("inputs", "outputs", "flags"),
    [
        ("state_0 state_1 state_2", "state_out_1 state_out_2 state_out_3", "state_0=state_out_1 state_1=state_out_2"),
        ("h1 h2 h3", "h0_next h1_next h2_next", "h1=h0_next h2=h1_next h3=h2_next"),
        ("cache_in_9 cache_in_10", "cache_out_10 cache_out_11", "cache_in_9=cache_out_10 cache_in_10=cache_out_11"),
        ("past.1.key past.2.key", "present.0.key present.1.key", "past.1.key=present.0.key past.2.key=present.1.key"),
    ],
)
def test_states_that_are_counted_from_different_numbers_are_asked_for(inputs: str, outputs: str, flags: str) -> None:
    asked = question(
        tensors(x=(1, 4), **dict.fromkeys(inputs.split(), (1, 8))),
        tensors(y=(1, 2), **dict.fromkeys(outputs.split(), (1, 8))),
    )

    assert " ".join(f"--state {pair}" for pair in flags.split()) in asked.fix


def test_a_state_that_would_be_its_own_next_value_is_a_question() -> None:
    asked = question(tensors(x=(1, 4), h=(1, 8)), tensors(y=(1, 2), h_out=(1, 8)), Flow(copied={"h_out": "h"}))

    assert "Output 'h_out' is a copy of the input 'h'" in asked.problem
    assert "--constant h=VALUE" in asked.fix


def test_an_input_and_an_output_that_look_alike_beside_named_states_are_told() -> None:
    found = pair_states(tensors(x=(1, 4), h=(1, 8), m=(1, 6)), tensors(y=(1, 4), h_next=(1, 8), k=(1, 6)))

    assert found.states == {"h": "h_next"}
    assert found.notes[0].startswith("m and k have one shape")
