"""`replace_state`: replaces the state of a stream by the initial state, a snapshot's state, or an imported state."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from stepwell.engine.protocol.decide import Decision, StepIntent, check_idempotency_entry, decide
from stepwell.engine.streams.new_states import NewState, no_stream
from stepwell.engine.streams.transaction import Decide, Loaded, Reply, StreamOpDeps, Write, run_transaction
from stepwell.errors import CorruptRecordError, ServiceError
from stepwell.store.commits import NO_RECORD
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import GUARD_AT, NO_HISTORY, Record, blake2b_128
from stepwell.store.state_store import decoded
from stepwell.types import StreamKey, StreamPosition


@dataclass(frozen=True, slots=True)
class ReplacedPosition(StreamPosition):
    """The position of a stream after its state was replaced.

    Attributes:
        before: The state id that the stream had; None: it was missing or corrupt, or this is a stored result.
    """

    before: bytes | None = None


async def replace_state(
    deps: StreamOpDeps,
    key: StreamKey,
    new_state: NewState | Callable[[float], Awaitable[NewState]],
    op_id: bytes,
    *,
    after: bytes | None,
    idempotency_key: str | None,
) -> ReplacedPosition:
    """Replace the state of a stream in one commit. A corrupt record is replaced, too.

    The stream keeps its positions of sources: a timestep that was applied before is not applied to the new state.

    Args:
        deps: Store, models, admission and quota.
        key: The stream. Without `after` it may be missing.
        new_state: The new state, or a function that loads it before a deadline on the loop's clock.
        op_id: Identifies the operation, 16 bytes.
        after: The state id that the stream must have; None: any.
        idempotency_key: The client's, if any.

    Raises:
        ServiceError: `stream_not_found` or `state_changed` with `after`, `idempotency_key_reused`, or an error of the
            store.
    """
    put = replacement(key, new_state, op_id, after=after, had_key=idempotency_key is not None)
    return await run_transaction(deps, key, put, idempotency_key=idempotency_key)


def replacement(
    key: StreamKey,
    new_state: NewState | Callable[[float], Awaitable[NewState]],
    op_id: bytes,
    *,
    after: bytes | None = None,
    had_key: bool,
    only_existing: bool = False,
) -> Decide[ReplacedPosition]:
    """Return what decides how the state of a stream is replaced: see `replace_state`.

    Args:
        key: The stream.
        new_state: The new state, or what loads it.
        op_id: Identifies the operation, 16 bytes.
        after: The state id that the stream must have; None: any.
        had_key: The request has an idempotency key.
        only_existing: A missing stream is not created: `stream_not_found`.
    """
    intent = StepIntent(op_id, 0, None, after, "auto", None)

    async def put(loaded: Loaded) -> Reply[ReplacedPosition] | Write[ReplacedPosition]:
        if loaded.entry is not None:
            stored = replay_position(loaded.entry, intent)
            return Reply(ReplacedPosition(stored.step, stored.state_id, replayed=True))
        stored_record, expect = _record_to_replace(loaded.raw, intent)
        if decide(stored_record, intent) is Decision.REPLAY and stored_record is not None:
            return Reply(ReplacedPosition(stored_record.step, stored_record.history_hash, replayed=True))
        if loaded.raw is None and only_existing:
            raise no_stream(key)
        state = new_state if isinstance(new_state, NewState) else await new_state(loaded.deadline)
        record = state.record(
            op_id,
            NO_HISTORY if stored_record is None else stored_record.history_hash,
            created_ms=None if stored_record is None else stored_record.created_ms,
            had_key=had_key,
            sources=() if stored_record is None else stored_record.sources,
        )
        before = None if stored_record is None else stored_record.history_hash
        position = ReplacedPosition(record.step, record.history_hash, before=before)
        return Write(
            record,
            expect,
            IdempotencyEntry(op_id, record.epoch, record.step, record.history_hash, 0, b""),
            position,
            lambda _stored: replace(position, replayed=True, before=None),
            replaces_foreign=True,
        )

    return put


def reset_op_id(snapshot: str | None, after: bytes | None, idempotency_key: str | None) -> bytes:
    """Return the op id: the same for every retry of a reset that can be retried, else a random one."""
    if after is None and idempotency_key is None:
        return secrets.token_bytes(16)
    key = [] if idempotency_key is None else [idempotency_key.encode()]
    if snapshot is not None:
        return blake2b_128(b"rewind", snapshot.encode(), after or b"", *key)
    return blake2b_128(b"reset", *key, after or b"") if key else blake2b_128(b"R", after or b"")


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
        record = decoded(raw)
    except CorruptRecordError:
        if intent.after is not None:
            raise
        guard = raw[GUARD_AT] if isinstance(raw, bytes) else b""
        return None, guard or NO_RECORD
    return record, b"" if record is None else record.guard
