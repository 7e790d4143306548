"""`Handles`: the most recently used stream handles of one model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from stepwell_client.errors import ClientError
from stepwell_client.protocol.requests import StreamCursor

KEEP_STREAMS = 65_536
"""Default number of handles that a model keeps; one takes about 1.2 KB."""


class Handle(Protocol):
    """A stream's handle."""

    _cursor: StreamCursor


H = TypeVar("H", bound=Handle)


class Handles(Generic[H]):
    """One handle per stream: all that callers still reference, and the most recently used of the others.

    An evicted handle loses the stream's position, and the next handle reads it from the service. After a call with an
    unknown outcome this would be wrong, because a repeated call would then be applied twice: such handles are not
    evicted. Threads may share it.
    """

    def __init__(self, make: Callable[[StreamCursor], H], max_kept: int) -> None:
        """Create an empty collection.

        Args:
            make: Creates the handle of a stream.
            max_kept: Unreferenced handles to keep.
        """
        self._make = make
        self._max_kept = max(0, max_kept)
        self._recent: OrderedDict[str, H] = OrderedDict()  # the most recently used at the end
        self._alive: WeakValueDictionary[str, H] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, stream: str) -> H:
        """Return the handle of a stream.

        Raises:
            ClientError: `bad_request`: the id is not a valid stream id.
        """
        with self._lock:
            is_text = isinstance(stream, str)  # what is none may have no hash
            handle = self._recent.get(stream) or self._alive.get(stream) if is_text else None
            if handle is None:
                handle = self._alive[stream] = self._make(StreamCursor.of(stream))
            self._recent[stream] = handle
            self._recent.move_to_end(stream)
            for _ in range(2):  # two per insertion, so that handles kept in doubt are also evicted once resolved
                if len(self._recent) > self._max_kept:
                    name, oldest = self._recent.popitem(last=False)
                    if oldest._cursor.in_doubt:
                        self._recent[name] = oldest
            return handle

    def all_of(self, streams: Iterable[str]) -> tuple[list[H], dict[str, ClientError]]:
        """Return the handles of some streams in one order for all calls, and the errors of invalid ids."""
        handles, errors = [], {}
        for stream in streams:
            try:
                handles.append(self.get(stream))
            except ClientError as error:
                errors[stream] = error
        return sorted(handles, key=lambda handle: handle._cursor.stream), errors
