"""Torch's optimizer of ONNX graphs without the rules that change numbers.

It takes any constant up to 1e-8 for zero and anything within 1e-5 of one for one, and leaves out `x + 1e-8`, which
keeps a division by `sqrt(mean(x ** 2) + 1e-8)` finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx
import onnxscript.optimizer
import onnxscript.rewriter
from onnxscript.rewriter.rules.common import _no_op

from stepwell_export.torch.checks import in_turn


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Keep the optimizer from leaving out what adds nearly zero or multiplies by nearly one."""
    rewriter: Any = onnxscript.rewriter
    inexact = set(map(id, _no_op.rules))
    with in_turn():
        before = rewriter._DEFAULT_REWRITE_RULES
        rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in before if id(rule) not in inexact)
        try:
            yield
        finally:
            rewriter._DEFAULT_REWRITE_RULES = before


def optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with its constants computed."""
    with exact():
        return onnxscript.optimizer.optimize(proto)
