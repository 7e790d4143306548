"""Reads a step graph: what in it depends on the state, and what could run for many timesteps at once.

A node that depends on no state runs for all timesteps at once with these as rows. So it equals its single steps by
construction where rows are independent by the graph's operators; other graphs have no chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from stepwell_export.graph.nodes import all_nodes, constants, needed_nodes, propagate_labels, read_opset, uses
from stepwell_export.graph.onnx_file import without_functions
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.outside_weights import to_array
from stepwell_export.runtime.random_ops import RANDOM
from stepwell_export.structure.facts import RowFact
from stepwell_export.structure.rows import RowAnalysis, rows_of_step

OLDEST_OPSET = 15  # Shape with a start and an end
GIVES_NAN = frozenset({"Sqrt", "Log", "Pow", "Acos", "Asin", "Acosh", "Atanh"})
"""Operators that give NaN for some numbers."""


class NoChunkError(Exception):
    """A graph of any length cannot be made of this step graph; the text is the reason. Caught in this package."""


@dataclass(slots=True, eq=False)
class Loop:
    """States that depend on each other, with the nodes that carry them from one timestep to the next.

    Attributes:
        states: State inputs.
        nodes: In graph order: each follows from one of the states, and one of the next states follows from it.
    """

    states: list[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def made(self) -> list[str]:
        """The outputs of its nodes."""
        return [name for node in self.nodes for name in node.output if name]


class StepGraphAnalysis:
    """A step graph, read.

    Attributes:
        manifest: What it takes, carries and gives.
        model: The step graph, functions inlined.
        after: State output by state input.
        inputs: What the caller sends.
        nodes: In graph order; one object for each, so that nodes can be told apart by identity.
        fixed: Tensors that are the same in every timestep.
        moving: Nodes that give others.
        loops: All states, in loops.
        maker: The node that makes each tensor.
        users: The nodes that take each tensor.
    """

    def __init__(self, model: onnx.ModelProto, manifest: Manifest, rows: RowAnalysis | None = None) -> None:
        """Read it; `rows` is what it shows of its rows, where that is known."""
        self._rows = rows
        self.model = without_functions(model)
        self.manifest = manifest
        self.after = {state.input: state.output for state in manifest.states}
        self.inputs = [spec.name for spec in manifest.fed]
        self._check()
        self.nodes = list(self.model.graph.node)
        self._constants = constants(self.model.graph)
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in uses(node):
                self.users.setdefault(name, []).append(node)
        outside = {name: frozenset([name]) for name in (*self.inputs, *self.after)}
        self._marks = propagate_labels(self.model.graph, outside)
        self.fixed = {*self._constants, *self.maker, *manifest.constants} - self._marks.keys()
        self.moving = [node for node in self.nodes if node.output[0] not in self.fixed]
        self.loops = self._find_loops()

    def constant(self, name: str) -> Array | None:
        """Return a constant's value; None where it is computed, or no constant."""
        return np.asarray(to_array(self._constants[name])) if name in self._constants else None

    def wanted_outside(self, loop: Loop) -> list[str]:
        """Return the tensors of a loop that something outside it takes, in every timestep."""
        inside = {id(node) for node in loop.nodes}
        outputs = {spec.name for spec in self.manifest.outputs}
        return [
            name for name in [*loop.states, *loop.made]
            if name in outputs or any(id(user) not in inside for user in self.users.get(name, []))
        ]  # fmt: skip

    @cached_property
    def may_give_nan(self) -> bool:
        """Whether an input, an output or a constant may be NaN, as tables are behind their last entry."""
        if any(spec.missing == "nan" for spec in self.manifest.inputs):
            return True
        if any(node.op_type in GIVES_NAN or self._divides_by_zero(node) for node in self.nodes):
            return True
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
        constants = (to_array(t) for t in self.model.graph.initializer if t.data_type in floats)
        return any(bool(np.isnan(constant).any()) for constant in constants)

    def _divides_by_zero(self, node: onnx.NodeProto) -> bool:
        """Whether an operator divides by what may be zero."""
        if node.op_type not in {"Div", "Mod"}:
            return False
        divisor = self.constant(node.input[1])
        return divisor is None or bool((divisor == 0).any())

    def _check(self) -> None:
        manifest, graph = self.manifest, self.model.graph
        axes = [spec.batch_axis for spec in (*manifest.fed, *manifest.outputs)]
        opset = read_opset(self.model)
        if opset < OLDEST_OPSET:
            raise NoChunkError(f"its opset is {opset}; chunks need {OLDEST_OPSET} or later")
        if any(axis != 0 for axis in axes):
            raise NoChunkError("an input or output has no batch axis in front")
        carried = set(self.after.values())
        if any(state.batch_axis is None for state in manifest.states) or manifest.batch.mode == "single":
            why = manifest.batch.why
            raise NoChunkError(f"it runs one row at a time{why and f': {why}'}")
        if carried.intersection(spec.name for spec in manifest.outputs):
            raise NoChunkError("one tensor of it is both an output and a state")
        if manifest.windows or graph.sparse_initializer:
            raise NoChunkError("it has host-side windows" if manifest.windows else "it has sparse weights")
        if any(node.op_type in RANDOM for node in all_nodes(graph)):
            raise NoChunkError("it draws random numbers")

    def _find_loops(self) -> list[Loop]:
        """Return loops of the states that follow from each other, with the nodes that are between them."""
        before = {state: set(self._marks.get(output, ())) for state, output in self.after.items()}
        for through, of_through in before.items():  # Warshall: what a state follows from by way of another one as well
            for sources in before.values():
                if through in sources:
                    sources.update(of_through)
        loops = dict[str, Loop]()
        for state, sources in before.items():
            first = next((other for other in loops if other in sources and state in before[other]), state)
            loops.setdefault(first, Loop([])).states.append(state)
        for loop in loops.values():
            needed = needed_nodes(self.nodes, [self.after[state] for state in loop.states])
            loop.nodes = [node for node in needed if not self._marks_of(node).isdisjoint(loop.states)]
        return list(loops.values())

    def _marks_of(self, node: onnx.NodeProto) -> frozenset[str]:
        return next((self._marks[name] for name in node.output if name in self._marks), frozenset())

    @cached_property
    def facts(self) -> Mapping[str, RowFact]:
        """What is known of each tensor.

        Raises:
            NoChunkError: Rows are not independent by the graph's operators. A chunk runs timesteps as rows, so then it
                need not equal them.
        """
        analysis = self._rows or rows_of_step(self.model, self.manifest)
        if analysis.verdict.outcome != "independent":
            raise NoChunkError(f"timesteps cannot be run at once: {analysis.verdict.why}")
        return analysis.facts
