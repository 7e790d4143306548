"""Durations such as `5s`, in microseconds."""

from __future__ import annotations

import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_SECOND: Final = 1_000_000
_US_OF: Final = {"us": 1, "ms": 1000, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND, "d": 86_400 * _SECOND}


def duration_of(text: str) -> int | None:
    """Return the microseconds of a duration such as `5s`, `500ms`, `1m`, `2h`, `1d` or `0`; None: it is none."""
    if text == "0":
        return 0
    found = _DURATION.fullmatch(text)
    return None if found is None else round(float(found[1]) * _US_OF[found[2]])


def in_words(duration: int) -> str:
    """Return a duration in microseconds in the form that `duration_of` reads."""
    for unit, size in reversed(_US_OF.items()):
        if duration % size == 0:
            return f"{duration // size}{unit}"
    return f"{duration}us"
