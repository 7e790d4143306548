"""`decide`: whether a request is applied, replayed or rejected. A pure function, without clock and store.

The exactly-once protocol consists of these rules and the compare-and-set in `stepwell/store/scripts/commit.lua`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

from stepwell.engine.protocol.positions import passed_timesteps
from stepwell.errors import ServiceError, state_changed, stream_exists
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Record
from stepwell.types import Create, Source


class Decision(Enum):
    """What to do with a request that is not rejected."""

    APPLY = "apply"
    REPLAY = "replay"
    SKIP = "skip"  # all of its timesteps were applied before, by the positions in their source


class StepIntent(Struct, frozen=True, gc=False):
    """The parts of a request that the decision depends on.

    Attributes:
        op_id: Op id, which covers inputs, preconditions and idempotency key: the same for every retry, 16 bytes.
        length: Number of timesteps; 0 for a reset.
        seq: Step of the first timestep, or None.
        after: The history hash that the stream must have, or None.
        create: What to do if the stream is missing.
        fingerprint: Fingerprint of the model that would run, 8 bytes; None if any record is valid (reset).
        starts: The stream is reset first, whatever its record.
        source: Where the timesteps stand in their log; None: they are from none.
    """

    op_id: bytes
    length: int
    seq: int | None
    after: bytes | None
    create: Create
    fingerprint: bytes | None
    starts: bool = False
    source: Source | None = None


def decide(record: Record | None, intent: StepIntent) -> Decision:
    """Decide what to do with a request, given the stream's record.

    Args:
        record: The stream's record, None if the stream is missing.
        intent: The request.

    Raises:
        ServiceError: `stream_not_found`, `stream_exists`, `state_changed`, `seq_gap`, `seq_passed`,
            `seq_conflict` or `model_changed`; always with `applied` and, if the stream exists, its step.
    """
    if record is None:
        _check_may_create(intent)
        return Decision.APPLY
    skipped = 0 if intent.source is None else passed_timesteps(record.sources, intent.source)
    if skipped and skipped == intent.length:
        return Decision.SKIP
    if record.op_id == intent.op_id:
        return Decision.REPLAY
    if intent.starts:
        return Decision.APPLY
    _check_position(record, intent, skipped)
    if intent.fingerprint is not None and record.fingerprint != intent.fingerprint:
        raise ServiceError(
            "model_changed",
            f"The stream's state was written by model {record.fingerprint.hex()}; this request would run "
            f"{intent.fingerprint.hex()}.",
            fix="Leave `version` out to continue with the stream's own version, or reset the stream.",
            step=record.step,
            state_id=record.history_hash,
        )
    return Decision.APPLY


def applies_without_store(step: int, history_hash: bytes, seq: int | None, after: bytes | None) -> bool:
    """Whether `decide` returns APPLY for a record of the model that would run, whatever else is in that record.

    This is never certain for a request with an idempotency key or with `create: must`. Without these, an op id that
    covers a position or a history cannot be that of the record's newest operation if this position or history is the
    next one, and an op id that covers neither is unique. The positions of sources are compared elsewhere.
    """
    return (seq is None or seq == step + 1) and (after is None or after == history_hash)


def begins_stream(seq: int | None, after: bytes | None, create: Create) -> bool:
    """Whether `decide` returns APPLY for a missing stream."""
    return after is None and (seq is None or seq <= 1) and create != "never"


def check_idempotency_entry(entry: IdempotencyEntry, intent: StepIntent) -> IdempotencyEntry:
    """Return the entry of an idempotency key if it is of this request.

    Raises:
        ServiceError: `idempotency_key_reused`: another request used the key.
    """
    if entry.op_id != intent.op_id:
        raise ServiceError(
            "idempotency_key_reused",
            f"This Idempotency-Key was used for another request, after which the stream was at step {entry.step}.",
            fix="Send each new request with a new key; send a retry with the same body.",
        )
    return entry


def _check_may_create(intent: StepIntent) -> None:
    if begins_stream(intent.seq, intent.after, intent.create):
        return
    reason = "`create` is `never`"
    if intent.after is not None:
        reason = "`after` requires an existing stream"
    elif intent.seq is not None and intent.seq > 1:
        reason = f"`seq` is {intent.seq}, and a new stream starts with 1"
    raise ServiceError(
        "stream_not_found",
        f"The stream does not exist, and it was not created: {reason}.",
        fix="Send its history again from seq 1, or leave these out to create a new stream.",
        expected=1 if intent.length else None,
        retry="resend_from" if intent.seq is not None and intent.seq > 1 else "never",
    )


def _check_position(record: Record, intent: StepIntent, skipped: int) -> None:
    step = record.step
    seq = None if intent.seq is None else intent.seq + skipped  # of the first timestep that is to be applied
    facts: dict[str, Any] = {"step": step, "state_id": record.history_hash}
    if intent.create == "must":
        reason = "`create` is `must`"
        fix = "Read the stream, then continue from its `step` and `state_id`, or use another stream id."
        raise stream_exists(step, record.history_hash, reason, fix=fix)
    if intent.length:
        facts["expected"] = step + 1
    if intent.after is not None and intent.after != record.history_hash:
        # The store has lost commits that it had confirmed to this client.
        is_behind = seq is not None and step < seq - 1
        raise state_changed(retry="resend_from" if is_behind else "never", **facts)
    if seq is None or seq == step + 1:
        return
    if seq > step + 1:
        raise ServiceError(
            "seq_gap",
            f"`seq` is {seq}; the stream is at step {step}, so {step + 1} is next.",
            fix="Send the missing timesteps from `expected` on, then this one.",
            **facts,
        )
    if record.length and seq == step - record.length + 1:
        raise ServiceError(
            "seq_conflict",
            f"Position {seq} was applied by another request (other inputs, or a chunk of another length); "
            f"the stream is at step {step}.",
            fix="Read the stream, then decide which of the two inputs is right.",
            **facts,
        )
    raise ServiceError(
        "seq_passed",
        f"Position {seq} was applied before; the stream is at step {step}, and that response is no longer stored.",
        fix="Treat it as done, and continue from `expected`.",
        applied="yes",
        **facts,
    )
