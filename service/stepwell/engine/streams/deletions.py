"""`delete_stream`: deletes a stream; with an idempotency key once, whatever is created under its id later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepwell.engine.protocol.decide import StepIntent, check_idempotency_entry
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.commits import DELETE, NO_RECORD, Commit, Outcome
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import EPOCH_AT, blake2b_128, decode
from stepwell.store.state_store import checked

if TYPE_CHECKING:
    from stepwell.engine.streams.transaction import StreamOpDeps
    from stepwell.types import StreamKey

_INTENT = StepIntent(blake2b_128(b"delete"), 0, None, None, "auto", None)
_ENTRY = IdempotencyEntry(_INTENT.op_id, 0, 0, bytes(16), 0, b"").encode()


async def delete_stream(deps: StreamOpDeps, key: StreamKey, *, idempotency_key: str | None) -> bytes | None:
    """Delete a stream, its snapshots and its event log, if there are any. A corrupt record is deleted, too.

    Args:
        deps: Store, models, admission and quota.
        key: The stream.
        idempotency_key: The client's, if any: a later request with the same one deletes nothing.

    Returns:
        The stream's state id just before, 16 bytes; None: the stream was missing or corrupt, or this is a retry.

    Raises:
        ServiceError: `model_not_found`, `idempotency_key_reused`, `overloaded`, or an error of the store.
    """
    deps.models.get(key.model)
    name = keys.record_key(*key)
    entry_key = None if idempotency_key is None else keys.idempotency_key_of(name, idempotency_key)
    raw = await _delete(deps, name, entry_key, deps.admission.deadline())
    if deps.quota is not None:
        deps.quota.needs_recount = True
    deps.invalidate(key)
    return None if raw is None or isinstance(raw, ServiceError) else _state_id_of(raw)


async def _delete(deps: StreamOpDeps, name: str, entry_key: str | None, deadline: float) -> bytes | ServiceError | None:
    """Delete a stream, unless the idempotency entry is there; return the deleted value, None if there was none."""
    store = deps.store
    while True:
        raw, *entry = await store.load_with_errors([name, *filter(None, [entry_key])], deadline=deadline, exact=True)
        if entry and (stored := checked(entry[0])) is not None:
            check_idempotency_entry(IdempotencyEntry.decode(stored), _INTENT)
            await store.wait_for_replica(name, raw, entry_key, deadline=deadline)
            return None
        # The epoch: a stream that others step all the time is deleted at once, and one that replaced it is not.
        guard = b"" if raw is None else _epoch_of(raw) or NO_RECORD
        result = (await store.commit([Commit(name, guard, DELETE, entry_key, _ENTRY)], deadline=deadline))[0]
        if result.outcome is Outcome.APPLIED:
            return result.stored or raw
        if result.outcome is Outcome.CONFLICT and entry_key is None and _epoch_of(result.stored) != _epoch_of(raw):
            return raw  # that stream is gone, perhaps by this request, whose first reply was lost: the new one stays
        if asyncio.get_running_loop().time() >= deadline:
            raise ServiceError(
                "overloaded",
                "Other requests changed the stream again and again until the deadline; nothing was deleted.",
                fix="Send the same request again.",
            )


def _epoch_of(raw: bytes | ServiceError | None) -> bytes:
    """Return the bytes of a record's epoch; empty if there is no record."""
    return raw[EPOCH_AT] if isinstance(raw, bytes) else b""


def _state_id_of(raw: bytes) -> bytes | None:
    """Return the state id of a stored record; None: it is corrupt."""
    try:
        return decode(raw).history_hash
    except ServiceError:
        return None
