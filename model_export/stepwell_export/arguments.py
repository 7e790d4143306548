"""Checks the arguments of calls in Python: their types, names, paths, axes, lengths and tolerances."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell_export.runtime.durations import duration_of
from stepwell_export.runtime.errors import FileError, UnclearModelError
from stepwell_export.runtime.manifest import NAME

_LONGEST_PART = 255
"""Bytes in the name of a file or folder, on all systems that Stepwell runs on."""


def check_type(argument: str, given: Any, types: type | tuple[type, ...], expected: str) -> None:
    """Refuse an argument of another type.

    Args:
        argument: Its name.
        given: What was given.
        types: What it may be.
        expected: The same, in words.

    Raises:
        UnclearModelError: It is something else.
    """
    if not isinstance(given, types):
        shown = repr(given)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise UnclearModelError(
            f"`{argument}` is {shown}, of type {type(given).__name__}; expected {expected}.",
            fix=f"Give {expected}.",
        )


def check_by_name(argument: str, given: Any, types: type | tuple[type, ...], expected: str) -> None:
    """Refuse what is no mapping with texts for keys and values of some types; None is taken.

    Raises:
        UnclearModelError: It is something else.
    """
    if given is None:
        return
    check_type(argument, given, Mapping, f"a dict: by name, {expected}")
    for name, value in given.items():
        check_type(f"a name in {argument}", name, str, "a text")
        check_type(f"{argument}[{name!r}]", value, types, expected)


def as_path(argument: str, given: Any) -> Path:
    """Return an argument as a path.

    Raises:
        UnclearModelError: It is no path.
        FileError: A part of it is longer than any file's name.
    """
    check_type(argument, given, (str, os.PathLike), "a path")
    path = os.fspath(given)
    check_type(argument, path, str, "a path")
    if any(len(os.fsencode(part)) > _LONGEST_PART for part in Path(path).parts) or "\0" in path:
        raise FileError(f"`{argument}` is {path[:60]!r}..., which is no file's name.", fix="Give the path of a file.")
    return Path(path)


def check_name(name: Any) -> None:
    """Refuse what cannot be a model's name.

    Raises:
        UnclearModelError: It is no text, or has other characters than a name may have.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UnclearModelError(f"The model's name would be {name!r}; expected {NAME.pattern}.", fix="Give `--name`.")


def check_axes(flag: str, axes: Any) -> None:
    """Refuse what is not one axis, or None, for each input.

    Args:
        flag: The command's flag for it.
        axes: An axis by input; None: none are given.

    Raises:
        UnclearModelError: It is no mapping, or an axis is no whole number.
    """
    if axes is not None and not isinstance(axes, Mapping):
        raise UnclearModelError(
            f"`{flag}` is {axes!r}; expected an axis by input.", fix="Give a dict, such as {'x': 1}."
        )
    for name, axis in (axes or {}).items():
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise UnclearModelError(
                f"`{flag}` has {axis!r} for {name!r}; expected a whole number.",
                fix="Count the axes of the input from 0; None: it has no such axis.",
            )


def check_length(length: Any) -> None:
    """Refuse what is no number of timesteps.

    Raises:
        UnclearModelError: It is no whole number.
    """
    if length is not None and (not isinstance(length, int) or isinstance(length, bool)):
        raise UnclearModelError(
            f"`--length` is {length!r}; expected a whole number of timesteps.",
            fix="Give the number of timesteps that the model was trained with.",
        )


def check_every(every: Any) -> None:
    """Refuse what is no time from one timestep to the next.

    Raises:
        UnclearModelError: It is no text, no duration, or 0.
    """
    if every is not None and not (isinstance(every, str) and duration_of(every)):
        raise UnclearModelError(
            f"`--every` is {every!r}; expected a duration such as 1s, 500ms or 1m.",
            fix="Give the time from one timestep to the next in the training data.",
        )


def check_tolerance(tolerance: Any) -> None:
    """Refuse what is no largest difference.

    Raises:
        UnclearModelError: It is no number, not finite, or below 0.
    """
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not (is_number and math.isfinite(tolerance) and tolerance >= 0):
        raise UnclearModelError(
            f"`--tolerance` is {tolerance!r}; expected a number of at least 0.",
            fix="Give the largest difference that is allowed, such as 1e-4, or leave it out.",
        )
