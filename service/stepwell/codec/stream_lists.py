"""`StreamListCache`: lists of stream ids that passed all checks; most clients send the same streams in each message."""

from __future__ import annotations

from collections.abc import Callable

from stepwell.types import StreamKey

StreamNames = tuple[list[StreamKey], list[str]]
"""The keys of a list's streams, and the names of their records in the store."""


class _StreamList:
    """A list, and the names of its streams by tenant."""

    __slots__ = ("names", "streams")

    def __init__(self, streams: list[str]) -> None:
        self.streams = streams
        self.names: dict[str, StreamNames] = {}


class StreamListCache:
    """Lists of stream ids by their first id, each with the keys and record names of a tenant's streams.

    Attributes:
        size: Number of streams in all cached lists, where each tenant's names count as one more list.
    """

    def __init__(self, max_streams: int = 65_536) -> None:
        """Create an empty cache that holds at most so many streams; no list may take more than a quarter of it."""
        self.size = 0
        self._max_streams = max_streams
        self._lists: dict[str, _StreamList] = {}

    def has(self, streams: list[str]) -> bool:
        """Whether this list, which is not empty, has passed all checks."""
        return self._find(streams) is not None

    def add(self, streams: list[str]) -> None:
        """Add a list that has passed all checks."""
        if self._reserve(len(streams)):
            self._lists[streams[0]] = _StreamList(streams)

    def names(self, streams: list[str], tenant: str, make: Callable[[], StreamNames]) -> StreamNames:
        """Return the keys and record names of a tenant's streams; `make` computes them if they are not cached."""
        cached = self._find(streams)
        if cached is None:
            return make()
        names = cached.names.get(tenant)
        if names is not None:
            return names
        names = make()
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
