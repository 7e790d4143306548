"""`Order`: messages in the order of their times, each once its partition's newest time is later by a bounded wait.

What is decided depends on the messages of a partition and their order alone, never on how they were read.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Decided(NamedTuple, Generic[T]):
    """What becomes of a message.

    Attributes:
        item: The message.
        late: It is not newer than what its stream has, so it is never applied.
        position: The time of the newest timestep that its stream has, in us; -1: none.
    """

    item: T
    late: bool
    position: int


class _Waiting(NamedTuple, Generic[T]):
    time: int
    number: int  # of arrival: of two with the same time, the first one counts
    stream: str
    item: T


class Partition:
    """A part of a source whose messages are read in their order: its newest time, from which its watermark follows.

    Attributes:
        newest: The newest time that was read, in us; -1: none.
    """

    def __init__(self) -> None:
        self.newest = -1
        self._reached = -1

    def read(self, time: int) -> None:
        """Note that a message with this time was read."""
        self.newest = max(self.newest, time)

    def idle(self) -> None:
        """Note that nothing more arrives for now: the watermark is the newest time."""
        self._reached = self.newest

    def watermark(self, wait: int) -> int:
        """Return the time up to which its messages are expected to be there; it never goes back."""
        return max(self._reached, self.newest - wait)


class Order(Generic[T]):
    """Decides which messages go on, and which are late.

    A message waits until the newest time of its partition is later than its own by the wait, or equal to that. It is
    late if its stream has gone on with its time or a newer one. Of a stream behind the watermark, messages go on in
    the order of their arrival.
    """

    def __init__(self, wait: int, most: int | None = None) -> None:
        """Create it.

        Args:
            wait: How much later the newest time must be, in us.
            most: Messages that may wait; then the oldest go on. None: any number.
        """
        self.n_waiting = 0
        self.overflowed = 0
        self._wait = wait
        self._most = most
        self._partitions: dict[str, tuple[Partition, list[_Waiting[T]]]] = {}
        self._positions: dict[str, int] = {}
        self._numbers = itertools.count()

    def clear(self) -> None:
        """Forget everything: what was not acknowledged is read again."""
        self.n_waiting = 0
        self._partitions.clear()
        self._positions.clear()

    def resume(self, stream: str, position: int) -> None:
        """Say what a stream has applied: the time of its newest timestep, in us; -1: nothing.

        What goes on counts as applied, so this is called again for a timestep that was not.
        """
        self._positions[stream] = position

    def knows(self, stream: str) -> bool:
        """Whether the position of a stream is known."""
        return stream in self._positions

    def add(self, partition: str, stream: str, time: int, item: T) -> list[Decided[T]]:
        """Add the next message of a partition, and return what is decided by it, in the order in which it goes on."""
        place, waiting = self._partitions.setdefault(partition, (Partition(), []))
        place.read(time)
        decided: list[Decided[T]] = []
        position = self._positions.get(stream, -1)
        if time <= position:
            decided.append(Decided(item, late=True, position=position))
        else:
            heapq.heappush(waiting, _Waiting(time, next(self._numbers), stream, item))
            self.n_waiting += 1
        decided += self._due(place, waiting)
        if self._most is not None and self.n_waiting > self._most:
            self.overflowed += 1
            decided += self.release_oldest(1)
        return decided

    def flush(self, partition: str | None = None) -> list[Decided[T]]:
        """Return all that waits, of one partition or of all: its watermark is its newest time now."""
        names = list(self._partitions) if partition is None else [partition]
        decided = []
        for name in names:
            place, waiting = self._partitions[name]
            place.idle()
            decided += list(self._due(place, waiting))
        return decided

    def release_oldest(self, count: int) -> list[Decided[T]]:
        """Return the oldest messages that wait, whatever the watermark is."""
        decided = []
        for _ in range(min(count, self.n_waiting)):
            heaps = (waiting for _, waiting in self._partitions.values() if waiting)
            decided.append(self._pop(min(heaps, key=lambda heap: heap[0][:2])))
        return decided

    def waiting_by_partition(self) -> dict[str, int]:
        """Return how many messages of each partition wait."""
        return {name: len(waiting) for name, (_, waiting) in self._partitions.items()}

    def watermarks(self) -> dict[str, int]:
        """Return the watermark of each partition, in us."""
        return {name: place.watermark(self._wait) for name, (place, _) in self._partitions.items()}

    def _due(self, place: Partition, waiting: list[_Waiting[T]]) -> Iterator[Decided[T]]:
        watermark = place.watermark(self._wait)
        while waiting and waiting[0].time <= watermark:
            yield self._pop(waiting)

    def _pop(self, waiting: list[_Waiting[T]]) -> Decided[T]:
        time, _, stream, item = heapq.heappop(waiting)
        self.n_waiting -= 1
        position = self._positions.get(stream, -1)
        if time > position:
            self._positions[stream] = time
        return Decided(item, time <= position, position)
