"""`Connector`: reads a poll, steps the streams, writes the predictions, acknowledges the poll; and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence, Set
from functools import partial
from typing import Final

from stepwell.addons.connect.brokers.interface import MessageReader, MessageWriter
from stepwell.addons.connect.chunk_sender import AppliedChunks, ChunkSender
from stepwell.addons.connect.chunks import PollLimits, rounds_of
from stepwell.addons.connect.counters import ConnectCounters
from stepwell.addons.connect.dead_letters import dead_letter, undelivered_letter
from stepwell.addons.connect.late_timesteps import LateTimesteps
from stepwell.addons.connect.mapping.poll_mapper import MappedPoll, PollMapper
from stepwell.addons.connect.mapping.unseen_fields import UnseenFields
from stepwell.addons.connect.messages import (
    BrokerUnavailableError,
    ConnectError,
    LoginRefusedError,
    MessageColumns,
    OutMessage,
)
from stepwell.addons.connect.service_feed import ModelFacts
from stepwell.addons.event_time.times import iso
from stepwell.addons.waiting import happens
from stepwell_client.errors import ClientError
from stepwell_client.wire.backoff import Backoff
from stepwell_client.wire.texts import counted

DRAIN_S: Final = 10.0
"""Seconds in which an open poll must be finished after `stop`."""

FIRST_POLL: Final = 256
_USUAL_POLL: Final = 4096
_LARGEST_POLL: Final = 16_384
"""Messages: enough of each of a thousand streams that a message to the service has many of them."""
_POLL_BYTES: Final = 8 << 20
_POLL_S: Final = 0.5
"""Seconds that a large poll may take before the next ones get smaller: a rebalance and `stop` wait for its end."""
_GROWTH: Final = 4
"""A poll is at most so many times as large as the one before it. Small polls cost most for each message."""

_BACKOFF: Final = Backoff(0.2, 5.0)


class Connector:
    """Carries messages from a reader to a model and predictions to a writer. One poll is open at a time.

    After a crash at any point, the poll is read again: the service skips what it has applied, by the positions, and
    returns its predictions again, as far as they were not handed over.
    """

    def __init__(
        self,
        *,
        reader: MessageReader,
        writer: MessageWriter | None,
        dead_letters: MessageWriter | None,
        unseen: UnseenFields,
        mapper: PollMapper,
        sender: ChunkSender,
        model: ModelFacts,
        late: LateTimesteps | None,
        limits: PollLimits,
        counters: ConnectCounters,
        report: Callable[[str], None],
        acknowledges: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a connector; nothing is opened yet.

        Args:
            reader: What is read.
            writer: Where predictions are written; None: nowhere.
            dead_letters: Where messages are written that cannot be used; None: they are reported only.
            unseen: Finds fields of the mapping that no message has.
            mapper: Maps polls to timesteps.
            sender: Steps the streams.
            model: The model.
            late: Finds late timesteps; None: positions are those of the broker, which grow.
            limits: The limits of a chunk.
            counters: Counts what is done.
            report: Called with a sentence about a broker that does not respond, or a message that is not kept.
            acknowledges: Whether the broker keeps what was acknowledged, so that few messages are read again.
            clock: Returns the time in seconds.
        """
        self._reader = reader
        self._outputs = [one for one in (writer, dead_letters) if one is not None]
        self._writer = writer
        self._dead_letters = dead_letters
        self._unseen: UnseenFields | None = unseen
        self._mapper = mapper
        self._sender = sender
        self._model = model
        self._late = late
        self._late_reported = False
        self._limits = limits
        self._counters = counters
        self._report = report
        self._acknowledges = acknowledges
        self._n_passed = 0  # timesteps since the last one that was applied
        self._clock = clock
        self._writing_dead_letters = asyncio.Lock()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Finish the open poll, then end."""
        self._stopping.set()

    async def run(self) -> None:
        """Carry messages until `stop`, or until the reader is done.

        Raises:
            ConnectError: Something is wrong that waiting does not repair; or the open poll could not be finished after
                `stop`, and will be read again.
        """
        work = asyncio.create_task(self._run())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=DRAIN_S)
            if not work.done():
                raise ConnectError(
                    f"The last poll could not be handed over within {DRAIN_S:g} s.",
                    fix="Start the connector again: the poll is read again, and nothing is applied twice.",
                )
            await work
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)

    async def _run(self) -> None:
        failures, was_open = 0, False
        reported: type[ConnectError] | None = None
        while not self._stopping.is_set():
            try:
                for output in self._outputs:
                    await output.open()
                await self._reader.open()
                if self._late is not None:
                    self._late.clear()
                self._counters.reads = was_open = True
                async for _ in self._polls():
                    failures = 0
                return
            except (BrokerUnavailableError, LoginRefusedError) as exc:
                if isinstance(exc, LoginRefusedError) and not was_open:
                    raise
                if failures == 0 or type(exc) is not reported:
                    reported = type(exc)
                    self._report(f"waiting for a broker: {exc.problem}")
                failures += 1
            finally:
                self._counters.reads = False
                await self._reader.close()
                for output in self._outputs:
                    await output.close()
            await happens(self._stopping, _BACKOFF.after(failures))

    async def _polls(self) -> AsyncIterator[None]:
        """Carry one poll after the other; yield after each."""
        limit = FIRST_POLL
        while not self._stopping.is_set():
            found = await self._reader.poll(limit)
            started = self._clock()
            self._counters.set_lag(self._reader.lag())
            if found:
                messages = found if isinstance(found, MessageColumns) else MessageColumns.of(found)
                self._check_fields(messages)
                if await self._carry(messages):
                    await self._reader.acknowledge(found)
                limit = next_limit(limit, messages, self._clock() - started)
            elif self._reader.is_done:
                if self._unseen is not None and (error := self._unseen.error()) is not None:
                    raise error
                return
            yield

    def _check_fields(self, messages: MessageColumns) -> None:
        """Check that the fields of the mapping are there, before the first messages are applied.

        Raises:
            ConnectError: No message has one of them.
        """
        if self._unseen is None:
            return
        self._unseen.look_in(messages)
        error = self._unseen.error()
        if error is not None and (self._unseen.is_decided or self._reader.is_done):
            raise error
        if error is not None and not self._unseen.is_reported:
            self._report(f"{error.problem} {error.fix}")
            self._unseen.is_reported = True
        if self._unseen.is_decided:
            self._unseen = None

    async def _carry(self, messages: MessageColumns) -> bool:
        """Step the streams by a poll, and write what comes out of it; return False if the poll belongs to another."""
        self._counters.add(messages=len(messages))
        poll, letters = self._mapper.map(messages)
        late = frozenset() if self._late is None else self._late.find(poll)
        rounds, dropped = rounds_of(poll, self._limits)
        self._count_passed(poll, dropped, late)
        if letters:
            await self._write_dead_letters(letters)
        on_rejected = partial(self._on_rejected, poll)
        for chunks in rounds:
            applied = await self._sender.send(chunks, poll, on_rejected)
            if not await self._reader.is_current():
                self._report("another connector has taken over; what this one has read is dropped")
                return False
            n_applied = sum(one.n_timesteps for one in applied)
            self._counters.add(timesteps=n_applied)
            self._n_passed = 0 if n_applied else self._n_passed
            self._count_passed(poll, {i for one in applied for i in one.passed}, late)
            if self._writer is not None:
                await self._write([message for one in applied for message in self._predictions_of(poll, one)])
        return True

    def _count_passed(self, poll: MappedPoll, passed: Collection[int], late: Set[int]) -> None:
        """Count timesteps that were not applied, those that are late apart from those that had been applied before."""
        found = [i for i in passed if i in late]
        self._counters.add(skipped=len(passed) - len(found))
        self._counters.add_late(poll.sources[i] for i in found)
        before = self._n_passed
        self._n_passed += len(passed)
        if self._acknowledges and before <= _LARGEST_POLL < self._n_passed:  # more than a crash leaves to be read again
            self._report(
                f"{self._n_passed:,} timesteps in a row were applied before, by their positions in "
                f"{poll.sources[next(iter(passed))]}. If that was deleted and created again, give it another name"
            )
        if found and not self._late_reported:
            self._late_reported = True
            self._report(
                f"stream {poll.streams[found[0]]!r} has position {poll.at[found[0]]} after a greater one: such late "
                "messages are not applied, and counted as late"
            )

    def _predictions_of(self, poll: MappedPoll, applied: AppliedChunks) -> Iterator[OutMessage]:
        columns = {name: array.tolist() for name, array in applied.outputs.items()}
        for number, chunk in enumerate(applied.chunks):
            last = len(chunk.timesteps) - 1
            for place, i in enumerate(chunk.timesteps[applied.unknown :], applied.unknown):
                # those before it were handed over when they were known
                source, at = poll.sources[i], poll.at[i]
                document = {
                    "stream": chunk.stream,
                    "step": applied.steps[number] - last + place,
                    "outputs": {name: rows[number][place] for name, rows in columns.items()},
                    "state_id": applied.state_ids[number] if place == last else None,
                    "source": {"id": source, "at": at},
                    "model": self._model.name,
                    "version": applied.version_of(number, place),
                }
                if poll.times is not None and (time := poll.times[i]) is not None:
                    document["time"] = iso(time)
                if i in poll.gaps:
                    document["gap"] = poll.gaps[i]
                yield OutMessage(chunk.stream, source, at if source != self._mapper.own_source else None, document)

    async def _write(self, predictions: list[OutMessage]) -> None:
        if not predictions or self._writer is None:
            return
        refused = await self._writer.write(predictions)
        self._counters.add(predictions=len(predictions) - len(refused))
        if refused:
            await self._write_dead_letters([undelivered_letter(*one) for one in refused])

    async def _on_rejected(
        self, poll: MappedPoll, timesteps: Sequence[int], error: ClientError, behind: list[int]
    ) -> list[int]:
        times = poll.times or [None] * len(poll.rows)
        await self._write_dead_letters(
            [
                dead_letter(poll.messages[poll.rows[i]], error.code, error.problem, poll.streams[i], time=times[i])
                for i in timesteps
            ]
        )
        return behind

    async def _write_dead_letters(self, letters: list[OutMessage]) -> None:
        for letter in letters:
            self._counters.add_dead_letter(letter.document["code"])
        if self._dead_letters is not None:
            async with self._writing_dead_letters:
                refused = await self._dead_letters.write(letters)
            if refused:
                self._report(
                    f"{counted(len(refused), 'dead letter')} cannot be written. The first one: {refused[0].reason}"
                )
            return
        first = letters[0].document
        self._report(
            f"{counted(len(letters), 'message')} cannot be used, and --dead-letter is not set. The first one, "
            f"at {first['source']['at']} of {first['source']['id']}: {first['reason']}"
        )


def next_limit(limit: int, messages: MessageColumns, seconds: float) -> int:
    """Return the number of messages of the next poll.

    Args:
        limit: That of the last poll.
        messages: What it returned.
        seconds: The time in which it was carried.
    """
    if limit < _USUAL_POLL:
        limit *= _GROWTH
    elif seconds > _POLL_S:
        limit = max(_USUAL_POLL, limit // 2)
    elif seconds < _POLL_S / 2:
        limit = min(_LARGEST_POLL, int(limit * min(_GROWTH, _POLL_S / max(seconds, 1e-6))))
    mean = messages.size / len(messages)
    return max(1, min(limit, int(_POLL_BYTES / (mean + 1))))
