"""Bins, PSI and the reference of own data."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import FeatureReference, Manifest
from stepwell_export.runtime.psi import (
    BINS,
    FLOOR,
    MAX_FEATURES,
    MIN_HISTORY,
    bin_moments,
    bins_of,
    data_reference,
    deviating_tenth,
    padded_edges,
    psi,
)
from tests.graphs import manifest_of

Array = npt.NDArray[Any]


def manifest(shape: list[int]) -> Manifest:
    return manifest_of(
        inputs=[{"name": "x", "dtype": "float32", "shape": shape}],
        outputs=[{"name": "y", "dtype": "float32", "shape": []}],
    )


def reference_of(xs: Array) -> FeatureReference:
    """The reference of one feature, `(N, T)`."""
    found = data_reference(manifest([1]), {"x": xs[:, :, None]}, {"y": xs})
    return found.inputs["x[0]"]


def test_the_psi_is_the_sum_over_the_bins() -> None:
    expected, found = [0.5, 0.3, 0.2], [10, 30, 60]

    by_hand = sum((f / 100 - e) * math.log(f / 100 / e) for e, f in zip(expected, found, strict=True))
    assert psi(expected, found) == pytest.approx(by_hand)


def test_an_empty_bin_counts_as_the_least_share() -> None:
    assert psi([0.5, 0.5], [1.0, 0.0]) == pytest.approx(0.5 * math.log(2) + (FLOOR - 0.5) * math.log(FLOOR / 0.5))
    assert psi([0.5, 0.5, 0.0], [5, 5, 0]) == pytest.approx(0)


def test_the_bins_of_continuous_values_are_between_the_deciles() -> None:
    xs = np.random.default_rng(0).normal(size=(10, 1000))
    found = reference_of(xs)

    assert found.edges == [np.quantile(xs, i / 10, method="inverted_cdf") for i in range(1, 10)]
    assert found.shares == pytest.approx([0.1] * 10 + [0.0])
    assert (found.count, found.missing, found.min, found.max) == (10_000, 0, np.min(xs), np.max(xs))
    assert found.tenth is None


def test_a_value_on_an_edge_is_below_it() -> None:
    edges = np.array([padded_edges(FeatureReference(count=1, missing=0, edges=[1.0, 2.0]))])
    values = np.array([[0.0], [1.0], [1.5], [2.0], [9.0], [np.nan], [np.inf]])

    assert bins_of(values, edges).ravel().tolist() == [0, 0, 1, 1, 2, -1, -1]


def test_a_feature_of_two_values_has_a_bin_for_each_and_for_what_is_beyond() -> None:
    found = reference_of(np.array([[0.0, 0.0, 0.0, 1.0]] * 50))

    assert found.shares[:4] == pytest.approx([0, 0.75, 0.25, 0])
    same, unseen = np.bincount([1, 1, 1, 2], minlength=BINS), np.bincount([1, 1, 1, 3], minlength=BINS)
    assert psi(found.shares, same) == pytest.approx(0)
    assert psi(found.shares, unseen) > 1


def test_missing_values_are_a_share_and_in_no_bin() -> None:
    found = reference_of(np.array([[1.0, np.nan, 2.0, np.nan]] * 25))

    assert (found.count, found.missing, found.min, found.max) == (50, 0.5, 1, 2)
    assert sum(found.shares) == pytest.approx(1)
    assert reference_of(np.full((2, 3), np.nan)).model_dump(exclude_defaults=True) == {"count": 0, "missing": 1.0}


def test_sequences_that_differ_among_each_other_have_a_tenth_of_their_own() -> None:
    rng = np.random.default_rng(1)
    levels = rng.normal(size=(100, 1)) * 2
    found = reference_of(rng.normal(size=(100, 200)) + levels)

    assert found.tenth is not None
    assert psi(found.shares, found.tenth) > 0.2
    outer = found.tenth[0] + found.tenth[9]
    assert outer > 0.6  # the tenth has streams of both ends


def test_the_tenth_is_those_that_deviate_most_and_enough() -> None:
    moments = np.array([[4.5], [2.87]])
    means = np.array([[4.5]] * 15 + [[7.0], [1.0], [9.0], [4.6], [4.4]])
    counts = np.full((20, 1), 100.0)

    assert np.flatnonzero(deviating_tenth(means * counts, counts, moments)).tolist() == [16, 17]
    counts[17] = MIN_HISTORY - 1
    assert np.flatnonzero(deviating_tenth(means * counts, counts, moments)).tolist() == [15, 16]
    assert not deviating_tenth(4.6 * counts, counts, moments).any()


def test_the_moments_are_those_of_the_number_of_the_bin() -> None:
    assert bin_moments([0.1] * 10) == pytest.approx((4.5, np.std(np.arange(10))))
    assert bin_moments([]) == (0, 0)


def test_features_are_named_in_c_order_and_the_first_ones_are_kept() -> None:
    xs = np.zeros((2, 3, 4, 100), np.float32)
    found = data_reference(manifest([4, 100]), {"x": xs}, {"y": xs[:, :, 0, 0]})

    assert list(found.inputs) == [f"x[{i}]" for i in range(MAX_FEATURES)]
    assert list(found.outputs) == ["y[0]"]
    assert (found.sequences, found.timesteps) == (2, 6)


def test_a_reference_survives_the_manifests_json() -> None:
    xs = np.random.default_rng(0).normal(size=(30, 40, 1)).astype(np.float32)
    one = manifest([1])
    one.reference = data_reference(one, {"x": xs}, {"y": xs[:, :, 0]})

    assert Manifest.from_json(one.to_json(), where="here").reference == one.reference


@pytest.mark.parametrize(
    ("broken", "what"),
    [({"edges": [2.0, 1.0]}, "ascending"), ({"shares": [0.5, 0.4]}, "shares"), ({"tenth": [-1.0, 2.0]}, "shares")],
)
def test_a_reference_that_is_no_distribution_is_refused(broken: dict[str, Any], what: str) -> None:
    document = json.loads(manifest([1]).to_json())
    feature = {"count": 1, "missing": 0.0, **broken}
    document["reference"] = {"sequences": 1, "timesteps": 1, "inputs": {"x[0]": feature}, "outputs": {}}

    with pytest.raises(ManifestError, match=what):
        Manifest.from_json(json.dumps(document), where="here")
