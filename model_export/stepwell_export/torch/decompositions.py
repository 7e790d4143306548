"""Operations that torch's older ONNX exporter lacks, as operations that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.structure.rows import ROWS_DEPEND, ROWS_FIX
from stepwell_export.torch.recurrences import LOWEST, LogSpaceScans, cut, extreme, log_add, logcumsumexp, running
from stepwell_export.torch.writes import Writes


class Stable(TorchFunctionMode):
    """While a module is traced: what either exporter writes in a form that loses digits is written in another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _OF_A_STEP.get(func, func)(*args, **kwargs or {})


class Decomposed(TorchFunctionMode):
    """While a module is traced: operations that ONNX has no name for become those that they are made of.

    Attributes:
        scans: The scans in log space that were found.
        writes: What was written into tensors.
    """

    def __init__(self) -> None:
        """Prepare a run."""
        super().__init__()
        self.scans = LogSpaceScans()
        self.writes = Writes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (found := self.writes.call(func, args, kwargs)) is not NotImplemented:
            return found
        args, kwargs = self.writes.now((args, kwargs))
        return self.scans.call(_WORDS.get(func, func), args, kwargs)


def _diff(x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """Source: torch.diff."""
    x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
    for _ in range(n):
        x = cut(x, dim, slice(1, None)) - cut(x, dim, slice(None, -1))
    return x


def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Source: torch.Tensor.unfold; the windows on a new last axis."""
    parts = [cut(x, dimension, slice(first, first - size + 1 or None, step)) for first in range(size)]
    return torch.stack(parts, dim=-1)


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Source: torch.unflatten, of which the exporter keeps the number of rows of the example."""
    at = dim % x.dim()
    return x.reshape(*x.shape[:at], *sizes, *x.shape[at + 1 :])


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Source: torch.nn.functional.rms_norm."""
    axes = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    found = x * torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + least)
    return found if weight is None else found * weight


def _expm1(x: Tensor) -> Tensor:
    """Source: torch.expm1; exp(x) - 1 has no digits left near zero."""
    return torch.tanh(x / 2) * (torch.exp(x) + 1)


def _log1p(x: Tensor) -> Tensor:
    """Source: torch.log1p; log(1 + x) has no digits left near zero.

    Source: Goldberg 1991, "What Every Computer Scientist Should Know About Floating-Point Arithmetic", theorem 4.
    """
    rounded = 1 + x
    is_exact = (rounded == 1) | torch.isinf(rounded)
    return torch.where(is_exact, x, torch.log(rounded) * (x / torch.where(is_exact, torch.ones_like(x), rounded - 1)))


def _logsigmoid(x: Tensor) -> Tensor:
    """Source: torch.nn.functional.logsigmoid; the logarithm of a sigmoid is infinite below -104."""
    return x.clamp(max=0) - _log1p(torch.exp(-x.abs()))


def _right_shift(x: Tensor, other: Any) -> Tensor:
    """Source: torch.bitwise_right_shift: a division that rounds down, below zero too."""
    return torch.div(x, 2**other, rounding_mode="floor")


def _cumsum(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Source: torch.cumsum, which adds integers in int64."""
    made = x if dtype is None and (x.is_floating_point() or x.is_complex()) else x.to(dtype or torch.int64)
    return made.cumsum(dim)


def _trunc(x: Tensor) -> Tensor:
    """Source: torch.trunc."""
    return torch.sign(x) * torch.floor(torch.abs(x))


def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    """Source: torch.heaviside."""
    return torch.where(x == 0, values, (x > 0).to(x.dtype))


def _movedim(x: Tensor, source: Any, destination: Any) -> Tensor:
    """Source: torch.movedim, of which the exporter writes axes that are counted from the end as they are."""
    counted = [[axis % x.dim() for axis in ([one] if isinstance(one, int) else one)] for one in (source, destination)]
    return x.movedim(*counted)


def _tile(x: Tensor, *dims: Any) -> Tensor:
    """Source: torch.tile."""
    counts = dims if isinstance(dims[0], int) else tuple(dims[0])
    return x.repeat(*(1,) * (x.dim() - len(counts)), *counts)


def _roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Source: torch.roll.

    Raises:
        RefusedModelError: It moves rows, the one axis of a timestep that is of any size.
    """
    axes = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    if any(type(x.shape[axis]) is not int for axis in axes):
        raise RefusedModelError(f"{ROWS_DEPEND}: torch.roll moves one to the place of another.", fix=ROWS_FIX)
    return torch.roll(x, shifts, dims)


def _split(x: Tensor, split_size_or_sections: Any, dim: int = 0) -> Any:
    """Source: torch.split; cut into single elements, each is cut out by itself, as sequences of any length have it."""
    if split_size_or_sections != 1:
        return x.split(split_size_or_sections, dim)
    return tuple(x.narrow(dim, at, 1) for at in range(x.shape[dim]))


# ---------------------------------------------------------------- division
#
# Of floating-point numbers it is computed as torch does, by `fmod`, whose rest is exact. Both exporters of torch write
# the floor of a rounded quotient, which is one too large where the quotient is a whole number only after rounding:
# 3.9 // 0.3 is 12.

_HALF = {torch.float16, torch.bfloat16}


def floor_divide(x: Any, other: Any) -> Any:
    """Source: torch.floor_divide, and div_floor_floating of its c10/util/generic_math.h.

    Of 16 bits it is computed in 32, and the divisor is not rounded to 16.
    """
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:  # the older exporter rounds these towards zero
        x = x if isinstance(x, Tensor) else torch.full_like(other, x)
        return torch.div(x, other, rounding_mode="floor")
    x, other = _both(x, other, torch.float32 if dtype in _HALF else dtype)
    rest = torch.fmod(x, other)
    quotient = (x - rest) / other
    quotient = torch.where(_is_opposite(rest, other), quotient - 1, quotient)
    floor = torch.floor(quotient)
    floor = torch.where(quotient - floor > 0.5, floor + 1, floor)
    return torch.where(other == 0, x / other, floor).to(dtype)


def remainder(x: Any, other: Any) -> Any:
    """Source: torch.remainder; of 16 bits it is computed in 32, after the divisor is rounded to 16."""
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:
        return torch.remainder(x, other)
    x, other = _both(x, other, dtype)
    x, other = _both(x, other, torch.float32 if dtype in _HALF else dtype)
    rest = torch.fmod(x, other)
    return torch.where(_is_opposite(rest, other), rest + other, rest).to(dtype)


def divide(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """Source: torch.div, of which the older exporter cuts quotients through int64."""
    if rounding_mode == "floor":
        return floor_divide(x, other)
    if rounding_mode == "trunc" and torch.result_type(x, other).is_floating_point:
        return _trunc(torch.div(x, other))
    return torch.div(x, other, rounding_mode=rounding_mode)


def _both(x: Any, other: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return both as tensors: the exporter writes numbers in float32."""
    x, other = (one.to(dtype) if isinstance(one, Tensor) else torch.tensor(one, dtype=dtype) for one in (x, other))
    return x, other


def _is_opposite(rest: Tensor, other: Tensor) -> Tensor:
    """Whether there is a rest whose sign is not the divisor's."""
    return (rest != 0) & ((rest < 0) ^ (other < 0))


def _in_place(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(compute(x, *args, **kwargs))


def _reversed(compute: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda x, other: compute(other, x)


_METHODS = torch.Tensor

DIVISIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.div, torch.divide, _METHODS.div, _METHODS.divide), divide),
    **dict.fromkeys((torch.floor_divide, _METHODS.floor_divide, _METHODS.__floordiv__), floor_divide),
    **dict.fromkeys((torch.remainder, _METHODS.remainder, _METHODS.__mod__), remainder),
    **dict.fromkeys((_METHODS.div_, _METHODS.divide_), _in_place(divide)),
    **dict.fromkeys((_METHODS.floor_divide_, _METHODS.__ifloordiv__), _in_place(floor_divide)),
    **dict.fromkeys((_METHODS.remainder_, _METHODS.__imod__), _in_place(remainder)),
    _METHODS.__rfloordiv__: _reversed(floor_divide),
    _METHODS.__rmod__: _reversed(remainder),
}
"""What divides: by the function of torch, or the method of a tensor, that is called."""


# ---------------------------------------------------------------- by what is called

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cummax": extreme(torch.maximum, LOWEST),
    "cummin": extreme(torch.minimum, -LOWEST),
    "cumsum": _cumsum,
    "cumprod": running(torch.mul, 1.0),
    "diff": _diff,
    "erfc": lambda x: 1 - torch.erf(x),
    "exp2": lambda x: torch.pow(2.0, x),
    "frac": lambda x: x - _trunc(x),
    "heaviside": _heaviside,
    "logaddexp": log_add,
    "logcumsumexp": logcumsumexp,
    "movedim": _movedim,
    "split": _split,
    "tile": _tile,
    "trunc": _trunc,
    "unflatten": _unflatten,
}
"""Operations that are functions of torch and methods of tensors."""

_STABLE: dict[Any, Callable[..., Any]] = {
    **DIVISIONS,
    **{
        getattr(home, name): made
        for name, made in (("expm1", _expm1), ("log1p", _log1p))
        for home in (torch, torch.Tensor)
    },
    torch.nn.functional.logsigmoid: _logsigmoid,
}
"""Operations that either exporter writes in a form that loses digits, or gives other numbers."""

_OF_A_STEP: dict[Any, Callable[..., Any]] = {**_STABLE, torch.roll: _roll, torch.Tensor.roll: _roll}
"""What `torch.export` is to write in another form."""

_WORDS: dict[Any, Callable[..., Any]] = {
    **_STABLE,
    **{getattr(home, name): made for name, made in _FUNCTIONS.items() for home in (torch, torch.Tensor)},
    torch.Tensor.mT.__get__: lambda x: x.transpose(-2, -1),
    torch.Tensor.unfold: _unfold,
    torch.nn.functional.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    **dict.fromkeys(
        (torch.bitwise_right_shift, torch.Tensor.bitwise_right_shift, torch.Tensor.__rshift__), _right_shift
    ),
    torch.take_along_dim: lambda x, indices, dim: torch.gather(x, dim, indices),
}
