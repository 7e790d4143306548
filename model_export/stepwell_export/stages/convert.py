"""`convert_pipeline`: stages and models as one step graph with one reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.builder import GraphBuilder
from stepwell_export.graph.nodes import read_opset
from stepwell_export.labels import with_labels
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec, TensorSpec
from stepwell_export.stages.join import join
from stepwell_export.stages.pipeline import Pipeline, RowModel
from stepwell_export.stages.row_model import convert_rows, read_row_model
from stepwell_export.stages.stage import Row, Stage

Convert = Callable[[Any, bool], ConvertedModel]
"""Makes the step graph of a model; the flag is whether the other parts are fitted to this one."""


def convert_pipeline(pipeline: Pipeline, convert: Convert, *, name: str) -> ConvertedModel:
    """Make one step graph of a pipeline, not yet verified.

    Raises:
        UnclearModelError: A stage does not fit its neighbour, or it is unclear which input it belongs to.
        RefusedModelError: A model cannot be stepped.
    """
    parts = pipeline.parts
    anchor = pipeline.anchor
    model = parts[anchor]
    whole = convert_rows(model) if isinstance(model, RowModel) else convert(model, True)
    for part in reversed(parts[:anchor]):
        whole = _in_front(part, whole, convert)
    for part in parts[anchor + 1 :]:
        whole = _behind(whole, part, convert)
    return replace(whole, manifest=whole.manifest.model_copy(update={"name": name}))


def _in_front(part: Any, whole: ConvertedModel, convert: Convert) -> ConvertedModel:
    if not isinstance(part, Stage):
        first = _model(part, whole.manifest.inputs, convert, ahead=True)
        return join(first, whole, _links(first.manifest, whole.manifest))
    into = _chosen(part, "input", whole.manifest.inputs)
    is_missing = getattr(into, "missing", "refuse") == "nan"
    if is_missing and not part.keeps_missing:
        raise UnclearModelError(
            f"{part.title} stands in front of a stage that replaces missing values, and cannot take them.",
            fix="Put Impute in front of it.",
        )
    row = part.row_before(into.row_shape)
    first = _stage(part, row, whole, takes=into.name, labels=_labels_before(part, row, into))
    if is_missing or part.fills_missing:
        first.manifest.inputs[0].missing = "nan"
    return join(first, whole, {first.manifest.outputs[0].name: into.name}, draw_before=part.draw_before)


def _behind(whole: ConvertedModel, part: Any, convert: Convert) -> ConvertedModel:
    if not isinstance(part, Stage):
        second = _model(part, whole.manifest.answered, convert, ahead=False)
        return join(whole, second, _links(whole.manifest, second.manifest))
    out = _chosen(part, "output", [spec for spec in whole.manifest.answered if spec.kind == "value"])
    second = _stage(part, out.row_shape, whole, returns=out.name, labels=_labels(out))
    return join(whole, second, {out.name: second.manifest.inputs[0].name})


def _chosen(stage: Stage, what: str, specs: Sequence[TensorSpec]) -> TensorSpec:
    """Return the input or output that a stage applies to.

    Raises:
        UnclearModelError: There is none of that name, or there are several and none is named.
    """
    fitting = [spec for spec in specs if stage.on in (None, spec.name)]
    if len(fitting) != 1:
        raise UnclearModelError(
            f"{stage.title} stands next to the {what}s {[spec.name for spec in specs]} and applies to "
            f"{'one of them' if stage.on is None else repr(stage.on)}.",
            fix=f"Name the {what}: `{stage.title}(..., on={specs[0].name!r})`." if specs else "Leave it out.",
        )
    return fitting[0]


def _labels(spec: TensorSpec) -> list[str]:
    return list((spec.model_extra or {}).get("labels", []))


def _labels_before(stage: Stage, row: Row, into: TensorSpec) -> list[str]:
    """Return the names of the numbers that a stage takes: its own, or those behind it where the row is the same."""
    if len(stage.labels) == int(np.prod(row)):
        return list(stage.labels)
    return _labels(into) if row == into.row_shape else []


def _stage(
    stage: Stage, row: Row, whole: ConvertedModel, *, takes: str = "", returns: str = "", labels: Sequence[str]
) -> ConvertedModel:
    """Return a stage as a step graph; the name of its input or output is given, the other one is internal."""
    stage.check(row)
    graph, after = GraphBuilder(stage.title), stage.row_after(row)
    given = InputSpec(name=takes or f"{returns}/{stage.title}/in", dtype=stage.takes, shape=list(row))
    returned = OutputSpec(name=returns or f"{takes}/{stage.title}/out", dtype="float32", shape=list(after))
    x = graph.add_input(given)
    is_float = np.dtype(stage.takes).kind == "f"
    made = stage.emit(graph, graph.cast(x, "float64") if is_float else x, row)
    graph.add_output(returned, graph.cast(made, "float32"))
    manifest = Manifest(inputs=graph.inputs, states=graph.states, outputs=graph.outputs)
    known = {given.name: labels, returned.name: stage.labels_after(labels)}
    manifest = with_labels(manifest, {key: names for key, names in known.items() if names})

    def reference(inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = inputs[given.name]
        found = stage.reference(values.astype(np.float64) if is_float else values)
        return {returned.name: found.astype(np.float32)}

    proto = graph.proto("stage", {"": read_opset(whole.proto)})
    return ConvertedModel(proto, manifest, reference, against=f"numpy {np.__version__}")


def _model(part: Any, neighbours: Sequence[TensorSpec], convert: Convert, *, ahead: bool) -> ConvertedModel:
    """Return a model as a step graph; an ONNX file whose tensors have the ranks of rows is one of rows."""
    if isinstance(part, Path):
        ranks = {len(spec.row_shape) for spec in neighbours}
        part = read_row_model(part, ranks=ranks, ahead=ahead) or part
    return convert_rows(part) if isinstance(part, RowModel) else convert(part, False)


def _links(first: Manifest, second: Manifest) -> dict[str, str]:
    """Return which outputs of a model become which inputs of the one behind it.

    Raises:
        UnclearModelError: No names are equal, and there are several outputs or inputs.
    """
    outputs, inputs = [spec.name for spec in first.answered], [spec.name for spec in second.inputs]
    same = {name: name for name in outputs if name in inputs}
    if same:
        return same
    if len(outputs) == len(inputs) == 1:
        return {outputs[0]: inputs[0]}
    raise UnclearModelError(
        f"A model has the outputs {outputs}; the one behind it takes {inputs}.",
        fix="Give an output the name of the input that it becomes.",
    )
