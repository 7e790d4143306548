"""Turning predictions into bytes and back, and finding those that are no numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model_export.manifest import Array, Manifest, OutputSpec
from service.types import ReturnMode


def pack_outputs(specs: Sequence[OutputSpec], outputs: Mapping[str, Array], rows: int) -> Array:
    """Pack predictions for the store, timestep after timestep.

    Args:
        specs: The answered outputs.
        outputs: One array per answered output, `(rows, T, *row)`; or none at all.
        rows: How many.

    Returns:
        `(rows, T times the bytes of one prediction)` uint8.
    """
    parts = []
    for spec in specs:
        if (value := outputs.get(spec.name)) is not None:
            flat = np.ascontiguousarray(value).reshape(rows, value.shape[1], -1)
            parts.append(flat.view(np.uint8))
    if not parts:
        return np.empty((rows, 0), np.uint8)
    packed = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    return packed.reshape(rows, packed.shape[1] * packed.shape[2])


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


def last_prediction(manifest: Manifest, packed: bytes) -> dict[str, Array]:
    """Return the last of one row's packed predictions, `*row` by name; nothing where there is none."""
    size = prediction_bytes(manifest.answered)
    if not size or not packed or len(packed) % size:
        return {}
    return {name: array[-1] for name, array in unpack_outputs(manifest, packed[-size:]).items()}


def prediction_bytes(specs: Sequence[OutputSpec]) -> int:
    """Return the bytes of one timestep's packed prediction."""
    return sum(spec.row_bytes for spec in specs)


def all_true(flags: Array) -> bool:
    """Whether every element of a boolean array is true. Of a small one, NumPy's own ways cost several times as much."""
    return b"\0" not in flags.tobytes()


def all_finite(arrays: Sequence[Array]) -> bool:
    """Whether no array holds NaN or infinity."""
    return all([array.dtype.kind != "f" or all_true(np.isfinite(array)) for array in arrays])  # noqa: C419 - a generator costs twice as much


def finite_rows(arrays: Mapping[str, Array]) -> tuple[Array, dict[int, str]]:
    """Tell which rows hold only finite numbers.

    Returns:
        A boolean per row, and for each bad row the name of the first array that is not finite.
    """
    rows = len(next(iter(arrays.values())))
    good = np.ones(rows, bool)
    bad: dict[int, str] = {}
    for name, array in arrays.items():
        if all_finite([array]):
            continue
        fine = np.isfinite(array.reshape(rows, -1)).all(axis=1)
        for row in np.flatnonzero(good & ~fine):
            bad[int(row)] = name
        good &= fine
    return good, bad


def select_returned(keep: ReturnMode, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the predictions that are answered, and kept for a retry, `(rows, T', *row)`; none: no array."""
    if keep == "all":
        return outputs
    return {name: array[:, -1:] for name, array in outputs.items()} if keep == "last" else {}
