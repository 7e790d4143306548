"""`Clock`: one timestep for each tick of a stream, of the messages in it, as soon as the watermark has passed it.

What is decided depends on the messages of a partition and their order alone, never on how they were read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stepwell.addons.event_time.order import Partition

T = TypeVar("T")


@dataclass(slots=True)
class Tick(Generic[T]):
    """One tick of a stream that is done, or the end of its timesteps.

    Attributes:
        stream: The stream's id.
        number: Its number: the tick's time is this many times `every` since 1970.
        items: Its messages, in the order of their times; none: it is filled.
        gap: The ticks that were left out before it.
        pauses: It is no timestep: the stream pauses from it on, until its next message.
        freed: The messages that nothing needs any more once this tick was applied.
    """

    stream: str
    number: int
    items: list[T] = field(default_factory=list)
    gap: int = 0
    pauses: bool = False
    freed: list[T] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Late(Generic[T]):
    """A message whose tick its stream has passed; it is never applied.

    Attributes:
        item: The message.
        position: The newest tick of its stream.
    """

    item: T
    position: int


@dataclass(slots=True)
class _Stream(Generic[T]):
    """What is known of one stream.

    Attributes:
        record: The tick of its newest timestep in the record; -1: nothing.
        partition: The partition whose watermark ends its ticks.
        done: The newest tick that was done here; -1: none.
        newest: The newest done tick that had messages.
        read: By partition, the newest tick of which a message was read.
        open: The messages of ticks that are not done, each with its time and its number of arrival.
        kept: By tick, the messages that are needed to fill later ones.
        holders: By part, the tick whose messages have its newest value.
        queued: Its next tick, as the queue of its partition has it; None: it pauses.
    """

    record: int
    partition: str = ""
    done: int = -1
    newest: int = -1
    read: dict[str, int] = field(default_factory=dict)
    open: dict[int, list[tuple[int, int, T]]] = field(default_factory=dict)
    kept: dict[int, list[T]] = field(default_factory=dict)
    holders: dict[Hashable, int] = field(default_factory=dict)
    queued: int | None = None


def _one_part(_item: object) -> Iterable[Hashable]:
    return (None,)


class Clock(Generic[T]):
    """Divides the messages of streams into ticks.

    Tick n has the messages later than n - 1 times `every` until n times `every`. It is done when the watermark of its
    partition is later than its end. A stream begins with its first message; a tick without messages is filled, at most
    `gap` of them in a row, after which the stream pauses until its next message.
    """

    def __init__(
        self,
        every: int,
        wait: int,
        *,
        gap: int,
        most: int | None = None,
        parts: Callable[[T], Iterable[Hashable]] = _one_part,
    ) -> None:
        """Create it.

        Args:
            every: From one tick to the next, in us.
            wait: How far the watermark is behind the newest time, in us.
            gap: Ticks in a row that are filled at most.
            most: Messages of open ticks at most; then the oldest ticks are done. None: any number.
            parts: Returns what of a message's values is filled by itself: the inputs that it has.
        """
        self.every = every
        self.n_waiting = 0
        self.overflowed = 0
        self._wait = wait
        self._gap = gap
        self._most = most
        self._parts = parts
        self._partitions: dict[str, Partition] = {}
        self._due: dict[str, list[tuple[int, str]]] = {}  # next ticks of streams, by partition, as heaps
        self._streams: dict[str, _Stream[T]] = {}
        self._number = 0

    def clear(self) -> None:
        """Forget everything: what was not acknowledged is read again."""
        self.n_waiting = 0
        self._partitions.clear()
        self._due.clear()
        self._streams.clear()

    def resume(self, stream: str, position: int) -> None:
        """Say what a stream has applied: the number of its newest tick; -1: nothing."""
        self._streams[stream] = _Stream(position)

    def knows(self, stream: str) -> bool:
        """Whether the position of a stream is known."""
        return stream in self._streams

    def tick_of(self, time: int) -> int:
        """Return the number of the tick that a time belongs to."""
        return -(-time // self.every)

    def add(self, partition: str, stream: str, time: int, item: T) -> list[Tick[T] | Late[T]]:
        """Add the next message of a partition, and return what is decided by it."""
        place = self._partitions.setdefault(partition, Partition())
        tick = self.tick_of(time)
        known = self._streams.get(stream)
        if known is None:
            known = self._streams[stream] = _Stream(-1)
        decided: list[Tick[T] | Late[T]] = []
        behind = known.read.get(partition, -1) > tick and place.watermark(self._wait) > tick * self.every
        if tick <= known.done or (tick <= known.record and behind):
            decided.append(Late(item, max(known.done, known.record)))
        else:
            self._number += 1
            known.open.setdefault(tick, []).append((time, self._number, item))
            self.n_waiting += 1
            known.partition = known.partition or partition
            self._queue(stream, known)
        known.read[partition] = max(tick, known.read.get(partition, -1))
        place.read(time)
        decided += self._passed(partition)
        if self._most is not None and self.n_waiting > self._most:
            self.overflowed += 1
            decided += self.release_oldest(max(1, self._most // 100))
        return decided

    def flush(self, partition: str | None = None) -> list[Tick[T] | Late[T]]:
        """Return what is done as the watermark, of one partition or of all, is the newest time now."""
        decided: list[Tick[T] | Late[T]] = []
        for name in list(self._partitions) if partition is None else [partition]:
            self._partitions[name].idle()
            decided += self._passed(name)
        return decided

    def finish(self) -> list[Tick[T] | Late[T]]:
        """Return all ticks that have messages, and those between them: nothing more will arrive."""
        return self.release_oldest(self.n_waiting)

    def release_oldest(self, count: int) -> list[Tick[T] | Late[T]]:
        """Return the oldest open ticks, until at least so many messages less wait."""
        decided: list[Tick[T] | Late[T]] = []
        goal = max(0, self.n_waiting - count)
        while self.n_waiting > goal:
            oldest = min(min(one.open) for one in self._streams.values() if one.open)
            for name, known in self._streams.items():
                while known.open and min(known.open) <= oldest:
                    decided.append(self._next(name, known))
        return decided

    def pause_oldest(self) -> list[Tick[T] | Late[T]]:
        """Return pauses of the streams with the oldest messages that only fills need, until half of these are free."""
        idle = [(name, one) for name, one in self._streams.items() if one.kept and not one.open]
        idle.sort(key=lambda named: named[1].newest)
        decided: list[Tick[T] | Late[T]] = []
        goal = sum(len(items) for _, one in idle for items in one.kept.values()) / 2
        n_freed = 0
        for name, known in idle:
            if n_freed >= goal:
                break
            decided.append(pause := self._pause(name, known, known.done + 1))
            n_freed += len(pause.freed)
        return decided

    def waiting_by_partition(self) -> dict[str, int]:
        """Return how many messages of each partition are in open ticks."""
        found = dict.fromkeys(self._partitions, 0)
        for known in self._streams.values():
            if known.open:
                found[known.partition] += sum(map(len, known.open.values()))
        return found

    def watermarks(self) -> dict[str, int]:
        """Return the watermark of each partition, in us."""
        return {name: place.watermark(self._wait) for name, place in self._partitions.items()}

    def _next_number(self, known: _Stream[T]) -> int | None:
        """Return the stream's next tick; None: it pauses."""
        if not known.kept:  # behind a pause and at the beginning, it is the first one with messages
            return min(known.open, default=None)
        number = known.done + 1
        if known.newest + self._gap < number <= known.record and len(known.kept) > 1:
            # The record has these ticks, and their messages are acknowledged: there is nothing to make them of
            return min([*known.open, known.record + 1])
        return number

    def _queue(self, stream: str, known: _Stream[T]) -> None:
        """Put the stream's next tick into the queue of its partition; what the queue has of it before is void."""
        number = self._next_number(known)
        if number is not None and number != known.queued:
            heapq.heappush(self._due.setdefault(known.partition, []), (number, stream))
        known.queued = number

    def _passed(self, partition: str) -> list[Tick[T] | Late[T]]:
        """Return the ticks of all streams of a partition that its watermark has passed."""
        watermark = self._partitions[partition].watermark(self._wait)
        due, decided = self._due.get(partition, []), list[Tick[T] | Late[T]]()
        while due and due[0][0] * self.every < watermark:
            number, stream = heapq.heappop(due)
            known = self._streams[stream]
            if known.queued == number:
                known.queued = None
                decided.append(self._next(stream, known))
        return decided

    def _next(self, stream: str, known: _Stream[T]) -> Tick[T]:
        """Return the stream's next tick, or its pause, and put the one behind it into the queue."""
        number = self._next_number(known)
        assert number is not None
        messages = known.open.pop(number, None)
        if messages is None and number > known.newest + self._gap:
            return self._pause(stream, known, number)
        before = known.done if number <= known.record and not known.kept else max(known.done, known.record)
        tick = Tick[T](stream, number)
        known.done = number
        if messages is not None:
            known.newest = number
            tick.items = [item for _, _, item in sorted(messages, key=lambda one: one[:2])]
            tick.gap = max(0, number - before - 1) if before >= 0 else 0
            tick.freed = self._hold(known, number, tick.items)
            self.n_waiting -= len(tick.items)
        self._queue(stream, known)
        return tick

    def _pause(self, stream: str, known: _Stream[T], number: int) -> Tick[T]:
        """Return the pause of a stream from a tick on, with all that was kept for its fills."""
        freed = [item for items in known.kept.values() for item in items]
        known.kept.clear()
        known.holders.clear()
        self._queue(stream, known)
        return Tick(stream, number, pauses=True, freed=freed)

    def _hold(self, known: _Stream[T], number: int, items: list[T]) -> list[T]:
        """Keep the messages of a tick, and return those of earlier ones that have no newest value any more."""
        for part in {part for item in items for part in self._parts(item)}:
            known.holders[part] = number
        known.kept[number] = items
        needed = {*known.holders.values(), number}
        return [item for tick in [*known.kept] if tick not in needed for item in known.kept.pop(tick)]
