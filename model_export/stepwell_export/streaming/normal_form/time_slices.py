"""Finds the nodes that cut one timestep out of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, needed_nodes
from stepwell_export.runtime.manifest import Array

FEWEST = 4
"""Timesteps of a sequence that is cut into all of them: fewer may be the parts of a split."""


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """One timestep of a sequence: its tensor, axis and place, and whether the axis is kept with length 1."""

    data: str
    axis: int
    at: int
    keeps: bool


def time_slices(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]) -> Iterator[tuple[str, TimeSlice]]:
    """Yield what is cut out of a sequence as one timestep of it, by name."""
    for node in nodes:
        attrs = attributes(node)
        if node.op_type == "Gather" and (place := constants.get(node.input[1])) is not None:
            if place.size == 1 and place.ndim <= 1 and place.min() >= 0:
                axis = int(attrs.get("axis", 0))
                yield node.output[0], TimeSlice(node.input[0], axis, int(place.reshape(())), place.ndim == 1)
        elif node.op_type == "Slice" and len(node.input) > 3:
            parts = [constants.get(name) for name in node.input[1:]]
            if all(part is not None and part.size == 1 for part in parts):
                start, end, axis, *step = (int(np.reshape(part, ())) for part in parts if part is not None)
                if end == start + 1 and start >= 0 and step in ([], [1]):
                    yield node.output[0], TimeSlice(node.input[0], axis, start, keeps=True)
        elif node.op_type == "Split" and len(node.output) >= FEWEST:
            sizes = constants.get(node.input[1]) if len(node.input) > 1 else None
            if sizes is not None and (sizes == 1).all():
                axis = int(attrs.get("axis", 0))
                yield from (
                    (name, TimeSlice(node.input[0], axis, at, keeps=True)) for at, name in enumerate(node.output)
                )


def live_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    return needed_nodes(list(graph.node), [value.name for value in graph.output])
