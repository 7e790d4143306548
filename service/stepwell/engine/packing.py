"""Packs predictions to bytes and back, and finds values that are not finite. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec


def pack_outputs(specs: Sequence[OutputSpec], outputs: Mapping[str, Array], rows: int) -> Array:
    """Pack predictions for the store, one timestep after another.

    Args:
        specs: The returned outputs.
        outputs: One array per returned output, `(rows, T, *row)`; or no arrays.
        rows: Number of rows.

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
    """Invert `pack_outputs` for one row: one array `(T, *row)` per returned output."""
    return {name: array[0] for name, array in unpack_rows(manifest, np.frombuffer(packed, np.uint8)[None]).items()}


def unpack_rows(manifest: Manifest, packed: Array) -> dict[str, Array]:
    """Invert `pack_outputs`: one array `(rows, T, *row)` per returned output.

    Args:
        manifest: The manifest of the model that computed them.
        packed: `(rows, T times the bytes of one prediction)` uint8.
    """
    layout = _layout(tuple([(spec.name, spec.dtype, spec.row_shape) for spec in manifest.answered]))
    table = np.ascontiguousarray(packed).view(layout) if packed.size else np.empty((len(packed), 0), layout)
    return {name: np.ascontiguousarray(table[name]) for name in layout.names or ()}


@lru_cache(maxsize=64)
def _layout(fields: tuple[tuple[str, str, tuple[int, ...]], ...]) -> np.dtype[Any]:
    """Return the dtype of one timestep's packed prediction; NumPy takes longer to create it than to use it."""
    return np.dtype([*fields])


def last_prediction(manifest: Manifest, packed: bytes) -> dict[str, Array]:
    """Return the last of one row's packed predictions, `*row` by name; empty if there is none."""
    size = prediction_bytes(manifest.answered)
    if not size or not packed or len(packed) % size:
        return {}
    return {name: array[-1] for name, array in unpack_outputs(manifest, packed[-size:]).items()}


def prediction_bytes(specs: Sequence[OutputSpec]) -> int:
    """Return the size in bytes of one timestep's packed prediction."""
    return sum(spec.row_bytes for spec in specs)


def all_true(flags: Array) -> bool:
    """Whether every element of a boolean array is true. For a small array, `numpy.all` takes several times as long."""
    return b"\0" not in flags.tobytes()


def finite_rows(arrays: Mapping[str, Array]) -> tuple[Array, dict[int, str]]:
    """Find the rows whose values are all finite.

    Returns:
        A boolean per row, and for each row with a value that is not finite the name of the first such array.
    """
    rows = len(next(iter(arrays.values())))
    finite = np.ones(rows, bool)
    not_finite: dict[int, str] = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or all_true(is_finite := np.isfinite(array)):
            continue
        finite_here = is_finite.reshape(rows, -1).all(axis=1)
        for row in np.flatnonzero(finite & ~finite_here):
            not_finite[int(row)] = name
        finite &= finite_here
    return finite, not_finite


def select_returned(keep: ReturnMode, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the predictions to return and to store for a replay, `(rows, T', *row)`; no arrays with `none`."""
    if keep == "all":
        return outputs
    return {name: array[:, -1:] for name, array in outputs.items()} if keep == "last" else {}
