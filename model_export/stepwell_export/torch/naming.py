"""Names what a module returns: a tensor, or tuples, dicts and dataclasses of them, however nested."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import DTYPES


def flatten(found: Any) -> list[tuple[str, torch.Tensor]]:
    """Return every tensor in what a module returned, with its path: keys, fields and positions, joined by `_`.

    Raises:
        RefusedModelError: There is something else in it, or nothing.
    """
    leaves = [("_".join(path), leaf) for path, leaf in _leaves(found, ())]
    for path, leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            packed = " (packed sequences have no timesteps of their own)" if "Packed" in type(leaf).__name__ else ""
            raise RefusedModelError(
                f"The module returns {type(leaf).__name__}{f' at {path!r}' if path else ''}{packed}; expected tensors.",
                fix="Return tensors, or tuples and dicts of them.",
            )
    if not leaves:
        raise RefusedModelError("The module returns no tensor; expected at least one.", fix="Return its answer.")
    return leaves


def named(paths: Sequence[str], given: Sequence[str] | None, taken: Collection[str]) -> list[str]:
    """Return one name per output.

    Args:
        paths: Where the outputs stand in what the module returns.
        given: The user's own names.
        taken: Names of inputs and states, which no output may have.

    Raises:
        RefusedModelError: There are more or fewer names than outputs, or a name stands for two things.
    """
    if given is not None:
        names = list(given)
        if len(names) != len(paths):
            raise RefusedModelError(
                f"There are {len(names)} output_names, {names}, for {len(paths)} outputs; expected one for each.",
                fix=f"The outputs are, in order: {', '.join(path or 'the only one' for path in paths)}.",
            )
        if doubled := [name for name in names if name in taken or names.count(name) > 1]:
            raise RefusedModelError(
                f"The output name {doubled[0]!r} stands for two things.",
                fix="Give each input, state and output its own.",
            )
        return names
    if len(paths) == 1:
        paths = [paths[0] if not paths[0].isdigit() else ""]
    names = []
    for path in paths:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", path)
        name = f"output_{plain}" if plain[:1].isdigit() else plain or "output"
        while name in taken or name in names:
            name += "_out"
        names.append(name)
    return names


def numpy_dtype(tensor: torch.Tensor, what: str) -> str:
    """Return a tensor's dtype by NumPy's name.

    Raises:
        RefusedModelError: The service has no such dtype.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise RefusedModelError(
            f"{what} is {name}; expected one of {', '.join(DTYPES)}.",
            fix="Give complex numbers as two real tensors." if tensor.is_complex() else "Cast it.",
        )
    return name


def _leaves(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if found is None:
        return
    if isinstance(found, Mapping):
        items: Any = found.items()
    elif hasattr(found, "_fields") and "Packed" not in type(found).__name__:
        items = zip(found._fields, found, strict=True)
    elif isinstance(found, list | tuple) and not hasattr(found, "_fields"):
        items = enumerate(found)
    elif dataclasses.is_dataclass(found):
        items = ((field.name, getattr(found, field.name)) for field in dataclasses.fields(found))
    else:
        yield path, found
        return
    for key, value in items:
        yield from _leaves(value, (*path, str(key)))
