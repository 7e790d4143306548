"""`TimedConnector`: a connector whose timesteps go on in the order of their times, or by the ticks of a clock."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any, Final

from stepwell.addons.connect.brokers.interface import SelectiveReader
from stepwell.addons.connect.chunk_sender import AppliedChunks, OnRejected
from stepwell.addons.connect.chunks import StreamChunk, rounds_of
from stepwell.addons.connect.connector import FIRST_POLL, Connector, next_limit
from stepwell.addons.connect.dead_letters import dead_letter, letter_of_tick
from stepwell.addons.connect.mapping.poll_mapper import MappedPoll
from stepwell.addons.connect.mapping.tick_mapper import TickMapper
from stepwell.addons.connect.messages import MessageColumns, OutMessage
from stepwell.addons.connect.service_feed import ServiceFeed
from stepwell.addons.connect.time_rules import TimeRules
from stepwell.addons.connect.timeline import (
    Ready,
    TimeDecisions,
    TimedMessage,
    Timeline,
    append,
    decide_again,
    poll_of,
    ready_of,
)
from stepwell.addons.event_time.times import iso
from stepwell_client.errors import ClientError

_LOOK_UPS: Final = 16
"""Positions of streams that are requested at a time."""

_NO_MESSAGES: Final = MessageColumns.of(())


class TimedConnector(Connector):
    """Keeps messages open until they are applied, and acknowledges each by itself.

    The messages of an operation are acknowledged before the next one of their stream is sent. So of what is read again
    after a crash, what the stream's newest operation has was applied, and all else that is not newer is late.
    """

    def __init__(
        self,
        *,
        reader: SelectiveReader,
        rules: TimeRules,
        timeline: Timeline,
        ticks: TickMapper | None,
        feed: ServiceFeed,
        wall: Callable[[], float] = time.time,
        **parts: Any,
    ) -> None:
        """Create a connector; nothing is opened yet.

        Args:
            reader: What is read.
            rules: The rules.
            timeline: Keeps what waits.
            ticks: Maps messages to parts of ticks; None: every message is a timestep.
            feed: Tells what streams have applied.
            wall: Returns the seconds since 1970.
            parts: All else that `Connector` needs.
        """
        super().__init__(reader=reader, **parts)
        self._selective = reader
        self._rules = rules
        self._timeline = timeline
        self._ticks = ticks
        self._feed = feed
        self._wall = wall
        self._generation = -1
        self._idle: dict[str, float] = {}  # seconds for which nothing of a partition came
        self._resumed: dict[str, int] = {}  # positions that streams had when they were seen first
        self._found_again: set[tuple[str, int]] = set()
        # Messages of newest operations that were read again, by stream and time, with their predictions
        self._again: defaultdict[str, dict[int, tuple[TimedMessage, OutMessage | None]]] = defaultdict(dict)
        self._overflow_reported = False
        self._pauses_reported = False
        self._shown_at = 0.0

    async def _polls(self) -> AsyncIterator[None]:
        limit = FIRST_POLL
        self._forget()
        while not self._stopping.is_set():
            began = self._clock()
            found = await self._reader.poll(limit)
            started = self._clock()
            if self._selective.generation != self._generation:
                self._forget()
                self._generation = self._selective.generation
            self._counters.set_lag(self._reader.lag())
            items = list[TimedMessage]()
            if found:
                messages = found if isinstance(found, MessageColumns) else MessageColumns.of(found)
                self._check_fields(messages)
                items = await self._read(messages)
            self._note_polled(items, started - began)
            is_done = not found and self._reader.is_done
            if not (await self._decide(items) and await self._let_go(is_done=is_done, is_quiet=not found)):
                self._forget()
            elif is_done:
                self._show_waiting(now=math.inf)
                if self._unseen is not None and (error := self._unseen.error()) is not None:
                    raise error
                return
            if found:
                limit = next_limit(limit, messages, self._clock() - started)
            self._show_waiting(self._clock())
            yield

    async def _decide(self, items: Sequence[TimedMessage]) -> bool:
        """Decide on the messages of a poll, and carry it out; return False if they belong to another connector.

        Of what is not settled, at most one chunk of each stream is sent, and none behind an operation that was found
        again: after a crash, the service knows of the newest operation alone which messages it had.
        """
        work, read = TimeDecisions(), dict[str, TimedMessage]()  # by partition, its last message
        n_ready: defaultdict[str, int] = defaultdict(int)
        again = set[str]()
        for one in items:
            new, is_long = TimeDecisions(), False
            self._timeline.add(one, new)
            for ready in new.ready:
                n_ready[ready.stream] += 1
                is_long |= n_ready[ready.stream] > self._limits.steps or ready.stream in again
            if is_long:
                if not await self._carry_out(work, new):
                    return False
                await self._settle(read)
                work = TimeDecisions()
                again.clear()
                n_ready.clear()
                for ready in new.ready:
                    n_ready[ready.stream] += 1
            if one.time <= self._resumed.get(one.stream, -1):
                again.add(one.stream)
            work += new
            read[one.partition] = one
        if not await self._carry_out(work):
            return False
        await self._settle(read)
        return True

    async def _settle(self, read: Mapping[str, TimedMessage]) -> None:
        await self._selective.settle([one.message for one in read.values()])

    async def _let_go(self, *, is_done: bool, is_quiet: bool) -> bool:
        """Let what waits go on where nothing more arrives: at the end, in idle partitions, or as too much waits.

        Returns:
            False: it belongs to another connector.
        """
        work = TimeDecisions()
        if is_done:
            self._timeline.finish(work)
        for partition, seconds in self._idle.items():
            if seconds >= self._rules.idle_s:
                self._timeline.flush(partition, work)
        if self._selective.is_full and self._timeline.n_waiting:
            self._timeline.release_oldest(self._timeline.n_waiting // 2 + 1, work)
            self._report_overflow("all that the broker lets wait")
        elif self._selective.is_full and self._timeline.pause_oldest(work):
            self._report_pauses()
        elif self._timeline.overflowed:
            self._report_overflow("--order-messages")
        if is_quiet:
            await self._hand_over_again(list(self._again))
        return await self._carry_out(work)

    def _report_overflow(self, limit: str) -> None:
        if not self._overflow_reported:
            self._overflow_reported = True
            self._report(f"as many messages wait as may ({limit}): the oldest go on before their time")

    def _report_pauses(self) -> None:
        if not self._pauses_reported:
            self._pauses_reported = True
            self._report(
                "the broker sends no more while the last messages of so many streams are kept for fills: the streams "
                "with the oldest ones pause before --gap"
            )

    def _forget(self) -> None:
        self._timeline.clear()
        self._idle.clear()
        self._resumed.clear()
        self._found_again.clear()
        self._again.clear()

    async def _read(self, messages: MessageColumns) -> list[TimedMessage]:
        """Return the messages that can be used; the others become dead letters."""
        self._counters.add(messages=len(messages))
        items, letters = self._map(messages)
        good = {one.row for one in items}
        bad = [messages[row] for row in range(len(messages)) if row not in good]
        if letters:
            await self._write_dead_letters(letters)
        if bad:
            await self._selective.acknowledge_some(bad)
        await self._look_up({one.stream: one.source for one in items if not self._timeline.knows(one.stream)})
        return items

    def _map(self, messages: MessageColumns) -> tuple[list[TimedMessage], list[OutMessage]]:
        """Return the messages that can be used, and the dead letters of the others."""
        if self._ticks is not None:
            parts, letters = self._ticks.map(messages)
            return [self._item(messages, row, stream, at, values=values) for row, stream, at, values in parts], letters
        poll, letters = self._mapper.map(messages)
        places = enumerate(zip(poll.rows, poll.streams, poll.times or (), strict=True))
        items = [self._item(messages, row, one, at or 0, poll=poll, index=i) for i, (row, one, at) in places]
        return items, letters

    def _item(self, messages: MessageColumns, row: int, stream: str, at: int, **more: Any) -> TimedMessage:
        partition = messages.sources[row]
        base = messages.logs[row] if self._acknowledges else partition  # a file's source tells it from another one
        return TimedMessage(messages, row, partition, base + self._rules.suffix, stream, at, **more)

    async def _look_up(self, sources: dict[str, str]) -> None:
        """Read what the service has of streams that are new here, of their sources."""
        if not self._acknowledges:  # all messages are read again, and decided as they were before
            for stream in sources:
                self._timeline.resume(stream, -1)
            return
        limit = asyncio.Semaphore(_LOOK_UPS)

        async def look_up(stream: str, source: str) -> None:
            async with limit:
                at = await self._feed.position(stream, source)
            self._timeline.resume(stream, at)
            self._resumed[stream] = at

        try:
            async with asyncio.TaskGroup() as tasks:
                for stream, source in sources.items():
                    tasks.create_task(look_up(stream, source))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    def _note_polled(self, items: Sequence[TimedMessage], seconds: float) -> None:
        """Note for how long nothing came, by partition; what takes long elsewhere does not count."""
        came = {item.partition for item in items}
        for partition in self._timeline.watermarks():
            self._idle[partition] = 0.0 if partition in came else self._idle.get(partition, 0.0) + seconds

    async def _carry_out(self, work: TimeDecisions, behind: TimeDecisions | None = None) -> bool:
        """Do what was decided; return False if what was read belongs to another connector.

        Late messages become dead letters behind the timesteps that they are late for: otherwise a crash between them
        could apply a message that has a dead letter.

        Args:
            work: What is done.
            behind: What was decided after it; it changes where the service refuses a timestep.
        """
        done, late = list(work.freed), list[TimedMessage]()
        again = [one for one, _ in work.late if self._ticks is None and one.time <= self._resumed.get(one.stream, -1)]
        suspects = {id(one) for one in again}
        if again and not await self._find_again(again, late, done):
            return False
        work.late = [one for one in work.late if id(one[0]) not in suspects]
        await self._hand_over_again({one.stream for one in work.ready})
        if work.ready and not await self._step(work, behind or TimeDecisions(), late, done):
            return False
        late += [one for one, _ in work.late]
        letters = [letter_of_tick(items, "bad_input", reason, items[0].stream) for items, reason in work.unusable]
        letters += [
            dead_letter(
                one.message,
                "late",
                f"the time is {iso(one.time)}, and its stream has gone on",
                one.stream,
                time=one.time,
            )
            for one in late
        ]
        self._counters.add_late(one.source for one in late)
        if letters:
            await self._write_dead_letters(letters)
        if done or late:
            await self._acknowledge([*done, *late])
        return True

    async def _find_again(
        self, items: Sequence[TimedMessage], late: list[TimedMessage], done: list[TimedMessage]
    ) -> bool:
        """Find messages that were applied before, by their streams' newest operations; add the others to `late`.

        Those that were settled before are neither applied again nor late again: they are added to `done`.
        Each is asked for by itself: of several at once, the service knows the predictions behind the last unknown one.
        """
        of_stream: defaultdict[str, int] = defaultdict(int)
        rounds: defaultdict[int, list[TimedMessage]] = defaultdict(list)
        for one in items:
            rounds[of_stream[one.stream]].append(one)
            of_stream[one.stream] += 1
        for own in rounds.values():
            ready = [ready_of(one) for one in own]
            poll = poll_of(ready, _NO_MESSAGES)
            chunks = [StreamChunk(one.stream, [i]) for i, one in enumerate(ready)]
            applied = await self._sender.send(chunks, poll, self._on_refused(poll, ready, [], set()))
            if not await self._is_current():
                return False
            found = []
            for part in applied:
                for chunk in part.chunks:
                    one = own[chunk.timesteps[0]]
                    place = (one.stream, one.time)
                    if part.unknown or place in self._found_again:
                        is_settled = self._selective.was_settled(one.message)
                        (done if is_settled else late).append(one)
                        self._counters.add(skipped=is_settled)
                    else:
                        self._found_again.add(place)
                        found.append(one)
            self._counters.add(skipped=len(found))
            known = [message for one in applied for message in self._predictions_of(poll, one)]
            predictions = {(one.key, one.at): one for one in known}
            for one in found:
                self._again[one.stream][one.time] = one, predictions.get((one.stream, one.time))
        return True

    async def _hand_over_again(self, streams: Iterable[str]) -> None:
        """Write the predictions of messages that were applied before, and acknowledge these.

        They are read again in the order of their arrival, and written in that of their times: so it is done when all
        of them were read, before the stream's next operation.
        """
        items, predictions = list[TimedMessage](), list[OutMessage]()
        for stream in streams:
            for _, (item, prediction) in sorted(self._again.pop(stream, {}).items(), key=lambda one: one[0]):
                items.append(item)
                predictions += [] if prediction is None else [prediction]
        await self._write(predictions)
        if items:
            await self._acknowledge(items)

    async def _step(
        self, work: TimeDecisions, behind: TimeDecisions, late: list[TimedMessage], done: list[TimedMessage]
    ) -> bool:
        """Step streams, write the predictions, and acknowledge the messages of each operation.

        Those of ticks are added to `done`: what is late for a tick is told by its messages, so they are acknowledged
        once it has its dead letter.
        """
        ready, refused = work.ready, set[int]()
        poll = poll_of(ready, _NO_MESSAGES)
        rounds, _ = rounds_of(poll, self._limits)
        for chunks in rounds:
            n_before = len(ready)
            applied = await self._sender.send(chunks, poll, self._on_refused(poll, ready, work.late, refused))
            if not await self._is_current():
                return False
            n_applied = sum(one.n_timesteps for one in applied)
            passed = self._passed_unseen(applied)
            n_passed = len({i for one in applied for i in one.passed})
            late += [item for i in sorted(passed) for item in ready[i].items]
            self._counters.add(timesteps=n_applied, skipped=n_passed - len(passed))
            self._count_gaps(poll, applied)
            await self._write([message for one in applied for message in self._predictions_of(poll, one)])
            sent = chain(chain.from_iterable(one.timesteps for one in chunks), range(n_before, len(ready)))
            freed = [item for i in sent if i not in passed for item in ready[i].freed]
            if self._ticks is not None:
                done += freed
            else:
                await self._acknowledge(freed)
        if self._ticks is None:
            self._take_back(ready, refused, behind)
        return True

    def _take_back(self, ready: Sequence[Ready], refused: Set[int], behind: TimeDecisions) -> None:
        """Let no stream have the position of a timestep that the service refused."""
        for stream in {ready[i].stream for i in refused}:
            own = [i for i, one in enumerate(ready) if one.stream == stream]
            applied = [ready[i].position for i in own if i not in refused]
            position = max(applied, default=ready[own[0]].before)
            later = [one for one in behind.ready if one.stream == stream]
            goes_on = decide_again(position, [ready[i] for i in own if i in refused], later, behind.late)
            behind.ready = [one for one in behind.ready if one.stream != stream] + goes_on
            self._timeline.resume(stream, goes_on[-1].position if goes_on else position)

    def _passed_unseen(self, applied: Sequence[AppliedChunks]) -> set[int]:
        """Return the timesteps that the service passed without a prediction: newer ones were applied before them.

        All lines of a file are read again. So of these it is only known where the record's newest operation, whose
        timesteps follow each other, cannot have them: between its timesteps, or before the first one of the stream.
        """
        if self._ticks is not None:
            return set()
        found = set[int]()
        known = {i for one in applied for chunk in one.chunks for i in chunk.timesteps[one.unknown :]}
        for one in applied:
            for step, chunk in zip(one.steps, one.chunks, strict=True):
                n_behind = len(chunk.timesteps) - one.unknown
                is_first = n_behind > 0 and step == n_behind
                is_newer = False
                for i in chunk.timesteps[: one.unknown]:
                    if i in known:
                        is_newer = True
                    elif self._acknowledges or is_first or is_newer:
                        found.add(i)
        return found

    def _count_gaps(self, poll: MappedPoll, applied: Sequence[AppliedChunks]) -> None:
        for one in applied:
            for number, chunk in enumerate(one.chunks):
                for i in chunk.timesteps[one.skipped[number] if one.skipped else 0 :]:
                    if i in poll.gaps:
                        self._counters.add_gap(poll.sources[i])

    def _on_refused(
        self, poll: MappedPoll, ready: list[Ready], late: list[tuple[TimedMessage, int]], refused: set[int]
    ) -> OnRejected:
        """Return what writes the dead letters of timesteps that the service refuses.

        Args:
            poll: What is sent; messages that go on in place of refused ones are added to it.
            ready: The same as timesteps; they are added to it, too.
            late: Messages that are late, with the positions for which they are; they are taken out of it.
            refused: The indices of refused timesteps are added to it.
        """

        async def on_refused(timesteps: Sequence[int], error: ClientError, behind: list[int]) -> list[int]:
            letters = []
            refused.update(timesteps)
            for i in timesteps:
                one = ready[i]
                if self._ticks is not None:
                    if one.items:
                        letters.append(letter_of_tick(one.items, error.code, error.problem, one.stream))
                else:
                    [item] = one.items
                    letters.append(dead_letter(item.message, error.code, error.problem, one.stream, time=one.time))
            if letters:
                await self._write_dead_letters(letters)
            if self._ticks is not None:
                return behind
            first, gone = ready[timesteps[0]], {ready[i].position for i in timesteps}
            goes_on = decide_again(first.before, [ready[i] for i in timesteps], [ready[i] for i in behind], late)
            for one in ready:  # those of later chunks
                if one.stream == first.stream and one.before in gone:
                    one.before = goes_on[-1].position if goes_on else first.before
            numbers = {id(ready[i]): i for i in behind}
            if added := [one for one in goes_on if id(one) not in numbers]:
                numbers.update((id(one), len(ready) + n) for n, one in enumerate(added))
                append(poll, added)
                ready.extend(added)
            return [numbers[id(one)] for one in goes_on]

        return on_refused

    async def _is_current(self) -> bool:
        if await self._reader.is_current():
            return True
        self._report("another connector has taken over; what this one has read is dropped")
        return False

    async def _acknowledge(self, items: Sequence[TimedMessage]) -> None:
        await self._selective.acknowledge_some([one.message for one in items])

    def _show_waiting(self, now: float) -> None:
        if now - self._shown_at < 1:
            return
        self._shown_at = now
        waiting, wall = self._timeline.waiting_by_partition(), self._wall()
        self._counters.set_waiting(waiting, {one: wall - at / 1e6 for one, at in self._timeline.watermarks().items()})
