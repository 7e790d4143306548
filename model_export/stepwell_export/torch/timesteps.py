"""`check_timesteps`: shows by a module's operations that its recurrent layers alone mix timesteps.

By its layers, a module runs on one timestep, where a maximum over time, a peek at the next value or a table of
positions is nothing, and random sequences need not show it. So the module runs once on whole sequences, and beside each
number goes a mask: one bit for each timestep that the number depends on, and one for what is not the same at every
timestep. A mask is exact for operations that move numbers, for those element by element and for the usual ones along
axes; of any other operation each answer depends on all of its operands. What a stepped layer gives is a number of its
own timestep, and what it goes on from must be, unchanged, what it gave at the timestep before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.axis_inference import ROWS, Sequences
from stepwell_export.torch.capture import FILLS, MOVES, Capture, CapturedTensor, named, plain
from stepwell_export.torch.cells import CellAdapter, States, in_order, stepping
from stepwell_export.torch.checks import HOW_TO_WRITE_IT
from stepwell_export.torch.layers import StepLayer
from stepwell_export.torch.naming import flatten

_PLACES = 1 << 62
"""The bit of what is not the same at every timestep: a table of positions, a number of timesteps."""

_REDUCES = {
    "all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp", "max", "mean", "median", "min",
    "nansum", "norm", "prod", "std", "sum", "var",
}  # fmt: skip
"""Operations that put the numbers along some axes together."""
_ALONG = {"_log_softmax", "_softmax", "cummax", "cummin", "cumprod", "cumsum", "logcumsumexp", "sort"}
"""Operations that give as many numbers along an axis as they take, each of all of them."""
_BATCH_NORMS = {"_native_batch_norm_legit_no_training", "native_batch_norm"}
_BY_ROW = {
    "_adaptive_avg_pool2d", "_scaled_dot_product_flash_attention_for_cpu", "avg_pool2d", "convolution", "glu",
    "max_pool2d_with_indices", "native_group_norm", "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
"""Operations on each row of the first axis by itself."""


def check_timesteps(whole: Sequences) -> list[str]:
    """Check that nothing in a module but its recurrent layers mixes timesteps, and that these carry what they give.

    Returns:
        The paths of the layers that one timestep calls, in their order.

    Raises:
        RefusedModelError: Something does, or may.
    """
    short, length = whole.lengths
    if 1 << length >= _PLACES:
        raise _mixed(f"The module takes no sequence of fewer than {length} timesteps")
    seen: set[Any] = set()
    if not whole.only_length:
        before = _Timesteps(whole, short, None)
        before.outputs()
        seen = before.seen
    run = _Timesteps(whole, length, None if whole.only_length else seen)
    found = run.outputs()
    for one, value in zip(whole.outputs, found, strict=True):
        _check_output(one.called, one.from_module(run.times(value), length), length, has_time=one.time is not None)
    first, *others = [[path for path, _ in calls] for calls in run.calls]
    if any(paths != first for paths in others):
        raise _mixed("A recurrent layer is called at some timesteps only")
    return first


def _check_output(called: str, times: Tensor, length: int, *, has_time: bool) -> None:
    for t in range(length) if has_time else [length - 1]:
        found = _any(times[:, t] if has_time else times)
        if found & ~(1 << t):
            raise _mixed(f"{called} {_depends(found & ~(1 << t))}")


def _depends(times: int) -> str:
    if times == _PLACES:
        return "depends on the position of the timestep, or on their number"
    return "depends on more of the past than the recurrent layers carry"


def _mixed(problem: str) -> RefusedModelError:
    return RefusedModelError(f"{problem}.", fix=HOW_TO_WRITE_IT)


class _Timesteps(Capture):
    """A run over whole sequences, with a mask of timesteps beside each number.

    Attributes:
        calls: By timestep, the layers that were called for it: their paths, and the states that they gave.
        seen: Constants, and numbers in operations.
    """

    def __init__(self, whole: Sequences, length: int, known: set[Any] | None) -> None:
        """Prepare a run.

        Args:
            whole: The module.
            length: Timesteps of the run.
            known: Constants and numbers of a shorter run; others depend on the position. None: they are not known.
        """
        super().__init__()
        self.seen: set[Any] = set()
        self.calls: list[list[tuple[str, States]]] = [[] for _ in range(length)]
        self._whole = whole
        self._length = length
        self._known = known
        self._computed: dict[int, Any] = {}
        self._inputs = 0

    def outputs(self) -> list[Tensor]:
        """Run the module; return its outputs in its own axes."""
        whole = self._whole
        drawn = whole.draw.tensors(0, ROWS, self._length)
        values = [one.to_module(value) for one, value in zip(whole.inputs, drawn, strict=True)]
        return [value for _, value in flatten(self.run(whole.module, values))]

    def input(self, value: Tensor) -> CapturedTensor:
        """Return an input of the run, each of its numbers of its own timestep."""
        one = self._whole.inputs[self._inputs]
        self._inputs += 1
        made: CapturedTensor = super().input(value)
        with self.aside():
            still = torch.zeros(value.shape, dtype=torch.int64)
            times = still if one.time is None else _at_its_timestep(value.shape, one.time, self._length)
            made.times = _laid_out(times, value)
        return made

    def times(self, value: Tensor) -> Tensor:
        """Return the masks of a tensor."""
        found = getattr(value, "times", None)
        return torch.zeros((), dtype=torch.int64).expand(value.shape) if found is None else found

    def layers_of(self, module: Any) -> Mapping[Any, Callable[..., Any]]:
        """Return what answers for each recurrent layer; parts of a `StepLayer` are its own affair."""
        own = tuple(f"{path}." for path, part in module.named_modules() if isinstance(part, StepLayer))
        return {
            layer: partial(self._layer, how, path, layer)
            for path, layer in module.named_modules()
            if (how := stepping(layer)) and not path.startswith(own)
        }

    # ---------------------------------------------------------------- operations

    def follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        """Give masks to what an operation has made or changed."""
        with self.aside():
            name = named(func)
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            outs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
            moves = name in MOVES and not any(self.depends(place) for place in _indices(name, args))
            found = self._moved(func, name, args, kwargs) if moves else self._times(func, name, args, kwargs, outs)
            places = self._places(func, args, kwargs, outs)
            for out, times in zip(outs, found, strict=True):
                if isinstance(
                    out, CapturedTensor
                ):  # no tensor of the module's own: nothing of an input is written to those
                    self._set(
                        out, times | places if places else times, in_place=any(out is one for one in given), moves=moves
                    )
            if not (moves or name in FILLS) or any(map(self._is_computed, given)):
                for out in outs:
                    self._keep(self._computed, plain(out))

    def _set(self, out: Any, times: Tensor, *, in_place: bool, moves: bool) -> None:
        """Give masks to a tensor; those of one that is changed in place are changed in place, too."""
        if not in_place:
            out.times = times if moves else _laid_out(times, out)
        elif out.times.shape == out.shape and times is not out.times:
            out.times.copy_(times)
        elif out.times.shape != out.shape:
            raise self._refuse("The module changes a shape in place, which cannot be followed.", fix=HOW_TO_WRITE_IT)

    def _is_computed(self, value: Tensor) -> bool:
        inner = value.inner if isinstance(value, CapturedTensor) else value
        return inner.untyped_storage()._cdata in self._computed

    def _places(self, func: Any, args: Any, kwargs: Any, outs: Sequence[Any]) -> int:
        """Return the bit of positions where an operation computes with something that the shorter run had not."""
        key: list[Any]
        name = named(func)
        if name in FILLS:
            by_name = _by_name(func, args, kwargs)
            filled = [by_name.get(part) for part in ("fill_value", "value")]
            key = [(name, value) for value in filled if isinstance(value, int | float)]
            return self._unknown(key)
        leaves = tree_leaves((args, kwargs))
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, int | float))
        if any(self.depends(leaf) for leaf in leaves if isinstance(leaf, Tensor)):
            key = [] if name in MOVES else [(name, numbers)]
        elif len(outs) >= self._length:  # a table in pieces, of which each may be of one timestep
            return _PLACES
        else:
            key = [(name, numbers, tuple(out.shape), plain(out).contiguous().numpy().tobytes()) for out in outs]
        return self._unknown(key)

    def _unknown(self, key: Sequence[Any]) -> int:
        self.seen.update(key)
        return 0 if self._known is None or self._known.issuperset(key) else _PLACES

    def _moved(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the masks of an operation that moves numbers: it moves their masks likewise."""
        if name == "copy":
            return [self.times(args[1]).expand(self.times(args[0]).shape)]
        if name == "constant_pad_nd":
            return [func(self.times(args[0]), args[1], 0)]
        at = {id(place) for place in _indices(name, args)}
        masks, more = tree_map_only(
            Tensor, lambda value: plain(value) if id(value) in at else self.times(value), (tuple(args), dict(kwargs))
        )
        found = func(*masks, **more)
        return list(found) if isinstance(found, tuple | list) else [found]

    def _times(
        self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the masks of an operation that computes."""
        masks = [self.times(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "fill" and len(masks) > 1:
            return [masks[1].expand(outs[0].shape)]
        if name in FILLS or not masks:
            return [torch.zeros(out.shape, dtype=torch.int64) for out in outs]
        first = masks[0]
        shapes = [out.shape for out in outs]
        by_name = _by_name(func, args, kwargs)
        if (torch.Tag.pointwise in func.tags or name == "_to_copy") and "out" not in kwargs:
            both = functools.reduce(torch.bitwise_or, masks)
            return [both.expand(shape).clone() for shape in shapes]
        dim = by_name.get("dim")
        if name in _REDUCES and len(masks) == 1 and ("dim" in by_name or len(func._schema.arguments) == 1):
            axes = range(first.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
            return [_mix(first, axes).reshape(shape).clone() for shape in shapes]
        if name in _ALONG and isinstance(dim, int):
            return [_mix(first, [dim]).expand(shape).clone() for shape in shapes]
        if name == "native_layer_norm":
            mixed = _mix(first, range(-len(args[1]), 0))
            return [mixed.expand(shape).clone() for shape in shapes]
        if name in _BATCH_NORMS and by_name.get("training") is not True:
            return [first.clone(), *(torch.zeros(shape, dtype=torch.int64) for shape in shapes[1:])]
        if name == "embedding":
            return [masks[1][..., None].expand(shapes[0]).clone()]
        if name == "convolution" and _is_by_timestep(by_name) and not any(map(_any, masks[1:])):
            return [_mix(first, [1]).expand(shapes[0]).clone()]
        if name in _BY_ROW and all(shape[:1] == first.shape[:1] for shape in shapes):
            rows = [mask for mask in masks if mask.shape[:1] == first.shape[:1]]
            if not any(_any(mask) for mask in masks if mask.shape[:1] != first.shape[:1]):
                row = functools.reduce(torch.bitwise_or, [_mix(m, range(1, m.dim())).flatten() for m in rows])
                return [row.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone() for shape in shapes]
        if name in {"mm", "bmm", "addmm", "baddbmm", "mv", "linear"}:
            return [_product(name, masks).expand(shapes[0]).clone()]
        everything = functools.reduce(int.__or__, map(_any, masks), 0)
        return [torch.full(shape, everything, dtype=torch.int64) for shape in shapes]

    # ---------------------------------------------------------------- layers

    def _layer(self, how: CellAdapter, path: str, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer for a recurrent layer with numbers of its own timesteps."""
        given = in_order(layer, args, kwargs)
        taken = how.take(layer, *given) if self._length > 1 else None
        if taken is not None:
            return self._one_timestep(how, path, layer, *taken)
        x, rest = given[0], given[1:]
        axis = layer.time_axis if isinstance(layer, StepLayer) else int(getattr(layer, "batch_first", False))
        with self.aside():
            found = layer.__class__.forward(layer, *plain(given))
            inputs = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
            depends = any(map(self.depends, inputs))
            is_over_time = (
                not isinstance(layer, nn.RNNCellBase)
                and not getattr(layer, "bidirectional", False)
                and x.shape[axis] == self._length
                and all(not _any(self.times(x).select(axis, t)) & ~(1 << t) for t in range(self._length))
                and not any(_any(self.times(leaf)) & ~1 for leaf in tree_leaves(rest) if isinstance(leaf, Tensor))
            )
            if is_over_time:
                for calls in self.calls:
                    calls.append((path, ()))
            batch = 1 - axis if isinstance(layer, nn.RNNBase) and x.dim() == 3 else None
            made = [self._given(value, depends=depends) for value in tree_leaves(found)]
            for at, value in enumerate(made):
                if is_over_time:
                    is_last = at > 0 and not isinstance(layer, StepLayer)
                    times = _at_its_timestep(value.shape, None if is_last else axis, self._length)
                else:
                    times = self._all_of_a_row(value, inputs, batch if at == 0 else 1, batch)
                value.times = _laid_out(times, value)
        numbers = iter(made)
        return tree_map_only(Tensor, lambda _: next(numbers), found)

    def _one_timestep(self, how: CellAdapter, path: str, layer: Any, x: Tensor, states: States | None) -> Any:
        with self.aside():
            times = _any(self.times(x))
            t = times.bit_length() - 1
            if times != 1 << max(t, 0) or t >= self._length:
                raise self._stop(path, layer, "is given numbers of several timesteps, or of none")
            at = len(self.calls[t])
            if t == 0:
                if any(_any(self.times(state)) & ~1 for state in states or ()):
                    raise self._stop(path, layer, "starts from numbers of later timesteps")
            else:
                before = self.calls[t - 1][at : at + 1]
                if not before or before[0][0] != path or not self._goes_on(states, before[0][1]):
                    raise self._stop(path, layer, "does not go on from what it gave at the timestep before, unchanged")
            rows = plain(x).shape[0]
            begin = plain(states) or tuple(v.expand(rows, *v.shape[1:]) for v in how.initial(layer).values())
            answer, after = how.advance(layer, plain(x), begin)
            drawn = tuple(map(_other, after))
            told = next((d for v, d in zip(after, drawn, strict=True) if answer is v), None)
            if told is None and isinstance(layer, nn.RNNBase) and torch.equal(answer, after[0][:, -1]):
                told = drawn[0][:, -1].clone()
            first, *made = [
                self._given(value, depends=True, draw=False)
                for value in (_other(answer) if told is None else told, *drawn)
            ]
            for value in (first, *made):
                value.times = _laid_out(torch.full(value.shape, 1 << t, dtype=torch.int64), value)
            self.calls[t].append((path, tuple(value.clone() for value in drawn)))
        return how.give(layer, first, tuple(made))

    def _given(self, value: Tensor, *, depends: bool, draw: bool = True) -> Any:
        return self.made(_other(value) if draw else value, depends=depends)

    def _goes_on(self, states: States | None, before: States) -> bool:
        return (
            states is not None
            and len(states) == len(before)
            and not any(map(self._is_computed, states))
            and all(torch.equal(plain(one), other) for one, other in zip(states, before, strict=True))
        )

    def _all_of_a_row(self, value: Tensor, inputs: Sequence[Tensor], axis: int | None, batch: int | None) -> Tensor:
        """Return the masks of a layer that runs over another axis than time, or over several timesteps together."""
        everything = functools.reduce(int.__or__, (_any(self.times(one)) for one in inputs), 0)
        if batch is None or axis is None or len(inputs) > 1 or value.dim() != 3:
            return torch.full(value.shape, everything, dtype=torch.int64)
        rows = _mix(self.times(inputs[0]), [other for other in range(3) if other != batch]).flatten()
        return rows.reshape([-1 if at == axis else 1 for at in range(3)]).expand(value.shape).clone()

    def _stop(self, path: str, layer: Any, why: str) -> RefusedModelError:
        return self._refuse(f"Layer {path!r} ({type(layer).__name__}) {why}.", fix=HOW_TO_WRITE_IT)


def _indices(name: str, args: Sequence[Any]) -> list[Tensor]:
    """Return the operands that are places, and no numbers that are moved."""
    at = {"index": 1, "index_select": 2, "gather": 2}.get(name)
    return [] if at is None else [one for one in tree_leaves(args[at]) if isinstance(one, Tensor)]


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [one.name for one in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _any(times: Tensor) -> int:
    """Return all timesteps in a mask."""
    return int(_mix(times, range(times.dim())).flatten()[0]) if times.numel() else 0


def _of(axes: Any, value: Tensor) -> set[int]:
    return {axis % max(value.dim(), 1) for axis in axes}


def _mix(times: Tensor, axes: Any) -> Tensor:
    """Return masks with each of these axes put together; the axis stays, of size 1."""
    for axis in _of(axes, times) if times.dim() else ():
        if not times.stride(axis) and times.shape[axis]:  # the same all along
            times = times.narrow(axis, 0, 1)
        while (size := times.shape[axis]) > 1:
            half = size // 2
            both = times.narrow(axis, 0, half) | times.narrow(axis, half, half)
            times = torch.cat([both, times.narrow(axis, 2 * half, size - 2 * half)], axis)
    return times


def _product(name: str, masks: Sequence[Tensor]) -> Tensor:
    """Return the masks of a matrix product: those of a row of the one, and of a column of the other."""
    if name == "linear":
        return _mix(masks[0], [-1]) | functools.reduce(int.__or__, map(_any, masks[1:]), 0)
    *bias, one, other = masks if name in {"addmm", "baddbmm"} else (masks[0], masks[1])
    if name == "mv":
        return _mix(one, [-1])[..., 0] | _any(other)
    found = _mix(one, [-1]) | _mix(other, [-2])
    return found | bias[0] if bias else found


def _is_by_timestep(given: Mapping[str, Any]) -> bool:
    """Whether a convolution has a kernel of one, so that it computes each place by itself."""
    sizes = given["weight"].shape[2:]
    return (
        not given["transposed"]
        and math.prod(sizes) == 1
        and all(step == 1 for step in given["stride"])
        and not any(given["padding"])
    )


def _at_its_timestep(shape: Sequence[int], axis: int | None, length: int) -> Tensor:
    """Return masks of numbers whose timestep is their place on an axis; None: all are of the last."""
    if axis is None:
        return torch.full(tuple(shape), 1 << (length - 1), dtype=torch.int64)
    along = torch.tensor([1 << t for t in range(length)])
    return along.reshape([-1 if at == axis else 1 for at in range(len(shape))]).expand(tuple(shape)).clone()


def _laid_out(times: Tensor, value: Tensor) -> Tensor:
    """Return masks in the layout of their numbers, so that each view of these is one of them."""
    if times.stride() == value.stride() or any(
        not step and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
    ):
        return times
    return torch.empty_strided(value.shape, value.stride(), dtype=torch.int64).copy_(times)


def _other(value: Tensor) -> Tensor:
    """Return numbers that occur nowhere else, in the place of a layer's: what it gives must be known again."""
    return torch.randn(value.shape, dtype=value.dtype) if value.is_floating_point() else value.clone()
