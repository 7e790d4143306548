"""`BatchQueue`: selects the next batch: the oldest timesteps, at most one per stream, chunks apart from single steps.

Pure: no clock, no asyncio. A stream that is in a running batch is blocked until `release`, so that its timesteps
run in the order in which they arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar


class QueueItem(Protocol):
    """What the queue needs of an item."""

    @property
    def name(self) -> str:
        """The stream that it belongs to."""
        ...

    @property
    def shape(self) -> Hashable:
        """Only items of the same shape are in one batch."""
        ...


ItemT = TypeVar("ItemT", bound=QueueItem)


class BatchQueue(Generic[ItemT]):
    """Timesteps that wait for the model.

    Invariants, checked by `tests/engine/stepping/test_batch_queue.py`:

    1. Order: items of one stream are dequeued in the order in which they were enqueued.
    2. One at a time: a stream that was dequeued is not dequeued again before `release`.
    3. Longest wait first: within one shape, streams are dequeued in the order in which they became ready; shapes
       alternate.
    4. One shape: all items of a batch have the same shape.
    5. Nothing is lost: each enqueued item is dequeued once.
    6. A prebuilt batch is dequeued unchanged, and counts as a shape of its own.

    Attributes:
        rows: Items that wait.
    """

    def __init__(self) -> None:
        # For each stream with an item that is ready or in a running batch: the items after that one.
        self._waiting_after: dict[str, deque[ItemT] | None] = {}
        # Ready items by shape, the next shape first. A prebuilt batch is represented by an empty deque.
        self._ready: dict[Hashable, deque[ItemT]] = {}
        self._prebuilt: dict[Hashable, Sequence[ItemT]] = {}
        self.rows = 0

    def enqueue(self, item: ItemT) -> None:
        """Add an item after all others of its stream."""
        self.rows += 1
        name, waiting = item.name, self._waiting_after
        if name not in waiting:
            waiting[name] = None
            try:
                self._ready[item.shape].append(item)
            except KeyError:
                self._make_ready(item)
        elif (following_items := waiting[name]) is None:
            waiting[name] = deque([item])
        else:
            following_items.append(item)

    def enqueue_batch(self, batch: Sequence[ItemT]) -> None:
        """Add a prebuilt batch, whose streams are reserved. Items may be added to it until it is dequeued."""
        key = object()
        self._ready[key], self._prebuilt[key] = deque(), batch

    def reserve(self, name: str) -> bool:
        """Reserve a stream for an item of a prebuilt batch; False: it has an item that waits or is in a batch."""
        if name in self._waiting_after:
            return False
        self._waiting_after[name] = None
        self.rows += 1
        return True

    def holds(self, name: str) -> bool:
        """Whether a stream has an item that waits, or is in a running batch."""
        return name in self._waiting_after

    def can_reserve(self, names: Iterable[str]) -> bool:
        """Whether `reserve` would return True for each of these streams."""
        return self._waiting_after.keys().isdisjoint(names)

    def reserve_all(self, names: Sequence[str]) -> None:
        """Reserve all of these streams; `can_reserve` must be true for them."""
        self._waiting_after.update(dict.fromkeys(names))
        self.rows += len(names)

    def dequeue(self, limit: int) -> Sequence[ItemT]:
        """Remove and return a batch: at most `limit` items, or a prebuilt batch; empty if no stream is ready."""
        if not self._ready:
            return []
        shape = next(iter(self._ready))
        ready = self._ready.pop(shape)
        batch: Sequence[ItemT]
        if not ready:
            batch = self._prebuilt.pop(shape)
        elif len(ready) <= limit:
            batch = list(ready)
        else:
            batch = [ready.popleft() for _ in range(limit)]
            self._ready[shape] = ready  # after the others: shapes alternate
        self.rows -= len(batch)
        return batch

    def release(self, names: Sequence[str]) -> None:
        """Make the next item of each of these streams ready; their previous items were dequeued."""
        following = [*map(self._waiting_after.pop, names)]
        if following.count(None) == len(following):
            return
        for name, items in zip(names, following, strict=True):
            if items is not None:
                next_item = items.popleft()
                self._waiting_after[name] = items or None
                self._make_ready(next_item)

    @property
    def ready_batches(self) -> int:
        """The number of batches that could be dequeued now, if batches had no size limit."""
        return len(self._ready)

    def _make_ready(self, item: ItemT) -> None:
        ready = self._ready.get(item.shape)
        if ready is None:
            self._ready[item.shape] = deque([item])
        else:
            ready.append(item)
