"""`Timeline`: the messages of polls in the order of their times, or as ticks; what goes on, and what is late."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Self

import numpy as np

from stepwell.addons.connect.mapping.poll_mapper import MappedPoll
from stepwell.addons.connect.messages import BrokerMessage, MessageColumns
from stepwell.addons.connect.time_rules import TimeRules
from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.order import Decided, Order
from stepwell.addons.event_time.tick_values import NoValueError, TickColumn, TickValues, Values, parts_of
from stepwell_export.runtime.manifest import Array


@dataclass(slots=True, eq=False)
class TimedMessage:
    """A message that was read and has a time.

    Attributes:
        messages: The messages of its poll.
        row: Its index among them.
        partition: What its watermark is of: a partition, queue or file.
        source: The id of its source, by the rules.
        stream: Its stream's id.
        time: Its time, in us.
        poll: The timesteps of its poll; None: it is a part of a tick.
        index: Its index among them.
        values: Its values, as a part of a tick.
    """

    messages: MessageColumns
    row: int
    partition: str
    source: str
    stream: str
    time: int
    poll: MappedPoll | None = None
    index: int = 0
    values: Values = field(default_factory=dict)

    @property
    def message(self) -> BrokerMessage:
        """The message as it was read."""
        return self.messages[self.row]


@dataclass(slots=True, eq=False)
class Ready:
    """A timestep that goes on.

    Attributes:
        stream: The stream's id.
        source: The id of its source.
        position: Its time in us, or its tick's number.
        time: Its time in us.
        inputs: Its inputs.
        items: The messages that it is made of; a tick may have none.
        gap: The ticks that were left out before it.
        freed: What is acknowledged once it was applied.
        before: The position of its stream before it, by `--order`.
    """

    stream: str
    source: str
    position: int
    time: int
    inputs: dict[str, Array]
    items: list[TimedMessage]
    gap: int = 0
    freed: list[TimedMessage] = field(default_factory=list)
    before: int = -1


@dataclass(slots=True)
class TimeDecisions:
    """What is decided of messages, in its order.

    Attributes:
        ready: The timesteps that go on; those of a stream in the order of their positions.
        late: Messages that are never applied, each with the position of its stream for which it is late.
        unusable: Ticks without the value of an input, each with its messages and the reason.
        freed: What is acknowledged as nothing needs it any more.
    """

    ready: list[Ready] = field(default_factory=list)
    late: list[tuple[TimedMessage, int]] = field(default_factory=list)
    unusable: list[tuple[list[TimedMessage], str]] = field(default_factory=list)
    freed: list[TimedMessage] = field(default_factory=list)

    def __iadd__(self, later: TimeDecisions) -> Self:
        self.ready += later.ready
        self.late += later.late
        self.unusable += later.unusable
        self.freed += later.freed
        return self


class Timeline:
    """Keeps what waits. A message is decided after it was read, in the order of its partition."""

    def __init__(self, rules: TimeRules, columns: Iterable[TickColumn]) -> None:
        """Create it.

        Args:
            rules: The rules.
            columns: How ticks get the values of each input.
        """
        self._every = rules.every
        self._sources: dict[str, str] = {}  # of streams; ticks that are filled have no message with it
        self._values = TickValues(columns, rules.fill)
        self._order = Order[TimedMessage](rules.wait, rules.most)
        self._clock: Clock[TimedMessage] | None = None
        if rules.every:
            self._clock = Clock(rules.every, rules.wait, gap=rules.gap, most=rules.most, parts=_parts_of)

    @property
    def _keeper(self) -> Order[TimedMessage] | Clock[TimedMessage]:
        return self._order if self._clock is None else self._clock

    @property
    def n_waiting(self) -> int:
        """Messages that wait, without those that ticks are filled with."""
        return self._keeper.n_waiting

    @property
    def overflowed(self) -> int:
        """How often the oldest went on because too many waited."""
        return self._keeper.overflowed

    def clear(self) -> None:
        """Forget everything: what was not acknowledged is read again."""
        self._keeper.clear()
        self._values.clear()
        self._sources.clear()

    def knows(self, stream: str) -> bool:
        """Whether the position of a stream is known."""
        return self._keeper.knows(stream)

    def resume(self, stream: str, position: int) -> None:
        """Say what a stream has applied; -1: nothing."""
        self._keeper.resume(stream, position)

    def add(self, item: TimedMessage, decisions: TimeDecisions) -> None:
        """Add the next message, and what is decided by it to `decisions`."""
        self._sources[item.stream] = item.source
        self._keep(self._keeper.add(item.partition, item.stream, item.time, item), decisions)

    def flush(self, partition: str, decisions: TimeDecisions) -> None:
        """Add what is decided as nothing of a partition arrives for now."""
        self._keep(self._keeper.flush(partition), decisions)

    def finish(self, decisions: TimeDecisions) -> None:
        """Add what is decided as nothing arrives any more."""
        self._keep(self._order.flush() if self._clock is None else self._clock.finish(), decisions)

    def release_oldest(self, count: int, decisions: TimeDecisions) -> None:
        """Add what is decided as the oldest messages go on."""
        self._keep(self._keeper.release_oldest(count), decisions)

    def pause_oldest(self, decisions: TimeDecisions) -> bool:
        """Add what is freed as streams pause of which nothing waits, the oldest first; return whether any do."""
        decided = [] if self._clock is None else self._clock.pause_oldest()
        self._keep(decided, decisions)
        return bool(decided)

    def waiting_by_partition(self) -> dict[str, int]:
        """Return how many messages of each partition wait."""
        return self._keeper.waiting_by_partition()

    def watermarks(self) -> dict[str, int]:
        """Return the watermark of each partition, in us."""
        return self._keeper.watermarks()

    def _keep(
        self,
        decided: Sequence[Decided[TimedMessage] | Tick[TimedMessage] | Late[TimedMessage]],
        decisions: TimeDecisions,
    ) -> None:
        for one in decided:
            if isinstance(one, Tick):
                self._keep_tick(one, decisions)
            elif isinstance(one, Late) or one.late:
                decisions.late.append((one.item, one.position))
            else:
                decisions.ready.append(ready_of(one.item, before=one.position))

    def _keep_tick(self, tick: Tick[TimedMessage], decisions: TimeDecisions) -> None:
        if tick.pauses:
            self._values.forget(tick.stream)
            decisions.freed += tick.freed
            return
        try:
            inputs = self._values.of(tick.stream, [one.values for one in tick.items])
        except NoValueError as exc:
            if tick.items:
                decisions.unusable.append((tick.items, str(exc)))
            decisions.freed += tick.freed
            return
        time, source = tick.number * self._every, self._sources[tick.stream]
        decisions.ready.append(
            Ready(tick.stream, source, tick.number, time, inputs, tick.items, tick.gap, list(tick.freed))
        )


def poll_of(ready: Sequence[Ready], messages: MessageColumns) -> MappedPoll:
    """Return timesteps as a poll.

    Args:
        ready: The timesteps.
        messages: No messages.
    """
    poll = MappedPoll(messages, times=[])
    poll.gaps = {i: one.gap for i, one in enumerate(ready) if one.gap}
    append(poll, ready)
    return poll


def append(poll: MappedPoll, ready: Sequence[Ready]) -> None:
    """Append timesteps to a poll of timesteps."""
    assert poll.times is not None
    poll.rows += range(len(poll.rows), len(poll.rows) + len(ready))
    poll.streams += [one.stream for one in ready]
    poll.sources += [one.source for one in ready]
    poll.at += [one.position for one in ready]
    poll.seq += [None] * len(ready)
    poll.positions = np.array(poll.at, np.int64)
    poll.times += [one.time for one in ready]
    for name in ready[0].inputs if ready else ():
        poll.inputs[name] = np.stack([*poll.inputs.get(name, ()), *(one.inputs[name] for one in ready)])


def ready_of(item: TimedMessage, *, before: int = -1) -> Ready:
    """Return a message as a timestep of its own."""
    assert item.poll is not None
    inputs: dict[str, Any] = {name: array[item.index] for name, array in item.poll.inputs.items()}
    return Ready(item.stream, item.source, item.time, item.time, inputs, [item], freed=[item], before=before)


def decide_again(
    position: int, refused: Sequence[Ready], behind: Sequence[Ready], late: list[tuple[TimedMessage, int]]
) -> list[Ready]:
    """Return what goes on of a stream in the place of what was decided behind timesteps that the service refused.

    These have no position. So messages that were late for them alone go on, in the order in which they were decided.

    Args:
        position: The position of the stream.
        refused: Its timesteps that were refused.
        behind: Those that were decided after them, and are not sent yet.
        late: All messages that are late; those that go on are taken out of it.
    """
    stream = refused[0].stream
    positions = {one.position for one in (*refused, *behind)}
    own = [one for one in late if one[0].stream == stream and one[1] in positions]
    taken = {id(one[0]) for one in own}
    late[:] = [one for one in late if id(one[0]) not in taken]
    decided: list[tuple[int, Ready]] = [(one.position, one) for one in behind]
    decided += [(newest, ready_of(item)) for item, newest in own]
    goes_on = []
    for _, one in sorted(decided, key=itemgetter(0)):
        if one.position > position:
            one.before, position = position, one.position
            goes_on.append(one)
        else:
            late.append((one.items[0], position))
    return goes_on


def _parts_of(item: TimedMessage) -> Iterator[Hashable]:
    return parts_of(item.values)
