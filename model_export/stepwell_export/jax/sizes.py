"""Expressions of sizes, such as `b * t` or `t - 1`, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stepwell_export.graph.builder import NodeBuilder

_KINDS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}  # sizes are never negative


def emit_size(graph: NodeBuilder, n: Any, size: Callable[[str], str]) -> str:
    """Emit an expression.

    Args:
        graph: The graph.
        n: An expression of JAX's symbolic dimensions.
        size: Returns the tensor of a variable.

    Returns:
        A tensor `(1,)` int64.
    """
    if not hasattr(n, "_sorted_terms"):
        return graph.ints([int(n)])
    total = ""
    for term, factor in n._sorted_terms:
        value = ""
        for part, power in term._factors:
            if part.var is not None:
                one = size(part.var)
            else:
                one = graph.op(_KINDS[part.operation], *(emit_size(graph, each, size) for each in part.operands))
            for _ in range(power):
                value = graph.op("Mul", value, one) if value else one
        number = graph.ints([int(factor)])
        value = (value if factor == 1 else graph.op("Mul", value, number)) if value else number
        total = graph.op("Add", total, value) if total else value
    return total
