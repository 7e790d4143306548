"""Fourier transforms as products with cosines and sines: ONNX has no complex numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from jax import numpy as jnp


@contextmanager
def spectra_as_products() -> Iterator[None]:
    """Let Keras' transforms of real numbers, `rfft` and `irfft`, be products."""
    backend = import_module("keras.src.backend.jax.math")
    with ExitStack() as restored:
        for name, function in (("rfft", _rfft), ("irfft", _irfft)):
            restored.callback(setattr, backend, name, getattr(backend, name))
            setattr(backend, name, function)
        yield


def _rfft(x: Any, fft_length: int | None = None) -> tuple[Any, Any]:
    """Return the real and the imaginary part of the spectrum of the last axis."""
    width = x.shape[-1]
    length = fft_length or width
    angles = 2 * np.pi / length * np.outer(np.arange(min(width, length)), np.arange(length // 2 + 1))
    given = x[..., :length]
    return given @ jnp.asarray(np.cos(angles), x.dtype), given @ jnp.asarray(-np.sin(angles), x.dtype)


def _irfft(x: tuple[Any, Any], fft_length: int | None = None) -> Any:
    """Return the wave that has a spectrum, given as real and imaginary part."""
    real, imaginary = x
    width = real.shape[-1]
    length = fft_length or 2 * (width - 1)
    counted = np.arange(min(width, length // 2 + 1))
    angles = 2 * np.pi / length * np.outer(counted, np.arange(length))
    twice = np.where((counted == 0) | (2 * counted == length), 1, 2)[:, None] / length  # and its mirror image
    cosines, sines = jnp.asarray(twice * np.cos(angles), real.dtype), jnp.asarray(-twice * np.sin(angles), real.dtype)
    return real[..., : len(counted)] @ cosines + imaginary[..., : len(counted)] @ sines
