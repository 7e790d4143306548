"""`merged`: the parts of a zoo as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def merged(*parts: Mapping[str, T]) -> dict[str, T]:
    """Return the entries of all parts of a zoo.

    Raises:
        ValueError: Two parts have an entry of one name, of which one would never be tested.
    """
    zoo: dict[str, T] = {}
    for part in parts:
        if twice := zoo.keys() & part.keys():
            raise ValueError(f"Two parts of the zoo have {sorted(twice)}: rename one.")
        zoo |= part
    return zoo
