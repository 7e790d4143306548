"""`Resets`: replaces the state of a stream by the initial state, a snapshot's state, or an imported state."""

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
    """Replaces states of streams, each in one commit. A corrupt record is replaced, too.

    Args:
        deps: Store, models and quota.
        sources: Loads snapshots.
    """

    def __init__(self, deps: StreamOpDeps, sources: StateSources) -> None:
        self._deps = deps
        self._sources = sources

    async def to_initial(
        self,
        key: StreamKey,
        *,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Set a stream to its model's initial state, step 0. Without `after` the stream may be missing.

        Args:
            key: The stream.
            version: The model version that the stream belongs to afterwards; None: the default.
            after: The state id that the stream must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: `stream_not_found` or `state_changed` with `after`, `idempotency_key_reused`, or an error of
                the store.
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
        """Set a stream to one of its snapshots; other arguments as for `to_initial`.

        Args:
            key: The stream.
            name: The snapshot's name.
            version: The model version that continues the stream; None: the one that wrote the snapshot.
            after: As for `to_initial`.
            idempotency_key: As for `to_initial`.

        Raises:
            ServiceError: As for `to_initial`; `snapshot_not_found`; `model_changed`: `version` has other states than
                the snapshot.
        """
        parts = (b"rewind", name.encode(), after or b"")
        if idempotency_key is not None:
            op_id = blake2b_128(*parts, idempotency_key.encode())
        else:
            op_id = secrets.token_bytes(16) if after is None else blake2b_128(*parts)

        async def of_snapshot(deadline: float) -> NewState:
            snapshot = await self._sources.from_snapshot(key, name, deadline=deadline)
            return self._sources.new_state_from(Kind.RESET_TO_SNAPSHOT, key.model, snapshot.record, version)

        return await self._replace_state(key, of_snapshot, op_id, after, idempotency_key)

    async def to_state(
        self,
        key: StreamKey,
        served: ServedModel,
        imported: ImportedState,
        *,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Set a stream to an imported state.

        A retry gets the first response as long as no other operation was applied to the stream since.

        Args:
            key: The stream.
            served: The model version that continues the stream.
            imported: The state, checked against the model's declarations.
            after: The state id that the stream must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: As for `to_initial`; `non_finite`: the state is not finite in the type in which it is stored.
        """
        packed = served.step_model.pack({name: array[None] for name, array in imported.states.items()}, rows=1)
        _, bad = finite_rows(served.step_model.unpack(packed)) if imported.states else (None, {})
        if bad:
            raise ServiceError(
                "non_finite",
                f"State {bad[0]!r} becomes infinite in the type in which it is stored.",
                fix="Send numbers that its `store_dtype` can hold.",
            )
        content = NewState(Kind.PUT_STATE, imported.step, served.fingerprint, packed.tobytes())
        digest = blake2b_128(content.state, imported.step.to_bytes(8, "little"), served.fingerprint)
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

        async def put(loaded: Loaded) -> Reply[StreamPosition] | Write[StreamPosition]:
            if loaded.entry is not None:
                return Reply(replay_position(loaded.entry, intent))
            stored_record, expect = _record_to_replace(loaded.raw, intent)
            if decide(stored_record, intent) is Decision.REPLAY and stored_record is not None:
                return Reply(StreamPosition(stored_record.step, stored_record.history_hash, replayed=True))
            record = (await content(loaded.deadline)).record(
                op_id,
                NO_HISTORY if stored_record is None else stored_record.history_hash,
                created_ms=None if stored_record is None else stored_record.created_ms,
                had_key=idempotency_key is not None,
            )
            position = StreamPosition(record.step, record.history_hash)
            return Write(
                record,
                expect,
                IdempotencyEntry(op_id, record.epoch, record.step, record.history_hash, 0, b""),
                position,
                lambda _stored: replace(position, replayed=True),
                replaces_foreign=True,
            )

        return await commit_when_decided(self._deps, key, put, idempotency_key=idempotency_key)


def replay_position(entry: IdempotencyEntry, intent: StepIntent) -> StreamPosition:
    """Return the first response to a request with an idempotency key.

    Raises:
        ServiceError: `idempotency_key_reused`.
    """
    stored = check_idempotency_entry(entry, intent)
    return StreamPosition(stored.step, stored.history_hash, replayed=True)


def _record_to_replace(raw: bytes | ServiceError | None, intent: StepIntent) -> tuple[Record | None, bytes]:
    """Return the record and its guard; None for a corrupt record, which is an error only with `after`."""
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
