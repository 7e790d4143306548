"""Runs a sequence graph as `MeasuredShapes` needs it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from model_export.graph.onnx_file import with_outputs
from model_export.manifest import Array
from model_export.streaming.axes.inputs import SequenceInputs
from model_export.streaming.axes.measured_shapes import MeasuredShapes
from model_export.streaming.axes.runs import ROWS, run, session


def measure_shapes(graph: onnx.ModelProto, doors: SequenceInputs) -> MeasuredShapes:
    """Run a graph for two numbers of rows and two of timesteps, and once more with one timestep changed."""
    shortest = doors.with_length(graph, doors.lengths[0])

    @cache
    def loaded(steps: int) -> ort.InferenceSession:
        return session(doors.with_length(graph, steps), every_tensor=True)

    def at_length(tensor: str) -> Array:
        assert doors.length is not None
        only = with_outputs(graph, [tensor])
        del only.graph.output[: len(graph.graph.output)]
        feeds = doors.feeds(doors.only_rows or ROWS[0], doors.length, 0)
        return np.asarray(run(session(only), feeds)[tensor])

    counts = ROWS if doors.only_rows is None else (doors.only_rows,)
    # one session does where the graph takes any number of timesteps
    sizes = (doors.lengths[0],) * 2 if doors.only_steps is None else doors.lengths
    runs = {
        (i, j): run(loaded(sizes[j]), doors.feeds(rows, steps, 10 * (i + j)))
        for i, rows in enumerate(counts)
        for j, steps in enumerate(doors.lengths)
    }
    touched = run(loaded(sizes[0]), doors.feeds(counts[0], doors.lengths[0], 1))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in shortest.graph.initializer}
    return MeasuredShapes(runs, touched, weights, doors.lengths, at_length if doors.length else None)
