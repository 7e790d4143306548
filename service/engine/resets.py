"""`Resets`: puts another state in a stream's place: the initial one, a snapshot's, or one that is given."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace

from service.engine.batch import finite_rows
from service.engine.decide import Intent, Verdict, decide, replay_of_key
from service.engine.models import ServedModel
from service.engine.origins import Content, Origins
from service.engine.transaction import Loaded, Reply, Write, commit_when_decided
from service.engine.types import GivenState, Position, StreamKey
from service.engine.ways import Ways
from service.errors import CorruptRecordError, ServiceError
from service.store.commits import NO_RECORD
from service.store.record import NO_CHAIN, KeyEntry, Kind, Record, decode, digest16
from service.store.redis import checked


class Resets:
    """Brings streams to another state, each in one commit. What is no record of ours is replaced, too."""

    def __init__(self, ways: Ways, origins: Origins) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            origins: Finds snapshots.
        """
        self._ways = ways
        self._origins = origins

    async def to_initial(
        self,
        key: StreamKey,
        *,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> Position:
        """Bring a stream to its model's initial state, step 0; without `after` it may be missing.

        Raises:
            ServiceError: `stream_not_found` or `state_changed` with `after`, `idempotency_key_reused`, or the store's.
        """
        served = self._ways.shelf.get(key.model, version)
        content = Content(Kind.RESET, 0, served.fingerprint, served.step_model.initial_state)

        async def initial(_deadline: float) -> Content:
            return content

        if idempotency_key is not None:
            op_id = digest16(b"reset", idempotency_key.encode(), after or b"")
        else:
            op_id = secrets.token_bytes(16) if after is None else digest16(b"R", after)
        return await self._put(key, initial, op_id, after, idempotency_key)

    async def to_snapshot(
        self,
        key: StreamKey,
        name: str,
        *,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> Position:
        """Bring a stream to one of its snapshots; arguments as for `to_initial`.

        Raises:
            ServiceError: As for `to_initial`; `snapshot_not_found`, or `model_changed` where `version` cannot go on
                with it.
        """
        parts = (b"rewind", name.encode(), after or b"")
        if idempotency_key is not None:
            op_id = digest16(*parts, idempotency_key.encode())
        else:
            op_id = secrets.token_bytes(16) if after is None else digest16(*parts)

        async def of_snapshot(deadline: float) -> Content:
            found = await self._origins.snapshot(key, name, deadline=deadline)
            return self._origins.content(Kind.REWIND, key.model, found.record, version)

        return await self._put(key, of_snapshot, op_id, after, idempotency_key)

    async def to_state(
        self,
        key: StreamKey,
        served: ServedModel,
        given: GivenState,
        *,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> Position:
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
        content = Content(Kind.PUT_STATE, given.step, served.fingerprint, packed.tobytes())
        digest = digest16(content.state, given.step.to_bytes(8, "little"), served.fingerprint)
        op_id = digest16(b"state", digest, after or b"", (idempotency_key or "").encode())

        async def as_given(_deadline: float) -> Content:
            return content

        return await self._put(key, as_given, op_id, after, idempotency_key)

    async def _put(
        self,
        key: StreamKey,
        content: Callable[[float], Awaitable[Content]],
        op_id: bytes,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> Position:
        intent = Intent(op_id, 0, None, after, "auto", None)

        async def put(found: Loaded) -> Reply[Position] | Write[Position]:
            if found.entry is not None:
                return Reply(known_position(found.entry, intent))
            current, expect = _record_to_replace(found.raw, intent)
            if decide(current, intent) is Verdict.REPLAY and current is not None:
                return Reply(Position(current.step, current.chain, replayed=True))
            made = (await content(found.deadline)).record(
                op_id,
                NO_CHAIN if current is None else current.chain,
                created_ms=None if current is None else current.created_ms,
                had_key=idempotency_key is not None,
            )
            done = Position(made.step, made.chain)
            return Write(
                made,
                expect,
                KeyEntry(op_id, made.epoch, made.step, made.chain, 0, b""),
                done,
                lambda _stored: replace(done, replayed=True),
                replaces_foreign=True,
            )

        return await commit_when_decided(self._ways, key, put, idempotency_key=idempotency_key)


def known_position(entry: KeyEntry, intent: Intent) -> Position:
    """Return what an idempotency key had been answered.

    Raises:
        ServiceError: `idempotency_key_reused`.
    """
    known = replay_of_key(entry, intent)
    return Position(known.step, known.chain, replayed=True)


def _record_to_replace(raw: bytes | ServiceError | None, intent: Intent) -> tuple[Record | None, bytes]:
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
