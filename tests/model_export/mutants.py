"""Wrong step graphs, made of right ones: what a proof has to catch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.nodes import read_opset
from stepwell_export.runtime.manifest import Array, StateSpec
from stepwell_export.verify.reference import PrefixAnswers

Mutate = Callable[[onnx.ModelProto, Any], None]
"""Changes a graph and its manifest in place."""


def mutated(candidate: ConvertedModel, mutate: Mutate) -> ConvertedModel:
    """Return a candidate whose step graph is wrong, and whose original is what it was."""
    proto = onnx.ModelProto()
    proto.CopyFrom(candidate.proto)
    manifest = candidate.manifest.model_copy(deep=True)
    mutate(proto, manifest)
    return replace(candidate, proto=proto, manifest=manifest)


def scaled(candidate: ConvertedModel, factor: float) -> ConvertedModel:
    """Return a candidate whose float answers are larger or smaller by a factor, as are those of its original."""
    proto = onnx.ModelProto()
    proto.CopyFrom(candidate.proto)
    names = [spec.name for spec in candidate.manifest.outputs if spec.dtype == "float32"]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "scale"))
    for name in names:
        proto.graph.node.append(helper.make_node("Mul", [_hide(proto, name), "scale"], [name]))

    def original(inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        return {
            name: found if name not in names else _times(found, factor)
            for name, found in candidate.original(inputs).items()
        }

    return replace(candidate, proto=proto, original=original, manifest=candidate.manifest.model_copy(deep=True))


def _times(found: Array | PrefixAnswers, factor: float) -> Array | PrefixAnswers:
    if isinstance(found, PrefixAnswers):
        return replace(found, values=found.values * np.float32(factor))
    return found * np.float32(factor)


def dropped_state(proto: onnx.ModelProto, manifest: Any) -> None:
    """The last state is never written: each timestep begins with what it was at first."""
    state = manifest.states[-1]
    _redirect(proto, state.output, state.input)


def swapped_states(proto: onnx.ModelProto, manifest: Any) -> None:
    """The first two states of one shape take each other's next value; not two that always hold the same numbers."""
    shapes = [(state.dtype, *state.shape) for state in manifest.states]
    pairs = [(i, j) for j in range(len(shapes)) for i in range(j) if shapes[i] == shapes[j]]
    states = ((manifest.states[i], manifest.states[j]) for i, j in pairs)
    one, other = next((pair for pair in states if not _stay_equal(proto, *pair)), (None, None))
    if one is None or other is None:
        raise LookupError("no two states of one shape hold different numbers")
    names = one.output, other.output
    for node in proto.graph.node:
        node.output[:] = [{names[0]: names[1], names[1]: names[0]}.get(name, name) for name in node.output]
        node.input[:] = [{names[0]: names[1], names[1]: names[0]}.get(name, name) for name in node.input]


def _stay_equal(proto: onnx.ModelProto, one: Any, other: Any) -> bool:
    """Whether two states are equal after a timestep before which they are; then a swap changes nothing."""
    if getattr(one, "init", None) != getattr(other, "init", None):
        return False
    session, rng = onnxruntime.InferenceSession(proto.SerializeToString()), np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or 32 for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    feeds[other.input] = feeds[one.input]
    try:
        first, second = session.run([one.output, other.output], feeds)
    except Exception:  # noqa: BLE001  # onnxruntime has no narrower one; the sizes of such a graph depend on each other
        return False
    return bool(np.array_equal(first, second, equal_nan=True))


def late(proto: onnx.ModelProto, manifest: Any) -> None:
    """Every answer is that of the timestep before: off by one."""
    answer = manifest.outputs[0]
    hidden = _hide(proto, answer.name)
    declared = next(value for value in proto.graph.output if value.name == answer.name)
    for values, name in ((proto.graph.input, "late"), (proto.graph.output, "late_next")):
        value = values.add()
        value.CopyFrom(declared)
        value.name = name
    proto.graph.node.append(helper.make_node("Identity", ["late"], [answer.name]))
    proto.graph.node.append(helper.make_node("Identity", [hidden], ["late_next"]))
    row, axis = list(answer.graph_row_shape), answer.batch_axis
    manifest.states.append(StateSpec(input="late", output="late_next", dtype=answer.dtype, shape=row, batch_axis=axis))


def lost_bias(proto: onnx.ModelProto, manifest: Any) -> None:
    """The largest vector of weights is zero."""
    vectors = [init for init in proto.graph.initializer if _is_vector(init)]
    lost = sorted(vectors, key=lambda init: np.abs(numpy_helper.to_array(init)).sum())[-1]
    lost.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(lost)), lost.name))


def wrong_gate(proto: onnx.ModelProto, manifest: Any) -> None:
    """The gates of the widest matrix stand in another order."""
    matrices = [init for init in proto.graph.initializer if len(init.dims) >= 2 and init.data_type == 1]
    widest = sorted(matrices, key=lambda init: max(init.dims))[-1]
    array = numpy_helper.to_array(widest)
    axis = int(np.argmax(array.shape))
    moved = np.ascontiguousarray(np.roll(array, array.shape[axis] // 3, axis=axis))
    widest.CopyFrom(numpy_helper.from_array(moved, widest.name))


def forgets(proto: onnx.ModelProto, manifest: Any) -> None:
    """The last state of floats loses a hundredth in each timestep."""
    state = [state for state in manifest.states if state.dtype == "float32"][-1]
    kept = _hide(proto, state.output)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.99, np.float32), "forgets"))
    proto.graph.node.append(helper.make_node("Mul", [kept, "forgets"], [state.output]))


def shifted(proto: onnx.ModelProto, manifest: Any) -> None:
    """Everything in the largest state stands one place too far along its longest axis: off by one timestep."""
    state = sorted((one for one in manifest.states if math.prod(one.shape) > 1), key=lambda one: math.prod(one.shape))[
        -1
    ]
    size = max(state.shape)
    axis = list(state.shape).index(size)
    axis += axis >= state.batch_axis  # of the graph
    place = _hide(proto, state.output)
    order = np.roll(np.arange(size, dtype=np.int64), 1)
    proto.graph.initializer.append(numpy_helper.from_array(order, "shifted/order"))
    proto.graph.node.append(helper.make_node("Gather", [place, "shifted/order"], [state.output], axis=axis))


MUTANTS: dict[str, Mutate] = {
    "dropped state": dropped_state, "swapped states": swapped_states, "late": late, "lost bias": lost_bias,
    "wrong gate": wrong_gate, "forgets": forgets, "shifted": shifted,
}  # fmt: skip


def neighbours(proto: onnx.ModelProto, manifest: Any) -> None:
    """Each row's last state becomes that of the next row."""
    state = manifest.states[-1]
    tensor, at = _hide(proto, state.output), state.batch_axis
    start, end = (_slice(proto, tensor, at, *bounds) for bounds in ((1, 2**31), (0, 1)))
    proto.graph.node.append(helper.make_node("Concat", [start, end], [state.output], axis=at))


def one_row_for_all(proto: onnx.ModelProto, manifest: Any) -> None:
    """All rows get the answer of the first one."""
    answer = manifest.outputs[0]
    tensor = _hide(proto, answer.name)
    first = _slice(proto, tensor, answer.batch_axis, 0, 1)
    proto.graph.node.append(helper.make_node("Shape", [tensor], ["rows/shape"]))
    proto.graph.node.append(helper.make_node("Expand", [first, "rows/shape"], [answer.name]))


def leaking_rows(proto: onnx.ModelProto, manifest: Any) -> None:
    """A thousandth of the mean of all rows is in each row's last state."""
    state = manifest.states[-1]
    tensor = _hide(proto, state.output)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "leak"))
    mean = helper.make_node("ReduceMean", [tensor], ["rows/mean"])
    if read_opset(proto) < 18:
        mean.attribute.append(helper.make_attribute("axes", [state.batch_axis]))
    else:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([state.batch_axis]), "leak/axes"))
        mean.input.append("leak/axes")
    away = helper.make_node("Sub", ["rows/mean", tensor], ["rows/away"])
    part = helper.make_node("Mul", ["rows/away", "leak"], ["rows/part"])
    proto.graph.node.extend([mean, away, part, helper.make_node("Add", [tensor, "rows/part"], [state.output])])


def fourth_row(proto: onnx.ModelProto, manifest: Any) -> None:
    """All rows behind the third one get its last state; up to three rows are right."""
    state = manifest.states[-1]
    tensor, at = _hide(proto, state.output), state.batch_axis
    values = {"rows/zero": 0, "rows/one": 1, "rows/most": 2, "rows/axis": at}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in values.items())
    proto.graph.node.extend([
        helper.make_node("Shape", [tensor], ["rows/shape"]),
        helper.make_node("Gather", ["rows/shape", "rows/axis"], ["rows/count"]),
        helper.make_node("Range", ["rows/zero", "rows/count", "rows/one"], ["rows/all"]),
        helper.make_node("Min", ["rows/all", "rows/most"], ["rows/clamped"]),
        helper.make_node("Gather", [tensor, "rows/clamped"], [state.output], axis=at),
    ])  # fmt: skip


ROW_MUTANTS: dict[str, Mutate] = {
    "neighbours": neighbours, "one row for all": one_row_for_all, "leaking rows": leaking_rows,
    "fourth row": fourth_row,
}  # fmt: skip
"""Graphs in which a row depends on others."""


def _slice(proto: onnx.ModelProto, tensor: str, axis: int, start: int, end: int) -> str:
    """Add a part of a tensor along an axis; return its name."""
    names = [f"{tensor}/{start}/{what}" for what in ("start", "end", "axis", "part")]
    bounds = zip(names, (start, end, axis), strict=False)
    proto.graph.initializer.extend(numpy_helper.from_array(np.array([value], np.int64), name) for name, value in bounds)
    proto.graph.node.append(helper.make_node("Slice", [tensor, *names[:3]], [names[3]]))
    return names[3]


def _is_vector(init: Any) -> bool:
    wide = [dim for dim in init.dims if dim != 1]
    return init.data_type == onnx.TensorProto.FLOAT and len(wide) == 1


def _redirect(proto: onnx.ModelProto, output: str, source: str) -> None:
    """Let a graph output be another tensor; what read it inside goes on reading the true one."""
    _hide(proto, output)
    proto.graph.node.append(helper.make_node("Identity", [source], [output]))


def _hide(proto: onnx.ModelProto, output: str) -> str:
    """Give the tensor of a graph output another name, so that something else can be the output; return the name."""
    hidden = f"{output}/true"
    while any(hidden in node.output for node in proto.graph.node):
        hidden += "/true"
    for node in proto.graph.node:
        node.output[:] = [hidden if name == output else name for name in node.output]
        node.input[:] = [hidden if name == output else name for name in node.input]
    return hidden
