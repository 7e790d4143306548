"""One tensor from plain values, exactly checked: the slow way, which finds what is wrong and says where.

A dimension of `None` takes any length from 1: that is how chunks leave T open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from model_export.manifest import Array, TensorSpec
from service.codec.strict_parse import json_type, preview
from service.errors import ServiceError

Dims = tuple[int | None, ...]

_EXPECTED = {"b": "true or false", "i": "an integer", "u": "an integer", "f": "a number"}
_LARGEST = int(np.finfo(np.float64).max)
_FIX = "Send the input as GET /v1/models/{model} describes it."


def read_tensor(value: Any, spec: TensorSpec, lead: Dims, what: str) -> Array:
    """Return an array of shape `(*lead, *row)` and the declared dtype, every value finite.

    Args:
        value: Nested lists, a number where the shape is `[]`, or a packed `{"d", "s", "b"}` with bytes.
        spec: The declaration.
        lead: Dimensions in front of the row.
        what: How to name it in messages.

    Raises:
        ServiceError: `bad_input`: shape or dtype; `non_finite`: a value that is not, or would not be, finite.
    """
    dims: Dims = (*lead, *spec.row_shape)
    if isinstance(value, dict) and isinstance(value.get("b"), bytes):
        array = unpack(value, spec, dims, what)
    else:
        leaves: list[Any] = []
        shape = _flatten(value, dims, [], leaves, what)
        array = _cast(leaves, spec, shape, what).reshape(shape)
    check_finite(array, what)
    return array


def check_finite(array: Array, what: str) -> None:
    """Check that every value is finite.

    Raises:
        ServiceError: `non_finite`, with the first index where one is not.
    """
    if (fault := _fault(array, what)) is not None:
        raise fault


def pack_inputs(inputs: Mapping[str, Array]) -> tuple[bytes, ...]:
    """Return the bytes of each input, in the order of their names."""
    return tuple([inputs[name].tobytes() for name in sorted(inputs)])


def pack_rows(inputs: Mapping[str, Array]) -> Iterator[tuple[bytes, ...]]:
    """Return for each row the bytes of each input, in the order of their names.

    Args:
        inputs: Arrays with one row for each of the same rows, at least one of each.
    """
    columns = []
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        size = array.nbytes // len(array)
        columns.append(array.reshape(-1).view(f"V{size}").tolist() if size else [b""] * len(array))
    return zip(*columns, strict=True)


def read_column(
    value: Any, spec: TensorSpec, rows: int, *, chunk: bool, what: str
) -> tuple[Array, dict[int, ServiceError]]:
    """Return one input of many streams, and what is wrong with single rows of it.

    Args:
        value: A list of `rows` tensors, or one packed tensor.
        spec: The declaration.
        rows: The number of streams.
        chunk: Each row has a time axis, of one length for all.
        what: How to name it in messages.

    Returns:
        Shape `(rows, *row)`, with `chunk` `(rows, T, *row)`; and the faults by row, whose values are zeros.

    Raises:
        ServiceError: `bad_input`: a fault of the whole column.
    """
    lead: Dims = (None,) if chunk else ()
    faults: dict[int, ServiceError] = {}
    if isinstance(value, dict) and isinstance(value.get("b"), bytes):
        column = unpack(value, spec, (rows, *lead, *spec.row_shape), what)
        if not is_finite(column):
            found = ((i, _fault(row, f"{what} of stream {i}")) for i, row in enumerate(column))
            faults = {i: fault for i, fault in found if fault is not None}
        return column, faults
    if not isinstance(value, list):
        _refuse(f"{what} is {preview(value)}; expected a list of one per stream, {rows} in all.")
    if len(value) != rows:
        _refuse(f"{what} has {len(value)} rows for {rows} streams; expected one for each.")
    parts: dict[int, Array] = {}
    for i, item in enumerate(value):
        try:
            parts[i] = read_tensor(item, spec, lead, f"{what} of stream {i}")
        except ServiceError as fault:
            faults[i] = fault
    shape = spec.row_shape
    if chunk:
        # The length that most rows have is the chunk's; the others do not fit it.
        length = Counter(len(part) for part in parts.values()).most_common(1)[0][0] if parts else 1
        shape = (length, *shape)
    column = np.zeros((rows, *shape), spec.dtype)
    for i, part in parts.items():
        if part.shape == shape:
            column[i] = part
        else:
            faults[i] = _bad_input(f"{what} of stream {i} has {len(part)} timesteps; the other rows have {shape[0]}.")
    return column, faults


def unpack(packed: dict[Any, Any], spec: TensorSpec, dims: Dims, what: str) -> Array:
    """Return a packed tensor as an array; finiteness is not looked at.

    Raises:
        ServiceError: `bad_input`: keys, dtype, shape or the number of bytes.
    """
    if set(packed) != {"d", "s", "b"}:
        _refuse(f"{what} is packed with keys {sorted(map(preview, packed))}; expected d, s and b.")
    dtype, shape, raw = packed["d"], packed["s"], packed["b"]
    if dtype != spec.dtype:
        _refuse(f"{what} has dtype {preview(dtype)}; expected {spec.dtype}.")
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        _refuse(f"{what} has s = {preview(shape)}; expected its shape, {format_shape(dims)}, as integers from 0.")
    if len(shape) != len(dims) or any(d not in (None, s) for s, d in zip(shape, dims, strict=True)):
        _refuse(f"{what} has shape {format_shape(shape)}; expected {format_shape(dims)}.")
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if len(raw) != needed:
        _refuse(f"{what} has {len(raw)} bytes; shape {format_shape(shape)} of {dtype} needs {needed}.")
    _check_length(shape, dims, what)
    if dtype == "bool" and raw.translate(None, b"\x00\x01"):
        _refuse(f"{what} has bytes other than 0 and 1; expected one such byte for each boolean.")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def is_finite(array: Array) -> bool:
    """Say whether every value of an array is finite; integers and booleans always are."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares is finite only where every value is, and costs a third of isfinite + all on a short row.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def format_shape(dims: Sequence[int | None]) -> str:
    """Return a shape for a message; an open dimension is `T`."""
    return f"[{', '.join('T' if dim is None else str(dim) for dim in dims[:32])}]"


def _flatten(value: Any, dims: Dims, index: list[int], leaves: list[Any], what: str) -> list[int]:
    """Collect the leaves of nested lists and return the shape; the first list that does not fit is refused."""
    if not dims:
        leaves.append(value)
        return []
    if not isinstance(value, list):
        _refuse(f"{what}{_format_index(index)} is {preview(value)}; expected shape {format_shape(dims)}.")
    expected = dims[0]
    if expected is not None and len(value) != expected:
        found = f"shape {_found_shape(value)}" if not index else f"length {len(value)}"
        wanted = f"shape {format_shape(dims)}" if not index else f"length {expected}"
        _refuse(f"{what}{_format_index(index)} has {found}; expected {wanted}.")
    _check_length([len(value)], dims[:1], what)
    if len(dims) == 1:
        leaves += value
        return [len(value)]
    inner = [*dims[1:]]
    for i, part in enumerate(value):
        # What the first part has settles the open dimensions of the others.
        inner[:] = _flatten(part, tuple(inner), [*index, i], leaves, what)
    return [len(value), *(dim or 0 for dim in inner)]


def _check_length(shape: Sequence[int], dims: Sequence[int | None], what: str) -> None:
    if any(expected is None and found == 0 for found, expected in zip(shape, dims, strict=False)):
        _refuse(f"{what} is a chunk of 0 timesteps; expected at least 1.")


def _fault(array: Array, what: str) -> ServiceError | None:
    """Return `non_finite` with the first index where an array is not finite."""
    if is_finite(array):
        return None
    i = int(np.flatnonzero(~np.isfinite(array))[0])
    return _non_finite(i, array.shape, what, f"a finite number of {array.dtype}")


def _cast(leaves: list[Any], spec: TensorSpec, shape: Sequence[int], what: str) -> Array:
    dtype = np.dtype(spec.dtype)
    allowed = {"b": (bool,), "i": (int,), "u": (int,)}.get(dtype.kind, (int, float))
    for i, leaf in enumerate(leaves):
        # A literal that is not finite is told as such, whatever the dtype.
        if type(leaf) is float and not math.isfinite(leaf):
            raise _non_finite(i, shape, what)
        if type(leaf) not in allowed:
            found = "an integer" if type(leaf) is int else preview(leaf) if type(leaf) is float else json_type(leaf)
            _refuse(
                f"{what}{_format_index(_unravel(i, shape))} is {found}; expected {_EXPECTED[dtype.kind]} ({spec.dtype})."
            )
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for i, leaf in enumerate(leaves):
            if not limits.min <= leaf <= limits.max:
                where = _format_index(_unravel(i, shape))
                _refuse(f"{what}{where} is {preview(leaf)}; {dtype} holds {limits.min} to {limits.max}.")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused by `check_finite`, with its index
            return np.array(leaves, dtype)
    except OverflowError:  # an integer that no float holds
        i = next(i for i, leaf in enumerate(leaves) if abs(leaf) > _LARGEST)
        raise _non_finite(i, shape, what) from None


def _non_finite(i: int, shape: Sequence[int], what: str, expected: str = "a finite number") -> ServiceError:
    return ServiceError(
        "non_finite",
        f"{what}{_format_index(_unravel(i, shape))} is not {expected}; expected finite numbers only.",
        fix="Leave the timestep out, or put a value in the model's range there.",
    )


def _found_shape(value: Any) -> str:
    """Return the shape that nested lists have along their first elements."""
    dims: list[int | None] = []
    while isinstance(value, list):
        dims.append(len(value))
        value = value[0] if value else None
    return format_shape(dims)


def _unravel(i: int, shape: Sequence[int]) -> list[int]:
    return [int(axis) for axis in np.unravel_index(i, shape)] if shape else []


def _format_index(index: Sequence[int]) -> str:
    return f" at index {list(index)}" if index else ""


def _bad_input(problem: str) -> ServiceError:
    return ServiceError("bad_input", problem, fix=_FIX)


def _refuse(problem: str) -> NoReturn:
    raise _bad_input(problem)
