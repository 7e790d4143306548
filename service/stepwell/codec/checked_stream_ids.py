"""`CheckedStreamIds`: lists of stream ids that passed all checks; most clients repeat the same list in each message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stepwell.types import StreamKey

StreamNames = tuple[list[StreamKey], list[str]]
"""The keys of a list's streams, and the names of their records in the store."""

_NO_NAMES: Mapping[str, StreamNames] = {}


class _StreamList:
    """A list, and the names of its streams by tenant.

    Attributes:
        streams: The list.
        names: By tenant.
        before: The names of a list before it, which had other streams at the indices `changed` only.
        changed: These indices.
    """

    __slots__ = ("before", "changed", "names", "streams")

    def __init__(self, streams: list[str], before: Mapping[str, StreamNames], changed: Sequence[int]) -> None:
        self.streams = streams
        self.names: dict[str, StreamNames] = {}
        self.before = before
        self.changed = changed

    def make_names(self, tenant: str, make: Callable[[Sequence[str]], StreamNames]) -> StreamNames:
        """Return the names of a tenant's streams; only those that the list before did not have are computed."""
        if (before := self.before.get(tenant)) is None:
            return make(self.streams)
        keys, names = [*before[0]], [*before[1]]
        for i, key, name in zip(self.changed, *make([self.streams[i] for i in self.changed]), strict=True):
            keys[i], names[i] = key, name
        return keys, names


class CheckedStreamIds:
    """Lists of stream ids by their first id, each with the keys and record names of a tenant's streams.

    A list in which few streams differ from the cached one takes over what is known of the others.

    Attributes:
        size: Number of streams in all cached lists, where each tenant's names count as one more list.
    """

    def __init__(self, max_streams: int = 65_536) -> None:
        """Create an empty cache that holds at most so many streams; no list may take more than a quarter of it."""
        self.size = 0
        self._max_streams = max_streams
        self._lists: dict[str, _StreamList] = {}

    def unchecked(self, streams: list[str]) -> Sequence[int]:
        """Return the indices of the streams of a list, which is not empty, that are not known to be valid."""
        return _changed(streams, self._lists.get(streams[0]))

    def add(self, streams: list[str]) -> None:
        """Add a list that has passed all checks."""
        if self._reserve(len(streams)):
            before = self._lists.get(streams[0])
            names = _NO_NAMES if before is None or len(before.streams) != len(streams) else before.names
            self._lists[streams[0]] = _StreamList(streams, names, _changed(streams, before))

    def names(self, streams: list[str], tenant: str, make: Callable[[Sequence[str]], StreamNames]) -> StreamNames:
        """Return the keys and record names of a tenant's streams; `make` computes those that are not cached."""
        cached = self._find(streams)
        if cached is None:
            return make(streams)
        names = cached.names.get(tenant)
        if names is not None:
            return names
        names = cached.make_names(tenant, make)
        if self._reserve(len(streams)) and self._find(streams) is cached:
            cached.names[tenant] = names
        return names

    def _find(self, streams: list[str]) -> _StreamList | None:
        cached = self._lists.get(streams[0])
        return cached if cached is not None and cached.streams == streams else None

    def _reserve(self, count: int) -> bool:
        """Count so many streams more, after evicting all lists if there is no room; returns False for too many."""
        if count > self._max_streams // 4:
            return False
        if self.size + count > self._max_streams:
            self._lists.clear()
            self.size = 0
        self.size += count
        return True


def _changed(streams: list[str], before: _StreamList | None) -> Sequence[int]:
    """Return the indices of the streams that another list does not have at the same place."""
    if before is None or len(before.streams) != len(streams):
        return range(len(streams))
    if before.streams == streams:
        return ()
    return [i for i, (one, other) in enumerate(zip(streams, before.streams, strict=True)) if one != other]
