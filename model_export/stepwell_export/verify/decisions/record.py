"""`Decision` and `Observed`: which way each decision of an original went.

A proof compares what the original does in the runs that are compared. What it does on the other side of a comparison
that came out one way in all of them was not compared with anything. So each decision that depends on the inputs, or on
how many timesteps there are, is recorded, for all elements together: a unit that is always 0 is no fault, a `Relu` that
is never above 0 is one.

These are no decisions:

* those of constants alone, and those of shapes that can only come out one way;
* guards against numbers that do not exist: `isnan`, `x != x`, a limit of at most `GUARD` above 0 that keeps a divisor
  from 0, a maximum with -infinity;
* `Abs` and `Sign`, as driven inputs have both signs: what is never negative then is so by what it is made of;
* what a library does inside a function to compute it accurately: the largest value that softmax subtracts, the sign in
  `remainder`, a negative index.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from stepwell_export.runtime.manifest import Array

GUARD = 1e-3
"""A lower limit above 0, and no larger than this, guards a division, a root or a logarithm."""

_LENGTHS = range(2, 2**31 - 1)
"""Constants that a length may meet: smaller ones are met in any run, and a larger one is an end that is left open."""

NO_LIMIT = 1e30
"""A limit beyond this is the largest number of a type."""

TRUE_FALSE = ("true", "false")
ABOVE_BELOW = ("above 0", "at or below 0")
LOWER = ("above its lower limit", "at its lower limit")
UPPER = ("below its upper limit", "at its upper limit")
SIDES = ("the first", "the second")
WRAPPED = ("below its divisor", "wrapped")
PLACES = ("one place", "another place")

COMPARED = {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal", "ne": "Equal"}
"""What messages call comparisons, by the names that JAX and PyTorch have for them."""


@dataclass(slots=True)
class Decision:
    """A decision of the original.

    Attributes:
        name: Operation and place, for people, such as `Greater at monitor.py:31`.
        outcomes: By outcome, in words, whether it was taken.
        sizes: For a decision of sizes alone, each that it was about, by its place: where these are the same in runs of
            several lengths, there is nothing to decide. Empty for any other one.
    """

    name: str
    outcomes: dict[str, bool]
    sizes: set[tuple[int, int]] = field(default_factory=set)

    @property
    def never(self) -> list[str]:
        """The outcomes that were not taken."""
        if self.sizes and len(self.sizes) == len({place for place, _ in self.sizes}):
            return []
        return [outcome for outcome, taken in self.outcomes.items() if not taken]

    def __str__(self) -> str:
        return f"{self.name} was never {' or '.join(self.never)}"


@dataclass(slots=True)
class Observed:
    """What runs of an original showed.

    Attributes:
        decisions: By what identifies each within the original.
        lengths: Constants that meet a number of timesteps, such as the length of a window, and where.
        candidates: Whole numbers in the code of the model, which a number of timesteps may meet, or not.
        values: Constants that values are compared with.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    lengths: dict[int, str] = field(default_factory=dict)
    candidates: set[int] = field(default_factory=set)
    values: set[float] = field(default_factory=set)

    def note(self, key: str, name: str, outcomes: Mapping[str, bool], sizes: Iterable[tuple[int, int]] = ()) -> None:
        """Take into account which outcomes a decision had."""
        decision = self.decisions.setdefault(key, Decision(name, dict.fromkeys(outcomes, False)))
        for outcome, taken in outcomes.items():
            decision.outcomes[outcome] = decision.outcomes.get(outcome, False) or taken
        decision.sizes.update(sizes)

    def add(self, other: Observed, part: str = "") -> bool:
        """Take other runs into account; return whether a decision went a way it had not gone.

        Args:
            other: What they showed.
            part: The part of the original that was run; empty: all of it.
        """
        before = self.count_of_taken
        for key, decision in other.decisions.items():
            self.note(f"{part}{key}", decision.name, decision.outcomes, decision.sizes)
        self.lengths |= other.lengths
        self.candidates |= other.candidates
        self.values |= other.values
        return self.count_of_taken > before

    @property
    def count_of_taken(self) -> int:
        """How many outcomes were taken, over all decisions."""
        return sum(sum(decision.outcomes.values()) for decision in self.decisions.values())

    @property
    def one_sided(self) -> list[Decision]:
        """The decisions with an outcome that was not taken."""
        return [decision for decision in self.decisions.values() if decision.never]

    def note_length(self, constant: int, where: str) -> None:
        """Take a constant that meets a number of timesteps into account; small ones are reached in any run."""
        if abs(constant) in _LENGTHS:
            self.lengths.setdefault(abs(constant), where)

    def note_value(self, constant: float) -> None:
        """Take a constant that values are compared with into account; a whole number may also meet a length."""
        self.values.add(constant)
        if constant.is_integer():
            self.candidates.add(abs(int(constant)))


Observer = Callable[[Mapping[str, Array]], Observed]
"""Runs the original, as the user gave it, on whole sequences `{input: (batch, T, *shape)}`, and records its decisions.
An exception of its framework is not handled."""


def is_guard(limit: float) -> bool:
    """Whether a lower limit is there only to keep a number from 0, or to change nothing."""
    return 0 < limit <= GUARD or limit == float("-inf")


# ---------------------------------------------------------------- constants in a user's own code

_DEPTH = 4
"""How many calls deep the functions are looked at."""


def note_constants_of(parts: Iterable[Any], methods: Iterable[str], libraries: Iterable[str], seen: Observed) -> None:
    """Note the whole numbers in the methods of objects, and in the attributes that these read.

    A comparison of `x.shape[1]`, a slice of the last timesteps: Python computes with the sizes itself, and what runs on
    the tensors shows nothing of it.

    Args:
        parts: The layers or modules of a model.
        methods: The methods that compute its answers.
        libraries: Packages whose own code is not looked at.
        seen: Takes the constants.
    """
    skipped = tuple(f"{name}." for name in libraries)
    done: set[CodeType] = set()
    for part in parts:
        for method in methods:
            function = inspect.unwrap(getattr(type(part), method, None) or (lambda: None))
            if isinstance(function, FunctionType) and not f"{function.__module__}.".startswith(skipped):
                for code in _codes(function, type(part), skipped, _DEPTH):
                    _note_attributes(part, code, seen)
                    if code not in done:
                        done.add(code)
                        _note_constants(code, seen)


def _codes(function: FunctionType, owner: type, skipped: tuple[str, ...], depth: int) -> Iterator[CodeType]:
    """Yield the code of a function, of those inside it, and of the user's own that it calls."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if not depth:
            continue
        for name in code.co_names:
            called = inspect.unwrap(getattr(owner, name, None) or function.__globals__.get(name) or (lambda: None))
            if not isinstance(called, FunctionType) or called is function or called.__code__ is code:
                continue
            if called.__module__ is not None and not f"{called.__module__}.".startswith((*skipped, "model_export.")):
                yield from _codes(called, owner, skipped, depth - 1)


def _note_constants(code: CodeType, seen: Observed) -> None:
    for constant in code.co_consts:
        values = constant if isinstance(constant, tuple | frozenset) else (constant,)
        seen.candidates.update(abs(value) for value in values if type(value) is int)


def _note_attributes(part: Any, code: CodeType, seen: Observed) -> None:
    values = [vars(part).get(name) for name in code.co_names]
    seen.candidates.update(abs(value) for value in values if type(value) is int)
