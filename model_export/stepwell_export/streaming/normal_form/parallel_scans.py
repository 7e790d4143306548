"""Finds associative scans that take log2(T) rounds, and makes each a Scan over the timesteps.

In round r each timestep is combined with what stands `d = 2 ** r` timesteps before it:
`b[:, d:] + a[:, d:] * b[:, :-d]` behind `b[:, :d]`, or `b + a * F.pad(b[:, :-d], (0, 0, d, 0))`. All rounds do the
same, so that the first one shows how a timestep is combined with all those before it. That the combination is
associative is left to the verification.

Source: Hillis and Steele 1986, "Data parallel algorithms".
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stepwell_export.graph.nodes import attributes, captures, in_order, read_opset, replace_items, uses
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.streaming.normal_form.scan_body import (
    Begun,
    FirstCopy,
    ScanBody,
    SearchedGraph,
    TimeSlice,
    are_copies,
    live_nodes,
)
from stepwell_export.structure.facts import run_node

_ABOUT_SIZES = {"Cast", "Concat", "ConstantOfShape", "Reshape", "Slice", "Transpose", "Unsqueeze"}
_FEWEST_ROUNDS = 3
_MOST_SCANS = 64


def with_scans_rolled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with a Scan for each associative scan; the model itself if there is none."""
    for count in range(_MOST_SCANS):
        found = next((made for rounds in _Rounds.all_of(model) if (made := rounds.rolled(count)) is not None), None)
        if found is None:
            return model
        model = found
    return model


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of a tensor along one axis: from `start` to `end`; None: to its end."""

    data: str
    axis: int
    start: int
    end: int | None

    def role(self, shift: int) -> str:
        """Return which part of a round it is; empty for none."""
        return {(0, -shift): "early", (shift, None): "late", (0, shift): "head"}.get((self.start, self.end), "")


@dataclass(slots=True)
class _Combined:
    """How a round combines two timesteps.

    Attributes:
        nodes: Indices of the nodes of the first round.
        early: Its tensors that hold the timesteps before, and the state that they are of.
        late: Its tensors that hold the timesteps themselves, in the same way.
        starts: By state: the value that is padded in front; None: the first timesteps are taken as they are.
    """

    nodes: set[int] = field(default_factory=set)
    early: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    starts: dict[str, float | None] = field(default_factory=dict)


class _Graph(SearchedGraph):
    """A graph in which rounds are searched for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        for node in self.nodes:
            self._compute(node)
        self.cuts = dict(self._cuts())

    def _compute(self, node: onnx.NodeProto) -> None:
        """Note the values of small whole numbers that a node makes of constants: paddings, as exporters write them."""
        given = [name for name in node.input if name]
        if node.op_type not in _ABOUT_SIZES or not given or any(name not in self.constants for name in given):
            return
        with contextlib.suppress(Exception):  # it is no constant then
            found = run_node(node, read_opset(self.model), [self.constants.get(name) for name in node.input])
            self.constants |= dict(zip(node.output, found, strict=True))

    def _cuts(self) -> Iterator[tuple[str, _Cut]]:
        for node in self.nodes:
            parts = [self.constants.get(name) for name in node.input[1:]] if node.op_type == "Slice" else []
            if len(parts) < 3 or any(part is None or part.size != 1 for part in parts):
                continue
            start, end, axis, *step = (int(np.reshape(part, ())) for part in parts if part is not None)
            if axis >= 0 and step in ([], [1]):
                yield node.output[0], _Cut(node.input[0], axis, start, None if end > 2**31 else end)


class _Rounds:
    """The rounds of one scan.

    Attributes:
        states: By round: what its tensors before and after the timesteps are cut out of, in the order of the code.
    """

    def __init__(self, graph: _Graph, axis: int, states: list[list[str]]) -> None:
        self._graph, self._axis, self.states = graph, axis, states

    @classmethod
    def all_of(cls, model: onnx.ModelProto) -> Iterator[_Rounds]:
        """Yield what may be a scan."""
        graph = _Graph(model)
        early: dict[tuple[int, int], list[str]] = {}
        for node in graph.nodes:
            cut = graph.cuts.get(node.output[0]) if node.output else None
            if cut is not None and cut.start == 0 and cut.end is not None and cut.end < 0:
                found = early.setdefault((cut.axis, -cut.end), [])
                if cut.data not in found:
                    found.append(cut.data)
        for axis in sorted({axis for axis, _ in early}):
            yield from cls._chains(graph, axis, {shift: found for (at, shift), found in early.items() if at == axis})

    @classmethod
    def _chains(cls, graph: _Graph, axis: int, early: Mapping[int, list[str]]) -> Iterator[_Rounds]:
        """Yield the scans along an axis: a model may have several, each with rounds of its own."""
        reached = {name: {name} for names in early.values() for name in names}
        after: dict[str, set[str]] = {}
        for node in graph.nodes:
            for name in node.output:
                after[name] = set().union(*(after.get(used, set()) | reached.get(used, set()) for used in uses(node)))
        groups: list[list[str]] = []
        for name in early.get(1, []):  # what is combined later belongs together
            users = {other for names in early.values() for other in names if name in after.get(other, set())}
            group = next((one for one in groups if users & cls._users(one, early, after)), None)
            if group is None:
                groups.append([name])
            else:
                group.append(name)
        for group in groups:
            rounds, shift = [group], 2
            while members := [n for n in early.get(shift, []) if after.get(n, set()) & set(rounds[-1])]:
                rounds.append(members)
                shift *= 2
            if len(rounds) >= _FEWEST_ROUNDS:
                yield cls(graph, axis, rounds)

    @staticmethod
    def _users(group: list[str], early: Mapping[int, list[str]], after: Mapping[str, set[str]]) -> set[str]:
        return {other for names in early.values() for other in names if set(group) & after.get(other, set())}

    def rolled(self, count: int) -> onnx.ModelProto | None:
        """Return the model with a Scan in the place of the rounds; None: they are none."""
        first, second = self.states[0], self.states[1]
        if len(first) != len(second):
            return None
        combined = _Combined()
        for ours in second:
            if not self._read(ours, combined):
                return None
        for at, names in enumerate(self.states[2:], 1):
            known = dict(zip(first, self.states[at], strict=False))
            pairs = dict(zip(second, names, strict=False))
            if not all(self._matches(ours, theirs, 2**at, known) for ours, theirs in pairs.items()):
                return None
        results = self._results(dict(zip(first, self.states[-1], strict=False)))
        return self._with_scan(combined, results, f"scan_{count + 1}" if count else "scan") if results else None

    # ---------------------------------------------------------------- the first round

    def _read(self, name: str, combined: _Combined) -> bool:
        """Note what a result of the first round is made of."""
        graph = self._graph
        if name in combined.early or name in combined.late or name in graph.constants:
            return True
        cut = graph.cuts.get(name)
        if name in self.states[0]:
            combined.late[name] = name
            return True
        if cut is not None and cut.data in self.states[0] and cut.axis == self._axis:
            role = cut.role(1)
            if role in {"early", "late"}:
                getattr(combined, role)[name] = cut.data
            if role == "early":
                combined.starts.setdefault(cut.data, None)
            return role in {"early", "late"}
        node = graph.maker(name)
        if node is None or captures(node):
            return name not in graph.makers  # a weight
        if (padded := self._padded(node)) is not None:
            state, value = padded
            combined.early[name] = state
            combined.starts[state] = value
            return True
        if self._head(node) is not None:
            return self._read(node.input[1], combined)
        if not any(self._depends(used) for used in uses(node)):
            return True
        combined.nodes.add(graph.makers[name])
        return all(self._read(used, combined) for used in uses(node))

    @cached_property
    def _reached(self) -> set[str]:
        found = set(self.states[0])
        for node in self._graph.nodes:
            if not found.isdisjoint(uses(node)):
                found |= set(node.output)
        return found

    def _depends(self, name: str) -> bool:
        return name in self._reached

    def _head(self, node: onnx.NodeProto) -> str | None:
        """Return the state whose first timesteps a node puts in front."""
        if node.op_type != "Concat" or len(node.input) != 2:
            return None
        cut = self._graph.cuts.get(node.input[0])
        is_head = cut is not None and cut.data in self.states[0] and cut.role(1) == "head"
        return cut.data if is_head and cut is not None else None

    def _padded(self, node: onnx.NodeProto) -> tuple[str, float] | None:
        """Return the state whose timesteps before a node pads in front, and the value."""
        graph = self._graph
        if node.op_type == "Pad":
            cut = graph.cuts.get(node.input[0])
            pads, mode = graph.constants.get(node.input[1]), attributes(node).get("mode", b"constant")
            if cut is None or cut.role(1) != "early" or pads is None or mode not in {"constant", b"constant"}:
                return None
            wanted = np.zeros_like(pads)
            wanted[cut.axis] = 1
            value = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
            if not np.array_equal(pads, wanted) or value is None:
                return None
            return cut.data, float(np.reshape(value, ()))
        if node.op_type == "Concat" and len(node.input) == 2:
            cut, filled = graph.cuts.get(node.input[1]), self._uniform(node.input[0])
            if cut is not None and cut.role(1) == "early" and cut.data in self.states[0] and filled is not None:
                return cut.data, filled
        return None

    def _uniform(self, name: str) -> float | None:
        """Return the one value of a tensor that is the same everywhere; None: it may differ."""
        if (known := self._graph.constants.get(name)) is not None:
            return float(known.flat[0]) if known.size and np.all(known == known.flat[0]) else None
        node = self._graph.maker(name)
        if node is None:
            return None
        if node.op_type == "ConstantOfShape":
            value = attributes(node).get("value")
            return float(numpy_helper.to_array(value).reshape(())) if value is not None else 0.0
        return self._uniform(node.input[0]) if node.op_type in {"Expand", "Identity", "Cast"} else None

    # ---------------------------------------------------------------- the others

    def _matches(self, ours: str, theirs: str, shift: int, states: dict[str, str]) -> bool:
        """Whether a tensor of the first round and one of the round with this shift are made in the same way.

        Args:
            ours: The tensor of the first round.
            theirs: That of the other.
            shift: How many timesteps the other round goes back.
            states: What is known of the states of the other round, by those of the first one; it is completed.
        """
        graph = self._graph
        if ours in self.states[0]:
            return states.setdefault(ours, theirs) == theirs
        if ours in graph.constants and theirs in graph.constants:
            one, other = graph.constants[ours], graph.constants[theirs]
            same = one.shape == other.shape and bool(np.all((one == other) | (np.abs(one) * shift == np.abs(other))))
            return same or (self._uniform(ours) is not None and self._uniform(ours) == self._uniform(theirs))
        if not self._depends(ours) and ours == theirs:
            return True
        cut, other_cut = graph.cuts.get(ours), graph.cuts.get(theirs)
        if cut is not None and cut.data in self.states[0]:
            same_role = other_cut is not None and cut.role(1) == other_cut.role(shift) != ""
            return same_role and other_cut is not None and self._matches(cut.data, other_cut.data, shift, states)
        left, right = graph.maker(ours), graph.maker(theirs)
        if left is None or right is None or captures(left) or captures(right):
            return ours == theirs
        return are_copies(ours, left, theirs, right) and all(
            bool(a) == bool(b) and (not a or self._matches(a, b, shift, states))
            for a, b in zip(left.input, right.input, strict=True)
        )

    def _results(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return what the last round makes, by what the first one makes."""
        shift = 2 ** (len(self.states) - 1)
        found: dict[str, str] = {}
        for ours in self.states[1]:
            for node in self._graph.nodes:
                for theirs in node.output:
                    if ours not in found and theirs and self._matches(ours, theirs, shift, dict(known)):
                        found[ours] = theirs
        return found

    # ---------------------------------------------------------------- the Scan

    def _with_scan(self, combined: _Combined, results: Mapping[str, str], label: str) -> onnx.ModelProto | None:
        graph, axis = self._graph, self._axis
        made = copy.deepcopy(graph.model)
        after = dict(zip(self.states[0], self.states[1], strict=True))
        inner = {state: self._inner(after[state]) for state in after}
        needed = self._needed([state for state in after if after[state] in results], inner, combined)
        scan = ScanBody(label, made)
        first, parts = {}, {}
        for state in needed:
            late = next((name for name, of in combined.late.items() if of == state), None)
            parts[state] = self._first_part(made, state, label)
            if combined.starts.get(state) is None and not self._is_from_zeros(inner[state], late, combined):
                first[inner[state]] = parts[state][0]
        for state in needed:
            scan.state(f"{state}/before")
        begun = Begun(scan, made, label, first)
        types = infer_types(without_weights(graph.model))
        begins = [
            begun.filled(parts[state][0], types.get(state), combined.starts.get(state) or 0.0) for state in needed
        ]
        taken = list(dict.fromkeys([*combined.late.values(), *needed]))
        for state in taken:
            scan.element(f"{state}/now", TimeSlice(state, axis, 0, keeps=True))
        for name, state in combined.late.items():
            scan.rename(name, scan.inner_name(f"{state}/now"))
        for name, state in combined.early.items():
            if state in needed:
                scan.rename(name, scan.inner_name(f"{state}/before"))
        for state in needed:
            scan.rename(parts[state][0], scan.inner_name(f"{state}/now"))
        wanted = self._made_of([inner[state] for state in needed], combined)
        for index in sorted(wanted):
            scan.node(graph.nodes[index])
        begun.choose()
        outs = [*(scan.inner_name(inner[state]) for state in needed), *begun.after]
        given = [state for state in needed if after[state] in results]
        outs += [scan.without_axis(inner[state], axis) for state in given]
        finals = [f"{label}/{place}/final" for place in range(len(needed) + len(begun.after))]
        node = helper.make_node(
            "Scan",
            [*begins, *begun.before, *taken],
            [*finals, *(results[after[state]] for state in given)],
            name=label,
            body=scan.graph(outs),
            num_scan_inputs=len(taken),
            scan_input_axes=[axis] * len(taken),
            scan_output_axes=[axis] * len(given),
        )
        replaced = {results[after[state]] for state in given}
        kept = [one for one in graph.nodes if replaced.isdisjoint(one.output)]
        cuts = [part for _, part in parts.values()]
        replace_items(made.graph.node, in_order([*kept, *cuts, *begun.nodes, node]))
        replace_items(made.graph.node, live_nodes(made.graph))
        return made

    def _inner(self, name: str) -> str:
        """Return what is combined, without the first timesteps in front."""
        node = self._graph.maker(name)
        return node.input[1] if node is not None and self._head(node) is not None else name

    def _needed(self, states: list[str], inner: Mapping[str, str], combined: _Combined) -> list[str]:
        """Return the states that these are made of, themselves included."""
        found, waiting = list[str](), list(states)
        while waiting:
            state = waiting.pop(0)
            if state not in found:
                found.append(state)
                nodes = [self._graph.nodes[at] for at in self._made_of([inner[state]], combined)]
                waiting += [combined.early[used] for node in nodes for used in uses(node) if used in combined.early]
        return found

    def _made_of(self, names: list[str], combined: _Combined) -> set[int]:
        """Return the nodes of the first round that make these tensors."""
        found, waiting = set[int](), list(names)
        while waiting:
            at = self._graph.makers.get(waiting.pop())
            if at in combined.nodes and at not in found:
                found.add(at)
                waiting += uses(self._graph.nodes[at])
        return found

    def _first_part(self, made: onnx.ModelProto, state: str, label: str) -> tuple[str, onnx.NodeProto]:
        """Return the first timestep of a state, of which the shape is used, and the node that cuts it out."""
        name = f"{label}/{state}/first"
        for what, value in (("start", 0), ("end", 1), ("axis", self._axis)):
            made.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"{name}/{what}"))
        inputs = [state, f"{name}/start", f"{name}/end", f"{name}/axis"]
        return name, helper.make_node("Slice", inputs, [name], name=name)

    def _is_from_zeros(self, name: str, late: str | None, combined: _Combined) -> bool:
        """Whether the combination with zeros gives the timestep itself."""
        if late is None:
            return False
        slices = {one: TimeSlice(of, self._axis, 0, keeps=True) for one, of in combined.late.items()}
        first = FirstCopy(self._graph, slices)
        return first.is_from_zeros(name, late, combined.early.keys(), combined.late.__contains__)
