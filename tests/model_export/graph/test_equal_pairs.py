"""States that are equal only together are carried once, too."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from model_export.graph.builder import GraphBuilder
from model_export.graph.equal_states import without_equal_states
from model_export.manifest import InputSpec, OutputSpec


def _kept(*factors: float, starts: tuple[float, ...] = (0, 0), depth: int = 1) -> list[str]:
    """Return the states that are left of pairs, each of which holds what the other one held before, plus the input."""
    build = GraphBuilder()
    x = build.add_input(InputSpec(name="x", dtype="float32", shape=[2]))
    for pair, (factor, start) in enumerate(zip(factors, starts, strict=True)):
        first = build.state(f"first_{pair}", [2], init=np.full(2, start, np.float32))
        other = build.state(f"other_{pair}", [2])
        moved = build.op("Mul", build.op("Add", other.input, x), build.constant(np.float32(factor)))
        for _ in range(depth):
            moved = build.op("Mul", moved, moved)
        build.next_state(first, moved)
        build.next_state(other, build.op("Tanh", first.input))
        build.add_output(OutputSpec(name=f"y_{pair}", dtype="float32", shape=[2]), moved)
    return [state.input for state in without_equal_states(build.proto("pairs"), build.states)[1]]


def test_states_that_are_equal_only_together_are_carried_once() -> None:
    assert _kept(2, 2) == ["first_0", "other_0"]


def test_states_that_differ_in_a_number_or_at_the_start_stay() -> None:
    every = ["first_0", "other_0", "first_1", "other_1"]

    assert _kept(2, 3) == every
    assert _kept(2, 2, starts=(0, 1)) == every


def test_long_chains_of_products_are_compared() -> None:
    """Each of them takes the one before twice; there are more paths through them than anything could follow."""
    assert _kept(2, 2, depth=80) == ["first_0", "other_0"]
