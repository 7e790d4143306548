"""`TensorRuns`: runs of a sequence graph that show every one of its tensors; large ones lie on disk meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph_session import GraphSession
from stepwell_export.streaming.axes.inputs import ROWS, SequenceInputs

Values = Mapping[str, Any]
"""Every tensor's value by name: an array, or a list of arrays."""

_KEPT = 4
"""Runs that are kept: those of a reading, which are of use again once it is chosen."""

_LARGE_RUN = 2**24
"""Bytes of a run from which on its large tensors are written to disk; below, time is worth more than memory."""

_LARGE = 2**14
"""Bytes of a large tensor."""


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


def spooled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same values: of a large run, the large ones are read from a temporary file when they are used."""
    sizes = {name: value.nbytes for name, value in values.items() if isinstance(value, np.ndarray)}
    return values if sum(sizes.values()) < _LARGE_RUN else Spooled(values)


class Spooled(Mapping[str, Any]):
    """Values by name, of which large arrays lie in a file without a name, which ends with this object."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Write the large arrays."""
        self._file = tempfile.TemporaryFile(prefix="stepwell-")  # noqa: SIM115  # open as long as this object
        self._values: dict[str, Any] = {}
        self._places: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        for name, value in values.items():
            is_large = isinstance(value, np.ndarray) and value.nbytes >= _LARGE and value.dtype.kind in "fiub"
            if is_large:
                self._places[name] = value.dtype, value.shape, self._file.tell()
                np.ascontiguousarray(value).tofile(self._file)
            self._values[name] = None if is_large else value
        self._file.flush()

    def __getitem__(self, name: str) -> Any:
        """Return a value."""
        if name not in self._places:
            return self._values[name]
        dtype, shape, start = self._places[name]
        return np.memmap(self._file, dtype, "r", start, shape)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return how many values there are."""
        return len(self._values)
