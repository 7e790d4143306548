"""Inputs and states in tuples and dicts: a module of these as one of plain tensors, each with a name."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.spec import StepSpec


def with_named_tensors(spec: StepSpec) -> StepSpec:
    """Return the spec with a tensor for each name, where examples are tuples or dicts of tensors.

    A tensor in a dict is named by its key, one in a tuple by its place: `x_0`, `x_1`. Everything else in them, such as
    None, stays as it is in the example. The module of the returned spec accepts the tensors one by one; the caller's
    module is not changed.
    """
    states = spec.states
    assert isinstance(states, Mapping)
    if not any(map(_is_nested, (*spec.inputs.values(), *states.values()))):
        return spec
    taken: set[str] = set()
    flat: list[dict[str, Any]] = []
    for group in (spec.inputs, states):
        flat.append({})
        for name, example in group.items():
            flat[-1] |= {_name(path, taken): leaf for path, leaf in _tensors(example, (name,))}
    if isinstance(spec.module, torch.nn.Module):
        module = copy.copy(spec.module)
        module._forward_pre_hooks = OrderedDict(module._forward_pre_hooks)
        module.register_forward_pre_hook(_Regroup([*spec.inputs.values(), *states.values()]))
    else:
        module = spec.module  # refused later, by its type
    return replace(spec, module=module, inputs=flat[0], states=flat[1])


class _Regroup:
    """A hook that puts tensors into the arguments that `forward` takes, which are like these examples."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = examples

    def __call__(self, module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        left = iter(values)
        return tuple(_filled(example, left) for example in self._examples)


def _is_nested(example: Any) -> bool:
    """Whether an example is more than a tensor; a list of numbers is one."""
    if isinstance(example, Mapping):
        return True
    if not isinstance(example, tuple | list):
        return False
    return any(part is None or _is_tensor(part) or _is_nested(part) for part in example)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _tensors(example: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not _is_nested(example):
        if len(path) == 1 or _is_tensor(example):
            yield path, example
        return
    items = example.items() if isinstance(example, Mapping) else enumerate(example)
    for key, value in items:
        yield from _tensors(value, (*path, key if isinstance(key, str) else str(key)))


def _name(path: tuple[str, ...], taken: set[str]) -> str:
    for name in (path[-1] if not path[-1].isdigit() else "_".join(path[-2:]), "_".join(path)):
        if name not in taken:
            taken.add(name)
            return name
    raise RefusedModelError(
        f"Two tensors of the examples are called {'_'.join(path)!r}; expected names that differ.",
        fix="Rename a key, or an input.",
    )


def _filled(example: Any, left: Iterator[Any], *, depth: int = 0) -> Any:
    """Return an example with the next tensors in the places of its own."""
    if not _is_nested(example):
        return next(left) if depth == 0 or _is_tensor(example) else example
    if isinstance(example, Mapping):
        return {key: _filled(value, left, depth=depth + 1) for key, value in example.items()}
    values = [_filled(value, left, depth=depth + 1) for value in example]
    if hasattr(example, "_fields"):
        return type(example)(*values)
    return type(example)(values)
