"""`FeatureSketch`: merged sketches are the sketch of all values, and quantiles are within the stated error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stepwell.addons.drift.sketch import ERROR, RANGE, FeatureSketch
from stepwell_export.runtime.psi import BINS, quantile_keys

Array = npt.NDArray[Any]
SHARES = [*quantile_keys().values()]
NO_BOUNDS = np.array([[-np.inf], [np.inf]])

numbers = st.one_of(st.floats(1e-6, 1e9), st.floats(-1e9, -1e-6), st.just(0.0), st.integers(-3, 3).map(float))
columns = arrays.arrays(np.float64, st.integers(1, 60), elements=numbers)


def sketch_of(values: Array, *, origin: float = 0.0, bounds: Array = NO_BOUNDS) -> FeatureSketch:
    """The sketch of one feature, `(n,)`."""
    sketch = FeatureSketch.empty(1)
    sketch.add(values[:, None].astype(np.float64), slice(0, 1), origins=np.array([origin]), bounds=bounds)
    return sketch


def same(a: FeatureSketch, b: FeatureSketch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FeatureSketch.__slots__)


@given(columns, numbers)
def test_a_quantile_is_off_by_at_most_the_stated_part_of_its_distance_from_the_origin(
    values: Array, origin: float
) -> None:
    found = sketch_of(values, origin=origin).quantiles(0, SHARES, origin)
    exact = np.quantile(values, SHARES, method="inverted_cdf")

    assert np.all(np.abs(found - exact) <= 1.0001 * ERROR * np.abs(exact - origin) + RANGE[0] + 1e-12 * np.abs(exact))


@given(columns, columns)
def test_merged_sketches_are_the_sketch_of_all_values(first: Array, second: Array) -> None:
    merged = sketch_of(first)
    merged.merge(sketch_of(second))

    assert same(merged, sketch_of(np.concatenate([first, second])))


@given(columns)
def test_a_sketch_survives_its_bytes(values: Array) -> None:
    sketch = sketch_of(values)
    sketch.count_bins(np.array([[0], [BINS - 1], [-1]]), slice(0, 1))
    decoded = FeatureSketch.decode(sketch.encode(), 1)

    assert decoded is not None
    assert same(decoded, sketch)


@pytest.mark.parametrize(
    "stored", [b"", b"none", FeatureSketch.empty(2).encode(), FeatureSketch.empty(1).encode()[:-9]]
)
def test_bytes_that_are_no_sketch_of_these_features_are_none(stored: bytes) -> None:
    assert FeatureSketch.decode(stored, 1) is None


def test_nan_and_infinity_count_as_missing_alone() -> None:
    sketch = sketch_of(np.array([1.0, np.nan, 3.0, np.inf, np.nan]))

    assert (sketch.count[0], sketch.missing[0], sketch.low[0], sketch.high[0]) == (2, 3, 1.0, 3.0)
    assert sketch.quantiles(0, [0.5, 0.9], 0.0) == pytest.approx([1.0, 3.0], rel=ERROR)


def test_values_outside_the_range_of_the_reference_are_counted() -> None:
    sketch = sketch_of(np.array([-1.1, -1.0, 0.0, 2.0, 2.1, np.nan]), bounds=np.array([[-1.0], [2.0]]))

    assert sketch.outside[0] == 2


def test_features_are_counted_apart() -> None:
    sketch = FeatureSketch.empty(3)
    values = np.array([[1.0, 10.0], [2.0, np.nan]])
    sketch.add(values, slice(1, 3), origins=np.zeros(2), bounds=np.array([[-np.inf] * 2, [np.inf] * 2]))
    sketch.count_bins(np.array([[0, 4], [1, -1]]), slice(1, 3))

    assert sketch.count.tolist() == [0, 2, 1]
    assert sketch.missing.tolist() == [0, 0, 1]
    assert [np.flatnonzero(row).tolist() for row in sketch.bins] == [[], [0, 1], [4]]


def test_a_sketch_of_64_features_takes_less_than_64_kib() -> None:
    sketch = FeatureSketch.empty(64)
    values = np.random.default_rng(0).normal(size=(5000, 64))
    sketch.add(values, slice(0, 64), origins=np.zeros(64), bounds=np.array([[-np.inf] * 64, [np.inf] * 64]))

    assert len(sketch.encode()) < 65_536
