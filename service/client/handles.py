"""`Handles`: the streams' handles of one model, the ones used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from service.client.protocol import StreamCursor

KEEP_STREAMS = 65_536
"""Handles that a model keeps if nothing else is said; one takes about 1.2 KB."""


class Handle(Protocol):
    """A stream's handle."""

    _place: StreamCursor


H = TypeVar("H", bound=Handle)


class Handles(Generic[H]):
    """One handle per stream, for as long as anybody holds it, and of the others those that were used last.

    A handle that is dropped forgets where its stream stands, and its successor reads that from the service. That must
    not happen after a call whose outcome is unknown: made again, it would be applied twice. Such handles are kept.
    Threads may share it.
    """

    def __init__(self, make: Callable[[StreamCursor], H], most: int) -> None:
        """Begin empty.

        Args:
            make: Makes the handle of a stream.
            most: Handles that are kept although nobody holds them.
        """
        self._make = make
        self._most = most
        self._recent: OrderedDict[str, H] = OrderedDict()  # the one used last at the end
        self._alive: WeakValueDictionary[str, H] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, stream: str) -> H:
        """Return the handle of a stream.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        with self._lock:
            handle = self._recent.get(stream) or self._alive.get(stream)
            if handle is None:
                handle = self._alive[stream] = self._make(StreamCursor.of(stream))
            self._recent[stream] = handle
            self._recent.move_to_end(stream)
            for _ in range(2):  # two for each that comes, so that those in doubt leave too once they are not
                if len(self._recent) > self._most:
                    name, oldest = self._recent.popitem(last=False)
                    if oldest._place.in_doubt:
                        self._recent[name] = oldest
            return handle
