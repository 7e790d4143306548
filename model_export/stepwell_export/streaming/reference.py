"""What the nodes of a sequence graph give, to find the one to blame where a step graph's answers differ."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell_export.graph_session import GraphSession
from stepwell_export.localize import Activation
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.step import SequenceStep


def activations(step: SequenceStep, inputs: Mapping[str, Array]) -> list[Activation]:
    """Return what the nodes of a graph give for one sequence, in order; see `stepwell_export.localize`.

    Args:
        step: The step graph, with the plain form of the graph that it was made of.
        inputs: One array per input, shape `(1, T, *shape)`.
    """
    if not step.watched:
        return []
    length = next(iter(inputs.values())).shape[1]
    watched = GraphSession(step.graph, [node.output for node in step.watched], weights=step.weights)
    feeds = {}
    for layout in step.inputs.inputs:
        fixed = layout.fixed(1, length)
        feeds[layout.name] = layout.fed(inputs[layout.name], [0], length) if fixed is None else fixed
    values = watched.run(feeds)
    return [Activation(node.layer, node.tensor, node.facts.rows_first(values[node.output], 1)) for node in step.watched]
