r"""Scan and Loop over time: the nodes of their body on one timestep, with what they carry as states.

Before and after:

    h0   x (T, B, 4)                       scan.h    x (B, 4)
      \   |                                   \      |
      Scan { hn = f(h, xi) }          ->       f, node by node
      /   |                                   /      |
    last  y (T, B, 5)                      scan.h    y (B, 5)
                                           of the next timestep
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, captures, constants, renamed, shared_name, subgraphs, uses
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.rules.recurrent import Carried, carried, first_offset, give_final, hand_on
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.walk import LIMIT_FIX, AtEnd, ByPosition, Known, PerStep, StreamingWalk

_SIZES = {"Shape", "Size"}
_COPIES = {"Identity", "Cast"}


@dataclass(frozen=True, slots=True)
class _Loop:
    """A Scan or Loop over time.

    Attributes:
        node: The node.
        body: Its body.
        first: What its carried tensors start from.
        begin: How many inputs and outputs the body has before those that are carried.
        offset: The offset at which it takes timed tensors.
    """

    node: onnx.NodeProto
    body: onnx.GraphProto
    first: list[str]
    begin: tuple[int, int]
    offset: int

    def called(self, place: int) -> str:
        """Return what the body calls a carried tensor."""
        return str(self.body.input[self.begin[0] + place].name)


def scan(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Scan over time: its body, with what it carries as states.

    Raises:
        RefusedModelError: It runs backwards, or each turn takes more than its own timestep.
    """
    attrs, body = attributes(node), next(subgraphs(node))
    count = int(attrs["num_scan_inputs"])
    first, scanned = list(node.input[: len(node.input) - count]), list(node.input[len(node.input) - count :])
    axes = _axes(walk, scanned, attrs.get("scan_input_axes") or [0] * count)
    if not any(_over_time(walk, name, axis) for name, axis in zip(scanned, axes, strict=True)):
        pointwise(walk, node)
        return
    if any(attrs.get("scan_input_directions") or [0]) or any(attrs.get("scan_output_directions") or [0]):
        raise walk.refuse(node, "runs backwards over time")
    timed = walk.timed(node, scanned)
    offset = first_offset(walk, timed)
    over_time = _Loop(node, body, first, (0, 0), offset)
    same = _unchanged(over_time)
    _check_outside(walk, over_time, same, picks=False)
    given, states = _carried(walk, over_time, same)
    elements = [walk.operand(name, offset, node) for name in scanned]
    given += [_without_axis(walk, element, axis) for element, axis in zip(elements, axes, strict=True)]
    made = _turn(walk, over_time, given)
    _give_carried(walk, over_time, states, made, (timed or scanned)[0])
    names, collected = list(node.output[len(first) :]), made[len(first) :]
    axes = _axes(walk, names, attrs.get("scan_output_axes") or [0] * len(names))
    collected = [_with_axis(walk, *each) for each in zip(collected, axes, names, strict=True)]
    for name, step in zip(names, collected, strict=True):
        if name:
            walk.set_per_step(node, name, step, offset)


def loop(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Loop over time: its body; what it carries is a state, but for counters and what it collects.

    Raises:
        RefusedModelError: It turns more or fewer times than the sequence has timesteps, or takes its end in each turn.
    """
    if not turns_with_time(walk, node):
        pointwise(walk, node)
        return
    timed, first = walk.timed(node), list(node.input[2:])
    offset = first_offset(walk, timed)
    turns = walk.known(node.input[0])
    if turns is not None and np.any(walk.facts.affine(turns)[2]):
        if not walk.facts.depends(node.input[0]).is_even:
            raise walk.refuse(node, "has as many turns as there are timesteps up to a limit only", LIMIT_FIX)
        at_one = int(walk.facts.affine(turns)[0].reshape(()))
        if more := at_one - 1 - offset:
            than = "more" if more > 0 else "fewer"
            raise walk.refuse(node, f"has {abs(more)} turn(s) {than} than there are timesteps in what it takes")
    over_time = _Loop(node, next(subgraphs(node)), first, (2, 1), offset)
    _check_goes_on(walk, over_time)
    same = _unchanged(over_time)
    _check_outside(walk, over_time, same, picks=True)
    anew = {place for place, name in enumerate(first) if place not in same and _stays(walk, name, node.output[place])}
    given, states = _carried(walk, over_time, same | anew)
    began = [walk.graph.constant(np.int64(0)), walk.graph.constant(np.bool_(True))]  # number of the turn, to go on
    made = _turn(walk, over_time, [*began, *given])[1:]
    _give_carried(walk, over_time, states, made, timed[0] if timed else "")
    for place, (name, step) in enumerate(zip(node.output, made, strict=True)):
        if name and (place in anew or place >= len(first)):
            collected = step if place < len(first) else _with_axis(walk, step, 0, name)
            all_of_them = isinstance(walk.facts.value(name), list) or walk.facts.time_axis(name) is not None
            if all_of_them:
                walk.set_per_step(node, name, collected, offset)
            else:
                walk.set_at_end(node, name, collected)


def _check_goes_on(walk: StreamingWalk, loop: _Loop) -> None:
    """Refuse a Loop that may end before its last turn: a stream would have answers, where the sequence has none.

    Raises:
        RefusedModelError: What decides whether it goes on is neither left out, nor true, nor a count of the timesteps.
    """
    begins = loop.node.input[1]
    while begins in walk.makers and walk.makers[begins].op_type in _COPIES:
        begins = walk.makers[begins].input[0]
    outer = constants(walk.model.graph)
    is_begun = not begins or (begins in outer and bool(onnx.numpy_helper.to_array(outer[begins]).all()))
    if not is_begun or not _goes_on(walk, loop, loop.body.output[0].name):
        raise walk.refuse(
            loop.node,
            f"goes on only while {loop.body.output[0].name!r} holds, and may end before the last timestep",
            "Let it run over every timestep, with the condition in what it computes: torch.where(go_on, new, old).",
        )


def _goes_on(walk: StreamingWalk, loop: _Loop, name: str) -> bool:
    """Whether a condition of a body holds until the last timestep, by its operators."""
    makers = {made: node for node in loop.body.node for made in node.output}
    fixed = {**constants(walk.model.graph), **constants(loop.body)}
    if name == loop.body.input[1].name:
        return True
    if name in fixed:
        return bool(onnx.numpy_helper.to_array(fixed[name]).all())
    node = makers.get(name)
    if node is None or node.op_type not in _COPIES | {"And", "Less", "Greater"}:
        return False
    if node.op_type in _COPIES | {"And"}:
        return all(_goes_on(walk, loop, given) for given in node.input)
    place, end = node.input if node.op_type == "Less" else reversed(node.input)
    is_length = end in walk.tensors and walk.known(end) is not None and walk.facts.depends(end).is_even
    return is_length and _counts_turns(loop, makers, fixed, place) and bool(walk.facts.affine(walk.known(end))[2].all())


def _counts_turns(
    loop: _Loop, makers: Mapping[str, onnx.NodeProto], fixed: Mapping[str, onnx.TensorProto], name: str
) -> bool:
    """Whether a tensor of a body is the number of the turn, or a carried number and what is added to it."""
    while name in makers and makers[name].op_type in {*_COPIES, "Add"}:
        others = [given for given in makers[name].input if given not in fixed]
        if len(others) != 1:
            return False
        name = others[0]
    return name in {value.name for value in loop.body.input if value.name != loop.body.input[1].name}


def turns_with_time(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether the number of turns of a Loop, or what it compares it with, is the number of timesteps."""
    for name in uses(node):
        known = walk.known(name)
        if known is None or isinstance(known[0], list) or known[0].dtype.kind not in "iu" or known[0].size != 1:
            continue  # a shape of several axes counts no turns
        if any(walk.facts.affine(known)[2].reshape(-1)):
            return True
    return False


# ---------------------------------------------------------------- one turn


def _turn(walk: StreamingWalk, loop: _Loop, given: Sequence[str]) -> list[str]:
    """Emit the nodes of a body; return what it returns, in tensors of the step graph, as `given` are its inputs."""
    graph, node = walk.graph, loop.node
    names = {value.name: step for value, step in zip(loop.body.input, given, strict=True)}
    names |= {name: walk.operand(name, loop.offset, node) for name in captures(node)}
    for tensor in loop.body.initializer:
        own = onnx.TensorProto()
        own.CopyFrom(tensor)
        own.name = names[tensor.name] = graph.unique(_inside(node, tensor.name))
        graph.keep(own)
    for inner in loop.body.node:
        names |= {name: graph.unique(_inside(node, name)) for name in inner.output if name}
        graph.nodes.append(renamed(inner, names))
    return [names[value.name] for value in loop.body.output]


def _inside(node: onnx.NodeProto, name: str) -> str:
    """Return what a tensor of a body is called in the step graph."""
    return name if name.startswith(f"{node.name}/") else f"{node.name}/{name}"


def _without_axis(walk: StreamingWalk, tensor: str, axis: int) -> str:
    """Return a tensor without its axis of one timestep; the one that got the axis before, if there is one."""
    axes = walk.graph.ints([axis])
    for maker in reversed(walk.graph.nodes):
        if tensor in maker.output:
            if maker.op_type == "Unsqueeze" and maker.input[1] == axes:
                return str(maker.input[0])
            break
    return walk.graph.op("Squeeze", tensor, axes)


def _with_axis(walk: StreamingWalk, tensor: str, axis: int, name: str) -> str:
    """Return what a body collects with its axis of one timestep, as the tensor of an output; empty: not used."""
    if not name:
        return ""
    walk.graph.add("Unsqueeze", [tensor, walk.graph.ints([axis])], [fresh := walk.fresh(name)])
    return fresh


# ---------------------------------------------------------------- what is carried, and what is not


def _carried(walk: StreamingWalk, loop: _Loop, fixed: Collection[int]) -> tuple[list[str], dict[int, Carried]]:
    """Declare states for what a loop carries, but for what is `fixed`; return what a turn takes, and the states."""
    given, states = [], dict[int, Carried]()
    own = f"{shared_name(loop.node.name)}."
    for place, name in enumerate(loop.first):
        if place in fixed:
            given.append(walk.operand(name, loop.offset, loop.node))
            continue
        called = loop.called(place)
        label = plain(called.removeprefix(own)) if called.startswith(own) else f"state_{place}"
        dims = walk.facts.dims(loop.node.output[place] or name)
        states[place] = carried(walk, loop.node, label, dims, given=name, offset=loop.offset)
        given.append(states[place].tensor)
    return given, states


def _give_carried(
    walk: StreamingWalk, loop: _Loop, states: Mapping[int, Carried], made: Sequence[str], source: str
) -> None:
    """Set what the states become, and the outputs with what is carried at the end; `source` is what ends then."""
    for place, given in enumerate(loop.first):
        name = loop.node.output[place]
        if place in states:
            hand_on(walk, states[place], made[place], loop.offset)
        if name and place not in states:
            walk.tensors[name] = walk.tensors[given]
        elif name and source:
            give_final(walk, loop.node, name, made[place], source=source, offset=loop.offset)
        elif name:
            walk.set_at_end(loop.node, name, made[place])


def _unchanged(loop: _Loop) -> set[int]:
    """Return the places of what a loop hands on as it is, as exporters do with weights."""
    makers = {node.output[0]: node.input[0] for node in loop.body.node if node.op_type == "Identity"}
    unchanged = set()
    for place in range(len(loop.first)):
        given, out = loop.called(place), loop.body.output[loop.begin[1] + place].name
        while out != given and out in makers:
            out = makers[out]
        unchanged |= {place} if out == given else set()
    return unchanged


def _check_outside(walk: StreamingWalk, loop: _Loop, unchanged: Collection[int], *, picks: bool) -> None:
    """Refuse a loop that takes a tensor from outside of which a step has one timestep, or none.

    Args:
        walk: The walk.
        loop: The loop.
        unchanged: Places of what it hands on as it is.
        picks: Whether its nodes pick a timestep each turn.

    Raises:
        RefusedModelError: It does.
    """
    outside = {name: name for name in captures(loop.node)} | {loop.first[at]: loop.called(at) for at in unchanged}
    for name, called in outside.items():
        if isinstance(walk.tensors[name], AtEnd):
            raise walk.refuse(
                loop.node, f"needs {name!r}, which is known after the last timestep only, at every timestep"
            )
        is_used = any(called in uses(user) and user.op_type not in _SIZES for user in loop.body.node)
        if walk.timed(loop.node, [name]) and is_used and not picks:
            raise walk.refuse(loop.node, f"takes all timesteps of {name!r} at every timestep")


def _axes(walk: StreamingWalk, names: Sequence[str], axes: Sequence[int]) -> list[int]:
    """Return axes counted from the front."""
    ranks = [len(walk.facts.dims(name)) if name else 1 for name in names]
    return [axis % rank for axis, rank in zip(axes, ranks, strict=True)]


def _over_time(walk: StreamingWalk, name: str, axis: int) -> bool:
    return isinstance(walk.tensors[name], PerStep | ByPosition | Known) and walk.facts.time_axis(name) == axis


def _stays(walk: StreamingWalk, given: str, out: str) -> bool:
    """Whether a carried tensor starts anew at every step: it collects, counts, or decides whether to go on."""
    value = walk.facts.value(given)
    if isinstance(value, list) or value is None or walk.facts.time_axis(out or given) is not None:
        return True
    if value.dtype.kind == "f" or value.size != 1:
        return False
    if value.dtype.kind == "b":
        return True
    grown = walk.facts.affine(walk.facts.values(out))[2] if out else np.array([True])
    return walk.known(given) is not None and bool(grown.all())
