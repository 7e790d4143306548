"""`join`: two step graphs one behind the other, as one step graph with one reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
from onnx import helper

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import read_opset, tensor_names
from stepwell_export.graph.onnx_file import with_opset, without_functions
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import BatchSpec, InputSpec, Manifest, OutputSpec
from stepwell_export.stages.joined_reference import DrawBefore, Joint, Links
from stepwell_export.stages.renaming import with_names

OLDEST_OPSET = 13
"""The first opset in which the operators of stages and joints have their present form."""


def join(
    first: ConvertedModel,
    second: ConvertedModel,
    links: Links,
    *,
    draw_before: DrawBefore | None = None,
) -> ConvertedModel:
    """Join two step graphs.

    Args:
        first: Takes the timestep.
        second: Takes outputs of the first one. Its other inputs remain inputs, and the other outputs of the first one
            remain outputs.
        links: Which output becomes which input.
        draw_before: How sequences for the second graph become sequences for the first one, which then has one input;
            None: the first one has samplers of its own.

    Raises:
        UnclearModelError: Two inputs or outputs have the same name, or a linked output does not fit its input.
        RefusedModelError: The graphs have versions of operators that cannot be converted, or need different numbers of
            timesteps.
    """
    _check(first, second, links)
    one, two = _same_versions(first.proto, second.proto)
    names = tensor_names(one.graph), tensor_names(two.graph)
    glue = NodeBuilder("joint", sorted(names[0] | names[1]))
    inner = {name: glue.unique(f"{name}/in") for name in links.values()}
    shown = _shown(second.manifest) - inner.keys()
    outer = {name: glue.unique(f"{name}/first") for name in sorted(names[0] & shown)}
    inner |= {name: glue.unique(f"{name}/second") for name in sorted((names[0] & names[1]) - shown - inner.keys())}
    first, second = with_names(replace(first, proto=one), outer), with_names(replace(second, proto=two), inner)
    tied = {outer.get(out, out): inner[into] for out, into in links.items()}
    behind = {spec.name: spec for spec in second.manifest.inputs}
    before = {spec.name: spec for spec in first.manifest.outputs}
    for out, into in tied.items():
        _glue(glue, before[out], behind[into])
    joint = Joint(first, second, tied, next(iter(links)))
    lengths = {part.only_length for part in (first, second)} - {None}
    if len(lengths) > 1:
        raise RefusedModelError(
            f"The models take sequences of {' and '.join(map(str, sorted(filter(None, lengths))))} timesteps alone.",
            fix="Join models that take the same number of timesteps, or any number.",
        )
    limits = [part.longest for part in (first, second) if part.longest is not None]
    return ConvertedModel(
        _merged(first, second, glue, tied),
        _manifest(first.manifest, second.manifest, tied),
        joint.original,
        against=", ".join(dict.fromkeys([*first.against.split(", "), *second.against.split(", ")])),
        samplers=joint.samplers(draw_before),
        only_length=next(iter(lengths), None),
        longest=min(limits, default=None),
        probe=joint.probe if first.probe or second.probe else None,
        rounding=max(first.rounding, second.rounding),
        windows={*first.windows, *second.windows},
        observer=joint.observe if first.observer or second.observer else None,
        vocabularies={**first.vocabularies, **second.vocabularies},
        compiles=first.compiles or second.compiles,
    )


def _check(first: ConvertedModel, second: ConvertedModel, links: Links) -> None:
    outputs = {spec.name: spec for spec in first.manifest.outputs}
    inputs = {spec.name: spec for spec in second.manifest.inputs}
    for out, into in links.items():
        if _plain(outputs[out].row_shape) != _plain(inputs[into].row_shape):
            raise UnclearModelError(
                f"Output {out!r} has rows {list(outputs[out].row_shape)}; input {into!r} behind it takes "
                f"{list(inputs[into].row_shape)}.",
                fix="Put a stage between them, or join models that fit.",
            )
    for what, names, others in (
        ("input", [spec.name for spec in first.manifest.inputs], inputs.keys() - links.values()),
        ("output", [name for name in outputs if name not in links], {spec.name for spec in second.manifest.outputs}),
    ):
        for name in names:
            if name in others:
                raise UnclearModelError(
                    f"Both models have an {what} {name!r}.", fix="Rename it in one of them: a name is used once."
                )


def _shown(manifest: Manifest) -> set[str]:
    """Return the names that a manifest shows to people."""
    states = [name for state in manifest.states for name in (state.input, state.output)]
    return {*states, *(spec.name for spec in (*manifest.inputs, *manifest.outputs))}


def _plain(row: Sequence[int]) -> list[int]:
    return [length for length in row if length != 1]


def _same_versions(one: onnx.ModelProto, two: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return both with the operators of the newer one of them, functions inlined."""
    newest = max(read_opset(one), read_opset(two), OLDEST_OPSET)
    return _converted(one, newest), _converted(two, newest)


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    proto = without_functions(proto)
    if read_opset(proto) == opset:
        return proto
    try:
        return with_opset(proto, opset)
    except ModelLoadError as exc:
        raise RefusedModelError(
            f"{proto.graph.name!r} uses opset {read_opset(proto)}, the model that it is joined with {opset}. "
            f"{exc.problem}",
            fix=exc.fix,
        ) from exc


def _glue(graph: NodeBuilder, out: OutputSpec, into: InputSpec) -> None:
    """Emit what brings an output to the form of an input."""
    name, at = out.name, into.name
    rank = len(out.graph_row_shape)
    if out.batch_axis:
        others = [axis for axis in range(rank + 1) if axis != out.batch_axis]
        name = graph.op("Transpose", name, perm=[out.batch_axis, *others], at=at)
    if out.batch_axis is None or into.batch_axis is None or out.graph_row_shape != into.graph_row_shape:
        shape = graph.ints([*([] if into.batch_axis is None else [-1]), *into.graph_row_shape])
        name = graph.op("Reshape", name, shape, at=at)
    if into.batch_axis:
        others = list(range(1, len(into.graph_row_shape) + 1))
        others.insert(into.batch_axis, 0)
        name = graph.op("Transpose", name, perm=others, at=at)
    if out.dtype != into.dtype:
        name = graph.cast(name, into.dtype, at=at)
    graph.add("Identity", [name], [into.name])


def _merged(
    first: ConvertedModel,
    second: ConvertedModel,
    glue: NodeBuilder,
    tied: Links,
) -> onnx.ModelProto:
    one, two = first.proto, second.proto
    nodes = [*one.graph.node, *glue.nodes, *two.graph.node]
    weights = [*one.graph.initializer, *glue.constants, *two.graph.initializer]
    takes = [*one.graph.input, *(value for value in two.graph.input if value.name not in tied.values())]
    gives = [*(value for value in one.graph.output if value.name not in tied), *two.graph.output]
    versions = {entry.domain or "": entry.version for proto in (one, two) for entry in proto.opset_import}
    return helper.make_model(
        helper.make_graph(nodes, two.graph.name, takes, gives, weights),
        ir_version=max(one.ir_version, two.ir_version),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        producer_name="stepwell",
    )


def _manifest(first: Manifest, second: Manifest, tied: Links) -> Manifest:
    batch = BatchSpec(
        mode="single" if "single" in (first.batch.mode, second.batch.mode) else "stack",
        max=min(first.batch.max, second.batch.max),
    )
    joined = second.model_copy(update={
        "inputs": [*first.inputs, *(spec for spec in second.inputs if spec.name not in tied.values())],
        "outputs": [*(spec for spec in first.outputs if spec.name not in tied), *second.outputs],
        "states": [*first.states, *second.states],
        "batch": batch,
    })  # fmt: skip
    return Manifest.from_json(joined.to_json(), where="the joined graph")
