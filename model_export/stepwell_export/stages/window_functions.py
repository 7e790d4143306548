"""The windows of spectra: by name, or as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import Array

Window = str | Sequence[float] | Array | None
"""`hann`, `sqrt_hann`, `hamming`, `vorbis`, one number for each sample, or None for no window."""


def _hann(n: Array, size: int) -> Array:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * n / size))


_NAMED: Final[dict[str, Callable[[Array, int], Array]]] = {
    "hann": _hann,
    "sqrt_hann": lambda n, size: np.sqrt(_hann(n, size)),
    "hamming": lambda n, size: np.asarray(0.54 - 0.46 * np.cos(2 * np.pi * n / size)),
    "vorbis": lambda n, size: np.sin(np.pi / 2 * np.sin(np.pi * (n + 0.5) / size) ** 2),
}


def window_of(window: Window, size: int) -> Array | None:
    """Return a window, shape `(size,)`, float64; those with names are periodic. None: no window.

    Raises:
        ManifestError: It has no such name, another size, or numbers that are not finite.
    """
    if window is None:
        return None
    if isinstance(window, str):
        if window not in _NAMED:
            raise ManifestError(
                f"`window` is {window!r}; expected {', '.join(map(repr, _NAMED))} or {size} numbers.",
                fix="Give one of these names, or the numbers as an array.",
            )
        return _NAMED[window](np.arange(size, dtype=np.float64), size)
    try:
        array = np.asarray(window, np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ManifestError(
            f"`window` is {window!r:.60} of shape {list(array.shape)}; expected {size} finite numbers.",
            fix="Give one number for each sample of a frame, or a name such as 'hann'.",
        )
    return array


def check_hop(size: int, hop: int, *, divides: bool = False) -> None:
    """Check the samples of a timestep against those of a frame.

    Raises:
        ManifestError: `hop` is larger than `size`, or does not divide it where it has to.
    """
    if hop > size:
        raise ManifestError(
            f"`hop` is {hop} and `size` {size}; expected at most {size}.", fix="A frame has at least the new samples."
        )
    if divides and size % hop:
        raise ManifestError(
            f"`hop` is {hop} and `size` {size}; expected a `hop` that divides `size`.",
            fix=f"Give `hop={size // 2}` or `hop={size // 4}`.",
        )
