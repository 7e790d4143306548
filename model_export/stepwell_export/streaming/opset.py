"""Gives a sequence graph of an older opset newer operators, where it computes the same with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwell_export.graph.nodes import read_opset
from stepwell_export.graph.onnx_file import with_opset
from stepwell_export.graph.unit_axes import OLDEST_OPSET
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.streaming.axes.inputs import SequenceInputs
from stepwell_export.streaming.axes.runs import TensorRuns


def with_newer_operators(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with operators that take their axes as inputs, if it gives the same bits; else as it is.

    A step graph of such operators has no axes of length 1, and chunks.
    """
    if read_opset(runs.graph) >= OLDEST_OPSET:
        return runs
    try:
        made = TensorRuns(with_opset(runs.graph, OLDEST_OPSET))
        pairs = [(runs.at(inputs, place, place), made.at(inputs, place, place)) for place in (0, 1)]
    except ModelLoadError:  # what onnx does not convert, or onnxruntime does not run
        return runs
    outputs = [value.name for value in runs.graph.graph.output]
    same = all(_are_equal(before[name], other[name]) for before, other in pairs for name in outputs)
    return made if same else runs


def _are_equal(left: Any, other: Any) -> bool:
    """Whether two tensors are the same, NaN included; lists of tensors are not compared."""
    return isinstance(left, np.ndarray) and np.array_equal(left, other, equal_nan=left.dtype.kind == "f")
