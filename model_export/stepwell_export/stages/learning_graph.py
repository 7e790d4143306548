"""The step graph of a stage that learns, and its twin in NumPy as the original."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.builder import GraphBuilder
from stepwell_export.labels import with_labels
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec
from stepwell_export.stages.learning import LearningStage
from stepwell_export.stages.values import NamedValue, Node

LEARN = "learn"
"""The input that marks the timesteps that are learned from."""


def learning_graph(node: Node, stage: LearningStage, opset: int) -> ConvertedModel:
    """Return the step graph; a truth that nothing else reads gets its row.

    Raises:
        UnclearModelError: The stage cannot read such rows, or a value of it is drawn at random.
    """
    values = [*node.reads.values()]
    _describe_truth(stage, values)
    specs = [value.spec for value in values if value.spec is not None]
    if random := [value.name for value in values if getattr(value.spec, "kind", "value") != "value"]:
        raise UnclearModelError(
            f"{stage.title} reads {random[0]!r}, which is drawn at random.", fix="Read a value that is computed."
        )
    rows = [spec.row_shape for spec in specs]
    after = stage.rows_after(rows)
    graph = GraphBuilder(stage.title)
    given = [InputSpec(name=into, dtype="float32", shape=list(row)) for into, row in zip(node.reads, rows, strict=True)]
    tensors = [graph.cast(graph.add_input(spec), "float64") for spec in given]
    learn = graph.add_input(InputSpec(name=LEARN, dtype="bool", shape=[]))
    made = stage.emit_all(graph, [*tensors, learn], rows)
    for output, value, tensor, row in zip(node.gives, stage.gives, made, after, strict=True):
        returned = OutputSpec(
            name=output, dtype="float32", shape=list(row), stage=stage.described(value, values[0].name)
        )
        returned = returned.model_copy(update={"drift": False}) if value in stage.no_drift else returned
        graph.add_output(returned, graph.cast(tensor, "float32"))
    manifest = Manifest(inputs=graph.inputs[:-1], states=graph.states, outputs=graph.outputs, learn=LEARN)
    labels = stage.labels_of([list((spec.model_extra or {}).get("labels", [])) for spec in specs])
    known = {output: names for output, names in zip(node.gives, labels, strict=True) if names}

    def original(inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = [inputs[spec.name].astype(np.float64) for spec in given]
        found = stage.follow(arrays, np.ones(arrays[0].shape[:2], bool))
        return {output: array.astype(np.float32) for output, array in zip(node.gives, found, strict=True)}

    proto = graph.proto("stage", {"": opset})
    return ConvertedModel(proto, with_labels(manifest, known), original, against=f"numpy {np.__version__}")


def _describe_truth(stage: LearningStage, values: list[NamedValue]) -> None:
    for value in values[1:]:
        if value.spec is None and values[0].spec is not None:
            row = stage.truth_row(values[0].spec.row_shape)
            value.spec = InputSpec(name=value.name, dtype="float32", shape=list(row), missing="nan")
