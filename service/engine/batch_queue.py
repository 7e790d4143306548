"""Which waiting timesteps go next: the oldest, at most one per stream, chunks apart from single steps.

Pure: no clock, no asyncio. A stream that is out in a batch waits until `release`, so that its timesteps are
run in the order they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What a queue item has to tell about itself."""

    @property
    def queue_key(self) -> Hashable:
        """The stream it belongs to."""
        ...

    @property
    def length(self) -> int:
        """Its timesteps, 1 or more; only items of one length are run together."""
        ...


ItemT = TypeVar("ItemT", bound=Waiting)


class BatchQueue(Generic[ItemT]):
    """Timesteps that wait for the model.

    Laws, checked by `tests/engine/test_batch_queue.py`:

    1. Order: items of one stream are taken in the order they were put.
    2. One at a time: a stream that was taken is not taken again before `release`.
    3. Oldest first: of the streams that may go, the one whose first item came earliest is in the next batch.
    4. One length: all items of a batch have the same length.
    5. Nothing is lost: each item put is taken once.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[tuple[int, ItemT]]] = {}  # waiting items of each stream
        self._ready: dict[int, deque[Hashable]] = {}  # streams that may go, by length of their first item
        self._out: set[Hashable] = set()
        self._arrivals = 0
        self.rows = 0  # items that wait

    def put(self, item: ItemT) -> None:
        """Add an item behind all others of its stream."""
        key = item.queue_key
        self._arrivals += 1
        self.rows += 1
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque([(self._arrivals, item)])
            if key not in self._out:
                self._make_ready(key, item)
        else:
            line.append((self._arrivals, item))

    def take(self, limit: int) -> Sequence[ItemT]:
        """Take a batch of at most `limit` items; empty when no stream may go.

        The batch has the length of the oldest item that may go. A stream that becomes ready again goes to the
        end of its line-up, so that one busy stream does not hold up the others.
        """
        if not self._ready:
            return []
        length = min(self._ready, key=lambda n: self._lines[self._ready[n][0]][0][0])
        ready = self._ready[length]
        batch: list[ItemT] = []
        while ready and len(batch) < limit:
            key = ready.popleft()
            line = self._lines[key]
            batch.append(line.popleft()[1])
            self._out.add(key)
            if not line:
                del self._lines[key]
        if not ready:
            del self._ready[length]
        self.rows -= len(batch)
        return batch

    def release(self, key: Hashable) -> None:
        """Let the next item of a stream go: its earlier one is answered."""
        self._out.discard(key)
        line = self._lines.get(key)
        if line is not None:
            self._make_ready(key, line[0][1])

    def __bool__(self) -> bool:
        """Whether a batch could be taken now."""
        return bool(self._ready)

    def _make_ready(self, key: Hashable, first: ItemT) -> None:
        self._ready.setdefault(first.length, deque()).append(key)
