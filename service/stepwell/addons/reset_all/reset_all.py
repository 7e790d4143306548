"""`reset_all_streams`: resets all streams of a model that a tenant has; with an idempotency key once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stepwell.engine.protocol.decide import StepIntent, check_idempotency_entry
from stepwell.engine.streams.new_states import NewState
from stepwell.engine.streams.resets import replacement, reset_op_id
from stepwell.engine.streams.transaction import commit_each_when_decided
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.commits import DELETE, Commit
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.listing import page
from stepwell.store.record import Kind, blake2b_128
from stepwell.store.state_store import checked
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.engine.streams.service import StreamService

_INTENT = StepIntent(blake2b_128(b"reset all"), 0, None, None, "auto", None)
_PAGE: Final = 500  # streams that are reset at once
_PAGE_BYTES: Final = 16 * 1024 * 1024  # of their states
_LONGEST_S: Final = 300.0


async def reset_all_streams(
    streams: StreamService, tenant: str, model: str, *, idempotency_key: str | None = None
) -> int:
    """Reset all streams of a model that a tenant has, and return their number.

    They are reset page by page, each page in one commit, for at most `_LONGEST_S` seconds. A stream that is deleted in
    the meantime is not created again.

    Args:
        streams: The streams of an engine.
        tenant: The tenant.
        model: The model's name.
        idempotency_key: The client's, if any. A request with a key whose result is stored resets nothing; a request
            that was interrupted is continued by the same one, which resets no stream twice.

    Raises:
        ServiceError: Not all could be reset; `applied` is "no" if none was, "unknown" if some may have been. No reset
            is still running then. `idempotency_key_reused`: a stream has an operation with this key.
    """
    deps = streams.deps
    served = deps.models.get(model)
    initial = NewState(Kind.RESET, 0, served.fingerprint, served.step_model.initial_state)
    name, transport, deadline = keys.record_key(tenant, model, ""), deps.store.transport, deps.admission.deadline
    entry_key = None if idempotency_key is None else keys.idempotency_key_of(name, idempotency_key)
    if entry_key is not None:
        [stored] = await deps.store.load_with_errors([entry_key], deadline=deadline(), exact=True)
        if (entry := checked(stored)) is not None:
            await deps.store.wait_for_replica(name, None, entry_key, deadline=deadline())
            return _number_in(entry)
    limit = max(1, min(_PAGE, _PAGE_BYTES // max(1, len(initial.state))))
    ends_at = asyncio.get_running_loop().time() + _LONGEST_S
    cursor: str | None = None
    done: set[str] = set()
    n_reset = 0
    while True:
        try:
            _check_time(ends_at)
            names, cursor = await page(transport, tenant, model, "", cursor, limit=limit, deadline=deadline())
            deps.admission.check()
        except ServiceError as exc:
            raise _partial_error(n_reset, [exc], is_all=False) from exc
        decisions = {
            (key := StreamKey(tenant, model, name)): replacement(
                key,
                initial,
                reset_op_id(None, None, idempotency_key),
                had_key=idempotency_key is not None,
                only_existing=True,
            )
            for name in names
            if name not in done
        }
        results = await commit_each_when_decided(
            deps, decisions, deadline=min(deadline(), ends_at), idempotency_key=idempotency_key
        )
        errors = [result for result in results if isinstance(result, ServiceError)]
        n_reset += len(results) - len(errors)
        if errors := [error for error in errors if error.code != "stream_not_found"]:  # deleted since it was listed
            raise _partial_error(n_reset, errors, is_all=cursor is None)
        done.update(names)
        if cursor is None:
            break
    if entry_key is None:
        return n_reset
    # The entry is that of a stream without a name, which no request can create: its deletion writes the entry alone.
    number = IdempotencyEntry(_INTENT.op_id, 0, n_reset, bytes(16), 0, b"").encode()
    try:
        result = (await deps.store.commit([Commit(name, b"", DELETE, entry_key, number)], deadline=deadline()))[0]
    except ServiceError as exc:
        raise _partial_error(n_reset, [exc], is_all=True) from exc
    return n_reset if result.stored is None else _number_in(result.stored)  # that of a copy of this request


def _number_in(entry: bytes) -> int:
    """Return the number of streams that a request has reset, from its entry."""
    return check_idempotency_entry(IdempotencyEntry.decode(entry), _INTENT).step


def _check_time(ends_at: float) -> None:
    if asyncio.get_running_loop().time() >= ends_at:
        raise ServiceError("overloaded", f"The reset of all streams took longer than {_LONGEST_S:g} s.")


def _partial_error(done: int, errors: Sequence[ServiceError], *, is_all: bool) -> ServiceError:
    """Return the error for a reset of all streams that failed.

    Args:
        done: Number of streams that were reset.
        errors: The errors of the others, or of what followed.
        is_all: Whether no other stream was to be reset.
    """
    outcomes = {error.applied for error in errors}
    if (outcomes == {"no"} and not done) or (outcomes == {"yes"} and is_all):
        return errors[0]
    return ServiceError(
        "outcome_unknown",
        f"{done} streams were reset before others failed: {errors[0].problem}",
        fix="Send the same request again to reset the others. Without an Idempotency-Key, all streams are reset again.",
        applied="unknown",
    )
