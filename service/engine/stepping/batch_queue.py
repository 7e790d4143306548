"""Which waiting timesteps go next: the oldest, at most one per stream, chunks apart from single steps.

Pure: no clock, no asyncio. A stream that is out in a batch waits until `release`, so that its timesteps are
run in the order they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar


class QueueItem(Protocol):
    """What a queue item has to tell about itself."""

    @property
    def name(self) -> str:
        """The stream it belongs to."""
        ...

    @property
    def shape(self) -> Hashable:
        """Only items of one shape are run together."""
        ...


ItemT = TypeVar("ItemT", bound=QueueItem)


class BatchQueue(Generic[ItemT]):
    """Timesteps that wait for the model.

    Laws, checked by `tests/engine/stepping/test_batch_queue.py`:

    1. Order: items of one stream are taken in the order they were put.
    2. One at a time: a stream that was taken is not taken again before `release`.
    3. Longest wait first: of one shape, the streams that may go are taken in the order in which they came to be
       so; shapes take turns.
    4. One shape: all items of a batch have the same shape.
    5. Nothing is lost: each item put is taken once.
    6. A batch that came ready-made is taken as it is, and counts as a shape.
    """

    def __init__(self) -> None:
        self._waiting_behind: dict[
            str, deque[ItemT] | None
        ] = {}  # per stream that is ready or out: items behind that one
        # Items that may go, by shape; the next shape first. Nothing keeps the place of a ready-made batch.
        self._ready: dict[Hashable, deque[ItemT]] = {}
        self._ready_made: dict[Hashable, Sequence[ItemT]] = {}
        self.rows = 0  # items that wait

    def enqueue(self, item: ItemT) -> None:
        """Add an item behind all others of its stream."""
        self.rows += 1
        name, behind = item.name, self._waiting_behind
        if name not in behind:
            behind[name] = None
            try:
                self._ready[item.shape].append(item)
            except KeyError:
                self._make_ready(item)
        elif (line := behind[name]) is None:
            behind[name] = deque([item])
        else:
            line.append(item)

    def enqueue_batch(self, batch: Sequence[ItemT]) -> None:
        """Add a ready-made batch, to which items may still be added until it goes; each one's stream is claimed."""
        place = object()
        self._ready[place], self._ready_made[place] = deque(), batch

    def reserve(self, name: str) -> bool:
        """Let an item of a stream be in a ready-made batch; False: it has one that waits here, or is out."""
        if name in self._waiting_behind:
            return False
        self._waiting_behind[name] = None
        self.rows += 1
        return True

    def can_reserve(self, names: Iterable[str]) -> bool:
        """Whether `reserve` would be True for all of these streams."""
        return self._waiting_behind.keys().isdisjoint(names)

    def reserve_all(self, names: Sequence[str]) -> None:
        """Claim streams that may be claimed."""
        self._waiting_behind.update(dict.fromkeys(names))
        self.rows += len(names)

    def dequeue(self, limit: int) -> Sequence[ItemT]:
        """Take a batch of at most `limit` items, or a ready-made one; empty when no stream may go."""
        if not self._ready:
            return []
        shape = next(iter(self._ready))
        ready = self._ready.pop(shape)
        batch: Sequence[ItemT]
        if not ready:
            batch = self._ready_made.pop(shape)
        elif len(ready) <= limit:
            batch = list(ready)
        else:
            batch = [ready.popleft() for _ in range(limit)]
            self._ready[shape] = ready  # behind the others: shapes take turns
        self.rows -= len(batch)
        return batch

    def release(self, names: Iterable[str]) -> None:
        """Let the next item of each of these streams go; they were taken before."""
        pop = self._waiting_behind.pop
        for name in names:
            line = pop(name)
            if line is not None:
                following = line.popleft()
                self._waiting_behind[name] = line or None
                self._make_ready(following)

    @property
    def ready_batches(self) -> int:
        """How many batches could be taken now, if each were as long as one likes."""
        return len(self._ready)

    def __bool__(self) -> bool:
        """Whether a batch could be taken now."""
        return bool(self._ready)

    def _make_ready(self, item: ItemT) -> None:
        ready = self._ready.get(item.shape)
        if ready is None:
            self._ready[item.shape] = deque([item])
        else:
            ready.append(item)
