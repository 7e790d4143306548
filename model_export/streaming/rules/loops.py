"""Scan and Loop over time: the nodes of their body on one timestep, with what they carry as states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from model_export.graph.described import shared_name
from model_export.graph.nodes import attributes, captures, mapped, renamed, subgraphs, uses
from model_export.streaming.rules.elementwise import pointwise
from model_export.streaming.rules.recurrent import Carried, carried, check_lengths, first_offset, give_final, hand_on
from model_export.streaming.step_graph import plain
from model_export.streaming.walk import StreamingWalk

_SIZES = {"Shape", "Size"}


def scan(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Scan over time: its body, with what it carries as states.

    Raises:
        RefusedModelError: It runs backwards, or each turn takes more than its own timestep.
    """
    attrs, body = attributes(node), next(subgraphs(node))
    old = walk.opset < 9  # with a batch axis, and the lengths as its first input
    count = int(attrs["num_scan_inputs"])
    first, scanned = list(node.input[old : len(node.input) - count]), list(node.input[len(node.input) - count :])
    axes = _axes(walk, scanned, attrs.get("scan_input_axes") or [int(old)] * count)
    if not any(_over_time(walk, name, axis) for name, axis in zip(scanned, axes, strict=True)):
        pointwise(walk, node)
        return
    backwards = attrs.get("directions" if old else "scan_input_directions") or [0]
    if any(backwards) or any(attrs.get("scan_output_directions") or [0]):
        raise walk.refuse(node, "runs backwards over time")
    if old:
        check_lengths(walk, node, node.input[0], scanned[0])
    _check_captures(walk, node, body)
    timed = walk.timed(node, scanned)
    offset = first_offset(walk, timed)
    given, states = [], dict[int, Carried]()
    for place, name in enumerate(first):
        if _unchanged(body, body.input[place].name, body.output[place].name):
            given.append(walk.operand(name, offset, node))
            continue
        label = _label(node, body.input[place].name, place)
        dims = walk.facts.dims(node.output[place] or name)
        states[place] = carried(walk, node, label, dims, given=name, offset=offset)
        given.append(states[place].tensor)
    if old:
        made = _turn_of_old(walk, node, given, offset)
    else:
        elements = [walk.operand(name, offset, node) for name in scanned]
        given += [_without_axis(walk, element, axis) for element, axis in zip(elements, axes, strict=True)]
        made = _turn(walk, node, body, given, offset)
    for place, (name, step) in enumerate(zip(node.output, made, strict=True)):
        if place in states:
            hand_on(walk, states[place], step, offset)
            give_final(walk, node, name, step, source=(timed or scanned)[0], offset=offset)
        elif place < len(first) and name:
            walk.set_output(node, name, step, "static")
    names = list(node.output[len(first) :])
    collected = made[len(first) :]
    if not old:
        axes = _axes(walk, names, attrs.get("scan_output_axes") or [0] * len(names))
        collected = [_with_axis(walk, *each) for each in zip(collected, axes, names, strict=True)]
    for name, step in zip(names, collected, strict=True):
        if name:
            walk.set_output(node, name, step, "per_step", offset)


def loop(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Loop over time: its body; what it carries is a state, but for counters and what it collects.

    Raises:
        RefusedModelError: It begins after the first timestep, or takes what is known after the last one.
    """
    if not turns_with_time(walk, node):
        pointwise(walk, node)
        return
    timed, body = walk.timed(node), next(subgraphs(node))
    if first_offset(walk, timed) != 0:
        raise walk.refuse(node, "runs over a sequence that was cut in front")
    _check_captures(walk, node)
    first = list(node.input[2:])
    given = [walk.graph.constant(np.int64(0)), walk.graph.constant(np.bool_(True))]  # number of the turn, to go on
    states = dict[int, Carried]()
    for place, name in enumerate(first):
        value, out = body.input[2 + place].name, node.output[place]
        if _unchanged(body, value, body.output[1 + place].name) or _stays(walk, name, out):
            given.append(walk.operand(name, 0, node))
            continue
        dims = walk.facts.dims(out or name)
        states[place] = carried(walk, node, _label(node, value, place), dims, given=name, offset=0)
        given.append(states[place].tensor)
    made = _turn(walk, node, body, given, 0)[1:]
    for place, (name, step) in enumerate(zip(node.output, made, strict=True)):
        if place in states:
            hand_on(walk, states[place], step, 0)
            if name and timed:
                give_final(walk, node, name, step, source=timed[0], offset=0)
            elif name:
                walk.set_output(node, name, step, "final")
        elif place < len(first) and _unchanged(body, body.input[2 + place].name, body.output[1 + place].name):
            if name:
                walk.set_output(node, name, step, "static")
        elif name:
            _give_collected(walk, node, name, step if place < len(first) else _with_axis(walk, step, 0, name))


def turns_with_time(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether the number of turns of a Loop, or what it compares it with, is the number of timesteps."""
    for name in uses(node):
        known = walk.known(name)
        if known is None or isinstance(known[0], list) or known[0].dtype.kind not in "iu":
            continue
        if any(walk.facts.affine(known)[2].reshape(-1)):
            return True
    return False


# ---------------------------------------------------------------- one turn


def _turn(
    walk: StreamingWalk, node: onnx.NodeProto, body: onnx.GraphProto, given: Sequence[str], offset: int
) -> list[str]:
    """Emit the nodes of a body; return what it returns, in tensors of the step graph.

    Args:
        walk: The walk.
        node: The Scan or Loop.
        body: Its body.
        given: Tensors of the step graph for the inputs of the body.
        offset: The offset at which timed tensors from outside are taken.
    """
    names = {value.name: step for value, step in zip(body.input, given, strict=True)}
    names |= {name: walk.operand(name, offset, node) for name in captures(node)}
    for tensor in body.initializer:
        own = onnx.TensorProto()
        own.CopyFrom(tensor)
        own.name = names[tensor.name] = walk.graph.unique(_inside(node, tensor.name))
        walk.graph.keep(own)
    for inner in body.node:
        names |= {name: walk.graph.unique(_inside(node, name)) for name in inner.output if name}
        walk.graph.nodes.append(renamed(inner, mapped(names)))
    return [names[value.name] for value in body.output]


def _turn_of_old(walk: StreamingWalk, node: onnx.NodeProto, given: Sequence[str], offset: int) -> list[str]:
    """Emit a Scan of opset 8, whose body has no batch axis, with one turn."""
    made = walk.emit_like(node, offset)
    made.input[: 1 + len(given)] = ["", *given]
    made.output[:] = [name or walk.graph.unique(_inside(node, "unused")) for name in made.output]
    return list(made.output)


def _inside(node: onnx.NodeProto, name: str) -> str:
    """Return what a tensor of a body is called in the step graph."""
    return name if name.startswith(f"{node.name}/") else f"{node.name}/{name}"


def _without_axis(walk: StreamingWalk, tensor: str, axis: int) -> str:
    """Return a tensor without its axis of one timestep; the one that got the axis a moment ago, if there is one."""
    inputs, attrs = _axis_operand(walk, axis)
    maker = next((made for made in reversed(walk.graph.nodes) if tensor in made.output), None)
    is_added = maker is not None and maker.op_type == "Unsqueeze" and list(maker.input[1:]) == inputs
    if is_added and attributes(maker) == attrs:
        return str(maker.input[0])
    return walk.graph.op("Squeeze", tensor, *inputs, **attrs)


def _with_axis(walk: StreamingWalk, tensor: str, axis: int, name: str) -> str:
    """Return what a body collects with its axis of one timestep, as the tensor of an output; empty: not used."""
    if not name:
        return ""
    inputs, attrs = _axis_operand(walk, axis)
    walk.graph.add("Unsqueeze", [tensor, *inputs], [fresh := walk.fresh(name)], **attrs)
    return fresh


def _axis_operand(walk: StreamingWalk, axis: int) -> tuple[list[str], dict[str, list[int]]]:
    """Return an axis as Squeeze and Unsqueeze take it: as an input, before opset 13 as an attribute."""
    return ([], {"axes": [axis]}) if walk.opset < 13 else ([walk.graph.ints([axis])], {})


# ---------------------------------------------------------------- what is carried, and what is not


def _label(node: onnx.NodeProto, name: str, place: int) -> str:
    """Return what a state is called behind the node's name: as the body calls it, if it begins with that name."""
    own = f"{shared_name(node.name)}."
    return plain(name.removeprefix(own)) if name.startswith(own) else f"state_{place}"


def _check_captures(walk: StreamingWalk, node: onnx.NodeProto, body: onnx.GraphProto | None = None) -> None:
    """Refuse a body that takes a tensor from outside of which a step has one timestep, or none.

    Args:
        walk: The walk.
        node: The Scan or Loop.
        body: Its body, where no node of it picks a timestep of such a tensor.

    Raises:
        RefusedModelError: It does.
    """
    for name in captures(node):
        if walk.tensors[name].kind == "final":
            raise walk.refuse(node, f"needs {name!r}, which is known after the last timestep only, at every timestep")
        users = [inner for inner in body.node if name in uses(inner)] if body is not None else []
        if walk.timed(node, [name]) and any(inner.op_type not in _SIZES for inner in users):
            raise walk.refuse(node, f"takes all timesteps of {name!r} at every timestep")


def _axes(walk: StreamingWalk, names: Sequence[str], axes: Sequence[int]) -> list[int]:
    """Return axes counted from the front."""
    ranks = [len(walk.facts.dims(name)) if name else 1 for name in names]
    return [axis % rank for axis, rank in zip(axes, ranks, strict=True)]


def _over_time(walk: StreamingWalk, name: str, axis: int) -> bool:
    return walk.tensors[name].kind in {"per_step", "by_position", "constant"} and walk.facts.time_axis(name) == axis


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


def _unchanged(body: onnx.GraphProto, given: str, out: str) -> bool:
    """Whether a loop hands a tensor on as it is, as exporters do with weights."""
    makers = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    while out != given and out in makers:
        out = makers[out]
    return out == given


def _give_collected(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str) -> None:
    sequence = isinstance(walk.facts.value(name), list)
    over_time = sequence or walk.facts.time_axis(name) is not None
    walk.set_output(node, name, step, "per_step" if over_time else "final", 0 if over_time else None)
