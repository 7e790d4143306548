"""`StepScan`: the body of a cell or a step rule is a Scan of ONNX over the timesteps, or over places inside one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from stepwell_export.keras.graph import KerasGraph
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.value import Value
from stepwell_export.keras.walk import KerasWalk
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array

ROWS, STEPS = 3, 5


def begun() -> tuple[KerasWalk, KerasGraph, Value, StepScan]:
    """Return a walk with an input `x` of 2 features, and a Scan."""
    walk = KerasWalk()
    x = walk.graph.input("x", (2,), "float32", time=True)
    return walk, walk.graph, x, StepScan(walk.graph, "own")


def run(graph: KerasGraph, **feeds: Array) -> dict[str, Array]:
    model = graph.proto("m")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def drawn() -> Array:
    return np.random.default_rng(0).standard_normal((ROWS, STEPS, 2)).astype(np.float32)


def total(walk: KerasWalk, graph: KerasGraph, x: Value, scan: StepScan, init: Any) -> Value:
    """Emit a running sum and return its answers."""
    with scan.body(walk):
        now = scan.element(x)
        state = scan.state("own.total", (2,), "float32", init)
        added = graph.op("Add", state.name, now.name)
        scan.next_state(state, added)
    (found,) = scan.results([now.like(added)])
    return found


def test_a_state_begins_from_zeros_and_its_answers_are_a_sequence() -> None:
    walk, graph, x, scan = begun()
    found = total(walk, graph, x, scan, None)
    graph.output("y", found)

    assert found.is_sequence
    np.testing.assert_allclose(run(graph, x=drawn())["y"], drawn().cumsum(axis=1), rtol=1e-6)


def test_a_state_may_begin_from_one_row_of_numbers_for_all() -> None:
    walk, graph, x, scan = begun()
    graph.output("y", total(walk, graph, x, scan, np.array([1, 2], np.float32)))

    np.testing.assert_allclose(run(graph, x=drawn())["y"], drawn().cumsum(axis=1) + np.array([1, 2]), rtol=1e-6)


def test_a_state_may_begin_from_a_value_of_each_row() -> None:
    walk, graph, x, scan = begun()
    start = graph.input("start", (2,), "float32", time=False)
    graph.output("y", total(walk, graph, x, scan, start))
    begin = np.arange(2.0 * ROWS, dtype=np.float32).reshape(ROWS, 2)

    np.testing.assert_allclose(
        run(graph, x=drawn(), start=begin)["y"], drawn().cumsum(axis=1) + begin[:, None], rtol=1e-5
    )


def test_the_position_counts_the_timesteps_before() -> None:
    walk, graph, x, scan = begun()
    with scan.body(walk):
        scan.element(x)
        place = scan.position("own")
        counted = graph.op("Add", place.name, graph.constant(0, "int64"))
        assert scan.position("own") is place
    (found,) = scan.results([Value(counted, (), "int64", time=True)])
    graph.output("y", found)

    assert run(graph, x=drawn())["y"].tolist() == [list(range(STEPS))] * ROWS


def test_a_result_that_is_not_of_each_timestep_is_the_last_one() -> None:
    walk, graph, x, scan = begun()
    with scan.body(walk):
        last = Value(graph.op("Neg", scan.element(x).name), (2,), "float32")
    (found,) = scan.results([last])
    graph.output("y", found)

    assert not found.is_sequence
    np.testing.assert_array_equal(run(graph, x=drawn())["y"], -drawn()[:, -1])


def test_what_has_no_time_axis_is_the_same_in_every_timestep() -> None:
    walk, graph, x, scan = begun()
    who = graph.input("who", (2,), "float32", time=False)
    with scan.body(walk):
        now = scan.element(x)
        assert scan.element(who) is who
        both = now.like(graph.op("Add", now.name, who.name))
    graph.output("y", scan.results([both])[0])

    found = run(graph, x=drawn(), who=np.ones((ROWS, 2), np.float32))["y"]

    np.testing.assert_allclose(found, drawn() + 1)


def test_a_state_without_a_next_value_is_refused_by_its_name() -> None:
    walk, _, x, scan = begun()
    with scan.body(walk):
        now = scan.element(x)
        scan.state("own.forgotten", (2,), "float32", None)

    with pytest.raises(RefusedModelError, match=r"State 'own\.forgotten' .* never gets a next value"):
        scan.results([now])


def test_behind_a_body_the_walk_has_the_scan_of_before() -> None:
    walk, _, _, scan = begun()
    with scan.body(walk):
        assert walk.scan is scan

    assert walk.scan is None
