"""States that a module keeps in its buffers or tensor attributes: the module as one that takes and returns them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from stepwell_export.converted import ConvertedModel
from stepwell_export.row_axis import with_row_axis
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.runtime.manifest import Array, BatchSpec, Manifest
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch.checks import prepared, run
from stepwell_export.torch.examples import ExampleInput, ExampleSampler, tensors
from stepwell_export.torch.graph import trace_step, tracing
from stepwell_export.torch.naming import flatten, named, numpy_dtype
from stepwell_export.torch.step import AGAINST, step_manifest

_NUMBERS = (bool, int, float)
_BY_VALUE = ("aten::Bool", "aten::item", "aten::is_nonzero", "aten::Int", "aten::Float")
_LONGEST = 512
"""Timesteps that the original runs at most: each takes a call of the module for each row."""


class BufferStep(nn.Module):
    """A module that takes and returns what it keeps.

    Attributes:
        module: The module, a copy of the user's.
        paths: Where the states are.
    """

    def __init__(self, module: Any, paths: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.paths = list(paths)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Run one timestep; return its outputs and the next states."""
        count = len(values) - len(self.paths)
        before = [value_at(self.module, path) for path in self.paths]
        try:
            for path, value in zip(self.paths, values[count:], strict=True):
                set_at(self.module, path, value.clone())
            outputs = [tensor for _, tensor in flatten(self.module(*values[:count]))]
            return (*outputs, *(value_at(self.module, path).clone() for path in self.paths))
        finally:
            for path, value in zip(self.paths, before, strict=True):
                set_at(self.module, path, value)


def value_at(module: Any, path: str) -> Any:
    """Return the attribute at a path such as `b.1.h`."""
    return reduce(getattr, path.split("."), module)


def set_at(module: Any, path: str, value: Any) -> None:
    """Set the attribute at a path."""
    *owners, name = path.split(".")
    setattr(reduce(getattr, owners, module), name, value)


def convert_buffers(
    module: Any, inputs: Mapping[str, Any], *, name: str, output_names: Sequence[str] | None = None
) -> ConvertedModel:
    """Make a step graph of a module that changes its buffers, or of a TorchScript module; not yet proven.

    Args:
        module: `forward(*inputs) -> outputs` of one timestep.
        inputs: An example of one timestep by name, shape `(batch, *row)`.
        name: The model's name in its manifest.
        output_names: Names for the outputs, in order.

    Raises:
        RefusedModelError: It keeps a Python number, what is in a list or dict, or nothing at all; or cannot be traced.
    """
    mine = _own(module)
    given = {key: value[:1] for key, value in tensors(inputs).items()}
    states = _states(mine, list(given.values()))
    if not states:
        raise RefusedModelError(
            "The module changes none of its buffers and tensor attributes in `forward`; expected a state.",
            fix="Give `time_axis=1` for a module over whole sequences, or `states={...}` for one that takes them.",
        )
    step = BufferStep(mine, list(states))
    outputs = flatten(_run(copy.deepcopy(mine), list(given.values())))
    names = named([path for path, _ in outputs], output_names, [*given, *states])
    values = [*given.values(), *states.values()]
    traced: Any = step
    if isinstance(mine, torch.jit.ScriptModule):
        with tracing(), torch.backends.mkldnn.flags(enabled=False):  # its recurrent layers have no ONNX operators
            traced = make_fx(step)(*values)
    gives = [*names, *(f"{path}_next" for path in states)]
    proto = trace_step(traced, values, {}, ([*given, *states], gives), name=name)
    examples = [
        ExampleInput(key, tuple(value.shape[1:]), numpy_dtype(value, repr(key)), np.asarray(value))
        for key, value in tensors(inputs).items()
    ]
    axes = [list(value.shape).index(1) if 1 in value.shape else None for value in states.values()]
    answers = dict(zip(names, (value for _, value in outputs), strict=True))
    alone = BatchSpec(mode="single").single("states are buffers of one row")
    manifest = step_manifest(name, examples, states, axes, answers).model_copy(update={"batch": alone})
    if None not in axes:
        proto, manifest = _together(proto, manifest)
    draw = ExampleSampler(examples, from_examples=False)
    return ConvertedModel(
        proto, manifest, _Original(mine, states, names), AGAINST, samplers={draw.kind: draw}, longest=_LONGEST
    )


class _Original:
    """The module itself, run as its users do: row by row, from what it was loaded with."""

    def __init__(self, module: Any, states: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._module = module
        self._states = states
        self._names = names

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return `{output: (batch, T, *row)}` for `{input: (batch, T, *row)}`."""
        rows, steps = next(iter(inputs.values())).shape[:2]
        answers: dict[str, list[Array]] = {name: [] for name in self._names}
        for row in range(rows):
            for path, value in self._states.items():
                set_at(self._module, path, value.clone())
            for t in range(steps):
                now = [torch.from_numpy(array[row : row + 1, t]) for array in inputs.values()]
                found = flatten(_run(self._module, now))
                for name, (_, value) in zip(self._names, found, strict=True):
                    answers[name].append(np.asarray(value).copy())
        return {
            name: np.concatenate(found).reshape(rows, steps, *found[0].shape[1:]) for name, found in answers.items()
        }


def _run(module: Any, values: Sequence[Tensor]) -> Any:
    """Run a module on one timestep.

    Raises:
        RefusedModelError: It fails.
    """
    return run(module, values, doing="on one timestep", is_eager=True)


def _own(module: Any) -> Any:
    if isinstance(module, torch.jit.ScriptModule):
        graph = module.inlined_graph  # its nodes are there as long as it is
        for kind in _BY_VALUE:  # its own code is run while it is traced, and would take one way for good
            if nodes := [node for node in graph.findAllNodes(kind) if _is_of_tensor(node)]:
                raise RefusedModelError(
                    f"The TorchScript module decides by the values of a tensor ({kind}, {_line(nodes[0])}).",
                    fix="Write it with torch.where, which computes both.",
                )
        return copy.deepcopy(module).cpu().eval()
    return prepared(module)


def _is_of_tensor(node: Any) -> bool:
    return any(str(value.type()) == "Tensor" for value in node.inputs())


def _line(node: Any) -> str:
    return str(node.sourceRange()).strip().splitlines()[0].strip()


# ---------------------------------------------------------------- what is kept


def _kept(module: Any) -> dict[str, Any]:
    """Return the tensors and numbers that a module may keep, by path: `b.1.h`, or `hs[0]` in a list, tuple or dict."""
    found: dict[str, Any] = dict(module.named_buffers())
    if isinstance(module, torch.jit.ScriptModule):
        found |= {path: value_at(module, path) for path in _attributes(module)}
    else:
        of_torch = vars(nn.Module()).keys()
        for place, part in module.named_modules():
            own = {name: value for name, value in vars(part).items() if name not in of_torch}
            found |= {f"{place}.{name}" if place else name: value for name, value in own.items()}
    return dict(leaf for path, value in found.items() for leaf in _leaves(path, value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and numbers of an attribute, with the path of each; no parameters."""
    if isinstance(value, (Tensor, *_NUMBERS)):
        if not isinstance(value, nn.Parameter):
            yield path, value
    elif isinstance(value, (Mapping, list, tuple, deque)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(f"{path}[{key!r}]", item)


def _attributes(module: Any) -> list[str]:
    """Return the paths of the attributes that a TorchScript module reads or assigns, without its parameters."""
    paths = []
    graph = module.inlined_graph  # its nodes are there as long as it is
    for node in [*graph.findAllNodes("prim::SetAttr"), *graph.findAllNodes("prim::GetAttr")]:
        names, owner = [node.s("name")], node.inputsAt(0).node()
        while owner.kind() == "prim::GetAttr":
            names.append(owner.s("name"))
            owner = owner.inputsAt(0).node()
        paths.append(".".join(names[::-1]))
    parameters = dict(module.named_parameters())
    return [path for path in dict.fromkeys(paths) if path not in parameters]


def _states(module: Any, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the initial values of what a module changes and reads again, by path.

    Raises:
        RefusedModelError: It changes a Python number, or what is in a list, tuple or dict; or what it keeps is at first
            no tensor.
    """
    before = {path: value.clone() if isinstance(value, Tensor) else value for path, value in _kept(module).items()}
    tried = copy.deepcopy(module)
    changed: dict[str, Tensor] = {}
    late: list[str] = []
    for _ in range(2):
        old = {path: (value, getattr(value, "_version", 0)) for path, value in _kept(tried).items()}
        _run(tried, values)
        now = _kept(tried)
        for path in {**old, **now}:
            value, first = now.get(path), before.get(path)
            is_same = _is_same(*old.get(path, (None, 0)), value)
            if "[" in path:
                if not is_same:
                    raise RefusedModelError(
                        f"The module changes {path!r} in `forward`; a state is a tensor of its own.",
                        fix="Keep it in an attribute of its own: self.register_buffer('h', torch.zeros(1, 64)).",
                    )
            elif isinstance(value, _NUMBERS):
                if path in old and not is_same:
                    raise RefusedModelError(
                        f"The module changes the number {path!r} in `forward`; a state is a tensor.",
                        fix=f"Keep it as a tensor: self.register_buffer({path.rpartition('.')[2]!r}, torch.zeros(1)).",
                    )
            elif isinstance(value, Tensor):
                if not isinstance(first, Tensor):
                    late += [path] if path in old and not is_same else []
                elif not is_same or not torch.equal(value, first):
                    changed[path] = first
    for path, value in changed.items():
        after = value_at(tried, path)
        if after.shape != value.shape or after.dtype != value.dtype:
            raise RefusedModelError(
                f"The module's {path!r} becomes {after.dtype} of {list(after.shape)}, and is {value.dtype} of "
                f"{list(value.shape)} at first; expected a state of one shape.",
                fix="Begin with the shape of one row.",
            )
    for path in late:
        known = {one: value_at(tried, one).clone() for one in [*changed, path]}
        if _is_read(tried, values, known, path):
            raise RefusedModelError(
                f"The module keeps {path!r}, which is no tensor until `forward` has run; expected one from the start.",
                fix=f"Begin with a tensor: self.register_buffer({path.rpartition('.')[2]!r}, "
                f"torch.zeros({str(list(known[path].shape))[1:-1]})).",
            )
    return {path: value for path, value in changed.items() if _is_read(module, values, changed, path)}


def _is_same(old: Any, version: int, value: Any) -> bool:
    """Whether a tensor is the same one, not changed in place since that version; or a number equal."""
    if isinstance(value, Tensor):
        return old is value and value._version == version
    return type(old) is type(value) and bool(old == value)


def _is_read(module: Any, values: Sequence[Tensor], states: Mapping[str, Tensor], path: str) -> bool:
    """Whether what a module gives, or keeps, depends on the old value of what is at a path."""
    step = BufferStep(module, list(states))
    other = {**states, path: _other(states[path])}
    with torch.no_grad():
        found = [step(*values, *given.values()) for given in (states, other)]
    return not all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def _other(value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return ~value
    return value + (torch.rand(value.shape) + 0.5 if value.is_floating_point() else 1)


def _together(proto: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    """Let rows run together where that gives what each gives alone."""
    try:
        many, described = with_row_axis(proto, manifest)
        if StepModel(many.SerializeToString(), described).batched:
            return many, described
    except (ModelLoadError, RefusedModelError):
        pass
    return proto, manifest
