"""Sampling: with the given probabilities, reproducible by seed, independent of what else is sampled."""

from __future__ import annotations

from math import lgamma
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stepwell.addons.rollouts.sampling import counts, normals, sample_indices, students, uniforms
from stepwell_export.runtime.feedback import Draw
from stepwell_export.runtime.manifest import Array

WEIGHTS = arrays(np.float32, (6,), elements=st.floats(0, 1, width=32)).filter(lambda w: bool(w.max() > 0))
HOWS = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.none() | st.floats(0.01, 1.0),
)
NUMBERS = st.floats(0, 1, exclude_max=True)


def draw_one(weights: Any, number: float, how: Draw) -> int:
    return int(sample_indices(np.asarray(weights)[None], np.array([number]), how)[0])


@given(st.lists(WEIGHTS, min_size=1, max_size=5), NUMBERS, HOWS)
def test_a_row_is_drawn_the_same_alone_and_in_a_batch(rows: list[Array], number: float, how: Draw) -> None:
    together = sample_indices(np.stack(rows), np.full(len(rows), number), how)

    assert together.tolist() == [draw_one(row, number, how) for row in rows]


@given(WEIGHTS, NUMBERS, HOWS)
def test_an_outcome_of_probability_0_is_never_drawn(weights: Array, number: float, how: Draw) -> None:
    assert weights[draw_one(weights, number, how)] > 0


@given(WEIGHTS, NUMBERS, st.integers(1, 6))
def test_only_the_top_k_outcomes_are_drawn(weights: Array, number: float, k: int) -> None:
    drawn = draw_one(weights, number, Draw(top_k=k))

    assert weights[drawn] >= np.sort(weights)[-k]


@given(WEIGHTS, NUMBERS, st.floats(0.01, 1.0))
def test_only_the_top_p_outcomes_are_drawn(weights: Array, number: float, p: float) -> None:
    drawn = draw_one(weights, number, Draw(top_p=p))
    more_probable = weights[weights > weights[drawn]].astype(np.float64).sum()

    assert more_probable <= p * weights.astype(np.float64).sum() * (1 + 1e-6)


@given(WEIGHTS, NUMBERS)
def test_temperature_0_draws_the_most_probable_outcome(weights: Array, number: float) -> None:
    assert (
        draw_one(weights, number, Draw(temperature=0)) == np.argmax(weights) == draw_one(weights, number, Draw(top_k=1))
    )


@given(WEIGHTS, NUMBERS, st.sampled_from([0.5, 1.0, 2.0]))
def test_logits_draw_the_same_as_their_probabilities(weights: Array, number: float, temperature: float) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(weights.astype(np.float64)) + 3

    assert draw_one(logits, number, Draw(temperature, logits=True)) == draw_one(weights, number, Draw(temperature))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Draw(), [0.1, 0.2, 0.3, 0.4]),
        (Draw(temperature=0.5), [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Draw(top_k=2), [0, 0, 3 / 7, 4 / 7]),
        (Draw(top_p=0.6), [0, 0, 3 / 7, 4 / 7]),
        (Draw(top_p=0.4), [0, 0, 0, 1]),
    ],
)
def test_outcomes_are_drawn_with_their_probabilities(how: Draw, expected: list[float]) -> None:
    weights = np.tile(np.array([[0.1, 0.2, 0.3, 0.4]]), (20_000, 1))
    drawn = sample_indices(weights, uniforms(7, 0, 0, len(weights)), how)

    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(weights), expected, atol=0.015)


@pytest.mark.parametrize("weights", [[0.5, -0.1], [0.0, 0.0]])
def test_weights_that_are_not_probabilities_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        draw_one(weights, 0.5, Draw())


@given(st.integers(0, 2**64 - 1), st.integers(0, 300), st.integers(0, 3), st.integers(1, 40), st.integers(1, 40))
def test_random_numbers_depend_on_seed_sample_and_series_alone(
    seed: int, sample: int, series: int, few: int, many: int
) -> None:
    numbers = uniforms(seed, sample, series, few + many)

    assert uniforms(seed, sample, series, few).tolist() == numbers[:few].tolist()
    assert numbers[0] != uniforms(seed, sample + 1, series, 1)[0]
    assert numbers[0] != uniforms(seed, sample, series + 1, 1)[0]
    assert 0 <= numbers.min() <= numbers.max() < 1


def test_random_numbers_do_not_change_between_releases() -> None:
    """Results are documented as reproducible by their seed."""
    assert uniforms(7, 1, 2, 3).tolist() == [0.8954189979360949, 0.7310251272314244, 0.09275352988795904]


def test_normal_numbers_are_normally_distributed() -> None:
    first, second = uniforms(1, 0, 0, 40_000).reshape(2, -1)
    found = normals(first, second)

    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("df", "quartile"), [(1.0, 1.0), (2.0, np.sqrt(2 / 3)), (1e9, 0.6744897501960817)])
def test_numbers_of_students_distribution_have_its_quartiles(df: float, quartile: float) -> None:
    """For 1 and 2 degrees of freedom they have closed forms; for many they are those of the normal distribution."""
    found = students(uniforms(1, 0, 0, 200_000), uniforms(2, 0, 0, 200_000), df)

    np.testing.assert_allclose(np.quantile(found, [0.25, 0.5, 0.75]), [-quartile, 0, quartile], atol=0.02)


@pytest.mark.parametrize(("mean", "dispersion"), [(0.0, 0.5), (0.7, 0.0), (3.0, 0.4), (40.0, 2.0), (9_000.0, 0.01)])
def test_counts_have_the_mean_and_the_variance_of_the_negative_binomial_distribution(
    mean: float, dispersion: float
) -> None:
    points = 20_000 if mean < 100 else 500  # the time is proportional to the mean
    numbers = (np.arange(points) + 0.5) / points

    found = counts(numbers, np.full(numbers.shape, mean), dispersion)

    assert (found == np.round(found)).all()
    assert found.mean() == pytest.approx(mean, rel=0.01)
    assert found.var() == pytest.approx(mean + dispersion * mean**2, rel=0.03)


def test_counts_invert_the_distribution_function() -> None:
    """Source: the probability of k is C(k + r - 1, k) p^k (1 - p)^r, with r = 1 / dispersion."""
    mean, dispersion = 3.0, 0.4
    r, p = 1 / dispersion, mean * dispersion / (1 + mean * dispersion)
    logs = [lgamma(k + r) - lgamma(r) - lgamma(k + 1) + k * np.log(p) + r * np.log1p(-p) for k in range(30)]
    sums = np.cumsum(np.exp(logs))

    below, above = (counts(sums * factor, np.full(30, mean), dispersion) for factor in (1 - 1e-9, 1 + 1e-9))

    np.testing.assert_array_equal(below, np.arange(30))
    np.testing.assert_array_equal(above, np.arange(1, 31))


@pytest.mark.parametrize(("mean", "dispersion"), [(-1.0, 0.1), (2e4, 0.1), (1.0, -0.1), (float("nan"), 0.1)])
def test_a_count_without_a_distribution_is_an_error(mean: float, dispersion: float) -> None:
    with pytest.raises(ValueError, match="expected a mean from 0 to 10,000 and a dispersion from 0"):
        counts(np.array([0.5]), np.array([mean]), dispersion)
