"""`Batcher`: the waiting timesteps of one model, taken out in batches of different streams."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from service.background import cancel
from service.engine.alone import Alone
from service.engine.audience import Audience
from service.engine.batch_queue import BatchQueue
from service.engine.block import Block, Columns, Results, Singles
from service.engine.cache import StateCache
from service.engine.crowd import Crowd
from service.engine.decide import surely_comes_after
from service.engine.names import RequestNames
from service.engine.peeks import Peeks
from service.engine.pending import Pending
from service.engine.rounds import Reroute, Rounds, failed
from service.engine.runner import ModelRunner
from service.engine.together import Together
from service.engine.types import Done, StreamDoor, Timestep, Timesteps
from service.errors import ServiceError
from service.store import keys

if TYPE_CHECKING:
    from service.engine.models import ServedModel
    from service.engine.observer import EngineObserver
    from service.engine.tenants import StreamQuota
    from service.store.redis import StateStore

_log = logging.getLogger(__name__)

_FEWEST = 16  # rows of a block; fewer had better share a batch with others
_NAME = attrgetter("name")
_MOST_SINGLES = 160  # rows of a batch of timesteps that came one by one: while the store commits it, others are run
_IN_FLIGHT = 4  # batches out at once: while one waits for the store, the next is run
_BESIDE = 32  # rows with which batches go at once while another is out; fewer wait for that one, and cost less so
_BESIDE_S = 0.005  # but no longer than that: it may wait for a part of the store that is away


class Batcher:
    """The queue and the running batches of one model version."""

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        observer: EngineObserver,
        audience: Audience,
        *,
        max_batch: int,
        max_wait: float,
        timeout: float,
        cache: StateCache,
        reroute: Reroute,
        answered: Callable[[int, int], None],
        quota: StreamQuota | None = None,
    ) -> None:
        """Begin empty.

        Args:
            served: The model.
            store: Where records live.
            observer: Counts the work.
            audience: Says what is told of commits.
            max_batch: Most rows in one run.
            max_wait: Seconds that a timestep may wait for others; 0: none.
            timeout: Seconds from receipt to answer.
            cache: The worker's hot records.
            reroute: Takes a row whose stream belongs to another version; False: there is none.
            answered: Told how many requests were answered, and how many bytes of inputs they had.
            quota: Of the streams that a tenant may have; None: as many as it likes.
        """
        self.served = served
        self.timestep_bytes = served.timestep_bytes
        self.cache = cache
        self._names = RequestNames(served.manifest)
        self._runner = ModelRunner(served, observer)
        common: dict[str, Any] = {"runner": self._runner, "timeout": timeout, "reroute": reroute, "answered": answered}
        self._rounds = Rounds(served, store, self.cache, observer, audience, **common, quota=quota)
        self._together = Together(served, store, self.cache, observer, audience, **common, quota=quota)
        self._peeks = Peeks(served, store, self.cache, observer, audience, **common)
        self._alone = Alone(served, store, self.cache, observer, audience, **common)
        self._max_batch = min(max_batch, served.manifest.batch.max)
        self._most_singles = min(self._max_batch, _MOST_SINGLES)
        self._max_wait = max_wait
        self._queue: BatchQueue[Pending] = BatchQueue()
        self._singles: Singles | None = None  # that more may be added to
        self._places = 0  # so many
        self._tasks: dict[int, asyncio.Task[None]] = {}  # that are out, by the number of their batch
        self._number = 0  # of the last batch
        self._flush_due: asyncio.Handle | None = None
        self._is_due_now = False  # in this turn of the loop
        self._look_at: float = 0  # so many rows it is looked whether a batch goes; infinite: it goes anyway, or cannot
        self._done = 0
        self._answered = answered
        self._is_stopped = False
        self.crowd = Crowd(timeout / 5)
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call each time, before Python 3.12
        self.time = self._loop.time

    def look_at_crowd(self, now: float) -> None:
        """See how fast the queue moves; any thread may do so."""
        self.crowd.look(now, self._queue.rows, self._done)

    @property
    def rows(self) -> int:
        """Timesteps that wait."""
        return self._queue.rows

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._tasks and not self._queue.rows

    def submit(self, timestep: Timestep, done: Done, received: float) -> None:
        """Queue a timestep; it goes with the next batch."""
        if timestep.is_plain and timestep.seq is not None:
            stream = StreamDoor(timestep.key, timestep.name or timestep.key.name, timestep.version, timestep.door)
            self.submit_plain(stream, timestep.inputs, timestep.seq, done, received)
        else:
            self._submit_row(timestep, done, received)

    def submit_plain(
        self, stream: StreamDoor, inputs: tuple[bytes, ...], seq: int, done: Done, received: float
    ) -> None:
        """Queue a timestep that says nothing but its number: what nearly all are."""
        name, queue = stream.name, self._queue
        if not queue.claim(name):
            self._submit_row(stream.timestep(inputs, seq), done, received)
            return
        singles = self._singles
        if singles is None:
            singles, self._places = Singles(), self._most_singles
            self._singles = singles
            queue.put_batch(singles)
        singles.add((stream, name, seq, inputs, done, received))
        self._places -= 1
        if not self._places:
            self._singles = None  # the next one begins another
        if queue.rows >= self._look_at:
            self._schedule()

    def peek(self, timestep: Timestep, done: Done, received: float) -> None:
        """Queue a look at what a timestep would answer, behind the stream's timesteps that wait here."""
        name, shape = keys.record_key(*timestep.key), (timestep.length, timestep.keep, "peek")
        self.put(Pending(timestep, done, received, name, shape, secrets.token_bytes(16), peeks=True))

    def takes_together(self, asked: Timesteps) -> bool:
        """Whether timesteps that came together may go as a batch of their own.

        Not so if they are too few to be worth it, or more than one batch; if they are unusual; or if one of them has
        to wait for another.
        """
        return (
            _FEWEST <= len(asked.names) <= self._max_batch
            and asked.idempotency_key is None
            and asked.create != "must"
            and None not in asked.seqs
            and asked.afters.count(None) in (0, len(asked.afters))
            and self._queue.may_claim(asked.names)
        )

    def submit_together(self, asked: Timesteps, done: Callable[[Results], None], received: float) -> None:
        """Queue timesteps that `takes_together`."""
        self._queue.claim_all(asked.names)
        self._queue.put_batch(Columns(asked, self._names.of_all(asked), received, done))
        if self._look_at < math.inf:
            self._schedule()

    def put(self, pending: Pending) -> None:
        """Queue a timestep that was named before."""
        self._queue.put(pending)
        if self._look_at < math.inf:
            self._schedule()

    def close(self) -> None:
        """Let the model's thread go; nothing waits or runs."""
        self._runner.close()

    async def stop(self) -> None:
        """Cancel what runs, refuse what waits, and let the model's thread go."""
        self._is_stopped = True
        if self._flush_due is not None:
            self._flush_due.cancel()
        await asyncio.sleep(0)  # a task that is cancelled before it has begun would answer nobody
        await cancel(self._tasks.values())
        while self._queue:
            batch = self._queue.take(self._max_batch)
            if isinstance(batch, Singles):
                batch.close(self._names)
            self._refuse(batch, ServiceError("draining", "The service ended first.", fix="Send it to another replica."))
        self.close()

    def _submit_row(self, timestep: Timestep, done: Done, received: float) -> None:
        life = timestep.life
        op_id = self._names.of(timestep)
        name = timestep.name or (timestep.key.name if life != "none" else op_id.hex())
        length, keep = timestep.length, timestep.keep
        shape = length if life == "on" and keep == "all" else (length, keep, life)  # a number is hashed in no time
        self.put(Pending(timestep, done, received, name, shape, op_id, surely_comes_after(timestep)))

    def _schedule(self) -> None:
        """See to it that the next batch goes: now, or when it has waited for others long enough."""
        out, rows = len(self._tasks), self._queue.rows
        if out >= _IN_FLIGHT:
            self._look_at = math.inf
            return
        wait = self._max_wait if rows < self._max_batch else 0.0
        if out and not self._may_go_beside():
            wait = max(wait, _BESIDE_S)
        if not wait:
            if self._flush_due is not None:
                self._flush_due.cancel()
            self._flush_due, self._is_due_now = self._loop.call_soon(self._flush), True
            self._look_at = math.inf
            return
        if self._flush_due is None:
            self._flush_due = self._loop.call_later(wait, self._flush)
        self._look_at = _BESIDE if rows < _BESIDE else self._max_batch

    def _may_go_beside(self) -> bool:
        """Whether what waits goes while another batch is out: it is many, or what comes later could not join it."""
        return self._queue.rows >= _BESIDE or self._queue.batches > 1

    def _flush(self) -> None:
        self._flush_due, self._is_due_now = None, False
        may_go = True
        try:
            while self._queue and may_go and len(self._tasks) < _IN_FLIGHT:
                self._send(self._queue.take(self._max_batch))
                may_go = self._may_go_beside()
        finally:
            self._look_again()

    def _send(self, batch: Sequence[Pending]) -> None:
        if isinstance(batch, Singles):
            if batch is self._singles:
                self._singles = None
            try:
                batch.close(self._names)
            except Exception:  # noqa: BLE001 - one batch's fault must not stop the queue; it is logged
                _log.exception("A batch of model %s could not be put together", self.served.name)
                self._refuse(batch, failed("no"))
                return
        self._number += 1
        self._tasks[self._number] = self._loop.create_task(self._process(batch, self._number))

    def _refuse(self, batch: Sequence[Pending], error: ServiceError) -> None:
        """Answer a batch that was taken out of the queue, and is not run."""
        names = batch.names if isinstance(batch, Block) else [row.name for row in batch]
        if isinstance(batch, Block):
            batch.refuse(error)
        else:
            for row in batch:
                row.done(error)
        self._queue.release(names)
        length = batch.length if isinstance(batch, Block) else batch[0].timestep.length
        self._answered(len(batch), len(batch) * length * self.timestep_bytes)

    def _look_again(self) -> None:
        """See to what waits and may go, or to what comes next."""
        if self._is_stopped:
            return
        self._look_at = 0
        if self._queue or len(self._tasks) >= _IN_FLIGHT:
            self._schedule()

    def _way_of(self, first: Pending) -> Rounds:
        if first.peeks:
            return self._peeks
        return self._rounds if first.timestep.life != "none" else self._alone

    async def _process(self, batch: Sequence[Pending], number: int) -> None:
        block = batch if isinstance(batch, Block) else None
        try:
            await (self._together if block is not None else self._way_of(batch[0])).take(batch)
        finally:
            self._done += len(batch)
            self._queue.release(map(_NAME, batch) if block is None else block.names)
            del self._tasks[number]
            if not self._is_due_now:
                self._look_again()
