"""Times of messages: microseconds since 1970, made of ISO 8601 or of numbers."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from stepwell.addons.text_values import number_of, preview

TimeUnit = Literal["s", "ms", "us", "ns"]
"""The unit of times that are numbers."""

SECOND: Final = 1_000_000
"""Microseconds."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LIMIT: Final = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The latest time, in microseconds since 1970."""

_US_PER_UNIT: Final = {"s": SECOND, "ms": 1000, "us": 1}
_NS_PER_US: Final = 1000
_FRACTION: Final = re.compile(r"([.,])([0-9]{7,})")


class BadTimeError(Exception):
    """A value is no time; the text says what was found and what was expected."""


def time_of(value: Any, unit: TimeUnit) -> int:
    """Return a time in microseconds since 1970, rounded to the nearest one.

    Args:
        value: A number in the unit; a text in ISO 8601, which is UTC if it has no zone; or a datetime. A subclass of
            `str`, a text of a format without numbers, may be a number, too.
        unit: The unit of numbers.

    Raises:
        BadTimeError: It is none of these, or before 1970. What is after the year 9999 is its end.
    """
    kind = type(value)
    if kind is not int and kind is not float and isinstance(value, str):
        number = None if kind is str else number_of(value)
        value = datetime_of(value) if number is None else number
    if isinstance(value, datetime):
        found = us_of(value)
    elif type(value) is int:
        found = (2 * value + _NS_PER_US) // (2 * _NS_PER_US) if unit == "ns" else value * _US_PER_UNIT[unit]
    elif type(value) is float and math.isfinite(value):
        found = round(value / _NS_PER_US if unit == "ns" else value * _US_PER_UNIT[unit])
    else:
        raise BadTimeError(f"the time is {preview(value)}; expected ISO 8601, or a number with --time-unit")
    if found < 0:
        raise BadTimeError(f"the time is {preview(value)}, which is before 1970")
    return min(found, LIMIT)


def us_of(time: datetime) -> int:
    """Return a time in microseconds since 1970; it is UTC if it has no zone."""
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def datetime_of(text: str) -> datetime:
    """Return the time of a text in ISO 8601, rounded to the nearest microsecond: Python cuts what is behind it.

    Raises:
        BadTimeError: It is none.
    """
    text, nanoseconds = str(text).strip(), 0.0
    fraction = _FRACTION.search(text)
    if fraction is not None:
        nanoseconds = float(f"0.{fraction[2][6:]}")
        text = text.replace(fraction[0], fraction[0][:7])
    try:
        return datetime.fromisoformat(text) + timedelta(microseconds=int(nanoseconds >= 0.5))
    except (ValueError, OverflowError) as exc:
        raise BadTimeError(f"the time is {preview(text)}; expected ISO 8601 such as 2026-03-01T12:00:00Z") from exc


def iso(time: int) -> str:
    """Return a time in microseconds since 1970 as ISO 8601 in UTC."""
    return (_EPOCH + timedelta(microseconds=time)).isoformat().replace("+00:00", "Z")
