"""`merge`: the step graphs of the parts of a pipeline as one step graph with one reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from stepwell_export.converted import ConvertedModel, Learned
from stepwell_export.graph.builder import NodeBuilder, declared
from stepwell_export.graph.nodes import read_opset, tensor_names
from stepwell_export.graph.onnx_file import with_opset, without_functions
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import BatchSpec, InputSpec, Manifest, OutputSpec, TensorSpec
from stepwell_export.stages.binding import NamedValue, Node
from stepwell_export.stages.learning import LEARN, LearningStage
from stepwell_export.stages.merged_reference import MergedReference
from stepwell_export.stages.phases import with_turned_phases
from stepwell_export.stages.renaming import Placed, placed
from stepwell_export.stages.spectra import POLAR

OLDEST_OPSET = 13
"""The first opset in which the operators of stages and joints have their present form."""


def merge(nodes: Sequence[Node], inputs: Mapping[str, NamedValue], answers: Mapping[str, NamedValue]) -> ConvertedModel:
    """Merge the step graphs of parts.

    Args:
        nodes: The parts, each behind those whose values it reads; every one has its step graph.
        inputs: What the caller sends, by name; each has its `InputSpec`.
        answers: What the caller gets, by its name in the graph, which no input has.

    Raises:
        UnclearModelError: A value does not fit what reads it.
        ModelLoadError: The graphs have versions of operators that cannot be converted.
        RefusedModelError: They need different numbers of timesteps.
    """
    merged = _merged(nodes, inputs, answers)
    return merged.with_turned_phases(merged.converted())


def _merged(nodes: Sequence[Node], inputs: Mapping[str, NamedValue], answers: Mapping[str, NamedValue]) -> _Merged:
    _check(nodes)
    newest = max(OLDEST_OPSET, *(read_opset(node.step.proto) for node in nodes))
    for node in nodes:
        proto = without_functions(node.step.proto)
        node.model = replace(node.step, proto=proto if read_opset(proto) == newest else with_opset(proto, newest))
    return _Merged(nodes, inputs, answers)


class _Merged:
    """Parts with names of tensors that no other has.

    Attributes:
        parts: The parts, their tensors renamed.
        tensors: The tensor of each value.
        inputs: The specs of the inputs, by the name in the graph.
    """

    def __init__(
        self, nodes: Sequence[Node], inputs: Mapping[str, NamedValue], answers: Mapping[str, NamedValue]
    ) -> None:
        self._glue = NodeBuilder("joint", [*answers, *inputs])
        self.given = {value: name for name, value in inputs.items()}
        self.tensors = {**self.given, **{value: name for name, value in answers.items()}}
        self._answers = answers
        learns = any(node.step.manifest.learn for node in nodes)
        self._learn = self._glue.unique(LEARN) if learns else None
        self.parts = [self._placed(node) for node in nodes]

    def _placed(self, node: Node) -> Placed:
        """Return a part with names that no other part has."""
        part, names = node.step, dict[str, str]()
        for into, value in node.reads.items():
            names[into] = self._glue.unique(f"{value.name}/in")
        for output, value in node.gives.items():
            if value not in self.tensors:
                self.tensors[value] = self._glue.unique(output)
            names[output] = self.tensors[value]
        if part.manifest.learn is not None and self._learn is not None:
            names[part.manifest.learn] = self._learn
        for name in sorted(tensor_names(part.proto.graph) - names.keys()):
            names[name] = self._glue.unique(name)
        return placed(node, names)

    def converted(self) -> ConvertedModel:
        """Return the whole."""
        nodes = [part.node for part in self.parts]
        parts = [node.step for node in nodes]
        lengths = {part.only_length for part in parts} - {None}
        if len(lengths) > 1:
            raise RefusedModelError(
                f"The models take sequences of {' and '.join(map(str, sorted(filter(None, lengths))))} timesteps "
                "alone.",
                fix="Join models that take the same number of timesteps, or any number.",
            )
        limits = [part.longest for part in parts if part.longest is not None]
        front, plain, taps = self._front()
        inputs = {name: value for value, name in self.given.items()}
        magnitudes = {self.tensors[magnitude]: magnitude for magnitude in self._phases().values()}
        reference = MergedReference(self.parts, inputs, {**self._answers, **magnitudes}, plain, taps)
        learning = [node.stage for node in nodes if isinstance(node.stage, LearningStage)]
        learned = None
        if learning:
            steps = max(stage.long_steps for stage in learning)
            learned = Learned(front, reference.twin, steps, self._answers_what_learns(taps))
        return ConvertedModel(
            self._proto(),
            self._manifest(),
            reference.original if front is None else reference.on_front,
            against=", ".join(dict.fromkeys(name for part in parts for name in part.against.split(", "))),
            samplers=reference.samplers(),
            only_length=next(iter(lengths), None),
            longest=min(limits, default=None),
            probe=reference.probe if not learning and any(part.probe for part in parts) else None,
            rounding=max(part.rounding for part in parts),
            windows={window for part in parts for window in part.windows},
            observer=reference.observe if not learning and any(part.observer for part in parts) else None,
            vocabularies={
                self.given[node.reads[name]]: count
                for node in nodes
                for name, count in node.step.vocabularies.items()
                if node.reads[name] in self.given
            },
            compiles=any(part.compiles for part in parts),
            learned=learned,
            constants={
                tensor.name
                for part in self.parts
                if part.node.stage is not None
                for tensor in part.proto.graph.initializer
            },
        )

    def with_turned_phases(self, whole: ConvertedModel) -> ConvertedModel:
        """Return the whole with phases among its answers verified as what they turn."""
        magnitudes = {name: self.tensors[magnitude] for name, magnitude in self._phases().items()}
        return with_turned_phases(whole, magnitudes) if magnitudes else whole

    def _phases(self) -> dict[str, NamedValue]:
        """Return the magnitude of each answer that is the phase of one."""
        return {
            name: value.maker.gives["magnitude"]
            for name, value in self._answers.items()
            if value.maker is not None and value.maker.stage is not None
            if value.output == "phase" and value.maker.stage.gives == POLAR
        }

    def _answers_what_learns(self, taps: Mapping[str, NamedValue]) -> bool:
        """Whether each value of a learning stage that others learn from is an answer, too."""
        answers = [*self._answers.values()]
        return all(
            value in answers
            for value in taps.values()
            if value.maker is not None and isinstance(value.maker.stage, LearningStage)
        )

    def _front(self) -> tuple[ConvertedModel | None, ConvertedModel | None, dict[str, NamedValue]]:
        """Return the graph whose answers are the values that learning stages read; None: there is none.

        Returns:
            The graph as it is verified, as it is run, and the values by name.
        """
        nodes = [part.node for part in self.parts]
        taps: dict[str, NamedValue] = {}
        for node in nodes:
            for value in node.reads.values() if isinstance(node.stage, LearningStage) else ():
                if value.maker is not None and value not in taps.values():
                    taken = [*taps, *(known.name for known in self.given)]
                    name = value.name if value.name not in taken else f"{value.name}/{len(taps)}"
                    taps[name] = value
        if not taps:
            return None, None, {}
        needed, open_values = set[Node](), [*taps.values()]
        while open_values:
            maker = open_values.pop().maker
            if maker is not None and maker not in needed:
                needed.add(maker)
                open_values += maker.reads.values()
        front = [node for node in nodes if node in needed]
        read = {value for node in front for value in node.reads.values()}
        inputs = {name: value for value, name in self.given.items() if value in read}
        merged = _merged(front, inputs, taps)
        plain = merged.converted()
        return merged.with_turned_phases(plain), plain, taps

    def _spec(self, value: NamedValue) -> InputSpec:
        """Return what an input is in the graph: rows as they are sent, which each reader brings to its own form."""
        assert isinstance(value.spec, InputSpec)
        return value.spec.model_copy(update={"name": self.given[value], "graph_shape": None, "batch_axis": 0})

    def _manifest(self) -> Manifest:
        parts = [part.manifest for part in self.parts]
        outputs: dict[str, OutputSpec] = {}
        for part in self.parts:
            own = {spec.name: spec for spec in part.manifest.outputs}
            for output, value in part.node.gives.items():
                if value in self._answers.values():
                    outputs[self.tensors[value]] = _as_output(own[part.names[output]], value)
        joined = parts[-1].model_copy(update={
            "inputs": [self._spec(value) for value in self.given],
            "outputs": [outputs[name] for name in self._answers],
            "states": [state for part in parts for state in part.states],
            "windows": [window for part in parts for window in part.windows],
            "learn": self._learn,
            "batch": BatchSpec(
                mode="single" if any(part.batch.mode == "single" for part in parts) else "stack",
                max=min(part.batch.max for part in parts),
            ),
        })  # fmt: skip
        return Manifest.from_json(joined.to_json(), where="the joined graph")

    def _proto(self) -> onnx.ModelProto:
        inputs = {self.given[value]: self._spec(value) for value in self.given}
        nodes, weights = [], []
        for part in self.parts:
            specs = {spec.name: spec for spec in part.manifest.inputs}
            start = len(self._glue.nodes)
            for into, value in part.node.reads.items():
                self._join(self._made(value, inputs), specs[part.names[into]])
            nodes += [*self._glue.nodes[start:], *part.proto.graph.node]
            weights += part.proto.graph.initializer
        protos = [part.proto for part in self.parts]
        kept = {spec.name: spec for spec in inputs.values()}
        takes = [declared(spec.name, spec.dtype, spec.graph_row_shape, spec.batch_axis) for spec in kept.values()]
        takes += [] if self._learn is None else [declared(self._learn, "bool", (), 0)]
        shared = {*kept, self._learn}
        takes += [
            value
            for part in self.parts
            for value in part.proto.graph.input
            if value.name not in shared and value.name not in {part.names[into] for into in part.node.reads}
        ]
        gone = {tensor for value, tensor in self.tensors.items() if tensor not in self._answers}
        own = {value.name: value for proto in protos for value in proto.graph.output if value.name not in gone}
        gives = [own[name] for name in self._answers] + [v for name, v in own.items() if name not in self._answers]
        versions = {entry.domain or "": entry.version for proto in protos for entry in proto.opset_import}
        return helper.make_model(
            helper.make_graph(nodes, protos[-1].graph.name, takes, gives, [*self._glue.constants, *weights]),
            ir_version=max(proto.ir_version for proto in protos),
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
            producer_name="stepwell",
        )

    def _made(self, value: NamedValue, inputs: Mapping[str, InputSpec]) -> TensorSpec:
        """Return a value's tensor as the graph has it."""
        if value.maker is None:
            return inputs[self.given[value]]
        part = next(part for part in self.parts if part.node is value.maker)
        return next(spec for spec in part.manifest.outputs if spec.name == part.names[value.output])

    def _join(self, out: TensorSpec, into: InputSpec) -> None:
        """Emit what brings a value to the form of an input."""
        graph, name, at = self._glue, out.name, into.name
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


def _as_output(spec: OutputSpec, value: NamedValue) -> OutputSpec:
    labels = (value.spec.model_extra or {}).get("labels") if value.spec is not None else None
    return spec.model_copy(update={"labels": labels}) if labels else spec


def _check(nodes: Sequence[Node]) -> None:
    for node in nodes:
        specs = {spec.name: spec for spec in node.step.manifest.inputs}
        for into, value in node.reads.items():
            assert value.spec is not None
            if _plain(value.spec.row_shape) != _plain(specs[into].row_shape):
                raise UnclearModelError(
                    f"Value {value.name!r} has rows {list(value.spec.row_shape)}; {node.title}, which reads it, takes "
                    f"{list(specs[into].row_shape)}.",
                    fix="Put a stage between them, or join models that fit.",
                )


def _plain(row: Sequence[int]) -> list[int]:
    return [length for length in row if length != 1]
