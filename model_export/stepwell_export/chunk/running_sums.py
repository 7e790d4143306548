r"""Running sums and running means: a chunk has those of all its timesteps by CumSum, without a loop.

In a step, a mean moves towards a new value by the value's share of all weights so far. Over a chunk it moves from where
it was by the sum of all values' distances from there, times their weights and divided by all weights so far. Where it
was is never added up, so that a long stream keeps its digits as it does step by step.

Before and after:

    sum (B, 4)   x (B, 4)                  sum (B, 4)   x (B, T, 4)
          \      /                              |          | CumSum over T
             Add                      ->         \__ Add __/
              |                                       |
            sum (B, 4)                     sums (B, T, 4), of which the last is carried
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from stepwell_export.chunk.analysis import Loop, StepGraphAnalysis, TensorFact
from stepwell_export.graph.operators import RESHAPING

if TYPE_CHECKING:
    from stepwell_export.chunk.vectorize import Vectorizer

_SUMMED = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32, onnx.TensorProto.INT64}
"""Types that CumSum takes."""

_UNIT_AXES = RESHAPING - {"Transpose"}


def emit_sum(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop that is a running sum or mean; return whether it is one."""
    reading, state = builder.reading, loop.states[0]
    fact, nodes = builder.facts[state], [node for node in loop.nodes if node.op_type != "Identity"]
    if len(loop.states) > 1 or fact.axis is None or fact.kind not in _SUMMED:
        return False
    after = _behind(reading, reading.after[state], {"Identity"})
    wanted = {name: _behind(reading, name, {"Identity"}) for name in reading.wanted_outside(loop)}
    if not nodes or nodes[-1].output[0] != after or not {state, after}.issuperset(wanted.values()):
        return False
    kinds = [node.op_type for node in nodes]
    if kinds == ["Add"]:
        emitted = _sums(builder, state, nodes[0], fact)
    elif kinds in (["Sub", "Mul", "Add"], ["Sub", "Div", "Add"]):
        emitted = _means(builder, state, nodes, fact)
    else:
        return False
    if not emitted:
        return False
    builder.last[state] = builder.emitter.last(emitted, fact.axis)
    for name, source in wanted.items():
        timed = builder.emitter.delayed(state, emitted, fact.axis) if source == state else emitted
        builder.set_flat(name, builder.emitter.flat(timed, fact.axis, fact.row))
    return True


def _sums(builder: Vectorizer, state: str, node: onnx.NodeProto, fact: TensorFact) -> str:
    """Return the sums of all timesteps, timed; empty: the node adds no values with the state's axes."""
    emitter, axis = builder.emitter, fact.axis
    assert axis is not None
    added = node.input[1] if node.input[0] == state else node.input[0]
    if state not in node.input or added == state:
        return ""
    if added in builder.reading.fixed:
        timed = emitter.op("Expand", added, emitter.timed_shape(fact.row[:axis], fact.row[axis:]))
    elif builder.facts[added] == fact:
        timed = builder.sequence(added)
    else:
        return ""
    sums = emitter.op("CumSum", timed, emitter.ints(axis + 1))
    return emitter.op("Add", emitter.op("Unsqueeze", state, emitter.ints([axis + 1])), sums)


def _means(builder: Vectorizer, state: str, nodes: list[onnx.NodeProto], fact: TensorFact) -> str:
    """Return the means of all timesteps, timed; empty: the nodes are no mean whose weights are known."""
    (difference, scaled, moved), emitter = nodes, builder.emitter
    values, by = difference.input[0], scaled.input[scaled.input[0] == difference.output[0]]
    is_mean = difference.input[1] == state and {*moved.input} == {state, scaled.output[0]}
    if not is_mean or not builder.facts.keys() >= {values, by}:
        return ""
    share = builder.facts[by]
    if {(operand.axis, len(operand.row)) for operand in (fact, share, builder.facts[values])} != {(0, len(fact.row))}:
        return ""
    weight, total = (_weights if scaled.op_type == "Mul" else _count)(builder.reading, by)
    if not total:
        return ""
    start = emitter.op("Unsqueeze", state, emitter.ints([1]))
    distance = emitter.op("Sub", builder.sequence(values), start)
    if weight:
        distance = emitter.op("Mul", distance, emitter.timed(builder.flat(weight), 0, share.row))
    sums = emitter.op("CumSum", distance, emitter.ints(1))
    return emitter.op("Add", start, emitter.op("Div", sums, emitter.timed(builder.flat(total), 0, share.row)))


def _weights(reading: StepGraphAnalysis, share: str) -> tuple[str, str]:
    """Return the weight of a timestep and the sum of all so far that a share is the quotient of; empty: it is none."""
    maker = reading.maker.get(_behind(reading, share, _UNIT_AXES))
    if maker is None or maker.op_type != "Div":
        return "", ""
    weight, divisor = maker.input
    total = divisor
    guard = reading.maker.get(divisor)
    if guard is not None and guard.op_type == "Max" and len(guard.input) == 2 and guard.input[1] in reading.fixed:
        total = guard.input[0]
    is_weighed = weight not in reading.fixed and _grows_by(reading, total, weight)
    return (weight, divisor) if is_weighed else ("", "")


def _count(reading: StepGraphAnalysis, divisor: str) -> tuple[str, str]:
    """Return no weight, and the divisor if it is the number of timesteps so far; empty: it is not."""
    state = _counted(reading, _behind(reading, divisor, _UNIT_AXES | {"Cast"}))
    after = _behind(reading, reading.after[state], {"Identity"}) if state in reading.after else ""
    return "", divisor if state and _counted(reading, after) == state else ""


def _counted(reading: StepGraphAnalysis, name: str) -> str:
    """Return the tensor that another one is one more than; empty: there is none."""
    adds = reading.maker.get(name)
    if adds is None or adds.op_type != "Add":
        return ""
    return next((other for given, other in (adds.input, adds.input[::-1]) if _is_one(reading, given)), "")


def _is_one(reading: StepGraphAnalysis, name: str) -> bool:
    value = reading.constant(name)
    return value is not None and bool(np.all(value == 1))


def _grows_by(reading: StepGraphAnalysis, total: str, weight: str) -> bool:
    """Whether a tensor is what a state becomes by adding `weight`."""
    adds = reading.maker.get(total)
    if adds is None or adds.op_type != "Add" or weight not in adds.input:
        return False
    before = adds.input[1] if adds.input[0] == weight else adds.input[0]
    return before in reading.after and _behind(reading, reading.after[before], {"Identity"}) == total


def _behind(reading: StepGraphAnalysis, name: str, kinds: set[str] | frozenset[str]) -> str:
    """Return the tensor that nodes of these kinds make another one of."""
    while (maker := reading.maker.get(name)) is not None and maker.op_type in kinds:
        name = maker.input[0]
    return name
