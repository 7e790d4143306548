"""`TorchObserver`: the decisions of a PyTorch module, recorded while it runs as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.decisions import record
from stepwell_export.verify.decisions.record import Observed, is_guard, note_constants_of

_RELUS = {"relu", "relu_", "leaky_relu", "elu", "prelu", "_prelu_kernel", "rrelu", "celu", "selu", "threshold"}
_LIMITED = {"clamp", "clamp_min", "clamp_max", "hardtanh"}
_GUARDS = {"isnan", "isinf", "isfinite"}
_LOGIC = {"logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and", "bitwise_or"}
_ALIASES = {
    "greater": "gt",
    "less": "lt",
    "greater_equal": "ge",
    "less_equal": "le",
    "not_equal": "ne",
    "clip": "clamp",
}
_DIVIDED = {"remainder", "fmod", "floor_divide", "maximum", "minimum"}
_COUNTED = {"arange", "linspace"}
"""Operators that make positions: what follows from them follows from the number of timesteps."""

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parents[2])

Flags = list[torch.Tensor]


class TorchObserver:
    """Runs a module, and records its decisions; an `Observer`."""

    def __init__(self, module: nn.Module, run: Callable[[Sequence[torch.Tensor]], Any], names: Sequence[str]) -> None:
        """Keep the module.

        Args:
            module: Its submodules name the places.
            run: Runs it on one tensor for each input, shape `(batch, T, *shape)`.
            names: Of the inputs, in order.
        """
        self._module = module
        self._run = run
        self._names = names

    def __call__(self, inputs: Mapping[str, Array]) -> Observed:
        """Return the decisions on whole sequences."""
        seen = Observed()
        values = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._names]
        note_constants_of(self._module.modules(), ("forward",), ("torch",), seen)
        with torch.no_grad(), _Recording(self._module, values, values[0].shape[1], seen) as recording:
            self._run(values)
        recording.finish()
        return seen


class _Recording(TorchDispatchMode):
    """Records what each operator decides; see `stepwell_export.verify.decisions.record` for what counts."""

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor], length: int, seen: Observed) -> None:
        super().__init__()
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._length = length
        self._seen = seen
        self._kept: list[Any] = [value.untyped_storage() for value in inputs]  # one that is kept is not given again
        self._depends = {storage._cdata for storage in self._kept}
        self._guards: set[int] = set()
        self._flags: dict[str, tuple[str, tuple[str, ...], list[Flags]]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use imports torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = func._schema.name.removeprefix("aten::")
        name = _ALIASES.get(plain := op.removesuffix("_") if not op.startswith("_") else op, plain)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        follows = name in _COUNTED or any(value.untyped_storage()._cdata in self._depends for value in given)
        decided = self._decided(name, args, kwargs, given) if follows else None
        result = func(*args, **kwargs)
        if not follows:
            return result
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        self._mark(name, args, given, made)
        if decided is None and name in _BY_RESULT:
            decided = _BY_RESULT[name](args, made[0])
        if decided is not None and not self._is_guard(name, given, args):
            self._note(*decided)
        return result

    def finish(self) -> None:
        """Count what was recorded; values are read once, at the end."""
        for key, (name, outcomes, flags) in self._flags.items():
            taken = [bool(torch.stack(column).any()) for column in zip(*flags, strict=True)]
            self._seen.note(key, name, dict(zip(outcomes, taken, strict=True)))

    def _mark(self, name: str, args: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        """Remember what follows from the inputs, and what is only a guard."""
        is_guard_alone = name in _GUARDS or (
            (name in _LOGIC and all(id(value) in self._guards for value in given)) or _is_nan_check(name, args)
        )
        for value in made:
            storage = value.untyped_storage()
            self._kept += [storage, value] if is_guard_alone else [storage]
            self._depends.add(storage._cdata)
            if is_guard_alone:
                self._guards.add(id(value))

    def _is_guard(self, name: str, given: list[torch.Tensor], args: Any) -> bool:
        return _is_nan_check(name, args) or (
            name in {"where", "masked_fill"} and id(_condition(name, args)) in self._guards
        )

    def _decided(
        self, name: str, args: Any, kwargs: Any, given: list[torch.Tensor]
    ) -> tuple[str, tuple[str, ...], Flags] | None:
        """Return what is decided before an operator runs, as it may overwrite what it takes."""
        self._note_length(name, args)
        if name in record.COMPARED or name in _DIVIDED:
            self._note_constants(args)
        if not given or not given[0].numel():
            return None
        x = args[0]
        if name in _RELUS:
            at = _number(args[1]) if name == "threshold" else 0
            return _called(name), record.ABOVE_BELOW, [(x > at).any(), (x <= at).any()]
        if name in _LIMITED:
            return self._limited(name, args, kwargs)
        if name in {"hardsigmoid", "hardswish"}:
            return None
        if name in {"hardshrink", "softshrink"}:
            limit = _number(args[1]) if len(args) > 1 else 0.5
            return _called(name), ("inside its limits", "outside"), [(x.abs() <= limit).any(), (x.abs() > limit).any()]
        if name in {"maximum", "minimum", "fmax", "fmin"}:
            a, b = args[:2]
            return _called(name), record.SIDES, [(a >= b).any(), (a <= b).any()]
        if name in {"where", "masked_fill"}:
            condition = _condition(name, args)
            if condition.dtype == torch.bool and name == "where" and len(args) < 3:
                return None
            return _called(name), record.TRUE_FALSE, [condition.any(), (~condition.bool()).any()]
        if name == "_local_scalar_dense" and x.dtype == torch.bool:
            return "if", record.TRUE_FALSE, [x.any(), (~x).any()]
        return None

    def _limited(self, name: str, args: Any, kwargs: Any) -> tuple[str, tuple[str, ...], Flags] | None:
        x, *limits = args
        low, high = [*limits, None, None][:2]
        if name == "clamp_max":
            low, high = None, low
        if name == "hardtanh" and not limits:
            low, high = -1.0, 1.0
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        if low is not None and not isinstance(low, torch.Tensor) and is_guard(float(low)):
            low = None
        outcomes: list[str] = []
        flags: Flags = []
        if low is not None:
            outcomes += record.LOWER
            flags += [(x > low).any(), (x <= low).any()]
        if high is not None:
            outcomes += record.UPPER
            flags += [(x < high).any(), (x >= high).any()]
        self._seen.values.update(float(v) for v in (low, high) if isinstance(v, int | float))
        return ("Clip", tuple(outcomes), flags) if flags else None

    def _note(self, name: str, outcomes: tuple[str, ...], flags: Flags) -> None:
        key, place = self._place()
        key = f"{name} {key}"
        self._flags.setdefault(key, (f"{name}{place}", outcomes, []))[2].append(flags)

    def _place(self) -> tuple[str, str]:
        """Return what identifies the place of the operator that runs now, and how a message calls it."""
        frame: Any = sys._getframe(2)
        path, line, key = None, "", []
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_code is TorchObserver.__call__.__code__:
                break
            if not file.startswith((_TORCH, _HERE)):
                key.append(f"{file}:{frame.f_code.co_firstlineno}:{frame.f_lasti}")
                line = line or f"{Path(file).name}:{frame.f_lineno}"
            if path is None and isinstance(owner := frame.f_locals.get("self"), nn.Module):
                path = self._paths.get(id(owner))
            frame = frame.f_back
        return f"{path} {key}", f" at {line}" if line else f" of {path!r}" if path else ""

    def _note_constants(self, args: Any) -> None:
        """Note a single number that values are compared with or divided by; positions may be, too."""
        for value in args[:2]:
            is_tensor = isinstance(value, torch.Tensor)
            if is_tensor and (value.numel() != 1 or value.untyped_storage()._cdata in self._depends):
                continue
            self._seen.note_value(float(value))

    def _note_length(self, name: str, args: Any) -> None:
        """Note constants that meet the time axis: the ends of slices, widths of windows, kernels and padding."""
        if name in _WINDOWS and isinstance(args[0], torch.Tensor) and self._length in args[0].shape:
            for constant in _WINDOWS[name](args, self._length):
                self._seen.note_length(int(constant), f"{_called(name)}{self._place()[1]}")


def _number(value: Any) -> float:
    return float(value)


def _condition(name: str, args: Any) -> Any:
    return args[1] if name == "masked_fill" else args[0]


def _is_nan_check(name: str, args: Any) -> bool:
    return name in {"ne", "eq"} and args[0] is args[1]


def _called(name: str) -> str:
    """Return an operator's name as the field writes it."""
    return {"masked_fill": "Where", "fmax": "Max", "fmin": "Min", "maximum": "Max", "minimum": "Min"}.get(
        name, "".join(part.capitalize() for part in name.strip("_").split("_"))
    )


def _compared(name: str) -> Callable[[Any, torch.Tensor], Any]:
    return lambda args, result: (
        (record.COMPARED[name], record.TRUE_FALSE, [result.any(), (~result).any()]) if result.numel() else None
    )


def _wrapped(args: Any, result: torch.Tensor) -> Any:
    return ("Mod", record.WRAPPED, [(result == args[0]).any(), (result != args[0]).any()])


def _chosen(args: Any, result: torch.Tensor) -> Any:
    if (args[0].dim() and len(args) > 1 and args[1] is not None and args[0].shape[args[1]] < 2) or not result.numel():
        return None
    return ("ArgMax", record.PLACES, [(result == result.min()).any(), result.max() > result.min()])


_BY_RESULT: Mapping[str, Callable[[Any, torch.Tensor], Any]] = {
    **{name: _compared(name) for name in record.COMPARED},
    "remainder": _wrapped,
    "fmod": _wrapped,
    "argmax": _chosen,
    "argmin": _chosen,
}


def _slice_ends(args: Any, length: int) -> Iterable[int]:
    axis = args[1] if len(args) > 1 else 0
    return [end for end in args[2:4] if isinstance(end, int) and args[0].shape[axis] == length and abs(end) != length]


def _padding(args: Any, length: int) -> Iterable[int]:
    sizes = list(reversed(args[0].shape))
    return [amount for at, amount in enumerate(args[1]) if sizes[at // 2] == length]


def _kernels(args: Any, _: int) -> Iterable[int]:
    return [(size - 1) * dilation for size, dilation in zip(args[1].shape[2:], args[5], strict=False)]


def _second(args: Any, _: int) -> Iterable[int]:
    second = args[1]
    return second if isinstance(second, list | tuple) else [second]


def _third(args: Any, _: int) -> Iterable[int]:
    return [args[2]]


_WINDOWS: Mapping[str, Callable[[Any, int], Iterable[int]]] = {
    "slice": _slice_ends,
    "constant_pad_nd": _padding,
    "convolution": _kernels,
    "avg_pool1d": _second,
    "max_pool1d": _second,
    "unfold": _third,
    "split": _second,
    "roll": _second,
    "select": _third,
}
