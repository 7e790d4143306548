"""Writes scans over time as loops: running maxima and products, sums in log space.

A traced loop over time becomes a recurrence of the step graph; see
`stepwell_export.streaming.normal_form.unrolled_loops`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from stepwell_export.patched import patched
from stepwell_export.torch.checks import in_turn

LOWEST = -1e30
"""Instead of minus infinity, which a state cannot hold; the logarithm of zero for all purposes."""


class Extremes(NamedTuple):
    """What `torch.cummax` and `torch.cummin` return, without the places."""

    values: Tensor
    indices: None = None


def running(combine: Callable[[Tensor, Tensor], Tensor], start: float) -> Callable[..., Tensor]:
    """Return a scan along an axis as a loop: each element is combined with what those before it make, first `start`."""

    def run(x: Tensor, dim: int) -> Tensor:
        total, found = torch.full_like(x.select(dim, 0), start), []
        for value in x.unbind(dim):
            total = combine(total, value)
            found.append(total)
        return torch.stack(found, dim)

    return run


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Return `torch.logcumsumexp`; `LogSpaceScans` recognises it by its name."""
    return running(log_add, LOWEST)(x, dim)


def extreme(choose: Callable[[Tensor, Tensor], Tensor], start: float) -> Callable[..., Extremes]:
    """Return `torch.cummax` or `torch.cummin` as a loop."""
    scan = running(choose, start)
    return lambda x, dim: Extremes(scan(x, dim))


@contextlib.contextmanager
def associative_scans_written_out(rows: int) -> Iterator[None]:
    """While a module is traced: `torch.associative_scan`, which takes log2(T) rounds, is a loop over the timesteps.

    Args:
        rows: The number of rows in the trace; axes of this size, or a multiple of it, may hold rows.
    """
    try:
        home: Any = importlib.import_module("torch._higher_order_ops.associative_scan")
        parallel = home.generic_associative_scan
    except (ImportError, AttributeError):  # torch's other releases; it is a prototype there
        yield
        return
    thread, written_out = threading.get_ident(), functools.partial(_scan, rows)

    def either(*args: Any, **kwargs: Any) -> Any:
        return (written_out if threading.get_ident() == thread else parallel)(*args, **kwargs)

    with in_turn(), patched((home, "generic_associative_scan", either)):
        yield


def _scan(
    rows: int, operator: Any, leaves: Sequence[Tensor], dim: int = 0, additional_inputs: Sequence[Any] = ()
) -> list[Tensor]:
    """Return what `generic_associative_scan` does for `leaves` along `dim`."""
    combine = operator.keywords["combine_fn"].__wrapped__  # the function that `vmap` was made of
    step = functools.partial(operator.func, **operator.keywords | {"combine_fn": combine})
    return scan(rows, lambda old, new: tree_flatten(step(*old, *new, *additional_inputs))[0], leaves, dim)


def scan(rows: int, combine: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Return the scan of `leaves` along `dim`; the first timestep is taken as it is, by masks that are carried.

    Args:
        rows: As in `associative_scans_written_out`.
        combine: Combines what the timesteps before make with a timestep, each without the axis `dim`.
        leaves: What is scanned.
        dim: The axis.
    """
    carried = [torch.zeros_like(leaf.select(dim, 0)) for leaf in leaves]
    seen = [_one_per_row(value, rows) for value in carried]
    found: list[list[Tensor]] = []
    for values in zip(*(leaf.unbind(dim) for leaf in leaves), strict=True):
        joined = combine(carried, values)
        carried = [torch.where(old > 0, new, value) for old, new, value in zip(seen, joined, values, strict=True)]
        seen = [_one_per_row(torch.ones_like(value), rows) for value in values]
        found.append(carried)
    return [torch.stack(parts, dim) for parts in zip(*found, strict=True)]


def _one_per_row(mask: Tensor, rows: int) -> Tensor:
    """Return the first element of a mask on each axis that holds no rows, so that a stream carries few of them."""
    for axis in range(mask.dim()):
        if int(mask.shape[axis]) % rows:
            mask = mask.narrow(axis, 0, 1)
    return mask


@dataclass(frozen=True, slots=True)
class _Sum:
    """A running sum of `terms` along `dim`; `front` zeros stand before it."""

    value: Tensor
    terms: Tensor
    dim: int
    front: int = 0


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Logarithms without the running sum that is added again later, or the running sum of their exponentials."""

    value: Tensor
    logs: Tensor
    by: _Sum


class LogSpaceScans:
    """Recognises `s + logcumsumexp(v - s)` with a running sum `s`: h = exp(term) * h + exp(v), in logarithms.

    Computed as written, the running sum grows with the stream until nothing but its rounding is left of `h`. As a
    recurrence it has the same values, and none of that. Source: Feng et al. 2024, "Were RNNs All We Needed?".

    Attributes:
        found: Whether there was one.
    """

    def __init__(self) -> None:
        self.found = False
        self._sums: dict[int, _Sum] = {}
        self._scaled: dict[int, _Scaled] = {}
        self._log_sums: dict[int, _Scaled] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation; one that ends such a scan is computed as a loop."""
        kind = getattr(func, "__name__", "").strip("_")
        values = args[:2]
        if kind == "add" and len(values) == 2:
            for one, other in (values, values[::-1]):
                total, rest = self._sums.get(id(one)), self._log_sums.get(id(other))
                if total is not None and rest is not None and rest.by is total:
                    self.found = True
                    return _recurrence(rest.logs, total)
        found = func(*args, **kwargs)
        if not isinstance(found, Tensor) or not values:
            return found
        if kind == "cumsum":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if isinstance(dim, int):
                self._sums[id(found)] = _Sum(found, args[0], dim % args[0].dim())
        elif kind == "pad" and (total := self._sums.get(id(args[0]))) is not None:
            front = _zeros_in_front(args, kwargs, total.dim)
            if front and not total.front:
                self._sums[id(found)] = _Sum(found, total.terms, total.dim, front)
        elif kind == "sub" and len(values) == 2 and (total := self._sums.get(id(values[1]))) is not None:
            self._scaled[id(found)] = _Scaled(found, values[0], total)
        elif kind == "logcumsumexp" and (scaled := self._scaled.get(id(args[0]))) is not None:
            self._log_sums[id(found)] = _Scaled(found, scaled.logs, scaled.by)
        return found


def _zeros_in_front(args: tuple[Any, ...], kwargs: dict[str, Any], dim: int) -> int:
    """Return how many zeros `pad` puts in front of an axis; 0 where it does something else."""
    names = ("input", "pad", "mode", "value")
    given = {"mode": "constant", "value": None, **dict(zip(names, args, strict=False)), **kwargs}
    pads, rank = list(given["pad"]), given["input"].dim()
    at = 2 * (rank - 1 - dim)
    if given["mode"] != "constant" or given["value"] or at + 1 >= len(pads):
        return 0
    others = pads[:at] + pads[at + 1 :]
    return pads[at] if not any(others) and isinstance(pads[at], int) else 0


def _recurrence(logs: Tensor, total: _Sum) -> Tensor:
    dim, front = total.dim, total.front
    state, before = torch.full_like(logs.select(dim, 0), LOWEST), []
    for value in cut(logs, dim, slice(0, front)).unbind(dim) if front else ():
        state = log_add(state, value)
        before.append(state)
    found = []
    rest = cut(logs, dim, slice(front, None)) if front else logs
    for term, value in zip(total.terms.unbind(dim), rest.unbind(dim), strict=True):
        state = log_add(term + state, value)
        found.append(state)
    joined = torch.stack(found, dim)
    return torch.cat([torch.stack(before, dim), joined], dim) if before else joined


def log_add(x: Tensor, other: Tensor) -> Tensor:
    """Return `torch.logaddexp`."""
    high = torch.maximum(x, other)
    return high + torch.log(torch.exp(x - high) + torch.exp(other - high))


def cut(x: Tensor, dim: int, part: slice) -> Tensor:
    """Return a part of a tensor along an axis."""
    return x[(*[slice(None)] * (dim % x.dim()), part)]
