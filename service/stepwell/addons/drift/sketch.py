"""`FeatureSketch`: a mergeable summary of the values of many features, in arrays of fixed size.

Quantiles come from counts in logarithmic bins with the mapping of DDSketch: bin i has the distances d from the
feature's origin with `_GAMMA**(i - 1) < d <= _GAMMA**i`, so a quantile is off by at most `ERROR` of its distance from
the origin.
The PSI comes from counts in the bins of the reference, which are exact.

Source: Masson, Rim, Lee: DDSketch, a fast and fully-mergeable quantile sketch with relative-error guarantees, 2019.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.psi import BINS

ERROR: Final = 0.02
"""The greatest relative error of a quantile's distance from the origin, for distances within `RANGE`."""

RANGE: Final = (1e-9, 1e12)
"""Distances from the origin that have bins of their own; smaller ones count as zero, larger ones as the upper limit."""

_GAMMA: Final = (1 + ERROR) / (1 - ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
_FIRST: Final = math.ceil(math.log(RANGE[0]) / _LOG_GAMMA)
_LAST: Final = math.ceil(math.log(RANGE[1]) / _LOG_GAMMA)
_SIDE: Final = _LAST - _FIRST + 1
_ZERO: Final = _SIDE  # the place of distance zero; negative distances are below it, positive ones above
_PLACES: Final = 2 * _SIDE + 1


class _Encoded(Struct, frozen=True):
    """A sketch as bytes: little-endian arrays; of the logarithmic bins, `places` and counts of those with values."""

    n_features: int
    count: bytes
    missing: bytes
    outside: bytes
    low: bytes
    high: bytes
    bins: bytes
    tenth: bytes
    places: bytes
    place_counts: bytes


@dataclass(slots=True)
class FeatureSketch:
    """Counts of the values of features, a row each.

    Attributes:
        count: Values that were there, `(features,)` int64.
        missing: Values that were missing, `(features,)` int64.
        outside: Values outside the reference's range, `(features,)` int64.
        low: The smallest value, `(features,)` float64; infinity: there was none.
        high: The largest value; minus infinity: there was none.
        bins: Values in the bins of the reference, `(features, BINS)` int64.
        tenth: The same of the tenth of the streams that deviates most.
        places: Values in the logarithmic bins, `(features, _PLACES)` uint32.
    """

    count: Array
    missing: Array
    outside: Array
    low: Array
    high: Array
    bins: Array
    tenth: Array
    places: Array

    @classmethod
    def empty(cls, n_features: int) -> FeatureSketch:
        """Return a sketch of no values."""
        return cls(
            count=np.zeros(n_features, np.int64),
            missing=np.zeros(n_features, np.int64),
            outside=np.zeros(n_features, np.int64),
            low=np.full(n_features, np.inf),
            high=np.full(n_features, -np.inf),
            bins=np.zeros((n_features, BINS), np.int64),
            tenth=np.zeros((n_features, BINS), np.int64),
            places=np.zeros((n_features, _PLACES), np.uint32),
        )

    def add(self, values: Array, columns: slice, *, origins: Array, bounds: Array) -> None:
        """Count values, all but their bins of the reference.

        Args:
            values: `(n, features of these columns)` float64; NaN and infinity are missing.
            columns: The features.
            origins: The origin of each of these features.
            bounds: The smallest and the largest value of the reference of each, `(2, features)`.
        """
        is_present = np.isfinite(values)
        n_present = is_present.sum(axis=0)
        self.count[columns] += n_present
        self.missing[columns] += len(values) - n_present
        if n_present.min(initial=len(values)) == len(values):
            lowest, highest = values.min(axis=0, initial=np.inf), values.max(axis=0, initial=-np.inf)
        else:
            lowest = values.min(axis=0, initial=np.inf, where=is_present)
            highest = values.max(axis=0, initial=-np.inf, where=is_present)
            values = np.where(is_present, values, origins)
        self.low[columns] = np.minimum(self.low[columns], lowest)
        self.high[columns] = np.maximum(self.high[columns], highest)
        self.outside[columns] += ((values < bounds[0]) | (values > bounds[1])).sum(axis=0, where=is_present)
        self._count_places(values - origins, columns, len(values) - n_present)

    def _count_places(self, distances: Array, columns: slice, n_filled: Array) -> None:
        """Count distances in the logarithmic bins; `n_filled` of each column are zeros in place of missing values."""
        sizes = np.clip(np.abs(distances), RANGE[0] / 2, RANGE[1])
        exponents = np.ceil(np.log(sizes) / _LOG_GAMMA).astype(np.int64)
        offsets = np.maximum(exponents - _FIRST + 1, 0)  # 0: zero
        places = _ZERO + np.where(distances < 0, -offsets, offsets)
        n_columns = distances.shape[1]
        flat = (places + np.arange(n_columns) * _PLACES).reshape(-1)
        counts = np.bincount(flat, minlength=n_columns * _PLACES).reshape(n_columns, _PLACES)
        counts[:, _ZERO] -= n_filled
        self.places[columns] += counts.astype(np.uint32)

    def count_bins(self, bins: Array, columns: slice, *, is_tenth: Array | None = None) -> None:
        """Count the bins of the reference that values are in.

        Args:
            bins: `(n, features of these columns)` int64; -1: the value is missing.
            columns: The features.
            is_tenth: Which of them count for the tenth of the streams, and only for that; None: all count, for all.
        """
        target = self.bins if is_tenth is None else self.tenth
        counts_here = bins >= 0 if is_tenth is None else is_tenth & (bins >= 0)
        n_columns = bins.shape[1]
        flat = (bins + np.arange(n_columns) * BINS)[counts_here]
        target[columns] += np.bincount(flat, minlength=n_columns * BINS).reshape(n_columns, BINS)

    def merge(self, other: FeatureSketch) -> None:
        """Add the values of another sketch of the same features."""
        for name in ("count", "missing", "outside", "bins", "tenth", "places"):
            mine = getattr(self, name)
            mine += getattr(other, name)
        np.minimum(self.low, other.low, out=self.low)
        np.maximum(self.high, other.high, out=self.high)

    def quantiles(self, feature: int, shares: Sequence[float], origin: float) -> list[float]:
        """Return quantiles of a feature that has values; see `ERROR`."""
        cumulated = np.cumsum(self.places[feature], dtype=np.int64)
        ranks = np.maximum(np.ceil(np.array(shares) * cumulated[-1]).astype(np.int64) - 1, 0)
        offsets = np.searchsorted(cumulated, ranks, side="right") - _ZERO
        sizes = 2 * _GAMMA ** (np.abs(offsets) + float(_FIRST - 1)) / (_GAMMA + 1)
        values = origin + np.sign(offsets) * sizes
        found: list[float] = np.clip(values, self.low[feature], self.high[feature]).tolist()
        return found

    def encode(self) -> bytes:
        """Return the sketch as compressed bytes."""
        flat = self.places.reshape(-1)
        places = np.flatnonzero(flat)
        arrays = {name: _bytes(getattr(self, name), dtype) for name, dtype in _DTYPES.items()}
        encoded = _Encoded(
            n_features=len(self.count),
            places=_bytes(np.diff(places, prepend=0), "<u4"),
            place_counts=_bytes(flat[places], "<u4"),
            **arrays,
        )
        return zlib.compress(msgspec.msgpack.encode(encoded), 1)

    @classmethod
    def decode(cls, stored: bytes, n_features: int) -> FeatureSketch | None:
        """Return a sketch from its bytes; None: they are no sketch of so many features."""
        try:
            encoded = msgspec.msgpack.decode(zlib.decompress(stored), type=_Encoded)
            sketch = cls.empty(n_features)
            if encoded.n_features != n_features:
                return None
            for name, dtype in _DTYPES.items():
                array = getattr(sketch, name)
                array[:] = np.frombuffer(getattr(encoded, name), dtype).reshape(array.shape)
            places = np.cumsum(np.frombuffer(encoded.places, "<u4"), dtype=np.int64)
            sketch.places.reshape(-1)[places] = np.frombuffer(encoded.place_counts, "<u4")
        except (msgspec.MsgspecError, zlib.error, ValueError, IndexError):
            return None
        return sketch


_DTYPES: Final = {
    **dict.fromkeys(("count", "missing", "outside", "bins", "tenth"), "<i8"),
    **dict.fromkeys(("low", "high"), "<f8"),
}


def _bytes(array: Array, dtype: str) -> bytes:
    return array.astype(dtype).tobytes()
