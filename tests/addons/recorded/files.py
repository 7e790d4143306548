"""Files of recorded data for the tests."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.runtime.manifest import InputSpec


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def write_fold_csv(path: Path, n_streams: int, n_steps: int, *, seed: int = 0) -> dict[str, list[int]]:
    """Write rows of streams in a random order, sorted by time within a stream; return the values of each stream."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(np.arange(n_streams), n_steps))
    values = rng.integers(-1000, 1000, order.size)
    streams: dict[str, list[int]] = {f"s{n}": [] for n in range(n_streams)}
    rows = []
    for stream, value in zip(order.tolist(), values.tolist(), strict=True):
        rows.append((value, f"s{stream}", len(streams[f"s{stream}"]), "not used"))
        streams[f"s{stream}"].append(value)
    write_csv(path, ["value", "device", "time", "note"], rows)
    return streams


def an_input(name: str = "x", shape: Sequence[int] = (2,), dtype: str = "float32", **more: Any) -> InputSpec:
    return InputSpec(name=name, shape=list(shape), dtype=dtype, **more)


def write_npz(path: Path, **arrays: Any) -> Path:
    """Write arrays by name; `x__x` is the array `x:x`."""
    named: dict[str, Any] = {name.replace("__", ":"): array for name, array in arrays.items()}
    np.savez(path, **named)
    return path
