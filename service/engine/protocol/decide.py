"""Decides what a request does to a stream: apply, replay, or refuse. Pure: no clock, no store.

The whole exactly-once protocol is this table and the compare-and-set in `service/store/scripts/commit.lua`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from service.errors import ServiceError, state_changed, stream_exists
from service.store.record import IdempotencyEntry, Record
from service.types import Create, Timestep


class Decision(Enum):
    """What to do where nothing is refused."""

    APPLY = "apply"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class StepIntent:
    """A request as far as the decision needs it.

    Attributes:
        op_id: Names the operation with its inputs, preconditions and key: the same for every retry of it, 16 bytes.
        length: Timesteps; 0 for a reset.
        seq: Position of the first timestep, or None.
        after: The chain that the stream must have, or None.
        create: What a missing stream means.
        fingerprint: The model that would run, 8 bytes; None where any record will do (reset).
        begins: The stream begins anew with it, whatever is there.
    """

    op_id: bytes
    length: int
    seq: int | None
    after: bytes | None
    create: Create
    fingerprint: bytes | None
    starts: bool = False


def decide(record: Record | None, intent: StepIntent) -> Decision:
    """Decide on what the store has.

    Args:
        record: The stream's record, or None where it is missing.
        intent: The request.

    Raises:
        ServiceError: `stream_not_found`, `stream_exists`, `state_changed`, `seq_gap`, `seq_passed`,
            `seq_conflict` or `model_changed`; always with `applied` and, where there is a stream, its step.
    """
    if record is None:
        _check_may_create(intent)
        return Decision.APPLY
    if record.op_id == intent.op_id:
        return Decision.REPLAY
    if intent.starts:
        return Decision.APPLY
    _check_position(record, intent)
    if intent.fingerprint is not None and record.fingerprint != intent.fingerprint:
        raise ServiceError(
            "model_changed",
            f"The stream's state was written by model {record.fingerprint.hex()}; this request would run "
            f"{intent.fingerprint.hex()}.",
            fix="Leave `version` out to go on with the stream's own version, or reset the stream.",
            step=record.step,
            state_id=record.history_hash,
        )
    return Decision.APPLY


NO_STEP: Final = -1


def expected_previous_step(ask: Timestep) -> int:
    """Return the one step on which a request surely applies, as far as a step alone can tell; see `applies_without_store`.

    Returns:
        The step; `NO_STEP`: there is none, or more to look at.
    """
    if ask.seq is None or ask.after is not None or ask.create == "must" or ask.idempotency_key is not None:
        return NO_STEP
    return ask.seq - 1


def applies_without_store(step: int, chain: bytes, ask: Timestep) -> bool:
    """Whether `decide` says APPLY on a record of the model that would run, whatever else that record holds.

    A request with a key is never sure. Without one, an operation that is named by its position or its history
    cannot be the record's newest one where that very position or history comes next, and one that is named by
    neither has a name of its own.

    Args:
        step: The record's.
        chain: The record's.
        ask: The request.
    """
    return (
        (ask.seq is None or ask.seq == step + 1)
        and (ask.after is None or ask.after == chain)
        and ask.create != "must"
        and ask.idempotency_key is None
    )


def check_idempotency_entry(entry: IdempotencyEntry, intent: StepIntent) -> IdempotencyEntry:
    """Return the answer that an idempotency key had given.

    Raises:
        ServiceError: `idempotency_key_reused`: the key came with another request.
    """
    if entry.op_id != intent.op_id:
        raise ServiceError(
            "idempotency_key_reused",
            f"This Idempotency-Key was used for another request, which brought the stream to step {entry.step}.",
            fix="Send each new request with a new key; send a retry with the very same body.",
        )
    return entry


def _check_may_create(intent: StepIntent) -> None:
    if intent.after is not None:
        why = "`after` names a history, so the stream has to exist"
    elif intent.seq is not None and intent.seq > 1:
        why = f"`seq` is {intent.seq}, and a new stream begins with 1"
    elif intent.create == "never":
        why = "`create` is `never`"
    else:
        return
    raise ServiceError(
        "stream_not_found",
        f"There is no such stream, and none was begun: {why}.",
        fix="Send its history again from seq 1, or leave these out to begin a new stream.",
        expected=1 if intent.length else None,
        retry="resend_from" if intent.seq is not None and intent.seq > 1 else "never",
    )


def _check_position(record: Record, intent: StepIntent) -> None:
    step, seq = record.step, intent.seq
    facts: dict[str, Any] = {"step": step, "state_id": record.history_hash}
    if intent.create == "must":
        why, fix = "`create` is `must`", "Use another stream id, or `create: auto`."
        raise stream_exists(step, record.history_hash, why, fix=fix)
    if intent.length:
        facts["expected"] = step + 1
    if intent.after is not None and intent.after != record.history_hash:
        behind = seq is not None and step < seq - 1  # the store lost what this client had been told
        raise state_changed(retry="resend_from" if behind else "never", **facts)
    if seq is None or seq == step + 1:
        return
    if seq > step + 1:
        raise ServiceError(
            "seq_gap",
            f"`seq` is {seq}; the stream stands at step {step}, so {step + 1} comes next.",
            fix="Send the missing timesteps from `expected` on, then this one.",
            **facts,
        )
    if record.length and seq == step - record.length + 1:
        raise ServiceError(
            "seq_conflict",
            f"Position {seq} was taken by another request (other inputs, or a chunk of another length); "
            f"the stream stands at step {step}.",
            fix="Read the stream, then decide which of the two inputs is right.",
            **facts,
        )
    raise ServiceError(
        "seq_passed",
        f"Position {seq} was applied before; the stream stands at step {step}, and that answer is no longer kept.",
        fix="Treat it as done, and go on from `expected`.",
        applied="yes",
        **facts,
    )
