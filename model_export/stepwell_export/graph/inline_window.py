r"""Folds past input that the caller would have to keep into the graph, as one more state.

Before and after:

    window (B, 576)                        window.past (B, 64)   x (B, 512)
       |                                             \          /
       | the model                    ->              Concat (B, 576) -> its end: the next window.past
    y                                                   | the model
                                                       y
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell_export.graph.nodes import read_opset, renamed, replace_items
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import InputSpec, Manifest, StateSpec, WindowSpec

if TYPE_CHECKING:
    import onnx


def fold_context(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    """Return a model that keeps its past input itself, and its manifest without windows.

    The input keeps its name and its symbolic lengths, and becomes the new part alone. (A number in place of a symbol
    is more than the graph's other branches may bear: silero-vad fails to load with it.)

    Args:
        model: The graph, local functions inlined.
        manifest: Its description, with at least one window.

    Raises:
        RefusedModelError: The graph's operators are too old for the nodes that are added.
    """
    opset = read_opset(model)
    if opset < 10:
        raise RefusedModelError(
            f"The graph uses opset {opset}; expected 10 or later, which has a Slice of any length.",
            fix="Convert it with onnx.version_converter, or leave out `--fold-context`: Stepwell keeps the window.",
        )
    folded = copy.deepcopy(model)
    inputs = {spec.name: spec for spec in manifest.inputs}
    past = [_fold(folded.graph, inputs[window.input], window) for window in manifest.windows]
    return folded, manifest.model_copy(update={"states": [*manifest.states, *past], "windows": []})


def _fold(graph: Any, spec: InputSpec, window: WindowSpec) -> StateSpec:
    """Put the past part in front of an input, and take it from the end of both."""
    from onnx import helper, numpy_helper

    joined, before, after = f"{spec.name}.joined", window.state_name, f"{window.state_name}_next"
    batch_axis = spec.batch_axis
    axis = window.axis + (batch_axis is not None and batch_axis <= window.axis)
    bounds = {"starts": -window.context, "ends": np.iinfo(np.int64).max, "axes": axis}
    names = {what: f"{after}.{what}" for what in bounds}
    graph.initializer.extend(numpy_helper.from_array(np.array([bounds[what]]), name) for what, name in names.items())
    replace_items(graph.node, [
        helper.make_node("Concat", [before, spec.name], [joined], axis=axis),
        *(renamed(node, {spec.name: joined}, name=node.name) for node in graph.node),
        helper.make_node("Slice", [joined, *names.values()], [after]),
    ])  # fmt: skip

    declared = next(value for value in graph.input if value.name == spec.name)
    past = graph.input.add()
    past.CopyFrom(declared)
    past.name = before
    past.type.tensor_type.shape.dim[axis].dim_value = window.context
    length = declared.type.tensor_type.shape.dim[axis]
    if length.HasField("dim_value"):
        length.dim_value -= window.context
    next_past = graph.output.add()
    next_past.CopyFrom(past)
    next_past.name = after

    row = list(spec.shape)
    row[window.axis] = window.context
    return StateSpec(
        input=before, output=after, dtype=spec.dtype, shape=row, batch_axis=batch_axis, init=window.init
    )  # fmt: skip
