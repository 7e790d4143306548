"""Where each state lies in a packed state row, the bytes that the store keeps; and such a row as text.

The text is what a model continues from wherever its graph runs: base64url, without padding, of the fingerprint of the
model, the packed state row, and the CRC-32 of both, little-endian.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array, Manifest, StateSpec

# ---------------------------------------------------------------- the axes of tensors


class TensorLayout(NamedTuple):
    """A tensor of the graph.

    Attributes:
        name: Its name.
        row: One row outside the graph.
        graph_row: One row in the graph, without batch axis.
        batch_axis: Where the graph has its batch axis; None: it has none.
    """

    name: str
    row: tuple[int, ...]
    graph_row: tuple[int, ...]
    batch_axis: int | None

    def with_time(self) -> TensorLayout:
        """Return the same place with a time axis of length 1 right behind the batch axis."""
        at = self.batch_axis or 0
        return self._replace(graph_row=(*self.graph_row[:at], 1, *self.graph_row[at:]))


def to_graph(rows: Array, graph_row: tuple[int, ...], batch_axis: int | None) -> Array:
    """Bring `(rows, ...)` to the graph's shape: reshape the row, put the batch axis where the graph has it."""
    if batch_axis is None:
        return rows.reshape(graph_row)
    if rows.shape[1:] != graph_row:
        rows = rows.reshape(len(rows), *graph_row)
    return rows if batch_axis == 0 else np.ascontiguousarray(np.moveaxis(rows, 0, batch_axis))


def from_graph(value: Array, place: TensorLayout, rows: int) -> Array:
    """Bring a tensor of the graph to `(rows, *row)`.

    Raises:
        ModelLoadError: It has another number of elements.
    """
    if place.batch_axis is not None and 0 < place.batch_axis < value.ndim:
        value = np.moveaxis(value, place.batch_axis, 0)
    if value.shape == (rows, *place.row):
        return value
    try:
        return value.reshape(rows, *place.row)
    except ValueError as exc:
        raise ModelLoadError(
            f"The graph gave a tensor of shape {list(value.shape)} for {place.name!r}; "
            f"expected {rows} rows of {list(place.row)}.",
            fix="Mend the shape in the manifest, or adopt the model again.",
        ) from exc


def chunk_to_graph(rows: Array, place: TensorLayout) -> Array:
    """Bring `(rows, T, *row)` to the shape of a graph that has its time axis right behind the batch axis."""
    count, steps = rows.shape[:2]
    rows = rows.reshape(count, steps, *place.graph_row)
    if place.batch_axis is None:
        return rows.reshape(steps, *place.graph_row)
    if place.batch_axis == 0:
        return np.ascontiguousarray(rows)
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (place.batch_axis, place.batch_axis + 1)))


def chunk_from_graph(value: Array, place: TensorLayout, rows: int, steps: int) -> Array:
    """Bring a tensor of such a graph to `(rows, T, *row)`."""
    at = place.batch_axis
    if at is not None and 0 < at < value.ndim - 1:
        value = np.moveaxis(value, (at, at + 1), (0, 1))
    if value.shape == (rows, steps, *place.row):
        return value
    return from_graph(value, place._replace(row=(steps, *place.row), batch_axis=None), rows)


@dataclass(frozen=True, slots=True)
class StateField:
    """One state's place in a packed state row.

    Attributes:
        name: The state input's name; for a window `<input>.context`.
        dtype: Type in the graph.
        store_dtype: Type in the packed row.
        shape: One row, without batch axis.
        offset: First byte in the packed row.
        nbytes: Length in the packed row.
        initial: The initial row, shape `shape`, dtype `dtype`.
    """

    name: str
    dtype: np.dtype[np.generic]
    store_dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    initial: Array


def pack_layout(manifest: Manifest) -> list[StateField]:
    """Return where each state lies in a row: states in manifest order, then the windows' past parts."""
    fields: list[StateField] = []
    offset = 0

    def add(name: str, spec: StateSpec | None, shape: tuple[int, ...], dtype: str, initial: Array) -> None:
        nonlocal offset
        store = np.dtype(spec.store_dtype if spec else dtype)
        nbytes = math.prod(shape) * store.itemsize
        fields.append(StateField(name, np.dtype(dtype), store, shape, offset, nbytes, initial))
        offset += nbytes

    for state in manifest.states:
        add(state.input, state, state.row_shape, state.dtype, state.initial())
    for window in manifest.windows:
        spec = next(i for i in manifest.inputs if i.name == window.input)
        shape = list(spec.row_shape)
        shape[window.axis] = window.context
        initial = np.zeros(shape, spec.dtype) if window.init == "zeros" else window.init.unpack()
        add(window.state_name, None, tuple(shape), spec.dtype, initial)
    return fields


def initial_states(fields: Sequence[StateField], rows: int) -> dict[str, Array]:
    """Return the states that `rows` new streams start from, shape `(rows, *shape)` each."""
    return {f.name: np.repeat(f.initial[None], rows, axis=0) for f in fields}


def pack(fields: Sequence[StateField], states: Mapping[str, Array], rows: int) -> Array:
    """Pack states, shape `(rows, *shape)` each, into `(rows, bytes)` uint8."""
    packed = np.empty((rows, fields[-1].offset + fields[-1].nbytes if fields else 0), np.uint8)
    for f in fields:
        flat = states[f.name].reshape(rows, -1)
        if f.store_dtype is not f.dtype and f.store_dtype != f.dtype:  # the comparison takes longer than the rest
            with np.errstate(over="ignore"):
                flat = flat.astype(f.store_dtype)
        packed[:, f.offset : f.offset + f.nbytes] = np.ascontiguousarray(flat).view(np.uint8)
    return packed


def unpack(fields: Sequence[StateField], packed: Array) -> dict[str, Array]:
    """Undo `pack`."""
    rows = len(packed)
    return {
        f.name: np.ascontiguousarray(packed[:, f.offset : f.offset + f.nbytes])
        .view(f.store_dtype)
        .reshape(rows, *f.shape)
        .astype(f.dtype, copy=False)
        for f in fields
    }


# ---------------------------------------------------------------- a packed state as text

FINGERPRINT_BYTES = 8
_CHECKSUM_BYTES = 4
_TO_URL = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/???")


class DecodedState(NamedTuple):
    """A packed state, decoded.

    Attributes:
        fingerprint: Of the model that wrote it, 8 bytes.
        state: The packed state row; `state_packing` has its layout.
    """

    fingerprint: bytes
    state: bytes


def encode_packed_state(fingerprint: bytes, state: bytes) -> str:
    """Return the text of a packed state.

    Args:
        fingerprint: Of the model that wrote it, 8 bytes.
        state: The packed state row.
    """
    content = fingerprint + state
    checksum = binascii.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")
    return _encode(content + checksum).decode()


def decode_packed_state(text: str) -> DecodedState:
    """Return what a text holds.

    Raises:
        ValueError: It is not the text of a packed state; the message has what was found.
    """
    encoded = text.encode("ascii", "replace")  # whose ? is no digit of base64
    digits = encoded.translate(_TO_STANDARD)
    try:
        raw = binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except ValueError as exc:
        raise ValueError(f"{len(text)} characters that are not base64url without padding") from exc
    rest = len(raw) % 3
    if rest and _encode(raw[-rest:]) != encoded[-rest - 1 :]:  # bits are left, or there is padding
        raise ValueError(f"{len(text)} characters that are not base64url without padding")
    if len(raw) < FINGERPRINT_BYTES + _CHECKSUM_BYTES:
        raise ValueError(f"{len(raw)} bytes, fewer than a fingerprint and a checksum have")
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if binascii.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError(f"{len(raw)} bytes whose checksum is that of others")
    return DecodedState(content[:FINGERPRINT_BYTES], content[FINGERPRINT_BYTES:])


def _encode(raw: bytes) -> bytes:
    """Return the base64url of some bytes, without padding. The functions of `base64` take twice as long."""
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=")
