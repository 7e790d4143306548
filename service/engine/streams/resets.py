"""`Resets`: puts another state in a stream's place: the initial one, a snapshot's, or one that is given."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace

from service.engine.packing import finite_rows
from service.engine.protocol.decide import Decision, StepIntent, check_idempotency_entry, decide
from service.engine.streams.deps import StreamOpDeps
from service.engine.streams.sources import NewState, StateSources
from service.engine.streams.transaction import Loaded, Reply, Write, commit_when_decided
from service.errors import CorruptRecordError, ServiceError
from service.models.registry import ServedModel
from service.store.commits import NO_RECORD
from service.store.record import NO_HISTORY, IdempotencyEntry, Kind, Record, blake2b_128, decode
from service.store.state_store import checked
from service.types import ImportedState, StreamKey, StreamPosition


class Resets:
    """Brings streams to another state, each in one commit. What is no record of ours is replaced, too."""

    def __init__(self, ways: StreamOpDeps, origins: StateSources) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            origins: Finds snapshots.
        """
        self._deps = ways
        self._sources = origins

    async def to_initial(
        self,
        key: StreamKey,
        *,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Bring a stream to its model's initial state, step 0; without `after` it may be missing.

        Raises:
            ServiceError: `stream_not_found` or `state_changed` with `after`, `idempotency_key_reused`, or the store's.
        """
        served = self._deps.models.get(key.model, version)
        content = NewState(Kind.RESET, 0, served.fingerprint, served.step_model.initial_state)

        async def initial(_deadline: float) -> NewState:
            return content

        if idempotency_key is not None:
            op_id = blake2b_128(b"reset", idempotency_key.encode(), after or b"")
        else:
            op_id = secrets.token_bytes(16) if after is None else blake2b_128(b"R", after)
        return await self._replace_state(key, initial, op_id, after, idempotency_key)

    async def to_snapshot(
        self,
        key: StreamKey,
        name: str,
        *,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Bring a stream to one of its snapshots; arguments as for `to_initial`.

        Raises:
            ServiceError: As for `to_initial`; `snapshot_not_found`, or `model_changed` where `version` cannot go on
                with it.
        """
        parts = (b"rewind", name.encode(), after or b"")
        if idempotency_key is not None:
            op_id = blake2b_128(*parts, idempotency_key.encode())
        else:
            op_id = secrets.token_bytes(16) if after is None else blake2b_128(*parts)

        async def of_snapshot(deadline: float) -> NewState:
            found = await self._sources.from_snapshot(key, name, deadline=deadline)
            return self._sources.new_state_from(Kind.RESET_TO_SNAPSHOT, key.model, found.record, version)

        return await self._replace_state(key, of_snapshot, op_id, after, idempotency_key)

    async def to_state(
        self,
        key: StreamKey,
        served: ServedModel,
        given: ImportedState,
        *,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Bring a stream to a state that is given; arguments as for `to_initial`.

        The same again is answered as the first time as long as it is the newest that happened to the stream.

        Args:
            key: The stream.
            served: The model that goes on with it.
            given: The state, checked against the model's declarations.
            after: The history that the stream must have.
            idempotency_key: The client's.

        Raises:
            ServiceError: As for `to_initial`; `non_finite`: the state is not finite as it is stored.
        """
        packed = served.step_model.pack({name: array[None] for name, array in given.states.items()}, rows=1)
        _, bad = finite_rows(served.step_model.unpack(packed)) if given.states else (None, {})
        if bad:
            raise ServiceError(
                "non_finite",
                f"State {bad[0]!r} becomes infinite in the type that it is stored in.",
                fix="Send numbers that its `store_dtype` can hold.",
            )
        content = NewState(Kind.PUT_STATE, given.step, served.fingerprint, packed.tobytes())
        digest = blake2b_128(content.state, given.step.to_bytes(8, "little"), served.fingerprint)
        op_id = blake2b_128(b"state", digest, after or b"", (idempotency_key or "").encode())

        async def as_given(_deadline: float) -> NewState:
            return content

        return await self._replace_state(key, as_given, op_id, after, idempotency_key)

    async def _replace_state(
        self,
        key: StreamKey,
        content: Callable[[float], Awaitable[NewState]],
        op_id: bytes,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        intent = StepIntent(op_id, 0, None, after, "auto", None)

        async def put(found: Loaded) -> Reply[StreamPosition] | Write[StreamPosition]:
            if found.entry is not None:
                return Reply(replay_position(found.entry, intent))
            current, expect = _record_to_replace(found.raw, intent)
            if decide(current, intent) is Decision.REPLAY and current is not None:
                return Reply(StreamPosition(current.step, current.history_hash, replayed=True))
            made = (await content(found.deadline)).record(
                op_id,
                NO_HISTORY if current is None else current.history_hash,
                created_ms=None if current is None else current.created_ms,
                had_key=idempotency_key is not None,
            )
            done = StreamPosition(made.step, made.history_hash)
            return Write(
                made,
                expect,
                IdempotencyEntry(op_id, made.epoch, made.step, made.history_hash, 0, b""),
                done,
                lambda _stored: replace(done, replayed=True),
                replaces_foreign=True,
            )

        return await commit_when_decided(self._deps, key, put, idempotency_key=idempotency_key)


def replay_position(entry: IdempotencyEntry, intent: StepIntent) -> StreamPosition:
    """Return what an idempotency key had been answered.

    Raises:
        ServiceError: `idempotency_key_reused`.
    """
    known = check_idempotency_entry(entry, intent)
    return StreamPosition(known.step, known.history_hash, replayed=True)


def _record_to_replace(raw: bytes | ServiceError | None, intent: StepIntent) -> tuple[Record | None, bytes]:
    """Return the record and its guard. What is no record of ours is replaced too, unless a history is demanded."""
    try:
        if (stored := checked(raw)) is None:
            return None, b""
        record = decode(stored)
    except CorruptRecordError:
        if intent.after is not None:
            raise
        guard = raw[8:64] if isinstance(raw, bytes) else b""
        return None, guard or NO_RECORD
    return record, record.guard
