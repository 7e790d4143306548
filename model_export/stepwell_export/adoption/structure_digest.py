"""A digest of a graph's structure: which operators it has and how they are connected, whatever tensors are called.

Weights count by their shape alone, so that a graph that was trained further has the same digest; whole numbers, such as
axes and shapes, count by their values, whether they are attributes or constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import numpy_helper

from stepwell_export.graph.nodes import attributes, constants

_MOST_NUMBERS = 16
"""A constant with more whole numbers than these counts by its shape."""


def structure_digest(model: Any) -> str:
    """Return the digest of a model's structure, 16 hexadecimal digits."""
    graph = model.graph
    known = {value.name: _hashed("input", _declared(value)) for value in graph.input}
    return _hashed("graph", *_outputs(graph, known))[:16]


def _outputs(graph: Any, outside: Mapping[str, str]) -> list[str]:
    """Return the digest of each output of a graph, given those of the tensors around it."""
    known = dict(outside)
    numbers: dict[str, Any] = {}
    for name, tensor in constants(graph).items():
        array = numpy_helper.to_array(tensor)
        known[name] = _constant(array)
        if array.dtype.kind in "iub" and array.size <= _MOST_NUMBERS:
            numbers[name] = array
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in known:
            continue
        if node.op_type == "Identity":
            known[node.output[0]] = known.get(node.input[0], "")
            continue
        given, ints = [], list[int]()
        for name in node.input:
            if name in numbers:
                ints += [int(number) for number in np.ravel(numbers[name])]
            elif name:
                given.append(known.get(name, ""))
        for key, value in sorted(attributes(node).items()):
            if hasattr(value, "node"):
                given += [key, *_outputs(value, known)]
            else:
                ints += _ints(value)
        made = _hashed(node.op_type, *given, *map(str, sorted(ints)))
        for place, name in enumerate(node.output):
            known[name] = _hashed(made, str(place))
    return [known.get(value.name, "") for value in graph.output]


def _ints(value: Any) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return [one for one in value if isinstance(one, int)] if isinstance(value, list | tuple) else []


def _constant(array: Any) -> str:
    return _hashed("constant", array.dtype.kind, *map(str, array.shape))


def _declared(value: Any) -> str:
    """Return an input's type and number of axes; lengths follow from the weights, and may be declared open."""
    tensor = value.type.tensor_type
    return f"{tensor.elem_type} {len(tensor.shape.dim)}"


def _hashed(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
