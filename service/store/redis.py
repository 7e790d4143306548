"""`StateStore`: streams' records over the Redis protocol; a commit is compare-and-set on the guard."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

from service.errors import CorruptRecordError, OutcomeUnknownError, ServiceError, StoreFullError, StoreUnavailableError
from service.store import keys
from service.store.link import Argument, NoReplyError, NotSentError, RefusalError
from service.store.wire import Wire
from service.wire.names import is_stream_id

Durability = Literal["memory", "fsync", "replica"]

_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.25
_COUNTED_AT_ONCE: Final = 1000  # keys that one command of a count looks at
_LONGEST_LIFE: Final = 1.25  # of an idle stream, in times to live: so its expiry is not set anew by each step
_SUSPENDED_TOO: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Refusals that pass: the server is loading, failing over, or cannot write for now. Nothing was applied.
_PASSING: Final = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MISCONF", "NOREPLICAS")
)


class Script(NamedTuple):
    """A script that the store runs in one go.

    Attributes:
        text: What it says.
        sha: The name by which a store that has seen it knows it.
    """

    text: str
    sha: str

    @classmethod
    def of(cls, file: str) -> Script:
        """Return a script of this package by its file's name."""
        text = files("service.store").joinpath(file).read_text()
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_COMMIT: Final = Script.of("commit.lua")


class Commit(NamedTuple):
    """One record to write.

    Attributes:
        key: The record's key.
        expect: The guard that the stored record must have; empty: the stream must be missing.
        record: The new record's bytes.
        entry_key: Where to remember the answer of an idempotency key, or None.
        entry: The entry's bytes.
    """

    key: str
    expect: bytes
    record: bytes
    entry_key: str | None = None
    entry: bytes = b""


class Outcome(IntEnum):
    """What became of a commit; the numbers are `commit.lua`'s."""

    CONFLICT = 0
    APPLIED = 1
    SAME = 2
    KEY_KNOWN = 3
    FOREIGN = 4


@dataclass(frozen=True, slots=True)
class Committed:
    """The store's answer to one commit.

    Attributes:
        outcome: What became of it.
        stored: The stored record (`CONFLICT`, `SAME`; None: the stream is missing) or entry (`KEY_KNOWN`).
    """

    outcome: Outcome
    stored: bytes | None = None


APPLIED: Final = Committed(Outcome.APPLIED)


@dataclass(frozen=True, slots=True)
class Commits:
    """The store's answer to the commits of one call.

    Attributes:
        others: What became of those that were not applied now, by their place in the call.
        refreshed: When (see `StateStore.clock`) the records that were applied began to live their time anew; None:
            they were left to live on as before.
    """

    others: Mapping[int, Committed]
    refreshed: float | None

    def __getitem__(self, place: int) -> Committed:
        """What became of one commit."""
        return self.others.get(place, APPLIED)


class StateStore:
    """Keeps one record per stream.

    Laws, checked on every server by `tests/store/test_laws.py`:

    1. Read your write: after a commit says APPLIED, `load` returns its record.
    2. No fork: of two different commits that expect the same guard, one says APPLIED.
    3. Same again: a commit sent twice says SAME the second time, and brings what is stored.
    4. No second life: after a reset, a commit from the old life says CONFLICT.
    5. Independence: a refused commit leaves the others of the call alone.
    6. Idle end: a record outlives its last commit by its time to live, at most by 1.25 times that, then goes.
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
            url: See `Wire`.
            stream_ttl_s: Seconds that an idle stream lives.
            idempotency_ttl_s: Seconds that an idempotency key is remembered.
            durability: `replica` waits for one replica after each commit.
            timeout: Seconds for one exchange with the store; an exchange is tried again until its deadline.
        """
        self._wire = Wire(url, timeout=timeout)
        self.stream_ttl_s = stream_ttl_s
        self.idempotency_ttl_s = idempotency_ttl_s
        self._durability = durability

    @property
    def wire(self) -> Wire:
        """The connections, for what is not about records."""
        return self._wire

    async def load(self, names: Sequence[str], *, deadline: float) -> list[bytes | None]:
        """Return what is stored under each key, None where there is nothing.

        Args:
            names: Keys of records or entries.
            deadline: On the running loop's clock.

        Raises:
            StoreUnavailableError: No answer until the deadline.
        """
        reply = await self.ask(deadline, "MGET", *names)
        return list(reply)

    async def load_with_ttl(self, name: str, *, deadline: float) -> tuple[bytes | None, int]:
        """Return a record and the milliseconds it will still live if its stream stays idle."""
        record, ttl = await self._until_all(deadline, ("GET", name), ("PTTL", name))
        if isinstance(record, RefusalError):
            raise CorruptRecordError("The stream's key holds something that is no record.")
        return record, ttl

    @staticmethod
    def clock() -> float:
        """Return the seconds by which `commit` reckons a record's life; they run on while the machine sleeps."""
        return time.clock_gettime(_SUSPENDED_TOO)

    async def commit(self, commits: Sequence[Commit], *, deadline: float, refreshed: float = -math.inf) -> Commits:
        """Write each record whose guard still holds; one round trip for all.

        A reply that does not come is asked for again with the identical bytes: whichever of the two is executed
        first wins, the other finds itself already done.

        A record's expiry is 1.25 times its time to live from when it was set, and is left alone while more than
        the time to live is left, which is cheaper for the server. It is set anew where that cannot be known.

        Args:
            commits: At most one per key.
            deadline: On the running loop's clock.
            refreshed: A moment on `clock` since when all of the stored records' expiries were set.

        Raises:
            StoreUnavailableError: Nothing was applied.
            OutcomeUnknownError: Each may or may not have been applied.
            StoreFullError: The store is at its memory limit; nothing was applied.
            ServiceError: `not_durable`: applied, but no replica confirmed.
        """
        began = self.clock()
        # An answer counts until the deadline, so what it confirms was executed before.
        keep = (
            began + (deadline - asyncio.get_running_loop().time())
            <= refreshed + (_LONGEST_LIFE - 1) * self.stream_ttl_s
        )
        answers = await self.run(_COMMIT, self._script_arguments(commits, keep=keep), deadline=deadline)
        return Commits(dict(map(_committed, answers)), None if keep else began)

    async def run(self, script: Script, arguments: Sequence[Argument], *, deadline: float) -> Any:
        """Run a script that may be run twice with the same arguments, and return its answer.

        Args:
            script: Which.
            arguments: What stands behind its name: the number of keys, the keys, and the rest.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: As for `commit`.
        """
        loop, pause, sent = asyncio.get_running_loop(), _FIRST_PAUSE_S, False
        command: tuple[Argument, ...] = ("EVALSHA", script.sha, *arguments)
        while True:
            left = deadline - loop.time()
            trouble = "the deadline passed"
            if left > 0:
                limit = min(left, self._wire.timeout)
                waits = self._durability == "replica"
                # Half of the time, so that "no replica confirmed" is an answer and not a missing one.
                more = [("WAIT", 1, int(limit * 500))] if waits else []
                try:
                    answer, *waited = await self._wire.call(command, *more, timeout=limit, alone=waits)
                except NotSentError as exc:
                    trouble = str(exc)
                except NoReplyError as exc:
                    trouble, sent = str(exc), True
                else:
                    if not isinstance(answer, RefusalError):
                        if waited and (isinstance(waited[0], RefusalError) or waited[0] < 1):
                            raise _not_durable()
                        return answer
                    if answer.code == "NOSCRIPT":
                        command = ("EVAL", script.text, *arguments)
                        continue
                    trouble = str(answer)
                    if answer.code == "OOM" and not sent:
                        raise StoreFullError(f"The store is full: {trouble}.")
                    if answer.code not in _PASSING:
                        left = 0
            if left <= pause:
                if sent:
                    raise OutcomeUnknownError(f"The store did not confirm the step: {trouble}.")
                raise StoreUnavailableError(f"The store took no step: {trouble}.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def delete(self, *names: str, deadline: float) -> None:
        """Forget what is stored under keys of one stream; also where there is nothing."""
        await self.ask(deadline, "DEL", *names)

    async def ask(self, deadline: float, *command: Argument) -> Any:
        """Return the reply to a command that may safely be repeated.

        Raises:
            StoreUnavailableError: No answer until the deadline.
        """
        return (await self._until_all(deadline, command))[0]

    async def page(
        self, tenant: str, model: str, prefix: str, cursor: str | None, limit: int, *, deadline: float
    ) -> tuple[list[str], str | None]:
        """Return up to `limit` stream ids and the cursor to go on from; None at the end.

        A stream that exists all the while is listed at least once, whatever comes and goes beside it.

        Raises:
            ServiceError: `bad_request`: the cursor is none of ours.
        """
        at, found = _read_cursor(cursor)
        pattern, count = keys.records_pattern(tenant, model, prefix), max(limit, 100)
        while len(found) < limit and at != "0":
            at, batch = await self._scan("0" if at == "start" else at, pattern, count, deadline)
            found.extend(name for name in map(keys.stream_of, batch) if name not in found)
            count = min(2 * count, 10_000) if not batch else max(limit, 100)  # hurry where few keys match
        rest = found[limit:]
        done = at == "0" and not rest
        return found[:limit], None if done else _write_cursor(at, rest)

    async def count_by_tenant(self, *, deadline: Callable[[], float]) -> dict[str, int]:
        """Return how many streams each tenant has; looks at every key, a page at a time.

        Args:
            deadline: Gives the time by which the next page has to be there.
        """
        at, batch = await self._scan("0", keys.ALL_RECORDS, _COUNTED_AT_ONCE, deadline())
        counts = Counter(map(keys.tenant_of, batch))
        while at != "0":
            at, batch = await self._scan(at, keys.ALL_RECORDS, _COUNTED_AT_ONCE, deadline())
            counts.update(map(keys.tenant_of, batch))
        return dict(counts)

    async def steps(self, names: Sequence[str], *, deadline: float) -> list[int | None]:
        """Return the step of each record, None where there is none."""
        if not names:
            return []
        found = await self._until_all(deadline, *(("GETRANGE", name, 16, 23) for name in names))
        return [int.from_bytes(raw, "little") if isinstance(raw, bytes) and len(raw) == 8 else None for raw in found]

    async def ping(self, *, timeout: float) -> None:
        """Ask whether the store answers.

        Raises:
            StoreUnavailableError: It does not.
        """
        loop = asyncio.get_running_loop()
        await self.ask(loop.time() + timeout, "PING")

    async def close(self) -> None:
        """Close every connection."""
        await self._wire.close()

    # ---------------------------------------------------------------- helpers

    def _script_arguments(self, commits: Sequence[Commit], *, keep: bool) -> list[Argument]:
        keyed = [(i, c) for i, c in enumerate(commits, 1) if c.entry_key is not None]
        arguments: list[Argument] = [len(commits) + len(keyed)]
        arguments += [c.key for c in commits]
        arguments += [c.entry_key for _, c in keyed if c.entry_key is not None]
        life = int(_LONGEST_LIFE * 1000 * self.stream_ttl_s)
        arguments += (len(commits), life, int(self.idempotency_ttl_s * 1000), int(keep))
        arguments += [part for c in commits for part in c[1:3]]
        for i, c in keyed:
            arguments += (i, c.entry)
        return arguments

    async def _scan(self, at: str, pattern: str, count: int, deadline: float) -> tuple[str, list[str]]:
        cursor, batch = await self.ask(deadline, "SCAN", at, "MATCH", pattern, "COUNT", count)
        return cursor.decode(), [name.decode() for name in batch]

    async def _until_all(self, deadline: float, *commands: Sequence[Argument]) -> list[Any]:
        """Repeat commands that may safely be repeated until they are answered or the deadline passes."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while True:
            left = deadline - loop.time()
            trouble = "the deadline passed"
            if left > 0:
                try:
                    replies = await self._wire.call(*commands, timeout=min(left, self._wire.timeout))
                except (NotSentError, NoReplyError) as exc:
                    trouble = str(exc)
                else:
                    bad = next((reply for reply in replies if isinstance(reply, RefusalError)), None)
                    if bad is None or bad.code == "WRONGTYPE":
                        return replies
                    trouble = str(bad)
                    if bad.code not in _PASSING:
                        left = 0
            if left <= pause:
                raise StoreUnavailableError(f"The store did not answer: {trouble}.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _committed(answer: Sequence[Any]) -> tuple[int, Committed]:
    """Read one answer of the script: the commit's place, what became of it, what is stored."""
    place, outcome, *stored = answer
    return place - 1, Committed(Outcome(outcome), (stored[0] or None) if stored else None)


def _not_durable() -> ServiceError:
    return ServiceError(
        "not_durable",
        "The step is in the primary's memory, but no replica confirmed it in time.",
        fix="Send the same request again: it is not applied twice, and waits for the replica again.",
        applied="yes",
    )


def _write_cursor(at: str, rest: list[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([at, *rest], separators=(",", ":")).encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[str, list[str]]:
    if cursor is None:
        return "start", []
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        at, *rest = (str(part) for part in parts)
        if not (at == "start" or (at.isascii() and at.isdigit())) or not all(is_stream_id(r) for r in rest):
            raise ValueError(at)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ServiceError(
            "bad_request",
            f"`cursor` is {cursor[:64]!r}; expected the text that the page before gave.",
            fix="Leave it out to begin again.",
        ) from exc
    return at, rest
