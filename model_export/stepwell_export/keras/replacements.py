"""What Keras does in another way while a model is run here: quietly, without kept states, all timesteps at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import keras
import numpy as np
from jax import numpy as jnp

from stepwell_export.patched import patched


@contextmanager
def quiet() -> Iterator[None]:
    """Let Keras not log what is tried with an open size and fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def stateless(model: Any) -> Iterator[None]:
    """Let recurrent layers that keep a state between calls start from zeros, and leave it alone."""
    kept = (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.stateful)
    with patched(*((layer, "stateful", False) for layer in kept)):
        yield


# ---------------------------------------------------------------- TimeDistributed
#
# Keras compiles, or runs, its layer once for each timestep: for a network of some size that takes minutes.


def find_wrappers(model: Any) -> list[Any]:
    """Return the layers of a model that run another one at each timestep."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.TimeDistributed)]


def may_spread_timesteps(model: Any, inputs: Any) -> bool:
    """Return whether such layers give the same on all timesteps at once, compared with Keras' own way once.

    Args:
        model: A model that has some.
        inputs: A short sequence of several rows, as the model takes it.
    """
    try:
        want = keras.tree.flatten(model.call(inputs, training=False))
        with timesteps_as_rows(model):
            found = keras.tree.flatten(model.call(inputs, training=False))
    except Exception:  # noqa: BLE001  # whatever the reason, Keras' own way will report it
        return False
    return all(
        np.allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5) for a, b in zip(want, found, strict=True)
    )


@contextmanager
def timesteps_as_rows(model: Any) -> Iterator[None]:
    """Let TimeDistributed run its layer on all timesteps at once, as rows of one batch."""

    def spread(wrapper: Any) -> Any:
        inner = wrapper.layer

        def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            given = {"training": training} if inner._call_has_training_arg else {}
            if inner._call_has_mask_arg and mask is not None:
                given["mask"] = keras.ops.reshape(mask, (-1, *mask.shape[2:]))
            rows, steps = keras.ops.shape(inputs)[:2]
            with keras.name_scope(inner.name):
                results = inner.call(keras.ops.reshape(inputs, (-1, *inputs.shape[2:])), **given)
            return keras.tree.map_structure(
                lambda result: keras.ops.reshape(result, (rows, steps, *result.shape[1:])), results
            )

        return call

    with patched(*((wrapper, "call", spread(wrapper)) for wrapper in find_wrappers(model))):
        yield


# ---------------------------------------------------------------- spectra
#
# Products with cosines and sines: ONNX has no complex numbers.


@contextmanager
def spectra_as_products() -> Iterator[None]:
    """Let Keras' transforms of real numbers, `rfft` and `irfft`, be products."""
    backend = import_module("keras.src.backend.jax.math")
    with patched((backend, "rfft", _rfft), (backend, "irfft", _irfft)):
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
