"""The population stability index (PSI) of two distributions of a feature, and the bins that it compares.

A feature is one number of a row of an input or output. The bins of a feature are those between the deciles of its
reference; with ties there are fewer. The population stability index (PSI) of shares `e` (expected) and `f` (found) is
the sum of `(f - e) * ln(f / e)` over the bins, with each share at least `FLOOR`.

Arrays of several features have a column each. Rows of edges are filled up with infinity, and rows of shares with zeros,
so that all features have `BINS` bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from stepwell_export.runtime.manifest import Array, DataReference, FeatureReference, Manifest, TensorSpec

BINS: Final = 11
"""Bins of a feature: ten, and one below the minimum if a tenth of the values or more are equal to the minimum."""

FLOOR: Final = 1e-4
"""The least share of a bin in a PSI; it makes the logarithm of an empty bin finite."""

MIN_VALUES: Final = 500
"""With fewer values, a PSI would be mostly noise: its mean without any change is about 9 divided by their number."""

TENTH: Final = 0.1
"""Share of the streams that is compared on its own: the tenth that deviates most."""

MIN_HISTORY: Final = 8
"""Values of a stream after which it may be part of that tenth."""

MIN_DEVIATION: Final = 0.35
"""Deviation of a stream's mean bin, in standard deviations of the reference's bins, from which on it may be part of it.

Normally distributed values that are shifted by so little have a PSI below 0.2.
"""

MAX_FEATURES: Final = 256
"""Features of one tensor that a manifest keeps a reference of; the first ones."""

_QUANTILES: Final = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
_DECILES: Final = _QUANTILES[1:-1]
_MIN_SEQUENCES: Final = 20  # with fewer, a tenth of them shows little of the differences between streams
_NOISE: Final = 4.0  # a PSI of that many times its mean without any change is none


def feature_names(spec: TensorSpec, limit: int = MAX_FEATURES) -> list[str]:
    """Return the names of a tensor's features, in C order of its row: `x[0]`, `x[1]`, .."""
    return [f"{spec.name}[{i}]" for i in range(min(spec.row_size, limit))]


def quantile_keys() -> dict[str, float]:
    """Return the quantiles that are reported, by their names: `"0.5"` is the median."""
    return {f"{q:g}": q for q in _QUANTILES}


def bins_of(values: Array, edges: Array) -> Array:
    """Return the bin of each value: the number of edges below it; -1 if the value is missing.

    Args:
        values: `(n, features)` float64; NaN and infinity are missing.
        edges: `(features, BINS - 1)` float64, ascending.

    Returns:
        `(n, features)` int64.
    """
    bins = np.zeros(values.shape, np.int64)
    for edge in edges.T:
        bins += values > edge
    bins[~np.isfinite(values)] = -1
    return bins


def padded_edges(reference: FeatureReference | None) -> list[float]:
    """Return `BINS - 1` edges; without a reference all are infinite, which makes one bin."""
    edges = [] if reference is None else reference.edges
    return [*edges, *[np.inf] * (BINS - 1 - len(edges))]


def psi(expected: Sequence[float] | Array, found: Sequence[float] | Array) -> float:
    """Return the population stability index of two distributions over the same bins.

    Args:
        expected: Counts or shares of the reference, `(bins,)`.
        found: The same of what is compared with it.
    """
    e, f = (np.asarray(each, np.float64) for each in (expected, found))
    e, f = (np.maximum(each / each.sum(), FLOOR) for each in (e, f))
    return float(np.sum((f - e) * np.log(f / e)))


def deviating_tenth(sums: Array, counts: Array, moments: Array) -> Array:
    """Return which streams are the tenth whose mean bin deviates most from that of the reference, by feature.

    Args:
        sums: Sums of the bins of each stream's values, `(streams, features)`.
        counts: Numbers of those values, `(streams, features)`.
        moments: `bin_moments` of the reference, `(2, features)`.

    Returns:
        `(streams, features)` bool. Streams with fewer than `MIN_HISTORY` values, or that deviate by less than
        `MIN_DEVIATION`, are left out; so they may be fewer than a tenth.
    """
    is_eligible = counts >= MIN_HISTORY
    deviations = np.where(is_eligible, np.abs(sums / np.maximum(counts, 1) - moments[0]), -1.0)
    n_chosen = np.ceil(TENTH * is_eligible.sum(axis=0)).astype(np.int64)
    order = np.argsort(-deviations, axis=0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(order))[:, None], axis=0)
    chosen: Array = (ranks < n_chosen) & (deviations > MIN_DEVIATION * moments[1])
    return chosen


def bin_moments(shares: Sequence[float] | Array) -> tuple[float, float]:
    """Return mean and standard deviation of the number of the bin that a value is in; zeros without shares."""
    weights, numbers = np.asarray(shares, np.float64), np.arange(len(shares))
    mean = float(weights @ numbers)
    return mean, math.sqrt(max(0.0, float(weights @ (numbers - mean) ** 2)))


def data_reference(manifest: Manifest, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> DataReference:
    """Return the distributions of own data, as the manifest keeps them.

    Args:
        manifest: The model's inputs and outputs.
        inputs: Sequences `(N, T, *shape)` by input.
        outputs: What the step graph computed for them, `(N, T, *shape)` by output.
    """
    n_sequences, n_timesteps = next(iter(inputs.values())).shape[:2]
    return DataReference(
        sequences=n_sequences,
        timesteps=n_sequences * n_timesteps,
        inputs=_references(manifest.inputs, inputs),
        outputs=_references([spec for spec in manifest.answered if spec.is_distributed], outputs),
    )


def _references(specs: Sequence[TensorSpec], tensors: Mapping[str, Array]) -> dict[str, FeatureReference]:
    found = {}
    for spec in specs:
        values = tensors[spec.name]
        columns = values.reshape(*values.shape[:2], -1)
        for i, name in enumerate(feature_names(spec)):
            found[name] = _reference(columns[:, :, i].astype(np.float64))
    return found


def _reference(values: Array) -> FeatureReference:
    """Return the distribution of one feature; `values` is `(N, T)`, and NaN is missing."""
    present = np.sort(values[np.isfinite(values)])
    missing = 1 - present.size / values.size
    if not present.size:
        return FeatureReference(count=0, missing=missing)
    quantiles = {name: float(np.quantile(present, q, method="inverted_cdf")) for name, q in quantile_keys().items()}
    edges = sorted({quantiles[f"{q:g}"] for q in _DECILES})
    if edges[0] == present[0]:
        edges.insert(0, float(np.nextafter(present[0], -np.inf)))
    padded = np.array([[*edges, *[np.inf] * (BINS - 1 - len(edges))]])
    bins = bins_of(values.reshape(-1, 1), padded).reshape(values.shape)
    shares = _counts(bins) / present.size
    return FeatureReference(
        count=present.size,
        missing=missing,
        min=float(present[0]),
        max=float(present[-1]),
        quantiles=quantiles,
        edges=edges,
        shares=shares.tolist(),
        tenth=_tenth_of_sequences(bins, shares),
    )


def _tenth_of_sequences(bins: Array, shares: Array) -> list[float] | None:
    """Return the shares of the tenth of the sequences that deviates most; None: it is like all others.

    The tenth is chosen by the first half of each sequence, and its second half is counted, so that the choice alone
    makes no difference. `bins` is `(N, T)`.
    """
    n_sequences, n_timesteps = bins.shape
    if n_sequences < _MIN_SEQUENCES:
        return None
    past, next_ = bins[:, : n_timesteps // 2], bins[:, n_timesteps // 2 :]
    sums, counts = np.where(past >= 0, past, 0).sum(axis=1), (past >= 0).sum(axis=1)
    moments = np.array(bin_moments(shares))[:, None]
    chosen = deviating_tenth(sums[:, None], counts[:, None], moments)[:, 0]
    found = _counts(next_[chosen])
    n = found.sum()
    if n < MIN_VALUES or psi(shares, found) <= _NOISE * (BINS - 2) / n:
        return None
    tenth: list[float] = (found / n).tolist()
    return tenth


def _counts(bins: Array) -> Array:
    return np.bincount(bins[bins >= 0].reshape(-1), minlength=BINS).astype(np.float64)
