"""Finds functions like `associative_scan(combine, (a, b))` in a module's own code, which take log2(T) rounds.

What such a function does besides calling `combine` is to cut, move and join. So it is called with intervals of
timesteps in the place of numbers, and with a `combine` that joins two intervals that follow each other: where each
timestep then has the interval from the first timestep to its own, the function is a scan, whatever it combines. That
`combine` is associative is left to the verification.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor

from stepwell_export.torch.axis_inference import LENGTHS, Sequences
from stepwell_export.torch.checks import in_turn, user_frame
from stepwell_export.torch.lengths import numbers_in_code
from stepwell_export.torch.noted_code import profiled
from stepwell_export.torch.python_numbers import PythonNumbers
from stepwell_export.torch.recurrences import scan

_FUNCTIONS = (FunctionType, torch.jit.ScriptFunction, functools.partial)

_TRIED = (*range(1, 20), 32, 33, 64, 100)
_LONGEST = 100_000
"""Numbers of timesteps that a function is tried with, besides those in its code, and the most."""


@dataclass(frozen=True, slots=True)
class OwnScan:
    """A function that scans.

    Attributes:
        function: `function(combine, elements, **rest)`.
        rest: What it is called with besides.
        axis: Where the timesteps of its elements are.
    """

    function: Any
    rest: Mapping[str, Any]
    axis: int


def own_scans(whole: Sequences) -> list[OwnScan]:
    """Return the functions in a module's own code that scan over the timesteps."""
    calls: dict[Any, tuple[Mapping[str, Any], list[tuple[int, ...]]] | None] = {}

    functions: dict[Any, Any] = {}

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or user_frame(frame, within=()) is not frame:
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names]
        if code.co_argcount < 2 or not isinstance(given[0], _FUNCTIONS) or not _are_tensors(given[1]):
            return
        named = [one for one in frame.f_globals.values() if getattr(one, "__code__", None) is code]
        if not named:  # one that stands in a function cannot be replaced
            return
        functions[code] = named[0]
        rest = dict(zip(names[2:], given[2:], strict=True))
        is_known = code not in calls or (calls[code] is not None and calls[code][0] == rest)  # type: ignore[index]
        calls[code] = (rest, [tuple(value.shape) for value in given[1]]) if is_known else None

    with profiled(look):
        whole.run(whole.drawn(1, LENGTHS[0]))
    if not any(calls.values()) or PythonNumbers(whole, halves=True).place is not None:
        return []
    in_code = numbers_in_code(whole, LENGTHS[0])
    lengths = sorted({*_TRIED, *(at for one in in_code for at in (one, one + 1) if 0 < at <= _LONGEST)})
    return [
        OwnScan(functions[code], rest, axis)
        for code, (rest, shapes) in ((code, call) for code, call in calls.items() if call is not None)
        for axis in range(len(shapes[0]))
        if all(_scans(functions[code], rest, shapes, axis, steps) for steps in lengths)
    ]


@contextlib.contextmanager
def own_scans_replaced(scans: Sequence[OwnScan], rows: int | None = None) -> Iterator[None]:
    """Let functions that scan be loops over the timesteps, in this thread.

    Args:
        scans: The functions.
        rows: As in `associative_scans_written_out`; None: they combine all timesteps with themselves once, so that what
            the rest of the module does is seen in little time.
    """
    with in_turn(), contextlib.ExitStack() as stack:
        for one in scans:
            made = _replaced(one, rows, threading.get_ident())
            homes = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
            for home in [one.function.__globals__, *homes]:
                for name in [name for name, value in list(home.items()) if value is one.function]:
                    home[name] = made
                    stack.callback(home.__setitem__, name, one.function)
        yield


def _replaced(one: OwnScan, rows: int | None, thread: int) -> Callable[..., Any]:
    @functools.wraps(one.function)
    def run(combine: Any, elements: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return one.function(combine, elements, *args, **kwargs)
        if rows is None:
            return combine(elements, elements)
        kind: Any = type(elements)

        def combined(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
            parts = [kind(value.unsqueeze(one.axis) for value in values) for values in (old, new)]
            return [value.squeeze(one.axis) for value in combine(*parts)]

        return kind(scan(rows, combined, elements, one.axis))

    return run


def _are_tensors(value: Any) -> bool:
    if type(value) not in {tuple, list} or not value or not all(isinstance(one, Tensor) for one in value):
        return False
    return value[0].dim() > 0 and all(one.dim() == value[0].dim() for one in value)


class _NoScanError(Exception):
    """What is combined are no two intervals that follow each other."""


def _scans(function: Any, rest: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], axis: int, steps: int) -> bool:
    """Whether a function gives each of so many timesteps the interval from the first one to its own.

    An interval is one number: which element it is of, its first and last timestep, and its place on the other axes.
    """
    others = 2 if steps < 1000 else 1
    sizes = [[steps if at == axis else min(size, others) for at, size in enumerate(shape)] for shape in shapes]
    along = [
        torch.arange(steps, dtype=torch.float64).reshape([-1 if at == axis else 1 for at in range(len(size))])
        for size in sizes
    ]
    places = [_places(size, axis) for size in sizes]
    most = max(place.numel() for place in places)

    def interval(leaf: int, first: Tensor | float) -> Tensor:
        return ((leaf * steps + first) * steps + along[leaf]) * most + places[leaf]

    def combine(old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
        made = []
        for leaf, (one, other) in enumerate(zip(old, new, strict=True)):
            (of, _, end, place), (of_other, begin, until, other_place) = (_read(v, steps, most) for v in (one, other))
            follows = (of == leaf) & (of_other == leaf) & (end + 1 == begin) & (place == other_place)
            if one.shape != other.shape or not bool(follows.all()):
                raise _NoScanError
            made.append(one + (until - end) * most)
        if len(made) != len(sizes):
            raise _NoScanError
        kind: Any = type(old)
        return kind(made)

    try:
        found = function(combine, [interval(leaf, along[leaf]) for leaf in range(len(sizes))], **rest)
        wanted = [interval(leaf, 0.0) for leaf in range(len(sizes))]
        return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    except Exception:  # noqa: BLE001  # whatever it does with them: it does more than a scan
        return False


def _places(size: Sequence[int], axis: int) -> Tensor:
    """Return the place of each number on the other axes than `axis`."""
    others = [1 if at == axis else length for at, length in enumerate(size)]
    return torch.arange(torch.Size(others).numel(), dtype=torch.float64).reshape(others)


def _read(value: Tensor, steps: int, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which element an interval is of, its first and last timestep, and its place on the other axes."""
    rest, place = torch.div(value, most, rounding_mode="floor"), value % most
    rest, end = torch.div(rest, steps, rounding_mode="floor"), rest % steps
    return torch.div(rest, steps, rounding_mode="floor"), rest % steps, end, place
