"""Inputs that go nowhere but into recurrences: what they start from, and how long their sequences are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, captures, subgraphs
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL

_ROUTES = RESHAPING | PICKING | {"Cast"}


def find_slot(graph: Any, name: str) -> str:
    """Return what an input is that goes nowhere but into recurrences: a `length`, or a state by where its batch is."""
    slots = _slots_of(graph, name, depth=0)
    if not slots or None in slots:
        return ""
    if slots == {"length"}:
        return "length"
    return slots.pop() or "" if len(slots) == 1 and "length" not in slots else "" if "length" in slots else "routed"


def _slots_of(graph: Any, name: str, depth: int) -> set[str | None]:
    """Return the slots that a tensor reaches; None among them where it is used in any other way."""
    slots: set[str | None] = {None} if any(output.name == name for output in graph.output) else set()
    for node in graph.node:
        if name in captures(node):
            slots.add(None)
        for place in (i for i, given in enumerate(node.input) if given == name):
            slots |= _slot_at(graph, node, place, depth)
    return slots


def _slot_at(graph: Any, node: Any, place: int, depth: int) -> set[str | None]:
    operator = STATEFUL.get(node.op_type)
    if operator is not None and operator.time_axis is not None:
        if place == operator.lengths:
            return {"length"}
        if place in operator.states:
            return {"first" if node.op_type not in RNN else "gated"} if not depth else {"routed"}
    if node.op_type == "Scan":
        states = len(node.input) - int(attributes(node)["num_scan_inputs"])
        return {"state"} if place < states else {None}
    if node.op_type == "Loop" and place >= 2:
        body = next(subgraphs(node))
        return {"state"} if _is_float(body.input[place]) else {None}
    if node.op_type in _ROUTES and place == 0:
        reached: set[str | None] = set()
        for output in node.output:
            reached |= _slots_of(graph, output, depth + 1)
        if reached == {"length"} and node.op_type in {"Cast", "Identity"}:
            return reached
        return {"routed" if slot not in {None, "length"} else None for slot in reached}
    return {None}


def _is_float(value: Any) -> bool:
    kind = value.type.tensor_type.elem_type
    return bool(kind) and np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).kind == "f"
