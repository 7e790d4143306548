"""`check_lengths`: refuses a module that does something else for longer sequences, since a trace holds one length only.

`if x.shape[1] > 2500`, `x[:, -4096:]`, `t % 3600 == 0` in a loop: what Python does with a number of timesteps is no
operation, so it is found by running. Every whole number that the module's own code holds is a length at which it may
change: in its constants, variables, attributes. The module runs on one sequence of that length and of a little more,
and each line has to do what it does for short sequences: as many operations for each timestep, with the same numbers,
or numbers that grow with the timesteps.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.checks import hooked, user_frame
from stepwell_export.torch.noted_code import profiled
from stepwell_export.torch.python_numbers import PythonNumbers

END = 12
BEYOND = END + 4
"""Timesteps at the end of a sequence that are not judged, and those that a run has after a length."""

MEASURED = 47
"""Timesteps that the streaming pass runs a graph over: shorter windows are in what it measures."""

LONGEST = 1_000_000
LARGEST = 50_000_000
"""The most timesteps of a run, and the most numbers of a tensor in it."""

CALLS = 500_000
WORK = 1e11
"""The most calls of torch, and products with weights, in all runs together, some seconds; the shortest come first."""

_FUNCTIONS = ("_jit_internal.py", "_tensor.py", "functional.py", "overrides.py")
"""Files of torch between a line and the function that it calls; what layers do within is no matter of the line."""

_Lines = Mapping[tuple[str, int, str], list[tuple[tuple[Any, ...], tuple[int, ...]]]]
"""By file, line and operation: the numbers that it was called with, and the shape of its answer, for each call."""


def check_lengths(whole: Sequences, length: int | None) -> PythonNumbers | None:
    """Check that a module does the same for sequences of every length.

    Args:
        whole: The module.
        length: The number of timesteps that it is declared for; nothing is checked then.

    Returns:
        What its code does with numbers of timesteps; None: nothing was checked.

    Raises:
        RefusedModelError: It does not; the message has the length and the line.
    """
    if length is not None:
        return None
    followed = PythonNumbers(whole)
    if whole.loops:
        followed.check()
    short, long = whole.lengths
    numbers = numbers_in_code(whole, short) | followed.lengths
    runs = {steps: lines_of(whole, steps) for steps in (short, long)}
    expected = _Expected(whole.lengths, runs[short], runs[long])
    calls = work = 0.0
    weights = sum(weight.numel() for weight in whole.module.parameters())
    shorter = {at for one in numbers for at in (one - 1, one, one + 1) if 1 < at < short}
    for steps in sorted(shorter | {at for one in numbers for at in (one, one + BEYOND) if short < at <= LONGEST}):
        calls += expected.calls(steps)
        work += steps * weights
        if calls > CALLS or work > WORK or _largest(whole, steps) > LARGEST:
            break
        try:
            place = expected.differs(lines_of(whole, steps), steps)
        except RefusedModelError:  # fewer than its kernel, more than its table: the module itself takes none of these
            continue
        if place and (place := expected.differs(lines_of(whole, steps), steps)):  # what it makes once is made by now
            if expected.differs(lines_of(whole, 2 * long), 2 * long) is None:  # else it follows no rule at all
                raise _refused(steps, short, *place)
            break
    return followed


def _refused(steps: int, short: int, file: str, line: int) -> RefusedModelError:
    return RefusedModelError(
        f"The module does something else for a sequence of {steps:,} timestep{'s'[: steps != 1]} than for one of "
        f"{short} ({file}, line {line}); a stream has no length.",
        fix="Let `forward` do the same for any number of timesteps. If it never has so many, declare how many it has "
        "at most: StepSpec(.., length=N).",
    )


class _Expected:
    """What each line does for any number of timesteps, by two runs."""

    def __init__(self, lengths: tuple[int, int], short: _Lines, long: _Lines) -> None:
        self._lengths, self._short, self._long = lengths, short, long

    def calls(self, steps: int) -> float:
        """Return how many calls of torch a run does."""
        short, long = (sum(map(len, run.values())) for run in (self._short, self._long))
        return self._grown(short, long, steps)

    def differs(self, lines: _Lines, steps: int) -> tuple[str, int] | None:
        """Return the file and the line that does something else; None: none does."""
        for key in [*lines, *self._short]:
            short, long, found = (run.get(key, []) for run in (self._short, self._long, lines))
            if not self._is_same(short, long, found, steps):
                return key[0], key[1]
        return None

    def _is_same(self, short: Any, long: Any, found: Any, steps: int) -> bool:
        if len(found) != self._grown(len(short), len(long), steps):
            return False
        if len(short) == len(long):
            return all(
                self._is_call(one, other, call, steps) for one, other, call in zip(short, long, found, strict=True)
            )
        each = (len(long) - len(short)) // (self._lengths[1] - self._lengths[0])
        return _is_steady([numbers for numbers, _ in found], each, first=len(short), last=END * each)

    def _is_call(self, short: Any, long: Any, found: Any, steps: int) -> bool:
        parts = [(one, other, now) for one, other, now in zip(short, long, found, strict=True)]
        for at, (one, other, now) in enumerate(parts):
            if at == 1 and steps <= MEASURED:
                continue
            if not len(one) == len(other) == len(now):
                return False
            for a, b, c in zip(one, other, now, strict=True):
                if isinstance(a, int) and isinstance(b, int):
                    if c != self._grown(a, b, steps):
                        return False
                elif a == b != c:
                    return False
        return True

    def _grown(self, short: float, long: float, steps: int) -> float:
        """Return what a number that grows with the timesteps is for so many."""
        first, second = self._lengths
        return short + (long - short) / (second - first) * (steps - first)


def _largest(whole: Sequences, steps: int) -> float:
    """Return about how many numbers the largest tensor of a run has."""
    first, second = whole.lengths
    short, long = (max(whole.largest[length], 1) for length in whole.lengths)
    power = math.log(long / short) / math.log(second / first)
    return float(long * (steps / second) ** max(power, 0.0))


def _is_steady(calls: Sequence[tuple[Any, ...]], each: int, *, first: int, last: int) -> bool:
    """Whether what a loop does at one timestep follows from the timestep before as it does at any other."""
    rows = [calls[at : at + each] for at in range(first, len(calls) - last + each, each)] if each else []
    flat = [tuple(number for call in row for number in call) for row in rows if len(row) == each]
    return len({_change(one, other) for one, other in itertools.pairwise(flat)}) <= 1


def _change(one: Sequence[Any], other: Sequence[Any]) -> tuple[Any, ...]:
    """Return by how much whole numbers change from one timestep to the next, and other numbers as they are."""
    pairs = itertools.zip_longest(one, other)
    return tuple(b - a if isinstance(a, int) and isinstance(b, int) else (a, b) for a, b in pairs)


class _Record(TorchFunctionMode):
    """Notes each function of torch, and each layer, that the module's own code calls, by the line that calls it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.lines = defaultdict[tuple[str, int, str], list[Any]](list)
        self._paths = {id(layer): path for path, layer in module.named_modules()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        made = found if isinstance(found, tuple | list) else (found,)
        shape = next((tuple(value.shape) for value in made if isinstance(value, Tensor)), ())
        self._note(getattr(func, "__name__", ""), tuple(_flat((args, kwargs or {}))), shape)
        return found

    def see(self, layer: Any, args: Any, kwargs: Any) -> None:
        """Note the call of a layer."""
        self._note(self._paths[id(layer)], (), ())

    def _note(self, name: str, numbers: tuple[Any, ...], shape: tuple[int, ...]) -> None:
        frame = user_frame(sys._getframe(2), within=_FUNCTIONS)
        if frame is not None:
            file = frame.f_code.co_filename.rsplit("/", 1)[-1]
            self.lines[file, frame.f_lineno, name].append((numbers, shape))


def _flat(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, slice):
        yield from _flat((value.start, value.stop, value.step))
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _flat(part)


def lines_of(whole: Sequences, steps: int) -> _Lines:
    """Run a module on one sequence; return what its lines do."""
    values = whole.drawn(1, steps)
    with _Record(whole.module) as record, hooked(whole.module, nn.Module, record.see):
        whole.run(values)
    return dict(record.lines)


def numbers_in_code(whole: Sequences, steps: int) -> set[int]:
    """Return the numbers that the code of a module holds where it runs, rounded up, but those of torch."""
    found: set[int] = set()
    for part in whole.module.modules():
        if not type(part).__module__.startswith("torch."):
            found.update(_in_values(vars(part).values()))
    seen: set[Any] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "return" or user_frame(frame, within=()) is not frame:
            return
        found.update(_in_values(frame.f_locals.values()))
        if frame.f_code not in seen:
            seen.add(frame.f_code)
            found.update(_in_values(frame.f_code.co_consts))
            found.update(_in_values(frame.f_globals.get(name) for name in frame.f_code.co_names))

    values = whole.drawn(1, steps)
    with profiled(look):
        whole.run(values)
    sizes = {size for value in values for size in value.shape}
    return {abs(one) for one in found if abs(one) not in sizes}


def _in_values(values: Any, *, depth: int = 2) -> Iterator[int]:
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, float) and 1 < abs(value) <= LONGEST:
            yield math.ceil(value)
        elif depth and isinstance(value, tuple | list | set | frozenset) and len(value) < 100:
            yield from _in_values(value, depth=depth - 1)
        elif depth and isinstance(value, dict) and len(value) < 100:
            yield from _in_values(value.values(), depth=depth - 1)
        elif depth and not isinstance(value, nn.Module | type | Tensor | ModuleType) and not callable(value):
            yield from _in_values(getattr(value, "__dict__", {}).values(), depth=depth - 1)
