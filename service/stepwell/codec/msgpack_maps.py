"""Finds keys that occur twice in msgpack maps, of which msgspec silently accepts the last one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import msgspec
from msgspec import Raw

_MAP_16, _MAP_32, _ARRAY_32 = 0xDE, 0xDF, b"\xdd"
_members: Final = msgspec.msgpack.Decoder(dict[Hashable, Raw]).decode
_items: Final = msgspec.msgpack.Decoder(list[Raw]).decode
_values: Final = msgspec.msgpack.Decoder(list[Any]).decode


def n_entries(encoded: bytes | Raw) -> int:
    """Return the number of entries of an encoded map, those with equal keys counted each; -1: it is not a map."""
    view = memoryview(encoded)
    first = view[0]
    if first & 0xF0 == 0x80:
        return first & 0x0F
    return int.from_bytes(view[1 : _header_bytes(first)], "big") if first in (_MAP_16, _MAP_32) else -1


def has_unique_keys(encoded: bytes | Raw) -> bool:
    """Whether no key occurs twice in an encoded map, nor in the maps that are values of it; true for other values."""
    if (entries := n_entries(encoded)) < 0:
        return True
    members = _members(encoded)
    return len(members) == entries and all(map(has_unique_keys, members.values()))


def duplicate_key(value: Any, encoded: bytes | Raw) -> tuple[Any] | None:
    """Return a key that occurs twice in a map of a document, in a tuple; None: there is none.

    Args:
        value: The decoded document.
        encoded: The same, encoded.
    """
    inner: zip[tuple[Any, Raw]]
    if isinstance(value, dict):
        if n_entries(encoded) != len(value):
            return (_first_duplicate(encoded),)
        inner = zip(value.values(), _members(encoded).values(), strict=True)
    elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        inner = zip(value, _items(encoded), strict=True)
    else:
        return None
    return next((found for one, raw in inner if (found := duplicate_key(one, raw)) is not None), None)


def _first_duplicate(encoded: bytes | Raw) -> Any:
    """Return the first key that occurs twice in an encoded map, which has one."""
    view = memoryview(encoded)
    entries = _ARRAY_32 + (2 * n_entries(encoded)).to_bytes(4, "big") + bytes(view[_header_bytes(view[0]) :])
    seen: set[Any] = set()
    for key in _values(entries)[::2]:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("every key occurs once")


def _header_bytes(first: int) -> int:
    return {_MAP_16: 3, _MAP_32: 5}.get(first, 1)
