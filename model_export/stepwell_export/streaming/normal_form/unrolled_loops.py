"""Finds loops over time that an exporter wrote out, one copy of the body for each timestep, and makes each a Scan.

A loop in Python, `for t in range(T): h = f(x[:, t], h)`, is traced as T copies of `f`. Their inputs are slices of a
sequence at places 0 to T - 1; what a copy uses of the one before it is carried. The first copy may be another one, as
that of `h = z if h is None else f * h + z`: a state of zeros gives the same, or the body has it besides and chooses.

Before and after:

    x[:, 0]      x[:, 1]      x[:, 2]             x (B, 3, 4)
       |            |            |                     |
    h0 f --- h1 --- f --- h2 --- f --- h3   ->   h0 - Scan { hn = f(h, xi) } - h3
       |            |            |                     |
       y0           y1           y2                    y (B, 3, 5)
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stepwell_export.graph.nodes import (
    attributes,
    captures,
    in_order,
    replace_items,
    take_layer,
    uses,
)
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.streaming.normal_form.scan_body import (
    FEWEST,
    Begun,
    FirstCopy,
    ScanBody,
    SearchedGraph,
    are_copies,
    live_nodes,
    time_slices,
)

_MOST_LOOPS = 64
_ANY = -1
"""The age of what no slice reaches."""


@dataclass(slots=True)
class _Body:
    """What was found out of a loop.

    Attributes:
        nodes: Indices of the nodes of the copy that becomes the body, by order of the graph.
        carried: By the tensor that this copy uses of the one before: the tensor of each copy, the initial one first.
        joined: The node that joins the results of all copies, by the result of this copy.
        matched: Indices of all nodes of all copies.
        begin: The first copy that is as the others; 1: the very first one is another one.
        first: What that one makes, by what this copy makes.
        from_zeros: Whether that is what this copy makes of states that are zero.
    """

    nodes: set[int] = field(default_factory=set)
    carried: dict[str, dict[int, str]] = field(default_factory=dict)
    joined: dict[str, onnx.NodeProto] = field(default_factory=dict)
    matched: set[int] = field(default_factory=set)
    begin: int = 0
    first: dict[str, str] = field(default_factory=dict)
    from_zeros: bool = False


class _NoLoopError(Exception):
    """The copies are not copies of each other."""


def with_loops_rolled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with a Scan for each loop that was written out; the model itself if there is none."""
    for count in range(_MOST_LOOPS):
        unrolled = _Unrolled(model)
        rolled_once = next((rolled for family in unrolled.families() if (rolled := unrolled.roll(family, count))), None)
        if rolled_once is None:
            return model
        model = rolled_once
    return model


def lengths_written_out(model: onnx.ModelProto) -> set[int]:
    """Return the numbers of timesteps that sequences are cut into, one slice for each."""
    return {steps for _, _, steps in _Unrolled(model).families()}


class _Unrolled(SearchedGraph):
    """A graph in which loops are searched for that were written out."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._slices = dict(time_slices(self.nodes, self.constants))
        self._ages: dict[str, int] = {}

    def families(self) -> Iterator[tuple[str, int, int]]:
        """Yield tensors that are cut into all of their timesteps: tensor, axis, number of timesteps."""
        for (data, axis), places in self._places().items():
            if len(places) >= FEWEST and places == set(range(len(places))):
                yield data, axis, len(places)

    def _places(self) -> dict[tuple[str, int], set[int]]:
        """Return where each tensor is cut, by its name and axis."""
        places: dict[tuple[str, int], set[int]] = defaultdict(set)
        for cut in self._slices.values():
            places[cut.data, cut.axis].add(cut.at)
        return places

    def roll(self, family: tuple[str, int, int], count: int) -> onnx.ModelProto | None:
        """Return the model with the loop over a family as a Scan; None: it is no loop."""
        steps = family[2]
        later = self._reached({name for name, cut in self._slices.items() if (cut.data, cut.axis) == family[:2]})
        sources = {(data, axis) for data, axis, length in self.families() if length == steps and data not in later}
        for begin in (0, 1):
            if begin:  # the first copy, which is another one, may not use what the others do
                but_first = set(range(1, steps))
                sources |= {key for key, at in self._places().items() if at == but_first and key[0] not in later}
            self._ages = self._ages_from(sources, steps)
            try:
                return self._with_scan(self._matched(steps, begin), steps, count)
            except _NoLoopError:
                continue
        return None

    # ---------------------------------------------------------------- what is cut, and what depends on it

    def _reached(self, names: set[str]) -> set[str]:
        """Return everything that depends on these tensors."""
        reached = set(names)
        for node in self.nodes:
            if not reached.isdisjoint(uses(node)):
                reached |= set(node.output)
        return reached

    def _ages_from(self, sources: set[tuple[str, int]], steps: int) -> dict[str, int]:
        """Return the latest timestep that each tensor depends on by the slices of these tensors."""
        ages: dict[str, int] = {}
        for node in self.nodes:
            for name in node.output:
                cut = self._slices.get(name)
                if cut is not None and (cut.data, cut.axis) in sources:
                    ages[name] = cut.at
                elif node.op_type in {"Shape", "Size"} and node.input[0] in self._slices:
                    ages[name] = _ANY  # every timestep has the same shape
                elif self._joins(node, steps, ages):
                    ages[name] = _ANY  # what follows is after the loop
                else:
                    ages[name] = max((ages.get(used, _ANY) for used in uses(node)), default=_ANY)
        return ages

    def _is_source(self, name: str) -> bool:
        if name not in self._slices or self._ages[name] != self._slices[name].at:
            return False
        return all(self._ages.get(used, _ANY) == _ANY for used in uses(self.nodes[self.makers[name]]))

    # ---------------------------------------------------------------- copies of one body

    def _matched(self, steps: int, begin: int) -> _Body:
        """Return the loop whose copies use the slices.

        Args:
            steps: The number of copies.
            begin: The first copy that has to be as the others.

        Raises:
            _NoLoopError: There is none.
        """
        body, at = _Body(begin=begin), steps // 2
        joins = [node for node in self.nodes if self._joins(node, steps, self._ages)]
        roots: list[dict[int, str]] = [dict(enumerate(node.input)) for node in joins]
        body.joined = {root[at]: node for root, node in zip(roots, joins, strict=True)}
        if not roots:
            handed = [self._handed_on(step) for step in range(steps)]
            if not handed[at] or len({len(names) for names in handed[:-1]}) > 1:
                raise _NoLoopError
            roots = [{step: handed[step][place] for step in range(steps - 1)} for place in range(len(handed[at]))]
        done = 0
        while done < len(roots):
            root = roots[done]
            done += 1
            known = set(body.carried)
            for step, name in root.items():
                if step >= begin:
                    self._match(body, root[at], name, at, step)
                else:
                    body.first[root[at]] = name
            roots += [self._next_of(body, name, at) for name in body.carried if name not in known]
        for instances in body.carried.values():  # what only a later copy would use is not there for the last ones
            places = range(begin - 1, len(instances) + begin - 1)
            if set(instances) != set(places) or len(instances) < at + 2 - begin:
                raise _NoLoopError
        if begin:
            first = FirstCopy(self, self._slices)
            body.from_zeros = all(
                first.is_from_zeros(ours, theirs, body.carried.keys(), self._is_source)
                for ours, theirs in body.first.items()
            )
        return body

    @staticmethod
    def _joins(node: onnx.NodeProto, steps: int, ages: Mapping[str, int]) -> bool:
        if node.op_type != "Concat" or len(node.input) != steps:
            return False
        return [ages.get(name, _ANY) for name in node.input] == list(range(steps))

    def _handed_on(self, step: int) -> list[str]:
        """Return what copy `step` makes and the next one uses, in order of use."""
        handed_on: dict[str, None] = {}
        for node in self.nodes:
            if node.output and self._ages.get(node.output[0]) == step + 1:
                handed_on.update((n, None) for n in uses(node) if self._ages.get(n) == step and not self._is_source(n))
        return list(handed_on)

    def _next_of(self, body: _Body, name: str, at: int) -> dict[int, str]:
        """Return what becomes of a carried tensor, by the copy that makes it."""
        instances = body.carried[name]
        if at not in instances:
            raise _NoLoopError
        return {step: made for step, made in instances.items() if step >= 0}

    def _match(self, body: _Body, ours: str, theirs: str, at: int, step: int) -> None:
        """Compare a tensor of the copy `at` with one of the copy `step`, and note what is carried into them.

        Raises:
            _NoLoopError: They are made in different ways.
        """
        waiting, seen = [(ours, theirs)], set()
        while waiting:
            pair = ours, theirs = waiting.pop()
            if pair in seen:
                continue
            seen.add(pair)
            if self._is_source(ours):
                cut, other = self._slices[ours], self._slices.get(theirs)
                same = other is not None and (cut.data, cut.axis, cut.keeps) == (other.data, other.axis, other.keeps)
                if not same or other is None or (cut.at, other.at) != (at, step):
                    raise _NoLoopError
                continue
            age = self._ages.get(ours, _ANY)
            if age == _ANY:
                if ours != theirs and not self._are_equal(ours, theirs):
                    raise _NoLoopError
            elif age == at - 1:
                is_first = body.begin == step  # made by a copy that is another one
                if self._ages.get(theirs, _ANY) != step - 1 or (self._is_source(theirs) and not is_first):
                    raise _NoLoopError
                instances = body.carried.setdefault(ours, {})
                if instances.setdefault(step - 1, theirs) != theirs:
                    raise _NoLoopError
            elif age == at:
                waiting += self._inputs_of(body, ours, theirs, step == at)
            else:
                raise _NoLoopError

    def _inputs_of(self, body: _Body, ours: str, theirs: str, is_own: bool) -> list[tuple[str, str]]:
        """Compare two nodes; return the pairs of what they use."""
        if theirs not in self.makers:
            raise _NoLoopError
        maker, other = self.makers[ours], self.makers[theirs]
        left, right = self.nodes[maker], self.nodes[other]
        if not are_copies(ours, left, theirs, right):
            raise _NoLoopError
        body.matched.add(other)
        if is_own:
            body.nodes.add(maker)
        pairs = list(zip(left.input, right.input, strict=True))
        if any(bool(a) != bool(b) for a, b in pairs):
            raise _NoLoopError
        return [pair for pair in pairs if pair[0]]

    def _are_equal(self, ours: str, theirs: str) -> bool:
        """Whether two tensors outside the loop are the same constant, or made of the same in the same way."""
        ours, theirs = self._origin(ours), self._origin(theirs)
        if ours == theirs:
            return True
        if (cut := self._slices.get(ours)) and (other := self._slices.get(theirs)):  # of which the shape is used
            return (cut.data, cut.axis, cut.keeps) == (other.data, other.axis, other.keeps)
        if ours in self.constants and theirs in self.constants:
            constant, two = self.constants[ours], self.constants[theirs]
            return bool(
                constant.dtype == two.dtype and np.array_equal(constant, two, equal_nan=constant.dtype.kind == "f")
            )
        if ours not in self.makers or theirs not in self.makers:
            return False
        if max(self._ages.get(ours, _ANY), self._ages.get(theirs, _ANY)) != _ANY:
            return False
        left, right = self.nodes[self.makers[ours]], self.nodes[self.makers[theirs]]
        return are_copies(ours, left, theirs, right) and all(
            a == b or (bool(a) and bool(b) and self._are_equal(a, b))
            for a, b in zip(left.input, right.input, strict=True)
        )

    def _origin(self, name: str) -> str:
        """Return what a tensor is a copy of: torch's exporter writes a weight that is used again as an Identity."""
        while name in self.makers and (maker := self.nodes[self.makers[name]]).op_type == "Identity":
            name = maker.input[0]
        return name

    # ---------------------------------------------------------------- the Scan

    def _with_scan(self, body: _Body, steps: int, count: int) -> onnx.ModelProto:
        """Return the model with the Scan in the place of the copies."""
        at, label = steps // 2, f"loop_{count + 1}" if count else "loop"
        made = copy.deepcopy(self.model)
        gone = body.matched | {self.makers[node.output[0]] for node in body.joined.values()}
        states, finals = list(body.carried), self._finals(body, steps, gone)
        scanned = self._sources(sorted(body.nodes))
        scan = ScanBody(label, made)
        for name in states:
            scan.state(name)
        types = infer_types(without_weights(self.model)) if body.begin else {}
        begun = Begun(scan, made, label, {} if body.from_zeros else body.first)
        first = self._first_copy(begun)
        taken = [*self._sources(first), *filter(self._is_source, begun.first.values())]
        scanned += [name for name in dict.fromkeys(taken) if name not in scanned]
        for name in scanned:
            scan.element(name, self._slices[name])
        for index in [*sorted(body.nodes), *first]:
            scan.node(self.nodes[index])
        begun.choose()
        outs = [*(scan.inner_name(body.carried[name][at]) for name in states), *begun.after]
        axes, names = [], []
        for result, join in body.joined.items():
            axis = attributes(join).get("axis")
            if axis is None:  # onnxruntime refuses the graph
                raise _NoLoopError
            outs.append(scan.without_axis(result, axis))
            axes.append(axis)
            names.append(join.output[0])
        extra = []
        for name, ours in finals.items():
            outs.append(scan.inner_name(ours))
            axes.append(0)
            names.append(f"{name}/all")
            last = f"{name}/last"
            made.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), last))
            extra.append(helper.make_node("Gather", [names[-1], last], [name], name=last, axis=0))
        outputs = [f"{label}/{name}/final" for name in [*states, *begun.after]] + names
        begins = []
        for name in states:
            instances = body.carried[name]
            begins.append(instances[-1] if -1 in instances else begun.filled(instances[0], types.get(instances[0])))
        node = helper.make_node(
            "Scan",
            [*begins, *begun.before, *(self._slices[name].data for name in scanned)],
            outputs,
            name=label,
            body=scan.graph(outs),
            num_scan_inputs=len(scanned),
            scan_input_axes=[self._slices[name].axis for name in scanned],
            scan_output_axes=axes,
        )
        take_layer(node, (self.nodes[index] for index in body.nodes))
        kept = [kept_node for index, kept_node in enumerate(self.nodes) if index not in gone]
        replace_items(made.graph.node, in_order([*kept, *begun.nodes, node, *extra]))
        replace_items(made.graph.node, live_nodes(made.graph))  # without the slices
        return made

    def _sources(self, nodes: Iterable[int]) -> list[str]:
        """Return the slices that nodes use."""
        return list(dict.fromkeys(name for at in nodes for name in uses(self.nodes[at]) if self._is_source(name)))

    def _first_copy(self, begun: Begun) -> list[int]:
        """Return the nodes of a first copy that is another one than the others."""
        waiting, found = list(begun.first.values()), set[int]()
        while waiting:
            name = waiting.pop()
            at = self.makers.get(name)
            if at is not None and at not in found and self._ages.get(name, _ANY) == 0 and not self._is_source(name):
                if captures(self.nodes[at]):
                    raise _NoLoopError
                found.add(at)
                waiting += uses(self.nodes[at])
        return sorted(found)

    def _finals(self, body: _Body, steps: int, gone: set[int]) -> dict[str, str]:
        """Return what the last copy makes and something after the loop uses, with the same of the copy for all.

        Raises:
            _NoLoopError: Something else of a copy is used.
        """
        at, finals = steps // 2, {}
        ours = [name for index in sorted(body.nodes) for name in self.nodes[index].output if name]
        for name in sorted(self._used_besides(gone)):
            if self._ages.get(name, _ANY) != steps - 1 or name not in self.makers or self._is_source(name):
                continue
            for candidate in ours:
                trial = _Body(carried={key: dict(value) for key, value in body.carried.items()}, begin=body.begin)
                try:
                    self._match(trial, candidate, name, at, steps - 1)
                except _NoLoopError:
                    continue
                if trial.carried.keys() == body.carried.keys():
                    finals[name] = candidate
                    gone |= trial.matched
                    break
        lost = {name for index in gone for name in self.nodes[index].output}
        lost -= finals.keys() | {join.output[0] for join in body.joined.values()}
        if lost & self._used_besides(gone):
            raise _NoLoopError
        return finals

    def _used_besides(self, gone: set[int]) -> set[str]:
        """Return what the outputs and the nodes that stay use."""
        used = {name for index, node in enumerate(self.nodes) if index not in gone for name in uses(node)}
        return used | {value.name for value in self.model.graph.output}
