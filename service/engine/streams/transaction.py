"""`commit_when_decided`: loads a stream, decides on what was loaded, and commits the decision; on a conflict, again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from service.engine.limits import Reservation
from service.engine.streams.deps import StreamOpDeps
from service.errors import ServiceError, not_a_record
from service.store import keys
from service.store.commits import Commit, Outcome
from service.store.record import IdempotencyEntry, Record
from service.store.state_store import checked
from service.types import StreamKey

if TYPE_CHECKING:
    from service.store.commits import Notification

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an operation is decided on.

    Attributes:
        raw: The stream's record; None: the stream is missing; an error: its key holds a value of another type.
        others: The other records that were asked for, likewise.
        entry: What is remembered of the request's idempotency key; None: nothing, or it has none.
        deadline: Of the request, on the running loop's clock.
    """

    raw: bytes | ServiceError | None
    others: Sequence[bytes | ServiceError | None]
    entry: IdempotencyEntry | None
    deadline: float


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The decision to write nothing.

    Attributes:
        answer: What the request is answered.
        is_replay: The store shows that it had been applied; with durability `replica`, a replica confirms that first.
    """

    answer: T
    is_replay: bool = True


@dataclass(frozen=True, slots=True)
class Write(Generic[T]):
    """The decision to write a record.

    Attributes:
        record: The new record.
        expect: The guard of the one that it follows; empty: the stream must be missing.
        entry: What is remembered of the request, if it has an idempotency key.
        answer: What the request is answered once that is written.
        answer_to_same: The answer where the stored record is that of this very operation, by its bytes.
        tellings: What watchers are told.
        replaces_foreign: If the commit finds a value that is not a record, it is decided again; else that is an error.
    """

    record: Record
    expect: bytes
    entry: IdempotencyEntry
    answer: T
    answer_to_same: Callable[[bytes], T]
    tellings: Sequence[Notification] = ()
    replaces_foreign: bool = False


async def commit_when_decided(
    ways: StreamOpDeps,
    key: StreamKey,
    decide: Callable[[Loaded], Awaitable[Reply[T] | Write[T]]],
    *,
    idempotency_key: str | None = None,
    also: Sequence[str] = (),
) -> T:
    """Load a stream, decide, and commit; again as long as another commit comes between.

    Args:
        ways: To the store and the models.
        key: The stream.
        decide: Says what is to be done; it may be called more than once, and may raise.
        idempotency_key: The client's.
        also: Keys of other records that it decides on.

    Raises:
        ServiceError: What `decide` raises; `stream_quota`; `overloaded`: others kept moving the stream until the
            deadline; `state_corrupt`; or the store's.
    """
    store, deadline, name = ways.store, ways.start(), keys.record_key(*key)
    entry_name = None if idempotency_key is None else keys.idempotency_key_of(name, idempotency_key)
    names = [name, *also, *filter(None, [entry_name])]
    with Reservation(ways.quota, key.tenant) as room:
        while True:
            raw, *found = await store.load_with_errors(names, deadline=deadline, exact=True)
            kept = None if entry_name is None else checked(found.pop())
            entry = None if kept is None else IdempotencyEntry.decode(kept)
            decided = await decide(Loaded(raw, found, entry, deadline))
            if isinstance(decided, Reply):
                if not decided.is_replay:
                    return decided.answer
                confirmed = await store.wait_for_replica(
                    name, raw, None if entry is None else entry_name, deadline=deadline
                )
                if confirmed or entry is not None:
                    return decided.answer
                continue
            if raw is None:
                room.take()
            else:
                room.end(begun=False)  # another worker has begun the stream meanwhile
            commit = Commit(name, decided.expect, decided.record.encode(), entry_name, decided.entry.encode())
            answer = (await store.commit([commit], deadline=deadline, notifications=decided.tellings))[0]
            ways.invalidate(key)
            if answer.outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
                room.end(begun=True)
                return decided.answer if answer.stored is None else decided.answer_to_same(answer.stored)
            if answer.outcome is Outcome.WRONG_TYPE and not decided.replaces_foreign:
                raise not_a_record(f"The key of stream {key.stream!r}")
            if asyncio.get_running_loop().time() >= deadline:
                raise ServiceError(
                    "overloaded",
                    "Others kept moving the stream until the deadline.",
                    fix="Send the same request again.",
                )
