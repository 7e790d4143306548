"""`TensorRuns`: runs of a sequence graph that show every one of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from stepwell_export.graph_session import GraphSession
from stepwell_export.streaming.axes.inputs import SequenceInputs
from stepwell_export.streaming.axes.sizes import ROWS
from stepwell_export.streaming.axes.spooled import spooled

Values = Mapping[str, Any]
"""Every tensor's value by name: an array, or a list of arrays."""

_KEPT = 4
"""Runs that are kept: those of a reading, which are of use again once it is chosen."""


class TensorRuns:
    """A sequence graph in onnxruntime with every tensor as an output; it is loaded once for all numbers of timesteps.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph
        self._loaded: dict[tuple[int, ...], GraphSession] = {}
        self._kept: dict[tuple[Any, ...], Values] = {}

    def load(self, inputs: SequenceInputs | None = None, steps: int = 0) -> GraphSession:
        """Return the graph in onnxruntime, by what is read of its inputs for a number of timesteps.

        Raises:
            ModelLoadError: onnxruntime refuses it.
        """
        key = () if inputs is None or inputs.only_steps is None else (inputs.only_steps, inputs.only_rows or 1, steps)
        if key not in self._loaded:
            graph = self.graph if inputs is None else inputs.with_length(self.graph, steps)
            own = (value.name for value in graph.graph.output)
            made = (name for node in graph.graph.node for name in node.output if name)
            self._loaded[key] = GraphSession(graph, dict.fromkeys((*own, *made)), as_written=True)
        return self._loaded[key]

    def at(self, inputs: SequenceInputs, rows: int = 0, length: int = 0, *, is_changed: bool = False) -> Values:
        """Return every tensor of a run; the data differ from run to run.

        Args:
            inputs: Where the inputs have their axes.
            rows: Which number of `ROWS`, 0 or 1, where the graph takes several.
            length: Which number of `inputs.lengths`, 0 or 1.
            is_changed: Whether the inputs have other values at one timestep, `perturbed_step`.

        Raises:
            ModelLoadError: onnxruntime fails on these sizes.
        """
        steps = inputs.lengths[length]
        feeds = inputs.feeds(inputs.only_rows or ROWS[rows], steps, 10 * (rows + length) + is_changed)
        loaded = self.load(inputs, steps)
        key = (id(loaded), *((name, value.shape, value.tobytes()) for name, value in feeds.items()))
        if key not in self._kept:
            values = spooled(loaded.run(feeds))
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = values
        return self._kept[key]

    def forget(self) -> None:
        """Drop the runs that are kept: a reading is chosen, and who needs them has them."""
        self._kept.clear()
