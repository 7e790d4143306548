"""`run_transaction`: loads streams, decides, and commits the decisions; after a conflict, again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from stepwell.engine.admission import RequestAdmission
from stepwell.engine.tenant_limits import Reservation, StreamQuota
from stepwell.errors import ServiceError, not_a_record
from stepwell.models.registry import ModelRegistry
from stepwell.store import keys
from stepwell.store.commits import Commit, CommitResult, Outcome
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


Decide: TypeAlias = Callable[[Loaded], Awaitable["Reply[T] | Write[T] | None"]]
"""Returns the decision for a stream; None: it was changed, and is to be loaded again.

It may be called more than once, and may raise `ServiceError`.
"""


async def run_transaction(
    deps: StreamOpDeps,
    key: StreamKey,
    decide: Decide[T],
    *,
    idempotency_key: str | None = None,
    other_keys: Sequence[str] = (),
) -> T:
    """Load a stream, decide, and commit; repeat while other commits change the stream in between.

    Args:
        deps: Store, models and quota.
        key: The stream.
        decide: Returns the decision.
        idempotency_key: The client's, if any.
        other_keys: Keys of other records that the decision needs.

    Raises:
        ServiceError: What `decide` raises; `stream_quota`; `overloaded`: other requests changed the stream again and
            again until the deadline; `state_corrupt`; or an error of the store.
    """
    deadline = deps.admission.start()
    [result] = await commit_each_when_decided(
        deps, {key: decide}, deadline=deadline, idempotency_key=idempotency_key, other_keys=other_keys
    )
    if isinstance(result, ServiceError):
        raise result
    return result


async def commit_each_when_decided(
    deps: StreamOpDeps,
    decisions: Mapping[StreamKey, Decide[T]],
    *,
    deadline: float,
    idempotency_key: str | None = None,
    other_keys: Sequence[str] = (),
) -> list[T | ServiceError]:
    """Do the same as `run_transaction` for several streams: all are loaded at once, and committed at once.

    Args:
        deps: Store, models and quota.
        decisions: For each stream what returns its decision.
        deadline: On the running loop's clock.
        idempotency_key: The client's, if any.
        other_keys: Keys of other records that each decision needs.

    Returns:
        For each stream its result, or the error for which nothing, or nothing certain, was done.
    """
    streams = [_Stream(deps, key, decide, idempotency_key, other_keys) for key, decide in decisions.items()]
    waiting: Sequence[_Stream[T]] = streams
    try:
        while waiting:
            names = [name for one in waiting for name in one.keys]
            try:
                values = iter(await deps.store.load_with_errors(names, deadline=deadline, exact=True))
            except ServiceError as exc:
                for one in waiting:
                    one.result = exc
                break
            for one in waiting:
                await one.decide(list(islice(values, len(one.keys))), deadline)
            if writing := [one for one in waiting if one.write is not None]:
                await _commit(deps, writing, deadline)
            waiting = [one for one in waiting if one.result is _NONE]
    finally:
        for one in streams:
            one.end()
    return [one.result for one in streams]


async def _commit(deps: StreamOpDeps, streams: Sequence[_Stream[T]], deadline: float) -> None:
    """Commit what was decided for these streams in one call, and set the result of each that was not in conflict."""
    writes = [one.write for one in streams if one.write is not None]
    commits = [
        Commit(one.record_key, write.expect, write.record.encode(), one.entry_key, write.entry.encode())
        for one, write in zip(streams, writes, strict=True)
    ]
    events = [event._replace(row=row) for row, write in enumerate(writes) for event in write.notifications]
    try:
        results = await deps.store.commit(commits, deadline=deadline, notifications=events)
    except ServiceError as exc:
        for one in streams:
            one.result = exc
        return
    for row, one in enumerate(streams):
        try:
            one.take(results[row], deadline)
        except ServiceError as exc:
            one.result = exc


class _Stream(Generic[T]):
    """A stream between its load and its result.

    Attributes:
        record_key: The key of its record.
        entry_key: The key of its idempotency entry; None: the request has no key.
        keys: The keys of its record, of the other records, and of its entry: what its decision needs.
        write: What is to be committed for it.
        result: Its result or error, `_NONE` until there is one.
    """

    def __init__(
        self,
        deps: StreamOpDeps,
        key: StreamKey,
        decide: Decide[T],
        idempotency_key: str | None,
        other_keys: Sequence[str],
    ) -> None:
        self.record_key = keys.record_key(*key)
        self.entry_key = None if idempotency_key is None else keys.idempotency_key_of(self.record_key, idempotency_key)
        self.keys = [self.record_key, *other_keys, *filter(None, [self.entry_key])]
        self.write: Write[T] | None = None
        self.result: Any = _NONE
        self._deps = deps
        self._key = key
        self._decide = decide
        self._reservation = Reservation(deps.quota, key.tenant)

    async def decide(self, loaded: list[bytes | ServiceError | None], deadline: float) -> None:
        """Set the write or the result; neither, if the stream has to be loaded again.

        Args:
            loaded: The values of `keys`.
            deadline: On the running loop's clock.
        """
        self.write = None
        try:
            await self._decide_or_raise(loaded, deadline)
        except ServiceError as exc:
            self.result = exc

    async def _decide_or_raise(self, loaded: list[bytes | ServiceError | None], deadline: float) -> None:
        stored_entry = None if self.entry_key is None else checked(loaded.pop())
        entry = None if stored_entry is None else IdempotencyEntry.decode(stored_entry)
        raw, *others = loaded
        decision = await self._decide(Loaded(raw, others, entry, deadline))
        if decision is None:
            _check_deadline(deadline)
        elif isinstance(decision, Write):
            if raw is None:
                self._reservation.take()
            else:
                self._reservation.end(begun=False)  # another worker has created the stream in the meantime
            await self._deps.models.keep(self._key.model, decision.record.fingerprint, deadline)
            self.write = decision
        elif not decision.is_replay:
            self.result = decision.result
        else:
            entry_key = None if entry is None else self.entry_key
            is_stored = await self._deps.store.wait_for_replica(self.record_key, raw, entry_key, deadline=deadline)
            if is_stored or entry is not None:
                self.result = decision.result

    def take(self, committed: CommitResult, deadline: float) -> None:
        """Set the result of a commit, unless it was in conflict.

        Raises:
            ServiceError: The key holds a value that is not a record, or the deadline has passed.
        """
        self._deps.invalidate(self._key)
        write = self.write
        assert write is not None, "only what was decided is committed"
        if committed.outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
            self._reservation.end(begun=True)
            self.result = write.result if committed.stored is None else write.result_if_duplicate(committed.stored)
            return
        if committed.outcome is Outcome.WRONG_TYPE and not write.replaces_foreign:
            raise not_a_record(f"The key of stream {self._key.stream!r}")
        _check_deadline(deadline)

    def end(self) -> None:
        """Give back the room for a new stream, unless the stream was created, or may have been."""
        failed = isinstance(self.result, ServiceError) and self.result.applied != "no"
        self._reservation.end(begun=self.result is _NONE or failed)


_NONE: Final = object()


def _check_deadline(deadline: float) -> None:
    if asyncio.get_running_loop().time() >= deadline:
        raise ServiceError(
            "overloaded",
            "Other requests changed the stream again and again until the deadline; nothing was applied.",
            fix="Send the same request again.",
        )
