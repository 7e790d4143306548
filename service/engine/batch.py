"""Turning requests into batches of rows and back: names of operations, packed predictions, finite checks. Pure."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from model_export.manifest import Array, Manifest, OutputSpec
from service.engine.decide import Intent
from service.engine.types import Timestep
from service.store.record import digest16


class UniqueNames:
    """Names of 16 bytes that nobody else gives out: 8 random ones of its own, then a counter.

    Asking the kernel for 16 random bytes per request would cost as much as running the model for it.
    """

    def __init__(self) -> None:
        self._own = secrets.token_bytes(8)
        self._count = itertools.count()

    def __call__(self) -> bytes:
        """Return the next name."""
        return self._own + next(self._count).to_bytes(8, "little")


def intent_of(timestep: Timestep, fingerprint: bytes, new_name: Callable[[], bytes]) -> Intent:
    """Name a request so that each retry of it has the same name, by whichever door it comes.

    The name is over canonical bytes (name, dtype, shape, values), so a retry in msgpack of a request in JSON is
    the same request. Without `seq`, `after` and key there is nothing to tell a retry by: it gets a new name.
    """
    parts = [timestep.length.to_bytes(4, "little")]
    for name in sorted(timestep.inputs):
        array = timestep.inputs[name]
        parts += (name.encode(), array.dtype.str.encode(), repr(array.shape).encode(), array.tobytes())
    digest = digest16(*parts)
    seq = b"" if timestep.seq is None else timestep.seq.to_bytes(8, "little")
    after = timestep.after or b""
    if timestep.idempotency_key is not None:
        digest = digest16(digest, seq, after)
        op_id = digest16(b"K", timestep.idempotency_key.encode(), digest)
    elif timestep.seq is not None:
        op_id = digest16(b"S", seq, after, digest)
    elif timestep.after is not None:
        op_id = digest16(b"A", after, digest)
    else:
        op_id = new_name()
    return Intent(
        op_id, digest, timestep.length, timestep.seq, timestep.after, timestep.create, fingerprint
    )  # fmt: skip


def stack_inputs(timesteps: Sequence[Timestep], name: str) -> Array:
    """Stack one input of requests of equal length: `(rows, T, *row)`."""
    return np.stack([timestep.inputs[name] for timestep in timesteps])


def pack_outputs(manifest: Manifest, outputs: Mapping[str, Array]) -> Array:
    """Pack predictions for the store.

    Args:
        manifest: Of the model.
        outputs: One array per answered output, `(rows, T, *row)`.

    Returns:
        `(rows, T, bytes of one prediction)` uint8.
    """
    parts = []
    for spec in manifest.answered:
        value = np.ascontiguousarray(outputs[spec.name])
        rows, length = value.shape[:2]
        parts.append(value.reshape(rows, length, -1).view(np.uint8).reshape(rows, length, spec.row_bytes))
    if not parts:
        some = next(iter(outputs.values()), None)
        return np.zeros((0, 0, 0) if some is None else (*some.shape[:2], 0), np.uint8)
    return np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def unpack_outputs(manifest: Manifest, packed: bytes) -> dict[str, Array]:
    """Undo `pack_outputs` for one row: one array `(T, *row)` per answered output."""
    size = prediction_bytes(manifest.answered)
    length = len(packed) // size if size else 0
    table = np.frombuffer(packed, np.uint8).reshape(length, size)
    outputs: dict[str, Array] = {}
    offset = 0
    for spec in manifest.answered:
        column = np.ascontiguousarray(table[:, offset : offset + spec.row_bytes])
        outputs[spec.name] = column.view(spec.dtype).reshape(length, *spec.row_shape)
        offset += spec.row_bytes
    return outputs


def prediction_bytes(specs: Sequence[OutputSpec]) -> int:
    """Return the bytes of one timestep's packed prediction."""
    return sum(spec.row_bytes for spec in specs)


def finite_rows(arrays: Mapping[str, Array]) -> tuple[Array, dict[int, str]]:
    """Tell which rows hold only finite numbers.

    Returns:
        A boolean per row, and for each bad row the name of the first array that is not finite.
    """
    rows = len(next(iter(arrays.values())))
    good = np.ones(rows, bool)
    bad: dict[int, str] = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        fine = np.isfinite(array.reshape(rows, -1)).all(axis=1)
        for row in np.flatnonzero(good & ~fine):
            bad[int(row)] = name
        good &= fine
    return good, bad
