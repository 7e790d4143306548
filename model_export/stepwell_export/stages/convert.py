"""`convert_pipeline`: stages and models as one step graph with one reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.builder import GraphBuilder, NodeBuilder
from stepwell_export.graph.nodes import read_opset
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.labels import with_labels
from stepwell_export.runtime.errors import NothingCarriedError, UnclearModelError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec, TensorSpec
from stepwell_export.stages.binding import NamedValue, NamedValues, Node, bind, is_truth
from stepwell_export.stages.latency import with_latency
from stepwell_export.stages.learning import LEARN, LearningStage
from stepwell_export.stages.merge import OLDEST_OPSET, merge
from stepwell_export.stages.pipeline import Part, Pipeline, RowModel
from stepwell_export.stages.row_model import convert_rows, read_row_model
from stepwell_export.stages.stage import Row, Stage
from stepwell_export.stages.stepwise_file import has_manifest, read_stepwise

Convert = Callable[[Any, bool], ConvertedModel]
"""Makes the step graph of a model; the flag is whether flags such as `--time-axis` are for this one."""


def convert_pipeline(pipeline: Pipeline, convert: Convert, *, name: str) -> ConvertedModel:
    """Make one step graph of a pipeline, not yet verified.

    Raises:
        UnclearModelError: A name is unknown, a value does not fit what reads it, or it is unclear what a part reads.
        RefusedModelError: A model cannot be stepped.
    """
    models = _models(pipeline, convert)
    values = bind(pipeline.parts, models, pipeline.outputs)
    _describe_inputs(values)
    opset = max(OLDEST_OPSET, *(read_opset(model.proto) for model in models.values()))
    for node in values.nodes:
        if node.stage is not None:
            node.model = _stage(node, node.stage, opset)
        for output, value in node.gives.items():
            value.spec = next(spec for spec in node.step.manifest.outputs if spec.name == output)
    answers = _in_graph(values)
    shown = {tensor: value.name for tensor, value in answers.items() if tensor != value.name} | pipeline.shown
    whole = merge(values.nodes, values.inputs, answers)
    whole = replace(whole, manifest=with_latency(whole.manifest.model_copy(update={"name": name}), values, answers))
    return replace(whole, finish=_shown(whole, shown)) if shown else whole


def _in_graph(values: NamedValues) -> dict[str, NamedValue]:
    """Return the answers by their names in the graph, where an input keeps a name that both have."""
    names = NodeBuilder("answers", [*values.inputs, *(value.name for value in values.answers)])
    return {
        names.unique(f"{value.name}/answer") if value.name in values.inputs else value.name: value
        for value in values.answers
    }


def _shown(whole: ConvertedModel, names: Mapping[str, str]) -> Callable[[bytes, Manifest], tuple[bytes, Manifest]]:
    """Return what gives answers other names in the manifest of a verified file."""

    def finish(content: bytes, manifest: Manifest) -> tuple[bytes, Manifest]:
        if whole.finish is not None:
            content, manifest = whole.finish(content, manifest)
        outputs = [
            spec.model_copy(update={"name": names[spec.name], "tensor": spec.name}) if spec.name in names else spec
            for spec in manifest.outputs
        ]
        verified = manifest.verified
        if verified is not None and (scale := (verified.model_extra or {}).get("scale")):
            scale = {names.get(name, name): found for name, found in scale.items()}
            verified = verified.model_copy(update={"scale": scale})
        return content, manifest.model_copy(update={"outputs": outputs, "verified": verified})

    return finish


# ---------------------------------------------------------------- models


def _models(pipeline: Pipeline, convert: Convert) -> dict[int, ConvertedModel]:
    """Return the step graphs of all models by place: the anchor's first, then outwards from it."""
    parts, anchor = pipeline.parts, pipeline.anchor
    found: dict[int, ConvertedModel] = {}
    places = [anchor, *range(anchor - 1, -1, -1), *range(anchor + 1, len(parts))]
    for place in places:
        part = parts[place]
        if isinstance(part, Part):
            found[place] = _model(parts, place, part.model, found, convert, is_anchor=place == anchor)
    return found


def _model(
    parts: Sequence[Stage | Part],
    place: int,
    model: Any,
    found: Mapping[int, ConvertedModel],
    convert: Convert,
    *,
    is_anchor: bool,
) -> ConvertedModel:
    """Return a model as a step graph; an ONNX file whose tensors have the ranks of rows is one of rows."""
    if isinstance(model, ConvertedModel):
        return model
    if isinstance(model, Path) and has_manifest(model):
        return read_stepwise(model)
    if isinstance(model, Path):
        ahead = not is_anchor and place < min(found)
        ranks = _ranks_behind(parts[:place]) if is_anchor else _ranks(parts, place, found, ahead=ahead)
        model = read_row_model(model, ranks=ranks, ahead=ahead) or model
    if isinstance(model, RowModel):
        return convert_rows(model)
    try:
        return convert(model, is_anchor)
    except NothingCarriedError:
        if not isinstance(model, Path):
            raise
        return convert_rows(RowModel(read_model(model, weights=True), file=model))


def _ranks(parts: Sequence[Stage | Part], place: int, found: Mapping[int, ConvertedModel], *, ahead: bool) -> set[int]:
    """Return the ranks of rows next to a place: of what the next model takes, or the last one gives."""
    if ahead:
        next_to = min(at for at in found if at > place)
        rows = [spec.row_shape for spec in found[next_to].manifest.inputs]
        between = reversed(parts[place + 1 : next_to])
    else:
        next_to = max(at for at in found if at < place)
        rows = [spec.row_shape for spec in found[next_to].manifest.answered]
        between = iter(parts[next_to + 1 : place])
    for stage in between:
        assert isinstance(stage, Stage)
        rows += [row for row in (_row_beside(stage, row, ahead=ahead) for row in rows) if row is not None]
    return {len(row) for row in rows}


def _ranks_behind(parts: Sequence[Stage | Part]) -> set[int]:
    """Return the ranks of rows behind stages, as far as their parameters determine them."""
    rows: list[Row] = []
    for stage in parts:
        if isinstance(stage, Stage):
            taken = [stage.row] if stage.row is not None else rows
            rows = [row for row in (_row_beside(stage, row, ahead=False) for row in taken) if row is not None]
    return {len(row) for row in rows}


def _row_beside(stage: Stage, row: Row, *, ahead: bool) -> Row | None:
    try:
        return stage.row_before(row) if ahead else stage.row_after(row)
    except UnclearModelError:
        return None


# ---------------------------------------------------------------- inputs


def _describe_inputs(values: NamedValues) -> None:
    """Give each input that a model or a stage in front of one reads its row, labels, and whether it may be missing.

    Raises:
        UnclearModelError: No part shows its row, or a part that cannot take missing values stands in front of one that
            replaces them.
    """
    for name, value in values.inputs.items():
        spec = _wanted(value)
        if spec is None and any(is_truth(node, into) for node, into in value.readers):
            continue  # its row follows from the stage's
        if spec is None:
            raise UnclearModelError(
                f"The row of input {name!r} is not known; expected a model that reads it, or stages in front of one.",
                fix="Let a model read it.",
            )
        missing = "nan" if _is_missing(value) else "refuse"
        value.spec = spec.model_copy(update={"name": name, "missing": missing})


def _wanted(value: NamedValue) -> InputSpec | None:
    """Return what the parts that read a value take; None: none of them shows it."""
    found: list[InputSpec] = []
    for node, into in value.readers:
        if node.stage is None:
            found.insert(0, next(spec for spec in node.step.manifest.inputs if spec.name == into))
        elif len(node.reads) == 1 and (spec := _taken(node, node.stage)) is not None:
            found.append(spec.model_copy(update={"name": value.name}))
    return found[0] if found else None


def _taken(node: Node, stage: Stage) -> InputSpec | None:
    """Return what a stage takes, as its parameters or the readers of its values determine it; None: they do not."""
    behind = next((spec for spec in map(_wanted, node.gives.values()) if spec is not None), None)
    row = stage.row if behind is None else stage.row_before(behind.row_shape)
    if row is None:
        return None
    labels = [] if behind is None else _labels_before(stage, row, behind)
    return InputSpec.model_validate({
        "name": "x", "dtype": stage.takes, "shape": list(row), **({"labels": labels} if labels else {}),
    })  # fmt: skip


def _is_missing(value: NamedValue) -> bool:
    """Whether a value may be missing: all that read it can take that.

    Raises:
        UnclearModelError: Something replaces it, and something else cannot take it.
    """
    takes = [(node, *_takes_missing(node, into)) for node, into in value.readers]
    is_wanted = any(wanted for _, _, wanted in takes)
    refusing = [node for node, can_take, _ in takes if not can_take]
    if not refusing:
        return True
    if is_wanted:
        raise UnclearModelError(
            f"{refusing[0].title} reads {value.name!r}, whose values may be missing for another part: one that "
            "replaces them, or learns from those that are there. It cannot take them.",
            fix="Put Impute in front of it.",
        )
    return False


def _takes_missing(node: Node, into: str) -> tuple[bool, bool]:
    """Return whether a part can take missing values, and whether it or what stands behind it is there for them."""
    if node.stage is None:
        is_nan = next(spec.missing for spec in node.step.manifest.inputs if spec.name == into) == "nan"
        return is_nan, is_nan
    if node.stage.fills_missing or is_truth(node, into):
        return True, True
    if isinstance(node.stage, LearningStage):
        return node.stage.takes_missing, False
    behind = [_takes_missing(*reader) for value in node.gives.values() for reader in value.readers]
    is_wanted = any(wanted for _, wanted in behind)
    if not node.stage.keeps_missing:
        return False, is_wanted
    return bool(behind) and all(can for can, _ in behind), is_wanted


def _labels(spec: TensorSpec) -> list[str]:
    return list((spec.model_extra or {}).get("labels", []))


def _labels_before(stage: Stage, row: Row, into: TensorSpec) -> list[str]:
    """Return the names of the numbers that a stage takes: its own, or those behind it where the row is the same."""
    if len(stage.labels) == int(np.prod(row)):
        return list(stage.labels)
    return _labels(into) if row == into.row_shape else []


# ---------------------------------------------------------------- stages


def _stage(node: Node, stage: Stage, opset: int) -> ConvertedModel:
    """Return a stage as a step graph, and its NumPy code as the original."""
    learns = isinstance(stage, LearningStage)
    if isinstance(stage, LearningStage):
        _describe_truth(stage, [*node.reads.values()])
    specs = [_computed(stage, value) for value in node.reads.values()]
    rows = [spec.row_shape for spec in specs]
    for row in rows:
        stage.check(row)
    graph = GraphBuilder(stage.title)
    is_float = np.dtype(stage.takes).kind == "f"
    given = [InputSpec(name=name, dtype=stage.takes, shape=[*row]) for name, row in zip(node.reads, rows, strict=True)]
    xs = [graph.add_input(spec) for spec in given]
    after = stage.rows_after(rows)
    if is_float and stage.takes != stage.computes:
        xs = [graph.cast(x, stage.computes) for x in xs]
    marks = [graph.add_input(InputSpec(name=LEARN, dtype="bool", shape=[]))] if learns else []
    made = stage.emit_all(graph, [*xs, *marks], rows)
    described = stage.described(next(iter(node.reads.values())).name)
    for at, (output, row, tensor) in enumerate(zip(node.gives, after, made, strict=True)):
        answer = tensor if is_float and stage.returns == stage.computes else graph.cast(tensor, stage.returns)
        spec = OutputSpec(name=output, dtype=stage.returns, shape=[*row])
        graph.add_output(spec.model_copy(update=described[at]) if described else spec, answer)
    manifest = Manifest(inputs=graph.inputs[: len(given)], states=graph.states, outputs=graph.outputs)
    manifest = manifest.model_copy(update={"learn": LEARN}) if learns else manifest
    labels = zip(node.gives, stage.labels_of([_labels(spec) for spec in specs]), strict=False)
    manifest = with_labels(manifest, {output: names for output, names in labels if names})

    def reference(inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = [inputs[spec.name] for spec in given]
        found = stage.references([value.astype(np.float64) for value in values] if is_float else values)
        return {output: value.astype(stage.returns) for output, value in zip(node.gives, found, strict=True)}

    return ConvertedModel(graph.proto("stage", {"": opset}), manifest, reference, against=f"numpy {np.__version__}")


def _describe_truth(stage: LearningStage, values: Sequence[NamedValue]) -> None:
    """Give a truth that nothing else reads its row."""
    for value in values[1:]:
        if value.spec is None and values[0].spec is not None:
            row = stage.truth_row(values[0].spec.row_shape)
            value.spec = InputSpec(name=value.name, dtype="float32", shape=list(row), missing="nan")


def _computed(stage: Stage, value: NamedValue) -> TensorSpec:
    """Return what is known of a value that a stage reads.

    Raises:
        UnclearModelError: It is drawn at random.
    """
    assert value.spec is not None
    if getattr(value.spec, "kind", "value") != "value":
        raise UnclearModelError(
            f"{stage.title} reads {value.name!r}, which is drawn at random.", fix="Read a value that is computed."
        )
    return value.spec
