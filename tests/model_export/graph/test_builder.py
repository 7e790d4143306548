"""Constants of a graph under construction: equal ones are stored once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from stepwell_export.graph.builder import NodeBuilder


def test_equal_constants_are_stored_once() -> None:
    build = NodeBuilder("g")
    large = np.arange(10_000, dtype=np.float32)

    assert build.constant(large) == build.constant(large.copy())
    assert build.ints([1, 2]) == build.ints([1, 2])
    assert len(build.constants) == 2


def test_constants_that_differ_anywhere_are_two() -> None:
    build = NodeBuilder("g")
    large = np.zeros(10_000, np.float32)
    names = {build.constant(large), build.constant(large.reshape(100, 100)), build.constant(large.view(np.int32))}
    for place in (1, 155, 9_999):
        other = large.copy()
        other[place] = 1.0
        names.add(build.constant(other))

    assert len(names) == len(build.constants) == 6
