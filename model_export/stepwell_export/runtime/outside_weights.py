"""Large weights of graphs, in memory once: a graph names them, whatever copies are made of it, and its file has them.

`with_weights_outside` takes them out of a model; what it returns is small, and every copy of it names the same arrays.
Sessions read them where they are, and `file_parts` gives the bytes of the file, the weights at their places. An array
ends with what holds it, so whoever keeps such a graph keeps its arrays, too.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.protobuf import BYTES, fields

if TYPE_CHECKING:
    import onnx

LARGE = 2**18
"""Numbers from which on a weight lies outside."""

_KINDS, _EXTERNAL = {1, 10, 11}, 1
"""Element types of onnx, float32, float16 and float64, and its mark of a tensor that lies elsewhere."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Fields of a model, a graph and a tensor, in onnx.proto."""

_SAMPLE = 64
"""Numbers of a weight that are compared with those of others before all are."""

_PIECE = 2**20
"""Bytes that are compared at once."""

_HERE: Final = secrets.token_hex(8)
"""In front of the names of arrays; no file can have it."""

_arrays: WeakValueDictionary[str, Array] = WeakValueDictionary()
"""What somebody holds, by the name that graphs have for it; none is given twice."""

_alike: WeakValueDictionary[tuple[Any, ...], Array] = WeakValueDictionary()
"""The same, by type, shape and some of the numbers."""

_numbers = count()


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model without its dense initializers, which are never copied."""
    lean: onnx.ModelProto = _copied(model, "graph")
    lean.graph.CopyFrom(_copied(model.graph, "initializer"))
    return lean


def _copied(message: Any, without: str) -> Any:
    """Return a copy of a message without one of its fields."""
    made = type(message)()
    for field, value in message.ListFields():
        if field.name == without:
            continue
        if hasattr(value, "extend"):
            getattr(made, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(made, field.name).CopyFrom(value)
        else:
            setattr(made, field.name, value)
    return made


def with_weights_outside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a copy of a model that names its large weights, and these by initializer: its caller holds them.

    Weights of the same bytes are one array, in whatever models they are. Those that are outside already stay so.
    """
    lean, weights = without_initializers(model), {}
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        is_large = math.prod(tensor.dims) >= LARGE and tensor.data_type in _KINDS
        made = tensor
        if _name_of(tensor):
            weights[tensor.name] = to_array(tensor)
        elif is_large and tensor.name not in inputs and tensor.data_location != _EXTERNAL:
            made, weights[tensor.name] = outside(to_array(tensor), tensor.name)
        lean.graph.initializer.add().CopyFrom(made)
    return lean, weights


def weights_of(model: onnx.ModelProto) -> list[Array]:
    """Return the arrays that a graph names; they end with what holds them."""
    return [to_array(tensor) for tensor in model.graph.initializer if _name_of(tensor)]


def is_large(array: Array) -> bool:
    """Return whether an array is one that may lie outside a graph."""
    return array.size >= LARGE and array.dtype.kind == "f"


def outside(array: Array, name: str = "") -> tuple[onnx.TensorProto, Array]:
    """Return a tensor whose numbers lie outside it, and these: in `array`, or where equal ones are already."""
    from onnx import TensorProto, helper

    location, held = _shared(array)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    made = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    return made, held


def to_array(tensor: onnx.TensorProto) -> Array:
    """Return the numbers of a tensor, wherever they lie.

    Raises:
        KeyError: They lay outside, and nobody held them.
    """
    if name := _name_of(tensor):
        array, shape = _arrays[name], tuple(tensor.dims)
        return array if array.shape == shape else array.reshape(shape)  # a view would not hold the array
    from onnx import numpy_helper

    made: Array = numpy_helper.to_array(tensor)
    return made


def _name_of(tensor: onnx.TensorProto) -> str:
    """Return the name of the array that a tensor is; empty where its numbers are in it, or in a file."""
    names = (entry.value for entry in tensor.external_data) if tensor.data_location == _EXTERNAL else ()
    return next((str(name) for name in names if name.startswith(_HERE)), "")


def _shared(made: Array) -> tuple[str, Array]:
    """Return the array that holds these numbers, and its name."""
    key = made.dtype.str, made.shape, made.reshape(-1)[:: made.size // _SAMPLE + 1].tobytes()
    known = _alike.setdefault(key, made)
    for name, array in list(_arrays.items()):
        if array is known and _is_same(known, made):
            return name, known
    name = f"{_HERE}/{next(_numbers)}"
    _arrays[name] = made
    return name, made


def _is_same(one: Array, other: Array) -> bool:
    """Whether two arrays of a type and a shape have the same bytes."""
    left, right = (array.reshape(-1).view(np.uint8) for array in (one, other))
    return all(np.array_equal(left[at : at + _PIECE], right[at : at + _PIECE]) for at in range(0, one.nbytes, _PIECE))


# ---------------------------------------------------------------- the file


def file_parts(model: onnx.ModelProto) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file of a model, one part after another, with the weights that lie outside it."""
    data = memoryview(model.SerializeToString())
    outside = {tensor.name: tensor for tensor in model.graph.initializer if _name_of(tensor)}
    tensors = iter(model.graph.initializer)

    def initializer(start: int, end: int) -> list[bytes | memoryview]:
        tensor = next(tensors)
        return _tensor_parts(tensor) if tensor.name in outside else [data[start:end]]

    def graph(start: int, end: int) -> list[bytes | memoryview]:
        return _with_field(data, start, end, _INITIALIZER, initializer)

    yield from _with_field(data, 0, len(data), _GRAPH, graph) if outside else [data]


def file_size(model: onnx.ModelProto) -> int:
    """Return how many bytes the file of a model has."""
    return sum(map(len, file_parts(model)))


def file_bytes(model: onnx.ModelProto) -> bytes:
    """Return the bytes of the file of a model."""
    return b"".join(file_parts(model))


def write_file(model: onnx.ModelProto, path: Path) -> None:
    """Write the file of a model."""
    with path.open("wb") as file:
        file.writelines(file_parts(model))


def _with_field(
    data: memoryview, at: int, end: int, number: int, made: Callable[[int, int], list[bytes | memoryview]]
) -> list[bytes | memoryview]:
    """Return the parts of a message, with others for what a field of messages has.

    Args:
        data: Bytes that hold the message.
        at: Where it starts.
        end: Where it ends.
        number: Of the field.
        made: From the start and end of a message in the field to its parts.
    """
    parts: list[bytes | memoryview] = []
    for field, start, stop in fields(data, at, end):
        if field == number:
            inner = made(start, stop)
            parts += [data[at : start - len(_head(number, stop - start))], _head(number, sum(map(len, inner))), *inner]
            at = stop
    return [*parts, data[at:end]]


def _tensor_parts(tensor: onnx.TensorProto) -> list[bytes | memoryview]:
    inside = type(tensor)(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    numbers = np.ascontiguousarray(to_array(tensor)).reshape(-1).view(np.uint8).data
    return [inside.SerializeToString(), _head(_RAW_DATA, len(numbers)), numbers]


def _head(number: int, size: int) -> bytes:
    """Return what stands in front of a field's bytes: its number and their count."""
    made = [number << 3 | BYTES]
    while size >= 0x80:
        made.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*made, size])
