"""Operations that torch's older ONNX exporter lacks, as operations that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model_export.torch.recurrences import LOWEST, LogSpaceScans, cut, extreme, log_add, logcumsumexp, running


class Decomposed(TorchFunctionMode):
    """While a module is traced: operations that ONNX has no name for become those that they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.scans = LogSpaceScans()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cummax": extreme(torch.maximum, LOWEST),
    "cummin": extreme(torch.minimum, -LOWEST),
    "cumprod": running(torch.mul, 1.0),
    "diff": _diff,
    "exp2": lambda x: torch.pow(2.0, x),
    "expm1": lambda x: torch.exp(x) - 1,
    "logaddexp": log_add,
    "logcumsumexp": logcumsumexp,
    "unflatten": _unflatten,
}
"""Operations that are functions of torch and methods of tensors."""

_WORDS: dict[Any, Callable[..., Any]] = {
    **{getattr(home, name): made for name, made in _FUNCTIONS.items() for home in (torch, torch.Tensor)},
    torch.Tensor.mT.__get__: lambda x: x.transpose(-2, -1),
    torch.Tensor.unfold: _unfold,
    torch.nn.functional.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    torch.take_along_dim: lambda x, indices, dim: torch.gather(x, dim, indices),
}
