"""The memory of an export: large weights are there once, and what is free is given back to the system."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    import onnx

_LARGE = 2**18
"""Numbers from which on a weight is shared: the graph without it is what is written to bytes and read again."""

_FLOAT, _FLOAT16, _DOUBLE, _EXTERNAL = 1, 10, 11, 1
"""Element types of onnx, and its mark of a tensor that lies elsewhere."""

_arrays: WeakValueDictionary[tuple[Any, ...], Array] = WeakValueDictionary()
"""What somebody holds, by type, shape and digest of its bytes."""


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model without its metadata and its dense initializers, which are never copied."""
    graph, lean = model.graph, type(model)()
    lean.ir_version, lean.graph.name = model.ir_version, graph.name
    lean.opset_import.extend(model.opset_import)
    lean.functions.extend(model.functions)
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(lean.graph, field).extend(getattr(graph, field))
    return lean


def with_weights_outside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a copy of a model that declares its large weights as lying outside it, and these weights by name.

    Weights of the same bytes are one array, in whatever models they are, as long as a caller holds it.
    """
    graph, lean = model.graph, without_initializers(model)
    inputs = {value.name for value in graph.input}
    weights = {}
    for tensor in graph.initializer:
        is_large = math.prod(tensor.dims) >= _LARGE and tensor.data_type in {_FLOAT, _FLOAT16, _DOUBLE}
        if not is_large or tensor.name in inputs or tensor.data_location == _EXTERNAL:
            lean.graph.initializer.add().CopyFrom(tensor)
            continue
        weights[tensor.name] = _shared(tensor)
        outside = lean.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = _EXTERNAL
        outside.external_data.add(key="location", value="memory")
    return lean, weights


def _shared(tensor: onnx.TensorProto) -> Array:
    from onnx import numpy_helper

    made: Array = numpy_helper.to_array(tensor)
    key = (made.dtype.str, made.shape, hashlib.blake2b(made.data, digest_size=16).digest())
    return _arrays.setdefault(key, made)


_LARGE_MODEL = 2**24
"""Bytes of weights from which on memory is worth a tenth of a second."""


def release(nbytes: int) -> None:
    """Collect what refers to itself, and give back what the allocator of C has free; nothing for small models.

    Args:
        nbytes: Of the model's weights.
    """
    if nbytes < _LARGE_MODEL:
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc gives memory back by itself, or never
        ctypes.CDLL(None).malloc_trim(0)
