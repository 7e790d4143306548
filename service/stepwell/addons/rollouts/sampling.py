"""Reproducible sampling: draws depend on their seed only, not on other draws. Pure."""

from __future__ import annotations

import numpy as np

from stepwell_export.runtime.feedback import Draw
from stepwell_export.runtime.manifest import Array


def uniforms(seed: int, sample: int, series: int, count: int) -> Array:
    """Return uniform numbers in [0, 1), `(count,)` float64; a shorter sequence is a prefix of a longer one.

    They are computed from Philox's bits, which NumPy guarantees not to change. It does not guarantee that for its
    distributions.

    Args:
        seed: From 0 to 2**64 - 1.
        sample: Index of the sample; each has other numbers.
        series: Index of the series within the sample; each has other numbers.
        count: Number of numbers.
    """
    key, counter = np.array([seed, sample], np.uint64), np.array([0, 0, series, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def normals(first: Array, second: Array) -> Array:
    """Return standard normal numbers, computed from two arrays of uniform ones by the Box-Muller transform."""
    radius = np.sqrt(-2.0 * np.log1p(-first))
    normal: Array = radius * np.cos(2.0 * np.pi * second)
    return normal


def students(first: Array, second: Array, df: Array | float) -> Array:
    """Return numbers of Student's t distribution with `df` degrees of freedom, from two arrays of uniform ones.

    Raises:
        ValueError: Degrees of freedom are not above 0.

    Source: Bailey 1994, "Polar Generation of Random Variates with the t-Distribution".
    """
    if not (np.asarray(df) > 0).all():
        raise ValueError("expected degrees of freedom above 0")
    with np.errstate(over="ignore"):
        radius = np.sqrt(df * np.expm1(-2.0 / df * np.log1p(-first)))
    drawn: Array = radius * np.cos(2.0 * np.pi * second)
    return drawn


LARGEST_MEAN = 10_000.0
"""Of a count; its distribution is summed up from 0."""


def counts(numbers: Array, mean: Array, dispersion: Array | float) -> Array:
    """Return counts of the negative binomial distribution, by inverting its distribution function.

    Args:
        numbers: Uniform ones.
        mean: Of the counts, of the same shape.
        dispersion: The variance is `mean + dispersion * mean ** 2`; 0: the Poisson distribution.

    Returns:
        Whole numbers as float64, of the same shape.

    Raises:
        ValueError: A mean or a dispersion is not a number from 0, or the mean is larger than `LARGEST_MEAN`.
    """
    mean, spread = np.broadcast_arrays(mean.astype(np.float64), np.asarray(dispersion, np.float64))
    if not ((mean >= 0) & (mean <= LARGEST_MEAN)).all() or not (spread >= 0).all():
        raise ValueError(f"expected a mean from 0 to {LARGEST_MEAN:,.0f} and a dispersion from 0")
    shape = mean.shape
    mean, spread, wanted = (part.reshape(-1, 1) for part in (mean, np.maximum(spread, 1e-9), numbers))
    size, product = 1.0 / spread, mean * spread
    with np.errstate(divide="ignore"):
        log_ratio = np.log(product) - np.log1p(product)
    most = mean + 50.0 * np.sqrt(mean + product * mean) + 100.0
    log_next, total, found, first = -size * np.log1p(product), np.zeros_like(mean), np.zeros_like(mean), 0
    while first < most.max() and (total <= wanted).any():
        at = np.arange(first, first + 256)
        steps = np.log(at + size) - np.log(at + 1.0) + log_ratio  # from the logarithm at k to that at k + 1
        logs = log_next + np.concatenate([np.zeros_like(mean), np.cumsum(steps, axis=1)], axis=1)
        sums = total + np.cumsum(np.exp(logs[:, :-1]), axis=1)
        found += (sums <= wanted).sum(axis=1, keepdims=True)
        log_next, total, first = logs[:, -1:], sums[:, -1:], first + 256
    drawn: Array = np.minimum(found, np.ceil(most)).reshape(shape)
    return drawn


def sample_indices(weights: Array, numbers: Array, draw: Draw) -> Array:
    """Draw an index from each row.

    Args:
        weights: Probabilities or logits, `(rows, choices)`; probabilities need not sum to 1.
        numbers: A uniform number for each row, `(rows,)`.
        draw: Temperature, top k, top p, and whether `weights` are logits.

    Returns:
        `(rows,)` int64.

    Raises:
        ValueError: The weights are not probabilities: negative, or all zero.
    """
    logits = _logits(weights.astype(np.float64), draw)
    if draw.temperature == 0:
        best: Array = logits.argmax(axis=1)
        return best
    scaled = logits / draw.temperature
    probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if draw.top_k is not None or draw.top_p is not None:
        probabilities = _keep_top(probabilities, draw)
    cumulative = np.cumsum(probabilities, axis=1)
    thresholds = numbers * cumulative[:, -1]
    # The first index whose cumulative sum is above the threshold. Because of rounding there may be none; then the last
    # index with a positive probability.
    index = (cumulative <= thresholds[:, None]).sum(axis=1)
    last = probabilities.shape[1] - 1 - (probabilities[:, ::-1] > 0).argmax(axis=1)
    drawn: Array = np.minimum(index, last)
    return drawn


def _logits(weights: Array, draw: Draw) -> Array:
    if draw.logits:
        return weights
    if (weights < 0).any() or not (weights > 0).any(axis=1).all():
        raise ValueError("expected probabilities, none of them negative and one above 0")
    with np.errstate(divide="ignore"):
        logits: Array = np.log(weights)
    return logits


def _keep_top(probabilities: Array, draw: Draw) -> Array:
    """Return the probabilities, with 0 outside of top k and top p; of equal ones, lower indices are kept first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    keep = np.ones(ranked.shape, bool)
    if draw.top_k is not None:
        keep[:, draw.top_k :] = False
    if draw.top_p is not None:
        ranked = ranked * keep
        before = np.cumsum(ranked, axis=1) - ranked
        keep &= before < draw.top_p * ranked.sum(axis=1, keepdims=True)
        keep[:, 0] = True
    chosen = np.zeros(keep.shape, bool)
    np.put_along_axis(chosen, order, keep, axis=1)
    top: Array = probabilities * chosen
    return top
