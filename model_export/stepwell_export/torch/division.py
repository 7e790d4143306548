"""Division with a rest of floating-point numbers, as torch computes it: by `fmod`, whose rest is exact.

Both exporters of torch write the floor of a rounded quotient, which is one too large where the quotient is a whole
number only after rounding: 3.9 // 0.3 is 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
        return torch.trunc(torch.div(x, other))
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
