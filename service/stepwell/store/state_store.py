"""`StateStore`: the records of streams over the Redis protocol; a commit is a compare-and-set on the guard."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from stepwell.errors import ServiceError, StoreUnavailableError, not_a_record
from stepwell.store import keys
from stepwell.store.commits import (
    COMMIT,
    ENCODED,
    Commit,
    CommitResult,
    CommitResults,
    EncodedCommits,
    Notification,
    Outcome,
    decode_results,
    decode_single_results,
    not_replicated,
    replica_probe,
    rows_call,
    script_call,
    single_calls,
)
from stepwell.store.commits_under_way import CommitsUnderWay
from stepwell.store.record import HEAD_BYTES, Record, decode, is_header
from stepwell.store.scripts import Script
from stepwell.store.transport.connection import Argument, CommandError, NotSentError
from stepwell.store.transport.retry import execute_with_retry, replies_of
from stepwell.store.transport.server import NotReplicated
from stepwell.store.transport.transport import RedisTransport, open_transport

Durability = Literal["memory", "fsync", "replica"]

_ALL_APPLIED: Final[Mapping[int, CommitResult]] = MappingProxyType({})
_MAX_TTL_FACTOR: Final = 1.25  # a record's expiry, in times to live: a step within the first 0.25 need not renew it
CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The clock of records' expiries; it also advances while the machine is suspended."""


class StateStore:
    """Keeps one record per stream.

    Laws, checked on every server by `tests/store/test_laws.py`:

    1. Read your write: after a commit returns APPLIED, `load` returns its record.
    2. No fork: of two different commits that expect the same guard, at most one returns APPLIED.
    3. Retry: a commit sent a second time returns DUPLICATE with the stored record.
    4. Reset: after a reset, a commit that expects a guard from before the reset returns CONFLICT.
    5. Independence: a rejected commit does not affect the other commits of the call.
    6. Expiry: a record lives for its time to live after its last commit, at most 1.25 times that, then it expires.

    Attributes:
        commits_under_way: Those that `commit` was called for, and that have not returned yet.
        waits_for_replica: Whether a commit succeeds only once a replica has confirmed it.
        commit_error: The error that every commit raises while the store does not provide the configured durability;
            None while it does.
        stream_ttl_s: Seconds after which an idle stream expires.
        idempotency_ttl_s: Seconds after which an idempotency entry expires.
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
        """Create the transport; connections are opened when they are first needed.

        Args:
            url: See `open_transport`.
            stream_ttl_s: Seconds after which an idle stream expires.
            idempotency_ttl_s: Seconds after which an idempotency entry expires.
            durability: With `replica`, each commit waits until one replica has confirmed it.
            timeout: Seconds for one exchange with the store; a failed exchange is retried until its deadline.
        """
        self.commits_under_way = CommitsUnderWay()
        self.commit_error: ServiceError | None = None
        self._transport = open_transport(url, timeout=timeout)
        self.stream_ttl_s = stream_ttl_s
        self.idempotency_ttl_s = idempotency_ttl_s
        self._ttl_ms = int(_MAX_TTL_FACTOR * 1000 * stream_ttl_s)
        self._entry_ttl_ms = int(idempotency_ttl_s * 1000)
        self.waits_for_replica: Final = durability == "replica"

    @property
    def transport(self) -> RedisTransport:
        """The store transport, for commands that do not concern records."""
        return self._transport

    async def load(self, names: Sequence[str], *, deadline: float) -> list[bytes | None]:
        """Return the value of each key, None where the key does not exist.

        Args:
            names: Keys of records or idempotency entries.
            deadline: On the running loop's clock.

        Raises:
            StoreUnavailableError: No reply before the deadline.
            CorruptRecordError: A record's key holds a value of another type.
        """
        return [checked(value) for value in await self.load_with_errors(names, deadline=deadline, exact=True)]

    async def load_with_errors(
        self, names: Sequence[str], *, deadline: float, exact: bool = False
    ) -> list[bytes | ServiceError | None]:
        """Return the value of each key; a key that cannot be read gives an error in its place.

        In a Cluster that includes the keys of a server that does not reply.

        Args:
            names: Keys of records or idempotency entries.
            deadline: On the running loop's clock.
            exact: A value of another type under a record's key is an error. Otherwise such a key may count as missing,
                which is cheaper: one command reads all keys. A commit never counts it as missing.

        Raises:
            StoreUnavailableError: One server, not `exact`: no reply before the deadline.
        """
        if not (self._transport.is_cluster or exact):
            return cast("list[bytes | ServiceError | None]", await self.execute(deadline, "MGET", *names))
        values = await execute_with_retry(self._transport, [("GET", name) for name in names], deadline=deadline)
        for i, name in enumerate(names):
            if isinstance(values[i], CommandError):  # an entry of another type is not ours: it counts as missing
                values[i] = not_a_record() if keys.is_record(name) else None
        return values

    async def load_with_ttl(self, name: str, *, deadline: float) -> tuple[bytes | None, int]:
        """Return a record and the milliseconds until it expires if its stream stays idle."""
        record, ttl = await replies_of(self._transport, [("GET", name), ("PTTL", name)], deadline=deadline)
        if isinstance(record, CommandError):
            raise not_a_record()
        return record, ttl

    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        deadline: float,
        expiry_set_at: float = -math.inf,
        notifications: Sequence[Notification] = (),
    ) -> CommitResults:
        """Write each record whose guard still matches, in one round trip.

        It is under way from this call on. If no reply arrives, the identical bytes are sent again: whichever of the two
        is executed first is applied, and the other returns DUPLICATE.

        An expiry is set to 1.25 times the time to live, and is not renewed while more than the time to live is left,
        which is cheaper for the server. It is renewed if the time that is left is unknown.

        Args:
            commits: At most one per key.
            deadline: On the running loop's clock.
            expiry_set_at: Time on `CLOCK` before which none of the stored records' expiries was set.
            notifications: The events of the commits, at most one per commit. An event that cannot be published does not
                fail its commit.

        Raises:
            StoreUnavailableError: Nothing was applied.
            OutcomeUnknownError: Each may or may not have been applied.
            StoreFullError: The store is at its memory limit; nothing was applied.
            ServiceError: `not_durable`: nothing was applied, because the store does not provide the configured
                durability.

        In a Cluster, or if a replica did not confirm, each commit fails by itself: see `CommitResult`.
        """
        if self.commit_error is not None:
            raise self.commit_error
        started_at = time.clock_gettime(CLOCK)
        # A reply is accepted until the deadline, so a commit that it confirms was executed before the deadline.
        left = deadline - time.monotonic()
        keep_ttl = started_at + left <= expiry_set_at + (_MAX_TTL_FACTOR - 1) * self.stream_ttl_s
        ttls: dict[str, Any] = {"ttl_ms": self._ttl_ms, "entry_ttl_ms": self._entry_ttl_ms, "keep_ttl": keep_ttl}
        calls: list[Sequence[Argument]]
        if self._transport.is_cluster:
            calls = single_calls(commits, notifications, **ttls)
        elif type(commits) in ENCODED and not notifications:
            calls = [rows_call(cast("EncodedCommits", commits), **ttls)]
        else:
            if notifications:
                notifications = [one._replace(shard_workers=0) for one in notifications]
            calls = [script_call(commits, notifications, **ttls)]
        group = self.commits_under_way.newest
        group.n += 1  # as its context does, which would take longer
        try:
            replies = await execute_with_retry(
                self._transport, calls, deadline=deadline, script=COMMIT.text, confirm=self.waits_for_replica
            )
        finally:
            group.n -= 1
            if group.all_ended is not None and not group.n:
                group.all_ended.set()
        not_applied: Mapping[int, CommitResult] = _ALL_APPLIED
        if self._transport.is_cluster:
            not_applied = decode_single_results(replies)
        elif isinstance(replies[0], ServiceError):
            raise replies[0]
        elif replies[0] != []:
            not_applied = decode_results(replies[0], len(commits))
        return CommitResults(not_applied, None if keep_ttl else started_at)

    async def wait_for_replica(
        self, name: str, stored: bytes | ServiceError | None, entry_key: str | None = None, *, deadline: float
    ) -> bool:
        """Wait until a replica has what was read, if `waits_for_replica`; see `replica_probe`.

        Returns:
            Whether it is still stored.

        Raises:
            ServiceError: `not_durable`, or as for `commit`.
        """
        if not self.waits_for_replica:
            return True
        record = stored if isinstance(stored, bytes) else b""
        result = (await self.commit([replica_probe(name, record, entry_key)], deadline=deadline))[0]
        return result.outcome in (Outcome.DUPLICATE, Outcome.KEY_REPLAY)

    async def run(self, script: Script, arguments: Sequence[Argument], *, deadline: float) -> Any:
        """Run a script on one stream and return its reply; it must be safe to run twice with the same arguments.

        Args:
            script: The script.
            arguments: The number of keys, the keys, and the script's arguments.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: As for `commit`.
        """
        if self.commit_error is not None:
            raise self.commit_error
        call = ("EVALSHA", script.sha, *arguments)
        return await self._call(call, deadline=deadline, script=script.text, confirm=self.waits_for_replica)

    async def delete(self, *names: str, deadline: float) -> None:
        """Delete keys of one stream; keys that do not exist are ignored."""
        await self._call(("DEL", *names), deadline=deadline, confirm=self.waits_for_replica)

    async def execute(self, deadline: float, *command: Argument) -> Any:
        """Return the reply to a command that is safe to repeat.

        Raises:
            StoreUnavailableError: No reply before the deadline.
        """
        return await self._call(command, deadline=deadline)

    async def _call(
        self, command: Sequence[Argument], *, deadline: float, script: str | None = None, confirm: bool = False
    ) -> Any:
        [reply] = await execute_with_retry(
            self._transport, [command], deadline=deadline, script=script, confirm=confirm
        )
        if isinstance(reply, ServiceError):
            raise reply
        if isinstance(reply, NotReplicated):
            raise not_replicated()
        return reply

    async def heads(self, names: Sequence[str], *, deadline: float) -> dict[str, bytes | None]:
        """Return the first `HEAD_BYTES` of each record that exists; None if they are not those of a record."""
        if not names:
            return {}
        reads = [("GETRANGE", name, 0, HEAD_BYTES - 1) for name in names]
        replies = await replies_of(self._transport, reads, deadline=deadline)
        heads = {name: head if is_header(head) else None for name, head in zip(names, replies, strict=True)}
        if unread := [name for name, head in heads.items() if head is None]:
            values = await self.load_with_errors(unread, deadline=deadline, exact=True)
            for name, value in zip(unread, values, strict=True):
                if value is None:
                    del heads[name]
        return heads

    async def ping(self, *, timeout: float) -> None:
        """Check that the store replies; in a Cluster, that more than half of its primaries do.

        Raises:
            StoreUnavailableError: It does not reply.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            _, primaries = await self._transport.primaries(fresh=False)
        except NotSentError as exc:
            raise StoreUnavailableError(f"The store did not reply: {exc.public_reason}.") from exc
        replies = await asyncio.gather(
            *(execute_with_retry(primary, [("PING",)], deadline=deadline) for primary in primaries)
        )
        failed = [reply for [reply] in replies if isinstance(reply, ServiceError)]
        if 2 * len(failed) >= len(primaries):
            raise failed[0]

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()


def checked(loaded: bytes | ServiceError | None) -> bytes | None:
    """Return a value that `StateStore.load_with_errors` returned.

    Raises:
        ServiceError: It is an error.
    """
    if isinstance(loaded, ServiceError):
        raise loaded
    return loaded


def decoded(loaded: bytes | ServiceError | None) -> Record | None:
    """Return the record that `StateStore.load_with_errors` returned, None if the stream is missing.

    Raises:
        ServiceError: It is an error, or not a valid record.
    """
    stored = checked(loaded)
    return None if stored is None else decode(stored)
