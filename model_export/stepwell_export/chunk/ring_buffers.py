r"""Past timesteps in front of the new one, for all timesteps of a chunk: a ring buffer needs no loop.

A state that is the end of (itself, then something new) holds the last timesteps. Over a chunk that is one long
tensor, the state and all that is new behind it, of which each timestep sees its own part.

Before and after:

    past (B, 2, 4)   x (B, 1, 4)           past (B, 2, 4)   x (B, T, 4)
             \       /                              \       /
              Concat: (B, 3, 4)       ->             Concat: (B, T + 2, 4) -> its last two: past
                | f                                   | Gather (B T, 3, 4): elements t to t + 2 for each t
             y (B, 5)                               f: y (B T, 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from stepwell_export.chunk.analysis import Loop
from stepwell_export.chunk.branch import LENGTHS, ChunkBuilder

if TYPE_CHECKING:
    from stepwell_export.chunk.vectorize import Vectorizer

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
    builder.windows[join.output[0]] = Window(long, axis, past, new, joined.row)
    for name in builder.reading.wanted_outside(loop):
        if name == state:
            builder.set_flat(name, Window(long, axis, past, new, joined.row).taps(emitter, np.arange(past)))
        elif name != join.output[0]:
            builder.set_flat(name, Window(long, axis, past, new, joined.row).taps(emitter, np.arange(new, past + new)))
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
