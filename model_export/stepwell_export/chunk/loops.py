r"""How a loop is run over a chunk: as a window, a sum or by operators where it is that, else by Scan.

Tensors of the branch for a chunk live in two forms. *Flat*: the step graph's own shape with rows times timesteps in
place of the batch, so that the step graph's nodes run on all timesteps at once. *Timed*: with the time axis behind the
batch axis.

Before and after:

    h (B, 5)   x (B, 4)                    h (B, 5)   x (T, B, 4)
        \      /                               \      /
    the nodes of the loop             ->   Scan { the nodes of the loop }
        /      \                               /      \
    h           y (B, 5)                   h           y (T, B, 5)

*A window.* A state that is the end of (itself, then something new) holds the last timesteps. Over a chunk that is one
long tensor, the state and all that is new behind it, of which each timestep sees its own part:

    past (B, 2, 4)   x (B, 1, 4)           past (B, 2, 4)   x (B, T, 4)
             \       /                              \       /
              Concat: (B, 3, 4)       ->             Concat: (B, T + 2, 4) -> its last two: past
                | f                                   | Gather (B T, 3, 4): elements t to t + 2 for each t
             y (B, 5)                               f: y (B T, 5)

*A sum or mean.* In a step, a mean moves towards a new value by the value's share of all weights so far. Over a chunk it
moves from where it was by the sum of all values' distances from there, times their weights and divided by all weights
so far. Where it was is never added up, so that a long stream keeps its digits as it does step by step:

    sum (B, 4)   x (B, 4)                  sum (B, 4)   x (B, T, 4)
          \      /                              |          | CumSum over T
             Add                      ->         \__ Add __/
              |                                       |
            sum (B, 4)                     sums (B, T, 4), of which the last is carried

*Recurrent operators.* A chunk runs each LSTM, GRU or RNN operator over all of its timesteps:

    x (B, 4)   h (B, 5)                    x (T, B, 4)   h (1, B, 5)
         \     /                                \       /
       GRU over one timestep          ->       GRU over T timesteps
         /     \                                /       \
    y (B, 5)   h                           y (T, B, 5)   h of the last timestep
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import helper

from stepwell_export.chunk.analysis import Loop, NoChunkError, StepGraphAnalysis
from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.decompose_rnn import DEFAULT_ACTIVATIONS
from stepwell_export.graph.nodes import attributes, renamed, uses
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL
from stepwell_export.structure.facts import RowFact

if TYPE_CHECKING:
    from stepwell_export.chunk.selection import Vectorizer

# ---------------------------------------------------------------- the branch under construction

PREFIX = "chunk/of/"
"""Before the name of a step graph's tensor, of its flat form."""

LENGTHS = "chunk/lengths"
"""Tensor: rows and timesteps, int64[2]."""


class ChunkBuilder(NodeBuilder):
    """Collects the nodes of a branch."""

    def __init__(self) -> None:
        super().__init__("chunk")
        self._shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}

    def timed_shape(self, before: tuple[int, ...], behind: tuple[int, ...]) -> str:
        """Return a shape with rows and timesteps between the given lengths."""
        key = (before, behind)
        if key not in self._shapes:
            parts = [*([self.ints(before)] if before else []), LENGTHS, *([self.ints(behind)] if behind else [])]
            self._shapes[key] = LENGTHS if len(parts) == 1 else self.op("Concat", *parts, axis=0)
        return self._shapes[key]

    def timed(self, flat: str, axis: int, row: tuple[int, ...]) -> str:
        """Return a flat tensor with the time axis behind its batch axis."""
        return self.op("Reshape", flat, self.timed_shape(row[:axis], row[axis:]))

    def flat(self, timed: str, axis: int, row: tuple[int, ...]) -> str:
        """Undo `timed`."""
        return self.op("Reshape", timed, self.ints([*row[:axis], -1, *row[axis:]]))

    def last(self, timed: str, axis: int) -> str:
        """Return a timed tensor's last timestep, shaped as in the step graph."""
        return self.op("Gather", timed, self.ints(-1), axis=axis + 1)

    def delayed(self, first: str, timed: str, axis: int) -> str:
        """Return a timed tensor one timestep later, with `first`, shaped as in the step graph, in front."""
        ints, time = self.ints, axis + 1
        before = self.op("Slice", timed, ints([0]), ints([-1]), ints([time]))
        return self.op("Concat", self.op("Unsqueeze", first, ints([time])), before, axis=time)

    def sequence(self, flat: str, fact: RowFact) -> str:
        """Return a flat tensor as `timed`.

        Args:
            flat: The tensor.
            fact: What it is in the step graph; it has a batch axis.
        """
        assert fact.axis is not None
        return self.timed(flat, fact.axis, fact.row)


def tensors(names: Iterable[str], kinds: Iterable[int]) -> list[onnx.ValueInfoProto]:
    """Return declarations without shapes."""
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]


def ranked(names: Iterable[str], facts: Iterable[RowFact]) -> list[onnx.ValueInfoProto]:
    """Return declarations with the number of axes alone, which onnxruntime needs of a Scan's body."""
    return [
        helper.make_tensor_value_info(name, fact.kind, [None] * (len(fact.row) + (fact.axis is not None)))
        for name, fact in zip(names, facts, strict=True)
    ]


def emit_loop(builder: Vectorizer, loop: Loop) -> None:
    """Emit a loop in the first way that fits."""
    if not loop.nodes:
        for state in loop.states:
            _emit_delay(builder, state)
        return
    if not any(emit(builder, loop) for emit in (emit_operators, emit_window, emit_sum)):
        _emit_scan(builder, loop)


def _emit_delay(builder: Vectorizer, state: str) -> None:
    """A state that remembers something of the last timestep: the same sequence, one timestep later."""
    emitter, after = builder.emitter, builder.reading.after[state]
    fact = builder.facts[state]
    if after in builder.reading.fixed or builder.facts[after].axis != fact.axis or fact.axis is None:
        raise NoChunkError(f"state {state!r} becomes something that has no rows")
    timed = builder.sequence(after)
    builder.last[state] = emitter.last(timed, fact.axis)
    builder.set_flat(state, emitter.flat(emitter.delayed(state, timed, fact.axis), fact.axis, fact.row))


def _emit_scan(builder: Vectorizer, loop: Loop) -> None:
    """The nodes of a loop, timestep by timestep; what it takes and gives has been, or will be, run for all."""
    reading, emitter, facts = builder.reading, builder.emitter, builder.facts
    nodes, sliced = _body(builder, loop)
    sliced = sliced or reading.inputs[:1]
    place = emitter.fresh("scan")
    names = {name: f"{place}/{name}" for node in nodes for name in node.output if name}
    names |= {name: f"{place}/{name}" for name in [*loop.states, *sliced]}
    body = [renamed(node, names) for node in nodes]
    wanted = reading.wanted_outside(loop)
    if any(facts[name].axis is None for name in wanted):
        raise NoChunkError("something behind the state has no batch axis")
    gives = []
    for name in [*(reading.after[state] for state in loop.states), *wanted]:
        gives.append(emitter.fresh("give"))  # an answer and a state may be one tensor; a graph gives each once
        body.append(helper.make_node("Identity", [names[name]], [gives[-1]]))
    graph = helper.make_graph(
        body,
        place,
        ranked([names[name] for name in [*loop.states, *sliced]], [facts[name] for name in [*loop.states, *sliced]]),
        ranked(gives, [facts[name] for name in [*loop.states, *wanted]]),
    )
    ends = [emitter.fresh("end") for _ in loop.states]
    timed = [emitter.fresh("all") for _ in wanted]
    node = helper.make_node("Scan", [*loop.states, *(builder.sequence(name) for name in sliced)], [*ends, *timed],
                            body=graph, num_scan_inputs=len(sliced))  # fmt: skip
    node.attribute.append(helper.make_attribute("scan_input_axes", [_axis(builder, name) + 1 for name in sliced]))
    if wanted:
        node.attribute.append(helper.make_attribute("scan_output_axes", [_axis(builder, name) + 1 for name in wanted]))
    emitter.nodes.append(node)
    builder.last.update(zip(loop.states, ends, strict=True))
    for name, tensor in zip(wanted, timed, strict=True):
        builder.set_flat(name, emitter.flat(tensor, _axis(builder, name), facts[name].row))


def _body(builder: Vectorizer, loop: Loop) -> tuple[list[onnx.NodeProto], list[str]]:
    """Return the nodes to run in each timestep, and the tensors that are cut into timesteps for them.

    What has no batch axis, such as a shape computed from one, is computed in the loop again.

    Raises:
        NoChunkError: Such a thing depends on another loop.
    """
    reading = builder.reading
    inside = {id(node): node for node in loop.nodes}
    others = {name for other in builder.reading.loops if other is not loop for name in other.made}
    others |= {state for state in reading.after if state not in loop.states}
    while True:
        made = {name for node in inside.values() for name in node.output} | set(loop.states)
        taken = {name for node in inside.values() for name in uses(node)} - made - reading.fixed
        without = [name for name in taken if builder.facts[name].axis is None]
        if not without:
            order = [node for node in reading.nodes if id(node) in inside]
            return order, sorted(taken)
        for name in without:
            if name in others or name not in reading.maker:
                raise NoChunkError(f"tensor {name!r} has no batch axis")
            inside[id(reading.maker[name])] = reading.maker[name]


def _axis(builder: Vectorizer, name: str) -> int:
    axis = builder.facts[name].axis
    assert axis is not None
    return axis


# ---------------------------------------------------------------- windows

_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Window:
    """What a timestep sees: past elements and new ones along an axis.

    Attributes:
        long: Tensor: the state and everything new behind it, along `axis`.
        axis: The axis, batch counted; the batch is axis 0.
        past: Elements of the state along it.
        new: Elements that come with each timestep.
        row: The window's shape without batch axis.
    """

    long: str
    axis: int
    past: int
    new: int
    row: tuple[int, ...]

    def whole(self, emitter: ChunkBuilder) -> str:
        """Return the windows of all timesteps, flat."""
        return self.taps(emitter, np.arange(self.past + self.new))

    def taps(self, emitter: ChunkBuilder, elements: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        """Return some elements of each timestep's window, flat: rows times timesteps in front."""
        steps = emitter.op("Gather", LENGTHS, emitter.ints(1))
        starts = emitter.op("Range", emitter.ints(0), emitter.op("Mul", steps, emitter.ints(self.new)),
                            emitter.ints(self.new))  # fmt: skip
        places = emitter.op(
            "Add", emitter.op("Unsqueeze", starts, emitter.ints([1])), emitter.ints([int(e) for e in elements])
        )
        seen = emitter.op("Gather", self.long, places, axis=self.axis)
        if self.axis > 1:
            others = [a for a in range(len(self.row) + 2) if a not in {0, self.axis}]
            seen = emitter.op("Transpose", seen, perm=[0, self.axis, *others])
        row = list(self.row)
        row[self.axis - 1] = len(elements)
        return emitter.flat(seen, 0, tuple(row))


def emit_window(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop that is a window; return whether it is one."""
    joins = [node for node in loop.nodes if node.op_type == "Concat"]
    if len(loop.states) != 1 or len(joins) != 1 or list(joins[0].input[:1]) != loop.states or len(joins[0].input) != 2:
        return False
    state, join, emitter = loop.states[0], joins[0], builder.emitter
    fact, fresh, joined = (builder.facts[name] for name in (state, join.input[1], join.output[0]))
    axis = next(a.i for a in join.attribute if a.name == "axis") % (len(fact.row) + 1)
    if (fact.axis, fresh.axis, joined.axis) != (0, 0, 0) or axis == 0 or join.input[1] in builder.reading.fixed:
        return False
    past, new = fact.row[axis - 1], fresh.row[axis - 1]
    rest = {id(node) for node in loop.nodes} - {id(join)}
    end = builder.reading.maker[builder.reading.after[state]]
    while end.op_type == "Identity" and id(end) in rest:
        rest.discard(id(end))
        end = builder.reading.maker[end.input[0]]
    kept = _elements(builder, end, axis, past + new) if end.input[0] == join.output[0] else None
    if rest != {id(end)} or kept is None or kept.tolist() != list(range(new, past + new)):
        return False
    timed = builder.sequence(join.input[1])  # (batch, T, ..., new, ...)
    if axis > 1:
        others = list(range(len(fresh.row) + 2))
        others.remove(1)
        others.insert(axis, 1)
        timed = emitter.op("Transpose", timed, perm=others)
    along = emitter.op("Reshape", timed, emitter.ints([0, *fresh.row[: axis - 1], -1, *fresh.row[axis:]]))
    long = emitter.op("Concat", state, along, axis=axis)
    ints = emitter.ints
    builder.last[state] = emitter.op("Slice", long, ints([-past]), ints([_LAST]), ints([axis]))
    window = builder.windows[join.output[0]] = Window(long, axis, past, new, joined.row)
    for name in builder.reading.wanted_outside(loop):
        if name != join.output[0]:
            first = 0 if name == state else new
            builder.set_flat(name, window.taps(emitter, np.arange(first, first + past)))
    return True


def pick(builder: Vectorizer, node: onnx.NodeProto, window: Window) -> str | None:
    """Return what a node picks of a window, without making the whole window; None where that is not known."""
    elements = _elements(builder, node, window.axis, window.past + window.new)
    return None if elements is None else window.taps(builder.emitter, elements)


def _elements(
    builder: Vectorizer, node: onnx.NodeProto, axis: int, length: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    """Return which elements a Gather or Slice takes along an axis; None where it does something else."""
    constants = [builder.reading.constant(name) if name else None for name in node.input[1:]]
    if any(value is None for value, name in zip(constants, node.input[1:], strict=True) if name):
        return None
    rank = len(builder.facts[node.input[0]].row) + 1
    if node.op_type == "Gather" and constants[0] is not None and constants[0].ndim == 1:
        of = next((a.i for a in node.attribute if a.name == "axis"), 0) % rank
        return np.arange(length)[constants[0]] if of == axis else None
    if node.op_type == "Slice" and len(constants) > 2:
        starts, ends, axes, steps = [*constants, np.ones(1, np.int64)][:4]
        if starts is None or ends is None or axes is None or steps is None:
            return None
        if [int(a) % rank for a in axes] != [axis]:
            return None
        return np.arange(length)[int(starts[0]) : int(ends[0]) : int(steps[0])]
    return None


# ---------------------------------------------------------------- running sums and means

_SUMMED = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32, onnx.TensorProto.INT64}
"""Types that CumSum takes."""

_UNIT_AXES = RESHAPING - {"Transpose"}


def emit_sum(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop that is a running sum or mean; return whether it is one."""
    reading, state = builder.reading, loop.states[0]
    fact, nodes = builder.facts[state], [node for node in loop.nodes if node.op_type != "Identity"]
    if len(loop.states) > 1 or fact.axis is None or fact.kind not in _SUMMED:
        return False
    after = _behind(reading, reading.after[state], {"Identity"})
    wanted = {name: _behind(reading, name, {"Identity"}) for name in reading.wanted_outside(loop)}
    if not nodes or nodes[-1].output[0] != after or not {state, after}.issuperset(wanted.values()):
        return False
    kinds = [node.op_type for node in nodes]
    if kinds == ["Add"]:
        emitted = _sums(builder, state, nodes[0], fact)
    elif kinds in (["Sub", "Mul", "Add"], ["Sub", "Div", "Add"]):
        emitted = _means(builder, state, nodes, fact)
    else:
        return False
    if not emitted:
        return False
    builder.last[state] = builder.emitter.last(emitted, fact.axis)
    for name, source in wanted.items():
        timed = builder.emitter.delayed(state, emitted, fact.axis) if source == state else emitted
        builder.set_flat(name, builder.emitter.flat(timed, fact.axis, fact.row))
    return True


def _sums(builder: Vectorizer, state: str, node: onnx.NodeProto, fact: RowFact) -> str:
    """Return the sums of all timesteps, timed; empty: the node adds no values with the state's axes."""
    emitter, axis = builder.emitter, fact.axis
    assert axis is not None
    added = node.input[1] if node.input[0] == state else node.input[0]
    if state not in node.input or added == state:
        return ""
    if added in builder.reading.fixed:
        timed = emitter.op("Expand", added, emitter.timed_shape(fact.row[:axis], fact.row[axis:]))
    elif (builder.facts[added].axis, builder.facts[added].row) == (fact.axis, fact.row):
        timed = builder.sequence(added)
    else:
        return ""
    sums = emitter.op("CumSum", timed, emitter.ints(axis + 1))
    return emitter.op("Add", emitter.op("Unsqueeze", state, emitter.ints([axis + 1])), sums)


def _means(builder: Vectorizer, state: str, nodes: list[onnx.NodeProto], fact: RowFact) -> str:
    """Return the means of all timesteps, timed; empty: the nodes are no mean whose weights are known."""
    (difference, scaled, moved), emitter = nodes, builder.emitter
    values, by = difference.input[0], scaled.input[scaled.input[0] == difference.output[0]]
    is_mean = difference.input[1] == state and {*moved.input} == {state, scaled.output[0]}
    if not is_mean or not builder.facts.keys() >= {values, by}:
        return ""
    share = builder.facts[by]
    if {(operand.axis, len(operand.row)) for operand in (fact, share, builder.facts[values])} != {(0, len(fact.row))}:
        return ""
    weight, total = (_weights if scaled.op_type == "Mul" else _count)(builder.reading, by)
    if not total:
        return ""
    start = emitter.op("Unsqueeze", state, emitter.ints([1]))
    distance = emitter.op("Sub", builder.sequence(values), start)
    if weight:
        distance = emitter.op("Mul", distance, emitter.timed(builder.flat(weight), 0, share.row))
    sums = emitter.op("CumSum", distance, emitter.ints(1))
    return emitter.op("Add", start, emitter.op("Div", sums, emitter.timed(builder.flat(total), 0, share.row)))


def _weights(reading: StepGraphAnalysis, share: str) -> tuple[str, str]:
    """Return the weight of a timestep and the sum of all so far that a share is the quotient of; empty: it is none."""
    maker = reading.maker.get(_behind(reading, share, _UNIT_AXES))
    if maker is None or maker.op_type != "Div":
        return "", ""
    weight, divisor = maker.input
    total = divisor
    guard = reading.maker.get(divisor)
    if guard is not None and guard.op_type == "Max" and len(guard.input) == 2 and guard.input[1] in reading.fixed:
        total = guard.input[0]
    is_weighed = weight not in reading.fixed and _grows_by(reading, total, weight)
    return (weight, divisor) if is_weighed else ("", "")


def _count(reading: StepGraphAnalysis, divisor: str) -> tuple[str, str]:
    """Return no weight, and the divisor if it is the number of timesteps so far; empty: it is not."""
    state = _counted(reading, _behind(reading, divisor, _UNIT_AXES | {"Cast"}))
    after = _behind(reading, reading.after[state], {"Identity"}) if state in reading.after else ""
    return "", divisor if state and _counted(reading, after) == state else ""


def _counted(reading: StepGraphAnalysis, name: str) -> str:
    """Return the tensor that another one is one more than; empty: there is none."""
    adds = reading.maker.get(name)
    if adds is None or adds.op_type != "Add":
        return ""
    return next((other for given, other in (adds.input, adds.input[::-1]) if _is_one(reading, given)), "")


def _is_one(reading: StepGraphAnalysis, name: str) -> bool:
    value = reading.constant(name)
    return value is not None and bool(np.all(value == 1))


def _grows_by(reading: StepGraphAnalysis, total: str, weight: str) -> bool:
    """Whether a tensor is what a state becomes by adding `weight`."""
    adds = reading.maker.get(total)
    if adds is None or adds.op_type != "Add" or weight not in adds.input:
        return False
    before = adds.input[1] if adds.input[0] == weight else adds.input[0]
    return before in reading.after and _behind(reading, reading.after[before], {"Identity"}) == total


def _behind(reading: StepGraphAnalysis, name: str, kinds: set[str] | frozenset[str]) -> str:
    """Return the tensor that nodes of these kinds make another one of."""
    while (maker := reading.maker.get(name)) is not None and maker.op_type in kinds:
        name = maker.input[0]
    return name


# ---------------------------------------------------------------- recurrent operators

_GLUE = (RESHAPING | PICKING | {"Concat"}) - {"Flatten"}

_EXACT: Final = {"Relu", "LeakyRelu", "Softsign", "HardSigmoid", "Affine"}
_ACTIVATIONS: Final = {
    "LSTM": [_EXACT | {"Sigmoid", "Tanh"}] * 3,
    "GRU": [_EXACT | {"Sigmoid", "Tanh"}, _EXACT | {"Tanh"}],
    "RNN": [_EXACT],
}
"""By operator, the activations at each place that onnxruntime computes in it as it does outside of it. RNN's Tanh is
off by 3e-8 near zero, which adds up over time; Softplus overflows at 89."""


def is_of_operators(reading: StepGraphAnalysis, loop: Loop) -> bool:
    """Return whether LSTM, GRU and RNN operators carry all states of a loop, which differ from theirs in layout alone.

    What is between two of them, such as a norm, takes answers of operators and no states.
    """
    inside = {*loop.made, *loop.states}
    before, answers, after = set(loop.states), set[str](), set[str]()
    for node in loop.nodes:
        taken, outputs = inside.intersection(uses(node)), set(filter(None, node.output))
        if node.op_type in RNN:
            first = _first_states(node)
            if not (_runs_forward(reading, node) and before.issuperset(first) and answers >= taken.difference(first)):
                return False
            answers.update(filter(None, node.output[:2]))
            after |= outputs
            continue
        if taken <= answers:
            answers |= outputs
        if node.op_type in _GLUE and reading.fixed.issuperset(set(uses(node)) - taken):
            before |= outputs if taken <= before else set()
            after |= outputs if taken <= after else set()
    return after.issuperset(reading.after[s] for s in loop.states) and answers.issuperset(reading.wanted_outside(loop))


def emit_operators(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop of operators that run one timestep; return whether it is one."""
    if not is_of_operators(builder.reading, loop):
        return False
    operators = [node for node in loop.nodes if node.op_type in RNN]
    if any(builder.facts[node.input[0]].axis != 1 or builder.facts[node.input[0]].row[0] != 1 for node in operators):
        return False
    before = _once(builder, loop, {state: state for state in loop.states})
    after: dict[str, str] = {}
    for node in loop.nodes:
        if node.op_type in RNN:
            after |= _emit_operator(builder, node, [before[name] for name in _first_states(node)])
        elif all(builder.has_flat(name) for name in uses(node)):
            builder.emit(node)
    after = _once(builder, loop, after)
    builder.last.update({state: after[builder.reading.after[state]] for state in loop.states})
    return True


def _first_states(node: onnx.NodeProto) -> Sequence[str]:
    """Return the tensors that an operator's states start from; fewer than it has states where some are left out."""
    return list(node.input[5 : 5 + len(STATEFUL[node.op_type].states)])


def _runs_forward(reading: StepGraphAnalysis, node: onnx.NodeProto) -> bool:
    """Return whether an operator has weights, states from elsewhere and all of its timesteps, in order, exactly."""
    first, lengths = _first_states(node), "".join(node.input[4:5])
    weights = {*node.input[1:4], *node.input[7:8]} - {""}
    has_states = len(first) == len(STATEFUL[node.op_type].states) and all(first)
    one_way = attributes(node).get("direction", "forward") == "forward"
    return has_states and one_way and not lengths and weights <= reading.fixed and _is_exact(node)


def _is_exact(node: onnx.NodeProto) -> bool:
    """Return whether an operator's activations give what they give alone."""
    kinds = attributes(node).get("activations") or DEFAULT_ACTIVATIONS[node.op_type]
    return all(kind in exact for kind, exact in zip(kinds, _ACTIVATIONS[node.op_type], strict=True))


def _emit_operator(builder: Vectorizer, node: onnx.NodeProto, first: Sequence[str]) -> Mapping[str, str]:
    """Emit an operator over all timesteps; return its outputs after the last one, shaped as in the step graph."""
    emitter, x = builder.emitter, node.input[0]
    maker = builder.reading.maker.get(x)
    rows = maker.input[0] if maker is not None and maker.op_type == "Unsqueeze" else x
    if rows != x and builder.facts[rows].axis == 0 and len(builder.facts[rows].row) == 1:
        timed_rows = builder.sequence(rows)
    else:  # (1, rows, T, features)
        timed_rows = emitter.op("Squeeze", builder.sequence(x), emitter.ints([0]))
    sequence = emitter.op("Transpose", timed_rows, perm=[1, 0, 2])
    given = [sequence, *node.input[1:4], "", *first, *node.input[7:8]]
    y, *last = emitter.split_op(node.op_type, *given, outputs=1 + len(first), **attributes(node))
    if builder.reading.may_give_nan:
        y, *last = _with_nan(builder, sequence, y, last)
    names = [*node.output, "", ""][: 1 + len(first)]
    timed = emitter.op("Transpose", y, perm=[1, 2, 0, 3])  # (1, rows, T, units)
    for name, axis in zip(names[:2], (2, 1), strict=True):
        if name:
            builder.set_flat(name, emitter.flat(timed, axis, builder.facts[name].row))
    after = dict(zip(names, [emitter.op("Unsqueeze", last[0], emitter.ints([0])), *last], strict=True))
    return {name: tensor for name, tensor in after.items() if name}


def _with_nan(builder: Vectorizer, sequence: str, y: str, last: Sequence[str]) -> list[str]:
    """Return an operator's outputs, NaN from the first NaN of its input on; onnxruntime gives numbers there.

    A root of a negative number is one, as what a table has behind its last position: a chunk gives what steps do.
    """
    emitter = builder.emitter
    signs = emitter.op("Sign", sequence)  # of infinities, too: these are none
    marked = emitter.op("Where", emitter.op("IsNaN", sequence), sequence, emitter.op("Sub", signs, signs))
    zero = emitter.op("ReduceSum", marked, emitter.ints([2]))
    so_far = emitter.op("CumSum", zero, emitter.ints([0]))  # (T, rows, 1)
    end = emitter.op("Gather", so_far, emitter.ints([-1]), axis=0)
    timed = emitter.op("Add", y, emitter.op("Unsqueeze", so_far, emitter.ints([1])))
    return [timed, *(emitter.op("Add", state, end) for state in last)]


def _once(builder: Vectorizer, loop: Loop, known: Mapping[str, str]) -> dict[str, str]:
    """Emit, for one timestep alone, the layout of what is known; return all that is known then."""
    names, made = dict(known), {*loop.made, *loop.states}
    place = builder.emitter.fresh("once")
    for node in loop.nodes:
        if node.op_type in _GLUE and names.keys() >= made.intersection(uses(node)):
            names |= {name: f"{place}/{name}" for name in node.output if name}
            builder.emitter.nodes.append(renamed(node, names))
    return names
