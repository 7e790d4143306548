"""`execute_with_retry`: sends commands, and retries each until it has a reply or its deadline passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from stepwell.errors import OutcomeUnknownError, ServiceError, StoreFullError, StoreUnavailableError
from stepwell.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError
from stepwell_client.wire.backoff import Backoff

if TYPE_CHECKING:
    from stepwell.store.transport.transport import RedisTransport

_TIMEOUT_S: Final = 5.0
_BACKOFF: Final = Backoff(0.01, 0.25, jitter=0)
# Transient errors: the server is loading, failing over, or cannot write for now. Nothing was applied.
_TRANSIENT: Final = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MISCONF", "NOREPLICAS", "MOVED", "ASK")
)
_REDIRECTS: Final = frozenset(("MOVED", "ASK"))  # errors that contain the address of another server
_SCRIPT_ERRORS: Final = frozenset(("WRONGTYPE",))  # errors about the key: a result, not a failure

_Sent = tuple[int, Sequence[Argument], bool]  # index, command, and whether an earlier send may have been executed


def deadline(timeout_s: float = _TIMEOUT_S) -> float:
    """Return the deadline of one exchange with the store, on the running loop's clock."""
    return asyncio.get_running_loop().time() + timeout_s


async def replies_of(
    transport: RedisTransport, commands: Sequence[Sequence[Argument]], *, deadline: float
) -> list[Any]:
    """Return a reply per command; as `execute_with_retry`, but a command without a reply is an error of all.

    Raises:
        ServiceError: The first error among them; an error reply about a key is returned.
    """
    replies = await execute_with_retry(transport, commands, deadline=deadline)
    for reply in replies:
        if isinstance(reply, ServiceError):
            raise reply
    return replies


async def execute_with_retry(
    transport: RedisTransport,
    commands: Sequence[Sequence[Argument]],
    *,
    deadline: float,
    script: str | None = None,
    confirm: bool = False,
) -> list[Any]:
    """Return a reply per command, or the `ServiceError` of a command that has none by the deadline.

    Every command must be safe to send twice. A commit is: whichever send is executed first is applied, and the other
    returns DUPLICATE.

    Args:
        transport: The store transport.
        commands: Each a command and its arguments.
        deadline: On the running loop's clock.
        script: The commands are `EVALSHA` of this script, which changes streams: without a reply, the outcome is
            unknown.
        confirm: Wait until a replica has confirmed the writes.
    """
    failures = 0
    replies: list[Any] = []  # one per command; empty until the first exchange leaves commands to retry
    sent: list[_Sent] = []
    while True:
        left = deadline - time.monotonic()  # the loop's clock; `get_running_loop` is a system call before Python 3.12
        try:
            if left <= 0:
                raise NotSentError("the deadline passed", is_permanent=True)
            received = await transport.call(*commands, timeout=min(left, transport.timeout), confirm=confirm)
        except (NotSentError, NoReplyError) as exc:
            received = [exc] * len(commands)
        if not sent:
            if not any([isinstance(reply, Exception) for reply in received]):  # noqa: C419 - a generator costs twice as much
                return received
            replies = [None] * len(commands)
            sent = [(i, command, False) for i, command in enumerate(commands)]
        again: list[_Sent] = []
        needs_pause = False
        pause = _BACKOFF.after(failures + 1)
        last = deadline - time.monotonic() <= pause
        for (i, command, maybe_done), reply in zip(sent, received, strict=True):
            if not isinstance(reply, Exception) or (isinstance(reply, CommandError) and reply.code in _SCRIPT_ERRORS):
                replies[i] = reply
                continue
            lost = maybe_done or isinstance(reply, NoReplyError)
            if script is not None and isinstance(reply, CommandError) and reply.code == "NOSCRIPT":
                again.append((i, ("EVAL", script, *command[2:]), maybe_done))
            elif last or _is_final(reply):
                replies[i] = _error(reply, changes_streams=script is not None, lost=lost)
            else:
                again.append((i, command, lost))
                needs_pause = True
        if not again:
            return replies
        sent, commands = again, [command for _, command, _ in again]
        if needs_pause:
            await asyncio.sleep(pause)
            failures += 1


def _is_final(error: Exception) -> bool:
    """Whether a retry before the deadline cannot succeed."""
    if isinstance(error, CommandError):
        return error.code not in _TRANSIENT
    return isinstance(error, NotSentError) and error.is_permanent


def public_reason(error: Exception) -> str:
    """Return the reason of an error without the store's addresses, for responses to clients."""
    if isinstance(error, NotSentError):
        return error.public_reason
    return error.code if isinstance(error, CommandError) and error.code in _REDIRECTS else str(error)


def _error(error: Exception, *, changes_streams: bool, lost: bool) -> Exception:
    reason = public_reason(error)
    if not changes_streams:
        return StoreUnavailableError(f"The store did not reply: {reason}.")
    if lost:
        return OutcomeUnknownError(f"The store did not confirm the step: {reason}.")
    if isinstance(error, CommandError) and error.code == "OOM":
        return StoreFullError(f"The store is full: {reason}.")
    return StoreUnavailableError(f"The store did not apply the step: {reason}.")
