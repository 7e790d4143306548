"""Decodes one tensor from plain values; the errors give the value and its index.

A dimension of `None` accepts any length from 1, as for the T of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from stepwell.codec.strict.parse import json_type, preview
from stepwell.errors import ServiceError
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array, InputSpec, TensorSpec

Dims = tuple[int | None, ...]

_EXPECTED = {"b": "true or false", "i": "an integer", "u": "an integer", "f": "a number"}
_LARGEST = int(np.finfo(np.float64).max)
_MISSING = math.nan
_FIX = "Send the input as GET /v1/models/{model} describes it."


def read_tensor(value: Any, spec: TensorSpec, lead: Dims, what: str) -> Array:
    """Decode a tensor to an array of shape `(*lead, *row)` and the declared dtype, every value finite.

    Args:
        value: Nested lists, a number if the shape is `[]`, or a packed `{"d", "s", "b"}` with bytes.
        spec: The tensor's declaration.
        lead: Dimensions before those of the row.
        what: Its name in messages.

    Raises:
        ServiceError: `bad_input`: shape or dtype differ; `non_finite`: a value is not finite, also after conversion to
            the dtype.
    """
    dims: Dims = (*lead, *spec.row_shape)
    if _is_packed(value):
        array = unpack(value, spec, dims, what)
    else:
        leaves: list[Any] = []
        shape = _flatten(value, dims, [], leaves, what, may_be_missing=may_be_missing(spec))
        array = _cast(leaves, spec, shape, what).reshape(shape)
    return check_finite(array, spec, what)


def may_be_missing(spec: TensorSpec) -> bool:
    """Whether values of a tensor may be missing; they are NaN then."""
    return isinstance(spec, InputSpec) and spec.missing == "nan"


def check_finite(array: Array, spec: TensorSpec, what: str) -> Array:
    """Check that every value is finite, or is missing where it may be.

    Returns:
        The array, with `same_nan`.

    Raises:
        ServiceError: `non_finite`, with the index of the first value that is not.
    """
    if is_finite(array):
        return array
    if (error := _non_finite_error(array, spec, what)) is not None:
        raise error
    return same_nan(array)


def same_nan(array: Array) -> Array:
    """Return an array whose missing values are all the same NaN, so that equal inputs have equal bytes."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array)


def missing_values(spec: TensorSpec, lead: Sequence[int]) -> Array:
    """Return a tensor of shape `(*lead, *row)` whose values are all missing."""
    return np.full((*lead, *spec.row_shape), np.nan, spec.dtype)


def pack_inputs(inputs: Mapping[str, Array]) -> tuple[bytes, ...]:
    """Return the bytes of each input, sorted by name."""
    return tuple([inputs[name].tobytes() for name in sorted(inputs)])


def pack_rows(inputs: Mapping[str, Array]) -> Iterator[tuple[bytes, ...]]:
    """Yield for each row the bytes of each input, sorted by name.

    Args:
        inputs: Arrays with the same number of rows, at least one.
    """
    return zip(*[packed_rows(inputs[name]) for name in sorted(inputs)], strict=True)


def packed_rows(array: Array) -> list[bytes]:
    """Return the bytes of each row of an array; it has at least one."""
    if len(array) == 1:
        return [array.tobytes()]
    array = np.ascontiguousarray(array)
    size = array.nbytes // len(array)
    rows: list[bytes] = array.reshape(-1).view(f"V{size}").tolist() if size else [b""] * len(array)
    return rows


def column_fault(value: Any, spec: TensorSpec, rows: int, *, chunk: bool, what: str) -> None:
    """Raise what is wrong with one input of many streams as a whole, if anything is; `row_faults`: with single rows.

    Args:
        value: A list of `rows` tensors, or one packed tensor.
        spec: The tensor's declaration.
        rows: Number of streams.
        chunk: Each row has a time axis, of the same length for all.
        what: Its name in messages.

    Raises:
        ServiceError: `bad_input`.
    """
    if _is_packed(value):
        unpack(value, spec, (rows, *((None,) if chunk else ()), *spec.row_shape), what)
    elif not isinstance(value, list):
        _reject(f"{what} is {preview(value)}; expected a list of one per stream, {rows} in all.")
    elif len(value) != rows:
        _reject(f"{what} has {counted(len(value), 'row')} for {counted(rows, 'stream')}; expected one for each.")


def row_faults(
    value: Any, spec: TensorSpec, rows: Iterable[int], length: int, *, chunk: bool, what: str
) -> Iterator[tuple[int, ServiceError]]:
    """Yield what is wrong with each of these rows of such an input, in which most rows have `length` timesteps."""
    packed = unpack(value, spec, (None,) * (1 + chunk) + spec.row_shape, what) if _is_packed(value) else None
    for i in rows:
        row = f"{what} of stream {i}"
        try:
            if packed is None:
                part = read_tensor(value[i], spec, (None,) if chunk else (), row)
            else:
                part = check_finite(packed[i], spec, row)
        except ServiceError as exc:
            yield i, exc
        else:
            yield i, _bad_input(f"{row} has {counted(len(part), 'timestep')}; the other rows have {length}.")


def unpack(packed: dict[Any, Any], spec: TensorSpec, dims: Dims, what: str) -> Array:
    """Decode a packed tensor; whether its values are finite is not checked.

    Raises:
        ServiceError: `bad_input`: keys, dtype, shape or the number of bytes differ.
    """
    if set(packed) != {"d", "s", "b"}:
        _reject(f"{what} is packed with keys {sorted(map(preview, packed))}; expected d, s and b.")
    dtype, shape, raw = packed["d"], packed["s"], packed["b"]
    if dtype != spec.dtype:
        _reject(f"{what} has dtype {preview(dtype)}; expected {spec.dtype}.")
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        _reject(f"{what} has s = {preview(shape)}; expected its shape, {format_shape(dims)}, as integers from 0.")
    if len(shape) != len(dims) or any(d not in (None, s) for s, d in zip(shape, dims, strict=True)):
        _reject(f"{what} has shape {format_shape(shape)}; expected {format_shape(dims)}.")
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if len(raw) != needed:
        _reject(f"{what} has {len(raw)} bytes; shape {format_shape(shape)} of {dtype} needs {needed}.")
    _check_length(shape, dims, what)
    if dtype == "bool" and raw.translate(None, b"\x00\x01"):
        _reject(f"{what} has bytes other than 0 and 1; expected one such byte for each boolean.")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("b"), bytes)


def is_finite(array: Array) -> bool:
    """Whether every value of an array is finite; integers and booleans always are."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares is finite only if every value is; for a short row it takes a third of the time of isfinite.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def format_shape(dims: Sequence[int | None]) -> str:
    """Format a shape for a message; a dimension of `None` is `T`."""
    return f"[{', '.join('T' if dim is None else str(dim) for dim in dims[:32])}]"


def _flatten(
    value: Any, dims: Dims, index: list[int], leaves: list[Any], what: str, *, may_be_missing: bool
) -> list[int]:
    """Append the leaves of nested lists to `leaves` and return the shape; a list of another length is an error.

    A `None` in place of a list stands for missing values, if there may be some.
    """
    if value is None and may_be_missing and None not in dims:
        shape = [dim or 0 for dim in dims]
        leaves += [None] * math.prod(shape)
        return shape
    if not dims:
        leaves.append(value)
        return []
    if not isinstance(value, list):
        _reject(f"{what}{_format_index(index)} is {preview(value)}; expected shape {format_shape(dims)}.")
    expected = dims[0]
    if expected is not None and len(value) != expected:
        found = f"shape {_shape_of(value)}" if not index else f"length {len(value)}"
        needed = f"shape {format_shape(dims)}" if not index else f"length {expected}"
        _reject(f"{what}{_format_index(index)} has {found}; expected {needed}.")
    _check_length([len(value)], dims[:1], what)
    if len(dims) == 1:
        leaves += value
        return [len(value)]
    inner = [*dims[1:]]
    for i, part in enumerate(value):
        # The first part fixes the dimensions of `None` for the other parts.
        inner[:] = _flatten(part, tuple(inner), [*index, i], leaves, what, may_be_missing=may_be_missing)
    return [len(value), *(dim or 0 for dim in inner)]


def _check_length(shape: Sequence[int], dims: Sequence[int | None], what: str) -> None:
    if any(expected is None and found == 0 for found, expected in zip(shape, dims, strict=False)):
        _reject(f"{what} is a chunk of 0 timesteps; expected at least 1.")


def _not_allowed(array: Array, spec: TensorSpec) -> Array:
    """Return which values are not finite, and are not missing where they may be."""
    found: Array = np.isinf(array) if may_be_missing(spec) else ~np.isfinite(array)
    return found


def _non_finite_error(array: Array, spec: TensorSpec, what: str) -> ServiceError | None:
    """Return `non_finite` with the index of an array's first value that may not be there, None if there is none."""
    bad = _not_allowed(array, spec)
    if not bad.any():
        return None
    i = int(np.flatnonzero(bad)[0])
    return _non_finite(i, array.shape, what, f"a finite number of {array.dtype}")


def _cast(leaves: list[Any], spec: TensorSpec, shape: Sequence[int], what: str) -> Array:
    dtype = np.dtype(spec.dtype)
    allowed = {"b": (bool,), "i": (int,), "u": (int,)}.get(dtype.kind, (int, float))
    if may_be_missing(spec):
        leaves = [_MISSING if leaf is None or leaf != leaf else leaf for leaf in leaves]  # noqa: PLR0124 - NaN is not equal to itself
    for i, leaf in enumerate(leaves):
        # For a literal that is not finite the error is `non_finite`, whatever the dtype.
        if type(leaf) is float and not math.isfinite(leaf) and leaf is not _MISSING:
            raise _non_finite(i, shape, what)
        if type(leaf) not in allowed:
            found = "an integer" if type(leaf) is int else preview(leaf) if type(leaf) is float else json_type(leaf)
            _reject(
                f"{what}{_format_index(_unravel(i, shape))} is {found}; "
                f"expected {_EXPECTED[dtype.kind]} ({spec.dtype})."
            )
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for i, leaf in enumerate(leaves):
            if not limits.min <= leaf <= limits.max:
                index = _format_index(_unravel(i, shape))
                _reject(f"{what}{index} is {preview(leaf)}; {dtype} holds {limits.min} to {limits.max}.")
    try:
        with np.errstate(over="ignore"):  # `check_finite` rejects values that overflow, with their index
            return np.array(leaves, dtype)
    except OverflowError:  # an integer that is too large for a float
        i = next(i for i, leaf in enumerate(leaves) if abs(leaf) > _LARGEST)
        raise _non_finite(i, shape, what) from None


def _non_finite(i: int, shape: Sequence[int], what: str, expected: str = "a finite number") -> ServiceError:
    return ServiceError(
        "non_finite",
        f"{what}{_format_index(_unravel(i, shape))} is not {expected}; expected finite numbers only.",
        fix="Leave the timestep out, or put a value in the model's range there.",
    )


def _shape_of(value: Any) -> str:
    """Format the shape of nested lists, from the first element of each."""
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


def _reject(problem: str) -> NoReturn:
    raise _bad_input(problem)
