"""Errors against the truth: whose truth it is, what is counted, and the interval of the ratio over streams."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.addons.releases.forecast_errors import StreamErrors, figures, student_95
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import truths_of
from tests.forecasters import LABELS, forecaster
from tests.graphs import letters


def test_the_truth_of_a_feedback_rule_is_the_next_input_as_the_rule_maps_it() -> None:
    [truth] = truths_of(forecaster(scale=10.0)[1])

    assert (truth.output, truth.labels, truth.horizon) == ("next", tuple(LABELS), 1)
    assert truth.read({"sensors": np.array([[[5.0, 30.0]]], np.float32)}).tolist() == [[[0.5, 3.0]]]


def test_the_truth_of_a_class_is_its_probability_of_1() -> None:
    [truth] = truths_of(letters()[1])
    found = truth.read({"x": np.array([[2]], np.int64)})[0, 0]

    assert found[2] == 1
    assert np.isnan(np.delete(found, 2)).all()


def test_a_model_without_a_rule_or_a_stage_that_learns_has_no_truth() -> None:
    assert truths_of(forecaster(feedback=False)[1]) == []


def errors_of(xs: Array, pieces: list[slice]) -> Array:
    """Return the sums of two forecasts of random walks, given in pieces."""
    [truth] = truths_of(forecaster()[1])
    errors, sums, slots = StreamErrors(truth, len(xs)), np.zeros((2, 7)), np.arange(len(xs))
    for piece in pieces:
        part = xs[:, piece]
        sums += errors.add(slots, {"sensors": part}, part + 1, part - 3)
    return sums


def test_pieces_of_a_stream_are_counted_as_the_whole_is() -> None:
    xs = np.random.default_rng(0).normal(size=(5, 40, 2))
    whole = errors_of(xs, [slice(0, 40)])

    np.testing.assert_allclose(errors_of(xs, [slice(0, 1), slice(1, 7), slice(7, 40)]), whole)
    np.testing.assert_allclose(whole[0, 2], np.abs(xs[:, 1:, 0] - xs[:, :-1, 0] - 1).sum())


def test_a_missing_truth_is_not_counted_and_the_next_one_is() -> None:
    xs = np.zeros((1, 4, 2))
    xs[0, 2, 1] = np.nan
    sums = errors_of(xs, [slice(0, 4)])

    assert sums[:, 0].tolist() == [3, 1]  # of rpm, the forecast from the missing value is no number


def test_predictions_whose_stream_was_left_are_not_judged() -> None:
    [truth] = truths_of(forecaster()[1])
    errors, slots, x = StreamErrors(truth, 1), np.array([0]), np.zeros((1, 1, 2))
    errors.add(slots, {"sensors": x}, x, x)
    errors.forget(slots)

    assert errors.add(slots, {"sensors": x}, x, x)[:, 0].tolist() == [0, 0]


def test_the_interval_holds_the_true_ratio_in_95_of_100_experiments() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        size = rng.gamma(4, size=(30, 1, 1))  # streams differ
        current, candidate = (size * rng.exponential(scale, (30, 50, 1)) for scale in (1.0, 1.2))
        a, b = current.sum(axis=(1, 2)), candidate.sum(axis=(1, 2))
        found = figures(np.array([1500, 30, a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.2 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_one_stream_has_no_interval_and_no_truth_has_no_figures() -> None:
    one = figures(np.array([10, 1, 5.0, 6.0, 25.0, 36.0, 30.0]))

    assert one.ratio == pytest.approx(1.2)
    assert (one.low, one.high, one.n) == (None, None, 10)
    assert figures(np.zeros(7)) == (None, None, None, None, None, 0)


@pytest.mark.parametrize(("df", "quantile"), [(1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (1000, 1.962)])
def test_the_quantile_of_student_is_that_of_the_tables(df: int, quantile: float) -> None:
    assert student_95(df) == pytest.approx(quantile, abs=1e-3)
