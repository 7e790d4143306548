"""What is compared at export: sequences drawn at random, and the user's own from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from stepwell_export.runtime.errors import TensorError
from stepwell_export.runtime.files import read_npz
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest
from stepwell_export.runtime.step_model import random_rows

Sampler = Callable[[np.random.Generator, int, int], dict[str, Array]]
"""`(rng, rows, steps)` to `{input: (rows, steps, *shape)}`."""


def read_user_data(path: Path, manifest: Manifest) -> dict[str, Array]:
    """Read sequences from an `.npz` file.

    Args:
        path: One array per input, named as the input, shape `(T, *shape)` or `(N, T, *shape)`.
        manifest: What the model takes.

    Returns:
        One array per input, shape `(N, T, *shape)`, in the input's dtype.

    Raises:
        TensorError: The file cannot be read, or an array is missing or does not fit.
    """
    arrays = read_npz(path)
    names = [spec.name for spec in manifest.inputs]
    if len(names) == 1 and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        raise TensorError(
            f"{path} has arrays {sorted(arrays)}; expected {sorted(names)}.", fix="Name one array after each input."
        )
    data = {spec.name: _sequence(arrays[spec.name], spec) for spec in manifest.inputs}
    lengths = {name: array.shape[:2] for name, array in data.items()}
    if len(set(lengths.values())) != 1 or 0 in next(iter(lengths.values())):
        raise TensorError(
            f"The arrays of {path} have these numbers of sequences and timesteps: {lengths}.",
            fix="Give every input the same number of both, at least 1.",
        )
    return data


def random_sampler(
    manifest: Manifest, vocabularies: Mapping[str, int] | None = None, *, constant: Collection[str] = ()
) -> Sampler:
    """Return a sampler of normal floats; integers are 0 or 1, which are valid in every vocabulary and flag.

    Args:
        manifest: What the model takes.
        vocabularies: By input, how many ids it may have; those are drawn from all of them, also where they are floats.
        constant: Inputs that stay the same over a sequence.
    """
    known = vocabularies or {}

    def draw(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = {}
        for spec in manifest.inputs:
            if spec.name in known:
                values = rng.integers(0, known[spec.name], (rows, steps, *spec.shape)).astype(spec.dtype)
            else:
                values = random_rows(rng, spec, (rows, steps))
            drawn[spec.name] = np.repeat(values[:, :1], steps, axis=1) if spec.name in constant else values
        return drawn

    return draw


def _sequence(array: Array, spec: InputSpec) -> Array:
    name, row, dtype = spec.name, spec.row_shape, spec.dtype
    if array.ndim == len(row) + 1:
        array = array[None]
    if array.ndim != len(row) + 2 or array.shape[2:] != row or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TensorError(
            f"Array {name!r} has shape {list(array.shape)} and dtype {array.dtype}; expected (T, ..) or (N, T, ..) "
            f"with rows {list(row)} of {dtype}.",
            fix="Give one row per timestep as the model declares it.",
        )
    with np.errstate(over="ignore"):
        values = array.astype(dtype)
    usable = ~np.isinf(values) if spec.missing == "nan" else np.isfinite(values)
    if not usable.all():
        at = [int(i) for i in np.argwhere(~usable)[0]]
        raise TensorError(
            f"Array {name!r} has {array[tuple(at)]} at {at}; expected finite numbers of {dtype}"
            f"{', or NaN for missing values' if spec.missing == 'nan' else ''}.",
            fix="Leave such timesteps out, or replace missing values in the model, by the stage Impute.",
        )
    return values
