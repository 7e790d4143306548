"""`execute_with_retry`: sends commands, each again where it has to be, until it is answered or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from service.errors import OutcomeUnknownError, StoreFullError, StoreUnavailableError
from service.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError

if TYPE_CHECKING:
    from service.store.transport.transport import RedisTransport

_FIRST_PAUSE_S: Final = 0.01
_MAX_PAUSE_S: Final = 0.25
# Refusals that pass: the server is loading, failing over, or cannot write for now. Nothing was applied.
_TRANSIENT: Final = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MISCONF", "NOREPLICAS", "MOVED", "ASK")
)
_REDIRECTS: Final = frozenset(("MOVED", "ASK"))  # refusals that name another server
_SCRIPT_ERRORS: Final = frozenset(("WRONGTYPE",))  # refusals that tell something of the key

_Sent = tuple[int, Sequence[Argument], bool]  # its place, itself, and whether a copy of it may have been executed


async def execute_with_retry(
    wire: RedisTransport,
    commands: Sequence[Sequence[Argument]],
    *,
    deadline: float,
    script: str | None = None,
    confirm: bool = False,
) -> list[Any]:
    """Return a reply per command, or the `ServiceError` of one that had none until the deadline.

    Every command must be one that may be sent twice. A commit is: whichever copy is executed first wins, the other
    finds itself already done.

    Args:
        wire: The way to the store.
        commands: Each a command and its arguments.
        deadline: On the running loop's clock.
        script: The commands are `EVALSHA` of this script, which moves streams: where a reply is missing, the outcome
            is unknown.
        confirm: Wait for a replica.
    """
    loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_S
    replies: list[Any] = []  # one per command, once the first exchange has left some to be sent again
    sent: list[_Sent] = []
    while True:
        left = deadline - loop.time()
        try:
            if left <= 0:
                raise NotSentError("the deadline passed", is_permanent=True)
            found = await wire.call(*commands, timeout=min(left, wire.timeout), confirm=confirm)
        except (NotSentError, NoReplyError) as exc:
            found = [exc] * len(commands)
        if not sent:
            if not any([isinstance(reply, Exception) for reply in found]):  # noqa: C419 - a generator costs twice as much
                return found
            replies = [None] * len(commands)
            sent = [(at, command, False) for at, command in enumerate(commands)]
        again: list[_Sent] = []
        pauses = False
        last = deadline - loop.time() <= pause
        for (at, command, maybe_done), reply in zip(sent, found, strict=True):
            if not isinstance(reply, Exception) or (isinstance(reply, CommandError) and reply.code in _SCRIPT_ERRORS):
                replies[at] = reply
                continue
            lost = maybe_done or isinstance(reply, NoReplyError)
            if script is not None and isinstance(reply, CommandError) and reply.code == "NOSCRIPT":
                again.append((at, ("EVAL", script, *command[2:]), maybe_done))
            elif last or _is_final(reply):
                replies[at] = _error(reply, moves=script is not None, lost=lost)
            else:
                again.append((at, command, lost))
                pauses = True
        if not again:
            return replies
        sent, commands = again, [command for _, command, _ in again]
        if pauses:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)


def _is_final(trouble: Exception) -> bool:
    """Whether sending the command again at once is in vain."""
    if isinstance(trouble, CommandError):
        return trouble.code not in _TRANSIENT
    return isinstance(trouble, NotSentError) and trouble.is_permanent


def public_reason(trouble: Exception) -> str:
    """Return what went wrong, without addresses: who is told need not know where the store is."""
    if isinstance(trouble, NotSentError):
        return trouble.public_reason
    return trouble.code if isinstance(trouble, CommandError) and trouble.code in _REDIRECTS else str(trouble)


def _error(trouble: Exception, *, moves: bool, lost: bool) -> Exception:
    why = public_reason(trouble)
    if not moves:
        return StoreUnavailableError(f"The store did not answer: {why}.")
    if lost:
        return OutcomeUnknownError(f"The store did not confirm the step: {why}.")
    if isinstance(trouble, CommandError) and trouble.code == "OOM":
        return StoreFullError(f"The store is full: {why}.")
    return StoreUnavailableError(f"The store took no step: {why}.")
