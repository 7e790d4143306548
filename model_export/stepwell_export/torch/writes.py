"""`Writes`: what a module writes into a tensor, `out[:, t] = h`, as a tensor that is made of the parts.

Torch's exporter makes a scatter of each write, and each reads the one before. Joined parts are a loop that gives one
part for each timestep, and a ring buffer of which the newest part is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass(slots=True)
class _Written:
    """A tensor that was written into.

    Attributes:
        given: The tensor; kept, since it is known by its address.
        before: What it held before the parts.
        axis: Where the parts stand.
        parts: By place on that axis, without it.
        made: What it holds now; None: the parts are not joined yet.
    """

    given: Tensor
    before: Tensor
    axis: int = 0
    parts: dict[int, Tensor] = field(default_factory=dict)
    made: Tensor | None = None

    def now(self) -> Tensor:
        """Return what the tensor holds."""
        if self.made is None:
            self.made = self.joined(0, int(self.before.shape[self.axis]))
        return self.made

    def joined(self, at: int, end: int) -> Tensor:
        """Return what the tensor holds from one place to another."""
        pieces = list[Tensor]()
        while at < end:
            if at in self.parts:
                pieces.append(self.parts[at].unsqueeze(self.axis))
                at += 1
                continue
            until = min((place for place in self.parts if at < place < end), default=end)
            pieces.append(self.before.narrow(self.axis, at, until - at))
            at = until
        return torch.cat(pieces, self.axis)


class Writes:
    """The tensors that were written into in a run."""

    def __init__(self) -> None:
        self._written: dict[int, _Written] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of torch with what its tensors hold by now; `NotImplemented`: it is no write."""
        if func is torch.Tensor.__setitem__ and self._write(*args):
            return None
        if func is torch.Tensor.copy_ and len(args) == 2 and not kwargs and isinstance(args[1], Tensor):
            target, value = args[0], self.now(args[1])
            if self._is_known(target):
                held = self.now(target)
                made = value.to(held.dtype) if value.shape == held.shape else value.to(held.dtype).expand(held.shape)
                self._written[id(target)] = _Written(target, made.clone(), made=made.clone())
                return target
        if func is torch.Tensor.__getitem__ and self._written and (one := self._written.get(id(args[0]))) is not None:
            axis, at = _place(args[1], one.given) or (None, None)
            if axis == one.axis and isinstance(at, slice) and (span := at.indices(int(one.given.shape[axis])))[2] == 1:
                if one.parts and span[0] < span[1]:
                    return one.joined(*span[:2])
            elif axis == one.axis and at in one.parts:
                return one.parts[at].clone()
        return NotImplemented

    def now(self, values: Any) -> Any:
        """Return what the tensors in any structure hold by now."""
        if not self._written:
            return values
        return tree_map_only(Tensor, self._held, values)

    def _held(self, value: Tensor) -> Tensor:
        one = self._written.get(id(value))
        return value if one is None else one.now()

    def _is_known(self, target: Any) -> bool:
        return isinstance(target, Tensor) and (id(target) in self._written or not target._is_view())

    def _write(self, target: Tensor, index: Any, value: Any) -> bool:
        """Note a part; False: the index is none of a whole part, or the tensor is part of another one."""
        axis, at = _place(index, target) or (0, None)
        if at is None or not self._is_known(target):
            return False
        if isinstance(at, slice):
            return self._write_span(target, axis, at, value)
        one = self._written.setdefault(id(target), _Written(target, target))
        if one.axis != axis and one.parts:
            one.before, one.parts = one.now(), {}
        elif one.made is not None and not one.parts:
            one.before = one.made
        one.axis, one.made = axis, None
        like = one.before.select(axis, at)
        part = self.now(value)
        part = part.to(like.dtype) if isinstance(part, Tensor) else torch.full_like(like, part)
        one.parts[at] = part.clone() if part.shape == like.shape else part.expand(like.shape).clone()
        return True

    def _write_span(self, target: Tensor, axis: int, places: slice, value: Any) -> bool:
        """Note what several places in a row hold; False: they are not in a row."""
        size = int(target.shape[axis])
        start, end, step = places.indices(size)
        if step != 1 or end <= start:
            return False
        held = self.now(target)
        like = held.narrow(axis, start, end - start)
        part = self.now(value)
        part = part.to(like.dtype).expand(like.shape) if isinstance(part, Tensor) else torch.full_like(like, part)
        pieces = [held.narrow(axis, 0, start)] if start else []
        pieces += [part] + ([held.narrow(axis, end, size - end)] if end < size else [])
        made = torch.cat(pieces, axis) if len(pieces) > 1 else part.clone()
        self._written[id(target)] = _Written(target, made, made=made)
        return True


def _place(index: Any, target: Tensor) -> tuple[int, int | slice] | None:
    """Return the axis and the place, or the places, of an index that chooses on one axis; None for another."""
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        at = next(n for n, part in enumerate(parts) if part is Ellipsis)
        whole = (slice(None),) * (target.dim() - len(parts) + 1)
        parts = (*parts[:at], *whole, *parts[at + 1 :])
    taken = [(axis, part) for axis, part in enumerate(parts) if not (isinstance(part, slice) and part == slice(None))]
    if len(taken) != 1:
        return None
    axis, at = taken[0]
    if isinstance(at, slice):
        return axis, at
    if type(at) is not int:
        return None
    size = int(target.shape[axis])
    return (axis, at % size) if -size <= at < size else None
