"""`pads_of`: paddings that a module computes from the length of its input, and that are the same for every length.

`F.pad(x, (2, ideal - n))`, with `ideal` rounded up to whole frames, pads nothing behind where a frame is one timestep.
A trace has the length as a tensor and `ideal` as the number of its example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pads = Sequence[tuple[int, ...] | None]
"""By the calls of `F.pad` in a run, in their order: the paddings of any length; None: they differ."""


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.pad:
            self.found.append(tuple(map(int, args[1] if len(args) > 1 else kwargs["pad"])))
        return func(*args, **kwargs)


def pads_of(runs: Sequence[Callable[[], Any]]) -> Pads:
    """Return the paddings that are the same in runs of a module over several lengths."""
    recorded = []
    for run in runs:
        with torch.no_grad(), _Recorder() as recorder:
            run()
        recorded.append(recorder.found)
    if len({len(found) for found in recorded}) > 1:
        return []
    return [each[0] if len(set(each)) == 1 else None for each in zip(*recorded, strict=True)]


class FixedPads:
    """While a module is traced: paddings that are the same for every length are numbers."""

    def __init__(self, pads: Pads) -> None:
        self._pads, self._calls = pads, 0

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `F.pad` with numbers; `NotImplemented`: it is another function, or has them already."""
        if func is not torch.nn.functional.pad:
            return NotImplemented
        at, self._calls = self._calls, self._calls + 1
        given = args[1] if len(args) > 1 else kwargs["pad"]
        fixed = self._pads[at] if at < len(self._pads) else None
        if fixed is None or not any(isinstance(one, Tensor) for one in given):
            return NotImplemented
        if not any(fixed):
            return args[0] if args else kwargs["input"]
        if len(args) > 1:
            return func(args[0], list(fixed), *args[2:], **kwargs)
        return func(*args, **kwargs | {"pad": list(fixed)})
