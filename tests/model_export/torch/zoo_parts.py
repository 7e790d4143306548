"""What the zoo of PyTorch modules is built from: its entry, and a short way to write a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from stepwell_export import StepSpec

torch = pytest.importorskip("torch")  # conftest.py skips the folder without it
nn = torch.nn


@dataclass(frozen=True, slots=True)
class ZooModule:
    """One small module that can be stepped.

    Attributes:
        build: Makes it, with examples of what it takes.
        shows: What it is the example of, for readers: layers and options.
        how: How it is stepped: which states it has, or why it needs none.
    """

    build: Callable[[], StepSpec]
    shows: str
    how: str


class Of(nn.Module):  # type: ignore[name-defined]  # torch is what was imported, or the tests are skipped
    """A module of named parts, with a function of it and the inputs as its `forward`."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self._run(self, *inputs)


def of(run: Callable[..., Any], **parts: Any) -> Any:
    """Return a module: `of(lambda m, x: m.head(m.rnn(x)[0]), rnn=..., head=...)`."""
    return Of(run, **parts)


def whole(module: Any, *shape: int, time_axis: int = 1) -> StepSpec:
    """Return the spec of a module over whole sequences of one float input `x`; by default `(2, 7, 4)`."""
    return StepSpec(module, inputs={"x": torch.randn(*(shape or (2, 7, 4)))}, time_axis=time_axis)


def randomise(module: Any) -> None:
    """Leave no weight and no statistic at its default."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
        if isinstance(part, nn.RMSNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
