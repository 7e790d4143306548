"""`check_permissions`: whether the store lets us do all that serving takes, found out before the first request."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from service.store.checks.safety import UnsafeStoreError
from service.store.commits import Commit, script_call
from service.store.keys import PREFIX, event_log_key, snapshots_key
from service.store.record import HEADER_BYTES
from service.store.snapshots import SCRIPT
from service.store.state_store import StateStore
from service.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError, PipelinedConnection

_FIX: Final = "Give the user the rights that docs/stores.md lists."
_TOPIC: Final = "swl:check"
_LIFE_MS: Final = 10_000  # of what is written, should we be killed before it is deleted


async def check_permissions(store: StateStore) -> None:
    """Do once, on a key of no stream, what serving does; what the store's state refuses for now is not judged.

    Raises:
        UnsafeStoreError: A command is denied; it names which.
    """
    key = f"{PREFIX}{{/check/{secrets.token_hex(8)}}}"
    other, snapshots, log = f"{key}:o", snapshots_key(key), event_log_key(key)
    record = bytes(HEADER_BYTES)

    def script(expect: bytes, *, keep: bool = False, whole: bool = True) -> Sequence[Argument]:
        return script_call([Commit(key, expect, record)], ttl_ms=_LIFE_MS, entry_ttl_ms=1, keep=keep, whole=whole)

    commands: list[Sequence[Argument]] = [
        ("GET", key),
        ("GETRANGE", key, 16, 23),
        ("PTTL", key),
        ("SET", other, b"", "PX", _LIFE_MS),  # what scripts call, by itself: not every server names what it denies them
        ("PEXPIRE", other, _LIFE_MS),
        ("HSET", snapshots, "name", b""),
        ("HEXISTS", snapshots, "name"),
        ("HLEN", snapshots),
        ("HDEL", snapshots, "name"),
        script(b"", whole=False),
        script(b""),  # writes it, unless the one before did
        script(b""),  # finds it done
        script(record[8:64], keep=True),
        ("EVAL", SCRIPT.text, 1, snapshots, "name", b"snapshot", 1, _LIFE_MS),
        ("EVAL", SCRIPT.text, 1, snapshots, "name", b"", 1, _LIFE_MS),
        ("HGET", snapshots, "name"),
        ("HGETALL", snapshots),
        ("RPUSH", log, b"event"),
        ("LTRIM", log, -1, -1),
        ("LRANGE", log, 0, -1),
        ("DEL", key, other, snapshots, log),
        ("PUBLISH", _TOPIC, b""),
    ]
    try:
        _check_reply(commands, await store.transport.call(*commands))
        if not store.transport.is_cluster:
            _check_reply([("MGET",)], await store.transport.call(("MGET", key)))
        for part in (await store.transport.primaries())[1]:
            everywhere: list[Sequence[Argument]] = [("PING",), ("SCAN", 0, "MATCH", key, "COUNT", 1)]
            if store.waits_for_replica:
                everywhere.append(("WAIT", 0, 1))
            if store.transport.is_cluster:
                everywhere.append(("ASKING",))
            _check_reply(everywhere, await part.call(*everywhere))
        link = PipelinedConnection(
            await store.transport.open_dedicated(), store.transport.timeout
        )  # its own: a subscriber may ask nothing else
        subscribing: list[Sequence[Argument]] = [("SUBSCRIBE", _TOPIC), ("UNSUBSCRIBE", _TOPIC)]
        try:
            _check_reply(subscribing, await link.call(subscribing, store.transport.timeout))
        finally:
            link.abort("checked")
    except (NotSentError, NoReplyError, TimeoutError):
        return  # it was there a moment ago; requests will wait for it


def _check_reply(commands: Sequence[Sequence[Argument]], replies: Sequence[object]) -> None:
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, CommandError) and _is_denial(str(reply)):
            raise _denied(str(command[0]), str(reply))


def _is_denial(message: str) -> bool:
    """Whether a refusal is about rights. Inside a script servers word it differently."""
    return message.startswith(("NOPERM", "NOAUTH")) or "permission" in message or "ACL" in message


def _denied(command: str, message: str) -> UnsafeStoreError:
    return UnsafeStoreError(f"The store denies us {command}: {message}.", fix=_FIX)
