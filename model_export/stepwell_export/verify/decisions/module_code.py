"""Constants in the code of a user's own classes and functions that a number of timesteps may meet."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from stepwell_export.verify.decisions.record import Observed

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
