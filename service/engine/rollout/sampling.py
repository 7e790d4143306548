"""Chance that can be asked for again: drawing by seed, the same whatever else is drawn beside it. Pure."""

from __future__ import annotations

import numpy as np

from model_export.feedback import Draw
from model_export.manifest import Array


def uniforms(seed: int, sample: int, series: int, count: int) -> Array:
    """Return numbers from 0 to below 1, `(count,)` float64; a longer run of them begins with a shorter one.

    They are Philox's bits, which NumPy promises not to change, not what one of its distributions makes of them.

    Args:
        seed: From 0 to below 2**64.
        sample: Which of the samples of this seed; each has numbers of its own.
        series: Which of the series of this sample; each has numbers of its own.
        count: How many.
    """
    key, counter = np.array([seed, sample], np.uint64), np.array([0, 0, series, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def normals(first: Array, second: Array) -> Array:
    """Return numbers of the standard normal distribution made of two arrays of uniform ones, by Box and Muller."""
    radius = np.sqrt(-2.0 * np.log1p(-first))
    normal: Array = radius * np.cos(2.0 * np.pi * second)
    return normal


def sample_indices(weights: Array, numbers: Array, how: Draw) -> Array:
    """Draw an index from each row.

    Args:
        weights: Probabilities, `(rows, several)`, or their logarithms; they need not sum up to 1.
        numbers: A uniform number for each row, `(rows,)`.
        how: How to draw.

    Returns:
        `(rows,)` int64.

    Raises:
        ValueError: Weights that are no probabilities: negative, or all zero.
    """
    logarithms = _logarithms(weights.astype(np.float64), how)
    if how.temperature == 0:
        best: Array = logarithms.argmax(axis=1)
        return best
    scaled = logarithms / how.temperature
    chances = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if how.top_k is not None or how.top_p is not None:
        chances = _keep_top(chances, how)
    ladder = np.cumsum(chances, axis=1)
    below = numbers * ladder[:, -1]
    # The first rung above the number. Rounding may leave none above it: then the last one that has any chance.
    index = (ladder <= below[:, None]).sum(axis=1)
    last = chances.shape[1] - 1 - (chances[:, ::-1] > 0).argmax(axis=1)
    drawn: Array = np.minimum(index, last)
    return drawn


def _logarithms(weights: Array, how: Draw) -> Array:
    if how.logits:
        return weights
    if (weights < 0).any() or not (weights > 0).any(axis=1).all():
        raise ValueError("expected probabilities, none of them negative and one above 0")
    with np.errstate(divide="ignore"):
        logarithms: Array = np.log(weights)
    return logarithms


def _keep_top(chances: Array, how: Draw) -> Array:
    """Return the chances with 0 for what is not among the most probable ones; of equal ones the first count more."""
    order = np.argsort(-chances, axis=1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=1)
    keep = np.ones(ranked.shape, bool)
    if how.top_k is not None:
        keep[:, how.top_k :] = False
    if how.top_p is not None:
        ranked = ranked * keep
        before = np.cumsum(ranked, axis=1) - ranked
        keep &= before < how.top_p * ranked.sum(axis=1, keepdims=True)
        keep[:, 0] = True
    chosen = np.zeros(keep.shape, bool)
    np.put_along_axis(chosen, order, keep, axis=1)
    top: Array = chances * chosen
    return top
