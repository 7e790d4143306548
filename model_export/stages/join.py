"""`join`: two step graphs one behind the other, as one step graph with one reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard, TypeVar

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import helper

from model_export.chunk.fused_rnn import FusedCell
from model_export.converted import ConvertedModel
from model_export.errors import RefusedModelError, UnclearModelError
from model_export.graph.builder import NodeBuilder
from model_export.graph.nodes import all_graphs, mapped, opset_of, renamed
from model_export.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec, TensorSpec
from model_export.verify.localize import Activation, LayerOutputs
from model_export.verify.reference import PrefixAnswers
from model_export.verify.samplers import Sampler, random_sampler

Links = Mapping[str, str]
"""Outputs of the first graph to inputs of the second."""

DrawBefore = Callable[[np.random.Generator, Array], Array]
"""Sequences for the second graph to sequences for the first one that it maps to about those."""

_V = TypeVar("_V")

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
    names = _names(one, first.cells), _names(two, second.cells)
    glue = NodeBuilder("joint", sorted(names[0] | names[1]))
    public = {spec.name for spec in first.manifest.inputs}
    inner = {name: glue.unique(f"{name}/in") for name in links.values()}
    clashing = names[0] & names[1] - (public & set(links.values()))
    outer = {name: glue.unique(f"{name}/first") for name in sorted(clashing)}
    first, second = _renamed(replace(first, proto=one), outer), _renamed(replace(second, proto=two), inner)
    tied = {outer.get(out, out): inner[into] for out, into in links.items()}
    behind = {spec.name: spec for spec in second.manifest.inputs}
    before = {spec.name: spec for spec in first.manifest.outputs}
    for out, into in tied.items():
        _glue(glue, before[out], behind[into])
    middle = _Middle(first, {out: behind[into] for out, into in tied.items()})
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
        _JoinedReference(middle, second, next(iter(links))),
        against=", ".join(dict.fromkeys([*first.against.split(", "), *second.against.split(", ")])),
        samplers=_samplers(first, second, tied, draw_before),
        only_length=next(iter(lengths), None),
        longest=min(limits, default=None),
        cells=[*first.cells, *second.cells],
        probe=_probe(first.probe, second.probe, middle),
        rounding=max(first.rounding, second.rounding),
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
    if any(window.input in links.values() for window in second.manifest.windows):
        raise RefusedModelError(
            "The second model's input is a window of the host, which cannot follow another model.",
            fix="Adopt it with `--fold-context` first.",
        )


def _plain(row: Sequence[int]) -> list[int]:
    return [length for length in row if length != 1]


def _names(proto: onnx.ModelProto, cells: Sequence[FusedCell]) -> set[str]:
    """Return the names of all tensors of a model, those of its fused cells included."""
    names = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    names |= {name for cell in cells for node in cell.nodes for name in node.output}
    for graph in all_graphs(proto.graph):
        names |= {tensor.name for tensor in graph.initializer}
        names |= {name for node in graph.node for name in (*node.input, *node.output) if name}
    return names


def _same_versions(one: onnx.ModelProto, two: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return both with the operators of the newer one of them, functions inlined.

    Raises:
        RefusedModelError: A model cannot be converted.
    """
    newest = max(opset_of(one), opset_of(two), OLDEST_OPSET)
    return _converted(one, newest), _converted(two, newest)


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    if opset_of(proto) == opset:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except Exception as exc:
        raise RefusedModelError(
            f"{proto.graph.name!r} uses opset {opset_of(proto)}, the model that it is joined with opset {opset}; onnx "
            f"cannot convert it: {str(exc).strip()[:200]}.",
            fix=f"Export it with opset {opset}.",
        ) from exc


def _renamed(part: ConvertedModel, names: Mapping[str, str]) -> ConvertedModel:
    """Return a candidate with other names of tensors, everywhere."""
    if not names:
        return part
    name, probe, original = mapped(names), part.probe, part.original
    proto = onnx.ModelProto()
    proto.CopyFrom(part.proto)
    nodes = [renamed(node, name) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = name(value.name)
    return replace(
        part,
        proto=proto,
        manifest=_renamed_manifest(part.manifest, name),
        original=lambda inputs: _keys(original(_keys(inputs, _inverse(names))), name),
        samplers={kind: _renamed_sampler(draw, name) for kind, draw in (part.samplers or {}).items()} or None,
        cells=[_renamed_cell(cell, name) for cell in part.cells],
        probe=probe and (lambda inputs: [
            Activation(found.layer, name(found.tensor), found.values)
            for found in probe(_keys(inputs, _inverse(names)))
        ]),
    )  # fmt: skip


def _renamed_cell(cell: FusedCell, name: Callable[[str], str]) -> FusedCell:
    def all_of(names: Sequence[str]) -> list[str]:
        return [name(tensor) if tensor else "" for tensor in names]

    return replace(
        cell, x=name(cell.x), states=all_of(cell.states), after=all_of(cell.after), weights=all_of(cell.weights),
        nodes=[renamed(node, name) for node in cell.nodes],
    )  # fmt: skip


def _renamed_manifest(manifest: Manifest, name: Callable[[str], str]) -> Manifest:
    return manifest.model_copy(update={
        "inputs": [spec.model_copy(update={"name": name(spec.name)}) for spec in manifest.inputs],
        "outputs": [spec.model_copy(update={"name": name(spec.name)}) for spec in manifest.outputs],
        "states": [
            state.model_copy(update={"input": name(state.input), "output": name(state.output)})
            for state in manifest.states
        ],
        "constants": _keys(manifest.constants, name),
        "windows": [window.model_copy(update={"input": name(window.input)}) for window in manifest.windows],
    })  # fmt: skip


def _renamed_sampler(draw: Sampler, name: Callable[[str], str]) -> Sampler:
    return lambda rng, rows, steps: _keys(draw(rng, rows, steps), name)


def _keys(values: Mapping[str, _V], name: Callable[[str], str]) -> dict[str, _V]:
    return {name(key): value for key, value in values.items()}


def _inverse(names: Mapping[str, str]) -> Callable[[str], str]:
    return mapped({new: old for old, new in names.items()})


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
        "constants": first.constants | second.constants,
        "windows": [*first.windows, *second.windows],
        "batch": batch,
    })  # fmt: skip
    return Manifest.from_json(joined.to_json(), where="the joined graph")


@dataclass(frozen=True, slots=True)
class _Middle:
    """What passes from the first reference to the second.

    Attributes:
        first: The first model.
        links: The input of the second one, by output of the first one.
    """

    first: ConvertedModel
    links: Mapping[str, InputSpec]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return all outputs of the first reference, the linked ones in the form of the inputs behind them."""
        found = dict(self.first.original({spec.name: inputs[spec.name] for spec in self.first.manifest.inputs}))
        for out, into in self.links.items():
            answer = found[out]
            values = answer.values if isinstance(answer, PrefixAnswers) else answer
            values = values.reshape(*values.shape[:2], *into.row_shape).astype(into.dtype)
            found[out] = replace(answer, values=values) if isinstance(answer, PrefixAnswers) else values
        return found


@dataclass(frozen=True, slots=True)
class _JoinedReference:
    """Both references, one behind the other; `output` is the first linked one, for messages."""

    middle: _Middle
    second: ConvertedModel
    output: str

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return every output that remains.

        Raises:
            RefusedModelError: The second one needs an output for every timestep, and the first one has none.
        """
        found = self.middle(inputs)
        linked = {into.name: found.pop(out) for out, into in self.middle.links.items()}
        others = {spec.name: inputs[spec.name] for spec in self.second.manifest.inputs if spec.name not in linked}
        prefixes = [answer for answer in linked.values() if isinstance(answer, PrefixAnswers)]
        if not prefixes:
            return {**found, **self.second.original({**others, **linked})}  # type: ignore[dict-item]  # no prefixes
        if self.second.manifest.states or self.second.manifest.windows or len(linked) > 1:
            raise RefusedModelError(
                f"What stands behind output {self.output!r} uses earlier timesteps, and the model in front has one "
                "output for a whole sequence.",
                fix="Give the model an output for every timestep (return_sequences=True), or leave that stage out.",
            )
        (name,) = linked
        after = self.second.original({name: prefixes[0].values})
        kept = {key: PrefixAnswers(prefixes[0].steps, value) for key, value in after.items() if _is_array(value)}
        return {**found, **kept}


def _is_array(value: Array | PrefixAnswers) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray)


def _samplers(
    first: ConvertedModel, second: ConvertedModel, tied: Links, draw_before: DrawBefore | None
) -> dict[str, Sampler] | None:
    own = first.samplers or {"random": random_sampler(first.manifest)}
    behind = second.samplers or {"random": random_sampler(second.manifest)}
    if draw_before is not None:
        (spec,), (into,) = first.manifest.inputs, tied.values()
        return {kind: _drawn_before(draw, draw_before, spec, into) for kind, draw in behind.items()}
    rest = [spec.name for spec in second.manifest.inputs if spec.name not in tied.values()]
    if not rest:
        return dict(own)
    other = next(iter(behind.values()))
    return {kind: _with_rest(draw, other, rest) for kind, draw in own.items()}


def _drawn_before(draw: Sampler, before: DrawBefore, spec: TensorSpec, into: str) -> Sampler:
    def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = draw(rng, rows, steps)
        values = before(rng, drawn.pop(into).astype(np.float64))
        return {spec.name: values.reshape(rows, steps, *spec.shape).astype(spec.dtype), **drawn}

    return sample


def _with_rest(draw: Sampler, other: Sampler, names: Sequence[str]) -> Sampler:
    def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = draw(rng, rows, steps)
        return {**drawn, **{name: value for name, value in other(rng, rows, steps).items() if name in names}}

    return sample


def _probe(one: LayerOutputs | None, two: LayerOutputs | None, middle: _Middle) -> LayerOutputs | None:
    if one is None and two is None:
        return None

    def probe(inputs: Mapping[str, Array]) -> list[Activation]:
        own = {spec.name: inputs[spec.name] for spec in middle.first.manifest.inputs}
        found = list(one(own)) if one else []
        passed = middle(inputs)
        linked = {into.name: passed[out] for out, into in middle.links.items()}
        if two and all(_is_array(value) for value in linked.values()):
            others = {name: value for name, value in inputs.items() if name not in own}
            found += two({**others, **linked})  # type: ignore[dict-item]  # arrays, as was just checked
        return found

    return probe
