"""The report counts its samples and prints a table."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from stepwell.addons.demo.report import Report, print_report


def report() -> Report:
    return Report(streams=2, atol=1e-5, rtol=1e-4)


def row(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.asarray(values, np.float32)


def test_a_report_without_answers_fails() -> None:
    assert not report().ok


def test_a_difference_within_the_tolerance_passes() -> None:
    one = report()
    one.compare(row(0.500001, 0.5), row(0.5, 0.5), latency=0.001)

    assert one.ok
    assert one.max_difference == pytest.approx(1e-6, rel=0.1)


def test_the_largest_difference_is_kept() -> None:
    one = report()
    one.compare(row(0.7), row(0.5), latency=0.001)
    one.compare(row(0.5), row(0.5), latency=0.001)

    assert one.max_difference == pytest.approx(0.2)
    assert one.beyond == 1


def test_a_prediction_that_is_nan_fails() -> None:
    one = report()
    one.compare(row(math.nan), row(0.5), latency=0.001)
    one.compare(row(0.5), row(0.5), latency=0.001)

    assert not one.ok
    assert math.isnan(one.max_difference)


def test_latency_quantiles_are_in_milliseconds() -> None:
    one = report()
    for ms in range(1, 102):
        one.compare(row(0.5), row(0.5), latency=ms / 1000)

    assert one.latency_ms(0.5) == pytest.approx(51)
    assert one.latency_ms(0.99) == pytest.approx(100)


def test_the_table_has_every_number_of_the_contract() -> None:
    one = report()
    one.compare(row(0.5), row(0.5), latency=0.002)
    one.seconds = 0.5
    out = io.StringIO()
    print_report(one, console=Console(file=out, width=100))

    for word in ("streams", "steps/s", "p50", "2.00 ms", "p99", "max difference", "tolerance"):
        assert word in out.getvalue()


def test_a_report_without_predictions_has_no_table() -> None:
    out = io.StringIO()
    print_report(Report(streams=40, atol=0, rtol=0), console=Console(file=out, width=100))

    assert out.getvalue() == "Stopped before the first prediction: nothing was compared.\n"
