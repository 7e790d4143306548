"""`StateStore`: streams' records over the Redis protocol; a commit is compare-and-set on the guard."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, cast

from service.errors import ServiceError, StoreUnavailableError, not_a_record
from service.store import keys
from service.store.commits import (
    APPLIED,
    COMMIT,
    ColumnarCommits,
    Commit,
    CommitResult,
    CommitResults,
    Notification,
    Outcome,
    rows_call,
    script_call,
)
from service.store.listing import every_key, page
from service.store.record import MAGIC
from service.store.scripts import Script
from service.store.transport.connection import Argument, CommandError, NotSentError
from service.store.transport.retry import execute_with_retry
from service.store.transport.server import NotReplicated
from service.store.transport.transport import RedisTransport, open_transport

Durability = Literal["memory", "fsync", "replica"]

_MAX_TTL_FACTOR: Final = 1.25  # of an idle stream, in times to live: so its expiry is not set anew by each step
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_IMPOSSIBLE_GUARD: Final = b"no guard is this"  # no record has a guard of this length
_STEP_AT, _STEP_END = 16, 24  # in a record

_HISTORY: Final = Script.of("history.lua")
_APPLIED_OUTCOMES: Final = frozenset((Outcome.APPLIED, Outcome.DUPLICATE, Outcome.KEY_REPLAY))


class StateStore:
    """Keeps one record per stream.

    Laws, checked on every server by `tests/store/test_laws.py`:

    1. Read your write: after a commit says APPLIED, `load` returns its record.
    2. No fork: of two different commits that expect the same guard, one says APPLIED.
    3. Same again: a commit sent twice says SAME the second time, and brings what is stored.
    4. No second life: after a reset, a commit from the old life says CONFLICT.
    5. Independence: a refused commit leaves the others of the call alone.
    6. Idle end: a record outlives its last commit by its time to live, at most by 1.25 times that, then goes.

    Attributes:
        confirms: Whether a commit counts only when a replica has it.
        refusal: Why nothing may be committed, as long as the store does not keep what the durability promises.
    """

    def __init__(
        self,
        url: str,
        *,
        stream_ttl_s: float = 7 * 86400,
        idempotency_ttl_s: float = 600,
        durability: Durability = "memory",
        timeout: float = 2.0,
    ) -> None:
        """Prepare connections; none is opened yet.

        Args:
            url: See `open_transport`.
            stream_ttl_s: Seconds that an idle stream lives.
            idempotency_ttl_s: Seconds that an idempotency key is remembered.
            durability: `replica` waits for one replica after each commit.
            timeout: Seconds for one exchange with the store; an exchange is tried again until its deadline.
        """
        self.commit_error: ServiceError | None = None
        self._transport = open_transport(url, timeout=timeout)
        self.stream_ttl_s = stream_ttl_s
        self.idempotency_ttl_s = idempotency_ttl_s
        self._ttl_ms = int(_MAX_TTL_FACTOR * 1000 * stream_ttl_s)
        self._entry_ttl_ms = int(idempotency_ttl_s * 1000)
        self.waits_for_replica: Final = durability == "replica"

    @property
    def transport(self) -> RedisTransport:
        """The connections, for what is not about records."""
        return self._transport

    async def load(self, names: Sequence[str], *, deadline: float) -> list[bytes | None]:
        """Return what is stored under each key, None where there is nothing.

        Args:
            names: Keys of records or entries.
            deadline: On the running loop's clock.

        Raises:
            StoreUnavailableError: No answer until the deadline.
            CorruptRecordError: A record's key holds something of another type.
        """
        return _raise_first_error(await self.load_with_errors(names, deadline=deadline, exact=True))

    async def load_with_errors(
        self, names: Sequence[str], *, deadline: float, exact: bool = False
    ) -> list[bytes | ServiceError | None]:
        """As `load`, but what cannot be read is an error in its place; in a Cluster that is a server's silence, too.

        Args:
            names: Keys of records or entries.
            deadline: On the running loop's clock.
            exact: A value of another type under a record's key is an error. Else it may count as missing, which is
                cheaper: one command reads all. No commit takes it for missing.
        """
        if not (self._transport.is_cluster or exact):
            [found] = _raise_first_error(
                await execute_with_retry(self._transport, [("MGET", *names)], deadline=deadline)
            )
            return cast("list[bytes | ServiceError | None]", found)
        found = await execute_with_retry(self._transport, [("GET", name) for name in names], deadline=deadline)
        for at, name in enumerate(names):
            if isinstance(found[at], CommandError):  # an entry of another type is none of ours: it answers nothing
                found[at] = not_a_record() if keys.is_record(name) else None
        return found

    async def load_with_ttl(self, name: str, *, deadline: float) -> tuple[bytes | None, int]:
        """Return a record and the milliseconds it will still live if its stream stays idle."""
        record, ttl = _raise_first_error(
            await execute_with_retry(self._transport, [("GET", name), ("PTTL", name)], deadline=deadline)
        )
        if isinstance(record, CommandError):
            raise not_a_record()
        return record, ttl

    @staticmethod
    def clock() -> float:
        """Return the seconds by which `commit` reckons a record's life; they run on while the machine sleeps."""
        return time.clock_gettime(_BOOT_CLOCK)

    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        deadline: float,
        refreshed: float = -math.inf,
        tellings: Sequence[Notification] = (),
    ) -> CommitResults:
        """Write each record whose guard still holds; one round trip for all.

        A reply that does not come is asked for again with the identical bytes: whichever of the two is executed
        first wins, the other finds itself already done.

        A record's expiry is 1.25 times its time to live from when it was set, and is left alone while more than
        the time to live is left, which is cheaper for the server. It is set anew where that cannot be known.

        Args:
            commits: At most one per key.
            deadline: On the running loop's clock.
            refreshed: A moment on `clock` since when all of the stored records' expiries were set.
            tellings: What is told of commits, at most one per commit; one that cannot be told stops no commit.

        Raises:
            StoreUnavailableError: Nothing was applied.
            OutcomeUnknownError: Each may or may not have been applied.
            StoreFullError: The store is at its memory limit; nothing was applied.
            ServiceError: `not_durable`: nothing was applied, as the store does not keep what is promised.

        In a Cluster, and where a replica did not confirm, commits fail each by itself: see `CommitResult`.
        """
        if self.commit_error is not None:
            raise self.commit_error
        began = self.clock()
        # An answer counts until the deadline, so what it confirms was executed before.
        left = deadline - asyncio.get_running_loop().time()
        keep = began + left <= refreshed + (_MAX_TTL_FACTOR - 1) * self.stream_ttl_s
        lives: dict[str, Any] = {"ttl_ms": self._ttl_ms, "entry_ttl_ms": self._entry_ttl_ms, "keep": keep}
        calls: list[Sequence[Argument]]
        if self._transport.is_cluster:
            calls = [script_call(group, told, **lives) for group, told in _single(commits, tellings)]
        elif isinstance(commits, ColumnarCommits) and not tellings:
            calls = [rows_call(commits, **lives)]
        else:
            calls = [script_call(commits, tellings, **lives)]
        replies = await execute_with_retry(
            self._transport, calls, deadline=deadline, script=COMMIT.text, confirm=self.waits_for_replica
        )
        if not self._transport.is_cluster:
            others = _outcomes(_raise_first_error(replies)[0], len(commits))
        else:
            others = {}
            for at, reply in enumerate(replies):
                if isinstance(reply, ServiceError):
                    others[at] = CommitResult(Outcome.FAILED, error=reply)
                elif answer := _outcomes(reply, 1).get(0):
                    others[at] = answer
        return CommitResults(others, None if keep else began)

    @staticmethod
    def replica_probe(name: str, stored: bytes, entry_key: str | None = None) -> Commit:
        """Return a commit that changes nothing, but counts only when a replica has what is stored.

        Args:
            name: The record's key.
            stored: What was read there; the commit says `DUPLICATE` if that is still the newest operation.
            entry_key: Of an idempotency key whose answer was read; the commit then says `KEY_REPLAY`.
        """
        return Commit(name, _IMPOSSIBLE_GUARD, stored, entry_key)

    async def wait_for_replica(
        self, name: str, stored: bytes | ServiceError | None, entry_key: str | None = None, *, deadline: float
    ) -> bool:
        """Wait, where `waits_for_replica` asks for it, until a replica has what was read; arguments as for `replica_probe`.

        Returns:
            Whether it is still there.

        Raises:
            ServiceError: `not_durable`, or as for `commit`.
        """
        if not self.waits_for_replica:
            return True
        record = stored if isinstance(stored, bytes) else b""
        answer = (await self.commit([self.replica_probe(name, record, entry_key)], deadline=deadline))[0]
        return answer.outcome in (Outcome.DUPLICATE, Outcome.KEY_REPLAY)

    async def run(self, script: Script, arguments: Sequence[Argument], *, deadline: float) -> Any:
        """Run a script on one stream that may be run twice with the same arguments, and return its answer.

        Args:
            script: Which.
            arguments: What stands behind its name: the number of keys, the keys, and the rest.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: As for `commit`.
        """
        if self.commit_error is not None:
            raise self.commit_error
        call = ("EVALSHA", script.sha, *arguments)
        replies = await execute_with_retry(
            self._transport, [call], deadline=deadline, script=script.text, confirm=self.waits_for_replica
        )
        return _confirmed(_raise_first_error(replies)[0])

    async def delete(self, *names: str, deadline: float) -> None:
        """Forget what is stored under keys of one stream; also where there is nothing."""
        replies = await execute_with_retry(
            self._transport, [("DEL", *names)], deadline=deadline, confirm=self.waits_for_replica
        )
        _confirmed(_raise_first_error(replies)[0])

    async def history(self, record: str, *, topic: str, mark: bytes, deadline: float) -> tuple[int, list[bytes]]:
        """Return a stream's step (0 where there is none) and its kept events, and publish `mark` at that moment.

        So whoever hears the topics of the stream's commits knows which of them came before: those heard before it.

        Raises:
            StoreUnavailableError: No answer until the deadline.
        """
        script = _HISTORY.text
        step, kept = await self.execute(deadline, "EVAL", script, 2, record, keys.event_log_key(record), topic, mark)
        return int.from_bytes(step, "little"), kept

    async def execute(self, deadline: float, *command: Argument) -> Any:
        """Return the reply to a command that may safely be repeated.

        Raises:
            StoreUnavailableError: No answer until the deadline.
        """
        return _raise_first_error(await execute_with_retry(self._transport, [command], deadline=deadline))[0]

    async def page(
        self, tenant: str, model: str, prefix: str, cursor: str | None, limit: int, *, deadline: float
    ) -> tuple[list[str], str | None]:
        """Return up to `limit` stream ids and the cursor to go on from; None at the end.

        A stream that exists all the while is listed at least once, whatever comes and goes beside it. In a Cluster a
        stream may be missed while its slot moves.

        Raises:
            ServiceError: `bad_request`: the cursor is none of ours.
        """
        return await page(
            self._transport, keys.records_pattern(tenant, model, prefix), cursor, limit, deadline=deadline
        )

    async def count_by_tenant(self, *, deadline: Callable[[], float]) -> dict[str, int]:
        """Return how many streams each tenant has; looks at every key, a page at a time.

        Args:
            deadline: Gives the time by which the next page has to be there.
        """
        counts: Counter[str] = Counter()
        async for batch in every_key(self._transport, keys.ALL_RECORDS, deadline=deadline):
            counts.update(map(keys.tenant_of, batch))
        return dict(counts)

    async def steps(self, names: Sequence[str], *, deadline: float) -> dict[str, int | None]:
        """Return the step of each record that is there; None: it has none that could be read."""
        if not names:
            return {}
        reads = [("GETRANGE", name, 0, _STEP_END - 1) for name in names]
        heads = _raise_first_error(await execute_with_retry(self._transport, reads, deadline=deadline))
        steps = {name: _step_in(head) for name, head in zip(names, heads, strict=True)}
        if unread := [name for name, step in steps.items() if step is None]:
            there = await self.load_with_errors(unread, deadline=deadline, exact=True)
            for name, value in zip(unread, there, strict=True):
                if value is None:
                    del steps[name]
        return steps

    async def ping(self, *, timeout: float) -> None:
        """Ask whether the store answers; of a Cluster, whether more than half of its primaries do.

        Raises:
            StoreUnavailableError: It does not.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            _, parts = await self._transport.primaries(fresh=False)
        except NotSentError as exc:
            raise StoreUnavailableError(f"The store did not answer: {exc.public_reason}.") from exc
        answers = await asyncio.gather(*(execute_with_retry(part, [("PING",)], deadline=deadline) for part in parts))
        failed = [answer for [answer] in answers if isinstance(answer, ServiceError)]
        if 2 * len(failed) >= len(parts):
            raise failed[0]

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()


def checked(loaded: bytes | ServiceError | None) -> bytes | None:
    """Return what `StateStore.load_with_errors` found under a key.

    Raises:
        ServiceError: It could not be read.
    """
    if isinstance(loaded, ServiceError):
        raise loaded
    return loaded


def _single(
    commits: Sequence[Commit], tellings: Sequence[Notification]
) -> list[tuple[Sequence[Commit], Sequence[Notification]]]:
    """Return every commit by itself, with what is told of it."""
    told = {telling.row: [telling._replace(row=0)] for telling in tellings}
    return [([commit], told.get(at, ())) for at, commit in enumerate(commits)]


def _raise_first_error(replies: list[Any]) -> list[Any]:
    """Return replies of which none is an error.

    Raises:
        ServiceError: One is.
    """
    for reply in replies:
        if isinstance(reply, ServiceError):
            raise reply
    return replies


def _confirmed(reply: Any) -> Any:
    """Return a reply that a replica has confirmed, where that was asked for.

    Raises:
        ServiceError: `not_durable`.
    """
    if isinstance(reply, NotReplicated):
        raise _not_confirmed()
    return reply


def _outcomes(reply: Any, commits: int) -> dict[int, CommitResult]:
    """Read the script's reply: what became of the commits that were not applied now, or not confirmed."""
    if reply == []:
        return {}
    if not isinstance(reply, NotReplicated):
        return dict(map(_committed, reply))
    others = dict(map(_committed, reply.reply))
    for at in range(commits):
        if others.get(at, APPLIED).outcome in _APPLIED_OUTCOMES:
            others[at] = CommitResult(Outcome.FAILED, error=_not_confirmed())
    return others


def _committed(answer: Sequence[Any]) -> tuple[int, CommitResult]:
    """Read one answer of the script: the commit's place, what became of it, what is stored."""
    place, outcome, *stored = answer
    return place - 1, CommitResult(Outcome(outcome), stored[0] if stored else None)


def _step_in(head: Any) -> int | None:
    """Read a record's step from its beginning."""
    if not isinstance(head, bytes) or len(head) < _STEP_END or not head.startswith(MAGIC):
        return None
    return int.from_bytes(head[_STEP_AT:_STEP_END], "little")


def _not_confirmed() -> ServiceError:
    return ServiceError(
        "not_durable",
        "The step is in the primary's memory, but no replica confirmed it in time.",
        fix="Send the same request again: it is not applied twice, and waits for the replica again.",
        applied="yes",
    )
