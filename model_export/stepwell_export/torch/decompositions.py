"""Operations that torch's older ONNX exporter lacks, as operations that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stepwell_export.torch.division import DIVISIONS
from stepwell_export.torch.recurrences import LOWEST, LogSpaceScans, cut, extreme, log_add, logcumsumexp, running
from stepwell_export.torch.writes import Writes


class Stable(TorchFunctionMode):
    """While a module is traced: what both exporters write in a form that loses digits is written in another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _STABLE.get(func, func)(*args, **kwargs or {})


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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cummax": extreme(torch.maximum, LOWEST),
    "cummin": extreme(torch.minimum, -LOWEST),
    "cumsum": _cumsum,
    "cumprod": running(torch.mul, 1.0),
    "diff": _diff,
    "exp2": lambda x: torch.pow(2.0, x),
    "logaddexp": log_add,
    "logcumsumexp": logcumsumexp,
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
"""Operations that both exporters write in a form that loses digits, or gives other numbers."""

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
