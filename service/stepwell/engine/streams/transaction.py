"""`commit_when_decided`: loads a stream, decides, and commits the decision; after a conflict, again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from stepwell.engine.admission import RequestAdmission
from stepwell.engine.tenant_limits import Reservation, StreamQuota
from stepwell.errors import ServiceError, not_a_record
from stepwell.models.registry import ModelRegistry
from stepwell.store import keys
from stepwell.store.commits import Commit, Outcome
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Record
from stepwell.store.state_store import StateStore, checked
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.store.commits import Notification
    from stepwell.store.source_ids import SourceIds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamOpDeps:
    """Dependencies shared by the stream operations that run outside the batcher.

    Attributes:
        store: Loads and commits records.
        models: The loaded models.
        admission: Accepts or rejects requests, and gives their deadlines.
        quota: Limit on the streams of a tenant; None: no limit.
        invalidate: Called with a stream that was changed or created, so that its cached record is dropped.
        source_ids: The ids of sources.
    """

    store: StateStore
    models: ModelRegistry
    admission: RequestAdmission
    quota: StreamQuota | None
    invalidate: Callable[[StreamKey], None]
    source_ids: SourceIds


@dataclass(frozen=True, slots=True)
class Loaded:
    """The input of a decision.

    Attributes:
        raw: The stream's record; None: the stream is missing; an error: its key holds a value of another type.
        others: The other requested records, likewise.
        entry: The entry of the request's idempotency key; None: there is none, or the request has no key.
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
        result: The result of the request.
        is_replay: The store shows that it was applied before; with durability `replica`, a Redis replica has to confirm
            that first.
    """

    result: T
    is_replay: bool = True


@dataclass(frozen=True, slots=True)
class Write(Generic[T]):
    """The decision to write a record.

    Attributes:
        record: The new record.
        expect: The guard of the record that it replaces; empty: the stream must be missing.
        entry: The idempotency entry to store, if the request has an idempotency key.
        result: The result of the request if the record is committed now.
        result_if_duplicate: Returns the result if this operation was committed before, from the stored record's bytes.
        notifications: Events to publish with the commit.
        replaces_foreign: If the key holds a value that is not a record, decide again; else that is an error.
    """

    record: Record
    expect: bytes
    entry: IdempotencyEntry
    result: T
    result_if_duplicate: Callable[[bytes], T]
    notifications: Sequence[Notification] = ()
    replaces_foreign: bool = False


async def commit_when_decided(
    deps: StreamOpDeps,
    key: StreamKey,
    decide: Callable[[Loaded], Awaitable[Reply[T] | Write[T] | None]],
    *,
    idempotency_key: str | None = None,
    other_keys: Sequence[str] = (),
) -> T:
    """Load a stream, decide, and commit; repeat while other commits change the stream in between.

    Args:
        deps: Store, models and quota.
        key: The stream.
        decide: Returns the decision; None: the stream was changed, and is to be loaded again. It may be called more
            than once, and may raise.
        idempotency_key: The client's, if any.
        other_keys: Keys of other records that the decision needs.

    Raises:
        ServiceError: What `decide` raises; `stream_quota`; `overloaded`: other requests changed the stream again and
            again until the deadline; `state_corrupt`; or an error of the store.
    """
    store, deadline, record_key = deps.store, deps.admission.start(), keys.record_key(*key)
    entry_key = None if idempotency_key is None else keys.idempotency_key_of(record_key, idempotency_key)
    record_keys = [record_key, *other_keys, *filter(None, [entry_key])]
    with Reservation(deps.quota, key.tenant) as reservation:
        while True:
            raw, *loaded = await store.load_with_errors(record_keys, deadline=deadline, exact=True)
            stored_entry = None if entry_key is None else checked(loaded.pop())
            entry = None if stored_entry is None else IdempotencyEntry.decode(stored_entry)
            decision = await decide(Loaded(raw, loaded, entry, deadline))
            if decision is None:
                _check_deadline(deadline)
                continue
            if isinstance(decision, Reply):
                if not decision.is_replay:
                    return decision.result
                confirmed = await store.wait_for_replica(
                    record_key, raw, None if entry is None else entry_key, deadline=deadline
                )
                if confirmed or entry is not None:
                    return decision.result
                continue
            if raw is None:
                reservation.take()
            else:
                reservation.end(begun=False)  # another worker has created the stream in the meantime
            await deps.models.keep(key.model, decision.record.fingerprint, deadline)
            commit = Commit(record_key, decision.expect, decision.record.encode(), entry_key, decision.entry.encode())
            result = (await store.commit([commit], deadline=deadline, notifications=decision.notifications))[0]
            deps.invalidate(key)
            if result.outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
                reservation.end(begun=True)
                return decision.result if result.stored is None else decision.result_if_duplicate(result.stored)
            if result.outcome is Outcome.WRONG_TYPE and not decision.replaces_foreign:
                raise not_a_record(f"The key of stream {key.stream!r}")
            _check_deadline(deadline)


def _check_deadline(deadline: float) -> None:
    if asyncio.get_running_loop().time() >= deadline:
        raise ServiceError(
            "overloaded",
            "Other requests changed the stream again and again until the deadline; nothing was applied.",
            fix="Send the same request again.",
        )
