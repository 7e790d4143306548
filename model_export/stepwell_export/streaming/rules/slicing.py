"""Nodes that move, lengthen or cut the time axis: padding, slices, concatenation, the last timestep.

Before and after:

    Pad in front by n        ->  nothing: element t of the step graph is element t + n of the tensor
    Slice [n:]               ->  nothing: t + n becomes t
    Slice [:-n]              ->  past (B, n, 4), joined to x: what was n timesteps before
    Slice [-n:], x[:, -1]    ->  past (B, n - 1, 4), joined to x: the window that ends here
    Concat (zeros, x)        ->  as Pad; Where before timestep n, if it is no zeros
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.rules.reductions import is_whole
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.walk import (
    BACKWARDS_FIX,
    LIMIT_FIX,
    AtEnd,
    Beginning,
    Known,
    PaddedSamples,
    PerStep,
    Refused,
    Static,
    StreamingWalk,
)

_END = 2**31 - 1
_WHOLE = "Pad and cut whole timesteps."
EARLY_FIX = (
    "Keep such values as inputs of their own. If the exporter unrolled a loop over time, export with a dynamic time "
    "axis, or give the module itself to `stepwell export`."
)


def pad(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Pad: in front of the sequence it moves time on, behind it, it matters only if it is not cut off again."""
    name, out = node.input[0], node.output[0]
    axis = walk.facts.time_axis(name)
    pads = _pads(walk, node, name)
    if axis is None or not walk.timed(node, [name]) or pads is None:
        pointwise(walk, node)
        return
    rank = len(pads) // 2
    left, right = pads[axis], pads[axis + rank]
    attrs = attributes(node)
    if not left and not right:
        pointwise(walk, node)
        return
    offset = walk.timed_offset(name)
    mode, each = attrs.get("mode", "constant"), walk.facts.samples(name)
    repeats_first = mode == "edge" and left > 0 and offset == 0 and each == 1
    if mode != "constant" and left > 0 and not repeats_first:
        what = "timestep" if each == 1 else "sample"
        raise walk.refuse(
            node, f"pads {left} {what}(s) in front with values of the sequence ({mode})", "Pad with zeros."
        )
    others = list(pads)
    others[axis] = others[axis + rank] = 0
    fill = _fill(walk, node)
    if left % each:
        error = walk.refuse(node, f"pads {left} sample(s) in front; a timestep has {each}", _WHOLE)
        is_padded = left > 0 and not any(others) and not fill
        walk.tensors[out] = PaddedSamples(error=error, padded=name, count=left) if is_padded else Refused(error=error)
        return
    left //= each
    step = walk.operand(name, offset)
    if left > 0:
        step = walk.started(step, name, offset, fill)
    if any(others):
        step = _padded(walk, node, step, others, fill)
    walk.set_per_step(node, out, step, offset + left, repeats_first=repeats_first)


def slice_(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Slice: off the front it moves time, off the end it is a delay; the last timesteps are a window."""
    name = node.input[0]
    axis = walk.facts.time_axis(name)
    cuts = _cuts(walk, node)
    if cuts is None or axis is None or axis not in cuts or not walk.timed(node, [name]):
        pointwise(walk, node)
        return
    parts = [
        slice(start, end, step).indices(value.shape[axis])
        for value, (start, end, step) in zip(walk.facts.values(name), cuts[axis], strict=True)
    ]
    sizes = [value.shape[axis] for value in walk.facts.values(name)]
    each = walk.facts.samples(name)
    start, _, step = parts[0]
    if each > 1 and (start % each or walk.facts.time_axis(node.output[0]) is None):
        raise walk.refuse(node, f"cuts a timestep of {each} samples", _WHOLE)
    start //= each
    if step < 0:
        raise walk.refuse(node, "reads the sequence backwards, from its last timestep to its first", BACKWARDS_FIX)
    if step > 1:
        raise walk.refuse(node, f"takes every {step}th timestep only: a stride over time")
    offset = walk.timed_offset(name)
    rest = {other: cut for other, cut in cuts.items() if other != axis}
    if len({part[0] for part in parts}) == 1 and walk.facts.time_axis(node.output[0]) is not None:
        step_tensor = _sliced(walk, node, walk.operand(name, offset), rest)
        tensor = walk.tensors[name]
        repeats_first = isinstance(tensor, PerStep) and tensor.repeats_first and offset > start
        walk.set_per_step(node, node.output[0], step_tensor, offset - start, repeats_first=repeats_first)
        return
    back = {size - part[1] for size, part in zip(sizes, parts, strict=True)}
    length = {part[1] - part[0] for part in parts}
    if len(back) > 1 or len(length) > 1:
        if not start and length == {1} and is_whole(walk, name):
            _set_first(walk, node, _sliced(walk, node, walk.operand(name, 0), rest))
            return
        stands_before = len(length) == 1 and start + max(length) <= offset and not rest
        if stands_before and walk.before_start(name, start, max(length), made_of=[name]) is not None:
            walk.tensors[node.output[0]] = Known()  # the same in front of every sequence
            walk.facts.settle(node.output[0])
            return
        front = walk.operand(name, 0) if not start and not offset and not rest else ""
        error = _early(walk, node)
        walk.tensors[node.output[0]] = Beginning(front, error=error) if front else Refused(error=error)
        return
    set_last_output(walk, node, back.pop(), length.pop(), rest)


def set_last_output(walk: StreamingWalk, node: onnx.NodeProto, back: int, length: int, rest: dict[int, Any]) -> None:
    """Give the last `length` timesteps but `back`, as they are after every timestep."""
    name = node.input[0]
    step, delay = walk.aligned(name, back)
    if length > 1:
        window = walk.window(name, length - 1 + delay)
        places = walk.graph.ints(list(range(length)))
        step = walk.graph.op("Gather", window, places, axis=walk.facts.time_axis(name))
    step = _sliced(walk, node, step, rest)
    if length > 1:
        offset, axis = walk.facts.length_delta(name) - back, walk.facts.time_axis(name)
        walk.tensors[node.output[0]] = AtEnd(step, window=length, offset=offset, keys=axis)
    else:
        walk.set_at_end(node, node.output[0], step)


def gather(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Gather of the last timestep: a head; of any other thing: as it is."""
    name, places = node.input[0], node.input[1]
    data = walk.facts.value(name)
    axis = int(attributes(node).get("axis", 0)) % max(np.ndim(data), 1)
    if walk.facts.time_axis(name) != axis or not walk.timed(node, [name]):
        pointwise(walk, node)
        return
    known = walk.known(places)
    if known is None:
        raise walk.refuse(node, "picks timesteps by values that are computed on the way")
    if not walk.facts.depends(places).is_even:
        raise walk.refuse(node, "picks timesteps by their number up to a limit only", LIMIT_FIX)
    backs = {
        value.shape[axis] - int(place.reshape(-1)[0]) % value.shape[axis]
        for value, place in zip(walk.facts.values(name), known, strict=True)
    }
    if known[0].size == 1 and len(backs) > 1 and not any(place.any() for place in known) and is_whole(walk, name):
        zero = walk.graph.constant(np.zeros_like(known[0]))
        _set_first(walk, node, walk.graph.op("Gather", walk.operand(name, 0), zero, axis=axis))
        return
    if known[0].size != 1 or len(backs) > 1:
        raise _early(walk, node)
    step, _ = walk.aligned(name, backs.pop() - 1)
    first = walk.graph.constant(np.zeros_like(known[0]))
    walk.set_at_end(node, node.output[0], walk.graph.op("Gather", step, first, axis=axis))


def concat(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Concat over time: constants in front are padding, behind too; over another axis it is plain."""
    out = node.output[0]
    axis = int(attributes(node)["axis"]) % len(walk.facts.dims(out))
    timed = walk.timed(node)
    if not timed or walk.facts.time_axis(out) != axis:
        pointwise(walk, node)
        return
    walk.need(*(name for name in node.input[1:]))
    long = [name for name in node.input if walk.facts.dims(name)[axis].has_time]
    if len(long) != 1:
        raise walk.refuse(node, f"puts {len(long)} sequences one behind the other in time")
    place = list(node.input).index(long[0])
    front = sum(walk.facts.value(name).shape[axis] for name in node.input[:place])
    offset = walk.timed_offset(long[0])
    each = walk.facts.samples(long[0])
    if front % each:
        raise walk.refuse(node, f"puts {front} sample(s) in front; a timestep has {each}", _WHOLE)
    front //= each
    step = walk.operand(long[0], offset)
    first = walk.tensors[node.input[0]]
    if isinstance(first, Beginning) or (isinstance(first, Static) and first.is_first):
        _rejoin(walk, node, step, offset, front)
        return
    if front and any(isinstance(walk.tensors[name], PerStep | AtEnd) for name in node.input[:place]):
        raise walk.refuse(node, "puts a part of the sequence in front of it")
    if front and offset < 0:
        before = walk.before_start(out, 0, front, made_of=node.input[:place])
        if before is None or not np.array_equal(before, np.broadcast_to(before.take([0], axis), before.shape)):
            raise walk.refuse(node, "puts different values in front of a sequence that was cut in front")
        step = walk.graph.op(
            "Where",
            walk.has_seen(-offset, walk.facts.dims(long[0])),
            step,
            walk.graph.constant(before.take([0], axis)),
        )
    walk.set_per_step(node, out, step, offset + front)


def _rejoin(walk: StreamingWalk, node: onnx.NodeProto, step: str, offset: int, front: int) -> None:
    """Put the beginning of the sequence in front of what follows from it.

    Either each timestep of the beginning is its own answer and the rest begins behind it, as with differences; or
    the first is repeated in front of the sequence, as padding with its edge.
    """
    out, axis = node.output[0], walk.facts.time_axis(node.output[0])
    assert axis is not None
    if offset == -front:
        begun = walk.has_seen(front, walk.facts.dims(out))
        walk.set_per_step(node, out, walk.graph.op("Where", begun, step, walk.tensors[node.input[0]].step), 0)
        return
    values = walk.facts.values(out)
    repeats = all((value.take(range(front), axis) == value.take([front], axis)).all() for value in values)
    if offset or not repeats:
        raise _early(walk, node)
    walk.set_per_step(node, out, step, front, repeats_first=True)


def split(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Split; over time it cuts the sequence into pieces, which a step cannot."""
    axis = int(attributes(node).get("axis", 0)) % len(walk.facts.dims(node.input[0]))
    if walk.timed(node) and walk.facts.time_axis(node.input[0]) == axis:
        raise walk.refuse(node, "cuts the sequence into pieces along the time axis")
    pointwise(walk, node)


def _set_first(walk: StreamingWalk, node: onnx.NodeProto, now: str) -> None:
    """Keep the first timestep as a state; `now` is the same part of this timestep."""
    name = node.output[0]
    dims = walk.facts.dims(name)
    state, spec = walk.graph.state_like(f"{plain(node.name)}.first", dims, walk.dtype(name), None)
    first = walk.graph.op("Where", walk.has_seen(1, dims), state, now)
    walk.graph.next_state_like(spec, first, dims)
    walk.tensors[name] = Static(first, is_first=True)


def _early(walk: StreamingWalk, node: onnx.NodeProto) -> RefusedModelError:
    return walk.refuse(
        node,
        "takes timesteps at fixed places of the sequence, counted from its beginning, for all later ones",
        EARLY_FIX,
    )


def _pads(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return the padding of every axis in front, then behind; None where it is computed on the way."""
    rank = len(walk.facts.dims(name))
    known = walk.known(node.input[1])
    if known is None or any(not np.array_equal(value, known[0]) for value in known):
        return None
    given = [int(value) for value in known[0]]
    axes = walk.known(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if axes is None:
        return given
    pads = [0] * (2 * rank)
    for place, axis in enumerate(axes[0]):
        pads[int(axis) % rank], pads[int(axis) % rank + rank] = given[place], given[place + len(axes[0])]
    return pads


def _fill(walk: StreamingWalk, node: onnx.NodeProto) -> Any:
    if len(node.input) > 2 and node.input[2]:
        return walk.facts.value(node.input[2]).reshape(())
    return 0.0


def _padded(walk: StreamingWalk, node: onnx.NodeProto, step: str, pads: list[int], fill: Any) -> str:
    """Pad the other axes."""
    mode = attributes(node).get("mode", "constant")
    value = [walk.graph.constant(np.asarray(fill, walk.dtype(node.input[0])))] if mode == "constant" else []
    return walk.graph.op("Pad", step, walk.graph.ints(pads), *value, mode=mode)


def _cuts(walk: StreamingWalk, node: onnx.NodeProto) -> dict[int, list[tuple[int, int | None, int]]] | None:
    """Return start, end and step of every run, by axis; None where they are computed on the way."""
    rank = len(walk.facts.dims(node.input[0]))
    runs = len(walk.facts.values(node.input[0]))
    given = [walk.known(name) if name else None for name in node.input[1:]]
    if any(values is None for values, name in zip(given, node.input[1:], strict=True) if name):
        return None
    starts, ends = given[0], given[1]
    assert starts is not None
    assert ends is not None
    count = len(starts[0])
    axes = [int(axis) for axis in given[2][0]] if len(given) > 2 and given[2] is not None else list(range(count))
    steps = given[3] if len(given) > 3 and given[3] is not None else [np.ones(count, int)] * runs
    return {
        axis % rank: [(int(starts[r][i]), _end(ends[r][i], steps[r][i]), int(steps[r][i])) for r in range(runs)]
        for i, axis in enumerate(axes)
    }


def _end(end: Any, step: Any) -> int | None:
    """Return a slice's end as Python has it: None where it goes backwards past the beginning."""
    return None if step < 0 and end < -_END // 2 else int(end)


def _sliced(walk: StreamingWalk, node: onnx.NodeProto, step: str, cuts: dict[int, Any]) -> str:
    """Slice the other axes."""
    if not cuts:
        return step
    if any(len(set(cut)) > 1 for cut in cuts.values()):
        raise walk.refuse(node, "cuts the time axis and one whose size depends on the input")
    starts, ends, steps = zip(*(cut[0] for cut in cuts.values()), strict=True)
    places = [[-(2**62) if value is None else value for value in values] for values in (starts, ends)]
    parts = [*places, list(cuts), list(steps)]
    return walk.graph.op("Slice", step, *(walk.graph.ints(values) for values in parts))
