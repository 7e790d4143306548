"""`addons/event_time/times.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from stepwell.addons.event_time.times import BadTimeError, TimeUnit, iso, time_of
from stepwell_export.runtime.durations import duration_of, in_words


class _Cell(str):
    """A text that may be a number."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1_700_000_000, "s", 1_700_000_000_000_000),
        (1_700_000_000.123457, "s", 1_700_000_000_123_457),
        (1500, "ms", 1_500_000),
        (7, "us", 7),
        (1_499, "ns", 1),
        (1_500, "ns", 2),
        ("1970-01-01T00:00:01", "s", 1_000_000),
        ("1970-01-01T01:00:01+01:00", "s", 1_000_000),
        ("1970-01-01 00:00:00.0000016Z", "ms", 2),
        ("1970-01-01T00:00:00.999999500Z", "s", 1_000_000),
        (_Cell("1.5"), "s", 1_500_000),
        (_Cell("1970-01-01"), "s", 0),
        (1e30, "s", 253_402_300_799_000_000),
        (datetime(1970, 1, 2, tzinfo=UTC), "s", 86_400_000_000),
    ],
)
def test_a_time_is_rounded_to_microseconds_since_1970(value: Any, unit: TimeUnit, expected: int) -> None:
    assert time_of(value, unit) == expected


@pytest.mark.parametrize("value", ["soon", "", None, True, float("nan"), -1, "1969-12-31T23:59:59Z", "12", [1]])
def test_what_is_no_time_or_before_1970_is_an_error(value: Any) -> None:
    with pytest.raises(BadTimeError, match="the time is"):
        time_of(value, "s")


def test_a_time_is_written_in_utc() -> None:
    assert [iso(0), iso(1_500_000)] == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01.500000Z"]


def test_a_duration_has_a_unit() -> None:
    assert [duration_of(text) for text in ("5s", "500ms", "1.5m", "2h", "1d", "0", "5", "s")] == [
        *(5_000_000, 500_000, 90_000_000, 7_200_000_000, 86_400_000_000, 0, None, None)
    ]
    assert [in_words(one) for one in (5_000_000, 90_000_000, 1_500_000, 3)] == ["5s", "90s", "1500ms", "3us"]
