"""Drawing: as probable as it is said, the same by seed, whatever is drawn beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_export.feedback import Draw
from model_export.manifest import Array
from service.engine.sampling import draw, normals, uniforms

WEIGHTS = arrays(np.float32, (6,), elements=st.floats(0, 1, width=32)).filter(lambda w: bool(w.max() > 0))
HOWS = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.none() | st.floats(0.01, 1.0),
)
NUMBERS = st.floats(0, 1, exclude_max=True)


def one(weights: Any, number: float, how: Draw) -> int:
    return int(draw(np.asarray(weights)[None], np.array([number]), how)[0])


@given(st.lists(WEIGHTS, min_size=1, max_size=5), NUMBERS, HOWS)
def test_a_row_is_drawn_alike_alone_and_among_others(rows: list[Array], number: float, how: Draw) -> None:
    together = draw(np.stack(rows), np.full(len(rows), number), how)

    assert together.tolist() == [one(row, number, how) for row in rows]


@given(WEIGHTS, NUMBERS, HOWS)
def test_what_has_no_chance_is_never_drawn(weights: Array, number: float, how: Draw) -> None:
    assert weights[one(weights, number, how)] > 0


@given(WEIGHTS, NUMBERS, st.integers(1, 6))
def test_of_the_top_k_nothing_less_probable_is_drawn(weights: Array, number: float, k: int) -> None:
    drawn = one(weights, number, Draw(top_k=k))

    assert weights[drawn] >= np.sort(weights)[-k]


@given(WEIGHTS, NUMBERS, st.floats(0.01, 1.0))
def test_what_is_more_probable_than_the_top_p_needs_is_never_passed_over(
    weights: Array, number: float, p: float
) -> None:
    drawn = one(weights, number, Draw(top_p=p))
    more_probable = weights[weights > weights[drawn]].astype(np.float64).sum()

    assert more_probable <= p * weights.astype(np.float64).sum() * (1 + 1e-6)


@given(WEIGHTS, NUMBERS)
def test_at_temperature_0_the_most_probable_is_drawn(weights: Array, number: float) -> None:
    assert one(weights, number, Draw(temperature=0)) == weights.argmax() == one(weights, number, Draw(top_k=1))


@given(WEIGHTS, NUMBERS, st.sampled_from([0.5, 1.0, 2.0]))
def test_logarithms_draw_as_their_probabilities_do(weights: Array, number: float, temperature: float) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(weights.astype(np.float64)) + 3

    assert one(logits, number, Draw(temperature, logits=True)) == one(weights, number, Draw(temperature))


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
def test_draws_are_as_probable_as_they_should_be(how: Draw, expected: list[float]) -> None:
    weights = np.tile(np.array([[0.1, 0.2, 0.3, 0.4]]), (20_000, 1))
    drawn = draw(weights, uniforms(7, 0, 0, len(weights)), how)

    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(weights), expected, atol=0.015)


@pytest.mark.parametrize("weights", [[0.5, -0.1], [0.0, 0.0]])
def test_what_are_no_probabilities_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        one(weights, 0.5, Draw())


@given(st.integers(0, 2**64 - 1), st.integers(0, 300), st.integers(0, 3), st.integers(1, 40), st.integers(1, 40))
def test_numbers_are_known_by_seed_sample_and_series(seed: int, sample: int, series: int, few: int, many: int) -> None:
    numbers = uniforms(seed, sample, series, few + many)

    assert uniforms(seed, sample, series, few).tolist() == numbers[:few].tolist()
    assert numbers[0] != uniforms(seed, sample + 1, series, 1)[0]
    assert numbers[0] != uniforms(seed, sample, series + 1, 1)[0]
    assert 0 <= numbers.min() <= numbers.max() < 1


def test_numbers_stay_what_they_are() -> None:
    """What a seed gives is told to people: it must not change with a release."""
    assert uniforms(7, 1, 2, 3).tolist() == [0.8954189979360949, 0.7310251272314244, 0.09275352988795904]


def test_normal_numbers_are_normal() -> None:
    first, second = uniforms(1, 0, 0, 40_000).reshape(2, -1)
    found = normals(first, second)

    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    assert np.isfinite(found).all()
