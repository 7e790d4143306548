"""Feedback rules: what fits a model, what is plain of itself, and what is told of what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell_export.runtime.feedback import Draw, FeedbackError, Rule, rules_of
from tests.graphs import letters, lstm, manifest_of, two_inputs, wave


def rule(said: Any, build: Any = wave, name: str = "x") -> Rule:
    [found] = rules_of({name: said}, build()[1])
    return found


def vectors() -> Any:
    """Five in, five out; and a flag, a byte and a matrix."""

    def t(name: str, dtype: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    inputs = [t("x", "float32", 5), t("flag", "bool"), t("small", "int8", 1), t("half", "float16", 5)]
    outputs = [t("y", "float32", 5), t("many", "float32", 300), t("matrix", "float32", 5, 2), t("n", "int32", 1)]
    return None, manifest_of(inputs=inputs, outputs=outputs)


def several() -> Any:
    """Two in, and two of each of five timesteps ahead out."""
    inputs = [{"name": "pair", "dtype": "float32", "shape": [2]}]
    return None, manifest_of(inputs=inputs, outputs=[{"name": "matrix", "dtype": "float32", "shape": [5, 2]}])


def test_a_name_feeds_an_output_as_it_is() -> None:
    found = rule("y")

    assert (found.input.name, found.output.name, found.makes, found.draw, found.is_random) == (
        "x", "y", "value", None, False,
    )  # fmt: skip


def test_an_integer_is_drawn_from_a_vector_of_floats() -> None:
    found = rule("next", letters)

    assert (found.makes, found.draw, found.is_random) == ("index", Draw(), True)


def test_how_it_is_drawn_is_said_by_the_rule_or_in_its_place() -> None:
    found = rule({"output": "next", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "logits": True}, letters)

    assert found.draw == Draw(0.5, 3, 0.9, logits=True)
    assert found.drawn(0, None, None).draw == Draw(0.0, 3, 0.9, logits=True)
    assert not found.drawn(0, None, None).is_random
    assert rule("y").drawn(0.5, 1, None) == rule("y")


def test_a_vector_as_long_is_fed_as_it_is_unless_it_is_said_to_be_drawn() -> None:
    assert rule("y", vectors).makes == "value"
    assert rule({"output": "y", "sample": True}, vectors).makes == "one_hot"
    assert rule({"output": "y", "one_hot": True}, vectors).makes == "one_hot"


def test_the_first_of_several_timesteps_ahead_is_fed() -> None:
    assert rule({"output": "matrix", "horizon": 5}, several, "pair").horizon == 5


@pytest.mark.parametrize(
    ("said", "build", "name", "told"),
    [
        ("z", wave, "x", "there is no output 'z'; outputs are y, spread"),
        ("y", wave, "z", "no such input; inputs are x"),
        ("x", wave, "y", r"did you mean \{'x': 'y'\}"),
        (5, wave, "x", "expected an output's name, or an object"),
        ({}, wave, "x", "expected an output's name, or an object"),
        ({"output": "y", "seed": 1}, wave, "x", "the key 'seed'"),
        ({"output": "y", "temperature": -1}, wave, "x", "`temperature` is -1"),
        ({"output": "y", "temperature": True}, wave, "x", "`temperature` is True"),
        ({"output": "y", "top_k": 0}, wave, "x", "`top_k` is 0"),
        ({"output": "y", "top_p": 0}, wave, "x", "`top_p` is 0"),
        ({"output": "y", "sample": 1}, wave, "x", "`sample` is 1"),
        ({"output": "y", "sample": True}, wave, "x", "vector of floats, not float32"),
        ({"output": "y", "scale": "2"}, wave, "x", "`scale` is '2'"),
        ({"output": "y", "scale": [1, 2]}, wave, "x", r"`scale` is \[1, 2\]; expected a number, or 1 of them"),
        ({"output": "y", "offset": float("inf")}, wave, "x", "`offset` is inf"),
        ({"output": "y", "std": -1}, wave, "x", "`std` is -1"),
        ({"output": "y", "df": 3}, wave, "x", "`df` without `std`"),
        ({"output": "y", "std": 1, "df": 0}, wave, "x", "`df` is 0; expected a number above 0"),
        ({"output": "y", "std": 1, "dispersion": 1}, wave, "x", "`std` and `dispersion`; expected one of them"),
        ({"output": "y", "dispersion": -1}, wave, "x", "`dispersion` is -1"),
        ({"output": "y", "std": "z"}, wave, "x", "there is no output 'z'"),
        ({"output": "next", "std": 1, "temperature": 1}, letters, "x", "`std` and `temperature`; expected one of them"),
        ({"output": "next", "scale": 2}, letters, "x", "are for inputs of floats"),
        ("y", lstm, "x", r"it is float32\[4\] and output 'y' is float32\[2\]; expected the same shape"),
        ("total", two_inputs, "b", "expected the same shape"),
        ("total", two_inputs, "a", None),
        ("last", two_inputs, "b", None),
        ("y", vectors, "flag", "needs one element|same shape"),
        ("many", vectors, "small", "int8 cannot hold an index up to 299"),
        ({"output": "matrix", "sample": True}, vectors, "small", "vector of floats"),
        ({"output": "many", "one_hot": True}, vectors, "x", "needs 300 elements"),
        ({"output": "y", "one_hot": False}, vectors, "x", "needs one element"),
        ("n", vectors, "small", None),
        ("matrix", several, "pair", "expected the same shape; for 5 timesteps ahead, set `horizon`: 5"),
        ({"output": "matrix", "horizon": 0}, several, "pair", "`horizon` is 0; expected an integer from 1"),
        ({"output": "matrix", "horizon": 4}, several, "pair", "that shape with 4 timesteps ahead"),
        ({"output": "matrix", "horizon": 5, "top_k": 1}, several, "pair", "`horizon` and `top_k`; expected one"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_fit_is_told_with_what_was_found(
    said: Any, build: Any, name: str, told: str | None
) -> None:
    if told is None:
        assert rule(said, build, name).input.name == name
        return
    with pytest.raises(FeedbackError, match=told):
        rule(said, build, name)
