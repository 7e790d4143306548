"""Numbers and names in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

_MOST_NAMED: Final = 12


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless it is 1.

    Args:
        number: How many.
        noun: The singular.
        plural: The plural; by default the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[object]) -> str:
    """Return names as text, with the number of those that are left out."""
    more = len(names) - _MOST_NAMED
    return ", ".join(map(str, names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def nearest(name: str, names: Iterable[object]) -> str:
    """Return ` (nearest: 'NAME')`, of the name that one was probably meant to be; empty: none is near."""
    found = difflib.get_close_matches(name, map(str, names), n=1, cutoff=0.5)
    return f" (nearest: {found[0]!r})" if found else ""
