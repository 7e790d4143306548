"""Builds the branch that runs many timesteps at once: all that does not hang on the state runs for all of them.

Before and after:

    x (B, 4)  a (B, 5)  b (B, 5)           x (B T, 4)
       | f                                    | f, for all timesteps at once
       | loop of a                    ->      | loop of a over T: see `stepwell_export.chunk.loops`
       | g                                    | g, for all timesteps at once
       | loop of b                            | loop of b over T
    y (B, 5)                               y (B T, 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import TopologicalSorter

import onnx

from stepwell_export.chunk.analysis import Loop, NoChunkError, StepGraphAnalysis, TensorFact
from stepwell_export.chunk.loops import PREFIX, ChunkBuilder, Window, emit_loop, pick
from stepwell_export.graph.nodes import renamed, uses


@dataclass(slots=True)
class _Unit:
    """What is emitted in one go: a node, or a loop."""

    needs: list[str]
    node: onnx.NodeProto | None = None
    loop: Loop | None = None


class Vectorizer:
    """One way of running a chunk, under construction.

    Attributes:
        reading: The step graph.
        emitter: The branch's nodes.
        facts: What each tensor is in the step graph.
        windows: Tensors that are a loop's past timesteps with the new one, made only where they are wanted whole.
        last: The tensor of each state after the last timestep, by state input.
    """

    def __init__(self, reading: StepGraphAnalysis, loops: list[Loop]) -> None:
        """Begin, with the loops that are run."""
        self.reading = reading
        self.emitter = ChunkBuilder()
        self.facts = reading.facts()
        self.windows: dict[str, Window] = {}
        self.last: dict[str, str] = {}
        self.loops = loops
        self._flat: dict[str, str] = {}

    def build(self) -> tuple[list[str], list[str]]:
        """Emit everything.

        Returns:
            Tensors of the outputs, `(rows, T, *shape)`, and of the states, in the manifest's order.

        Raises:
            NoChunkError: This way does not work for this graph.
        """
        for given in self.reading.manifest.fed:
            self._flat[given.name] = self.emitter.flat(given.name, 0, given.graph_row_shape)
        for unit in self._in_order():
            if unit.loop is not None:
                emit_loop(self, unit.loop)
            elif unit.node is not None and unit.node.output[0] not in self.reading.fixed:
                self.emit(unit.node)
        outputs = []
        for spec in self.reading.manifest.outputs:
            if self.facts.get(spec.name, TensorFact(0, None, ())).axis != 0:
                raise NoChunkError(f"output {spec.name!r} has no batch axis in front")
            outputs.append(self.emitter.timed(self.flat(spec.name), 0, spec.row_shape))
        return outputs, [self.last[state.input] for state in self.reading.manifest.states]

    def flat(self, name: str) -> str:
        """Return a tensor of the step graph in its flat form; what is the same in every timestep as it is."""
        if name in self.reading.fixed:
            return name
        if name not in self._flat and name in self.windows:
            self._flat[name] = self.windows[name].whole(self.emitter)
        if name not in self._flat:
            raise NoChunkError(f"tensor {name!r} is known of the last timestep alone")
        return self._flat[name]

    def has_flat(self, name: str) -> bool:
        """Return whether `flat` has a tensor for this one."""
        return name in self.reading.fixed or name in self._flat or name in self.windows

    def set_flat(self, name: str, flat: str) -> None:
        """Set the flat form of a tensor of the step graph."""
        self._flat[name] = flat

    def sequence(self, name: str) -> str:
        """Return a tensor of the step graph with the time axis behind its batch axis.

        Raises:
            NoChunkError: It has no batch axis.
        """
        fact = self.facts[name]
        if fact.axis is None:
            raise NoChunkError(f"tensor {name!r} has no batch axis")
        return self.emitter.sequence(self.flat(name), fact)

    def emit(self, node: onnx.NodeProto) -> None:
        """Emit a node for all timesteps at once."""
        if node.op_type in {"Gather", "Slice"} and node.input[0] in self.windows:
            picked = pick(self, node, self.windows[node.input[0]])
            if picked is not None:
                self._flat[node.output[0]] = picked
                return
        names = {name: self.flat(name) for name in uses(node)}
        for name in node.output:
            if name:
                names[name] = self._flat[name] = f"{PREFIX}{name}"
        self.emitter.nodes.append(renamed(node, names))

    def _in_order(self) -> list[_Unit]:
        """Return nodes and loops so that each comes behind what it needs."""
        units: list[_Unit] = []
        owner: dict[str, int] = {}
        in_loops = {id(node) for loop in self.loops for node in loop.nodes}
        for loop in self.loops:
            made = {*loop.made, *loop.states}
            needs = [name for node in loop.nodes for name in uses(node) if name not in made]
            needs += [self.reading.after[state] for state in loop.states if not loop.nodes]
            owner.update(dict.fromkeys(made, len(units)))
            units.append(_Unit(needs, loop=loop))
        for node in self.reading.nodes:
            if id(node) not in in_loops:
                owner.update(dict.fromkeys(node.output, len(units)))
                units.append(_Unit(uses(node), node=node))
        before = {i: {owner[name] for name in unit.needs if name in owner} for i, unit in enumerate(units)}
        return [units[i] for i in TopologicalSorter(before).static_order()]


def whole(reading: StepGraphAnalysis) -> list[Loop]:
    """Return one loop of everything: each timestep is run as the step graph runs it."""
    moving = [node for node in reading.nodes if node.output[0] not in reading.fixed]
    return [Loop(list(reading.after), moving, is_whole=True)]
