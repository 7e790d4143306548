"""`check_permissions`: checks before the first request that the store allows every command that serving needs."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from stepwell.service_addon import ServiceAddon
from stepwell.store.checks.safety import UnsafeStoreError
from stepwell.store.commits import Commit, script_call
from stepwell.store.keys import PREFIX, event_log_key
from stepwell.store.record import HEADER_BYTES
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError, PipelinedConnection

_TOPIC: Final = "swl:check"
_TTL_MS: Final = 10_000  # of the keys written here, in case the process is killed before it deletes them


async def check_permissions(store: StateStore, addons: Iterable[type[ServiceAddon]]) -> None:
    """Run every command that the service and these add-ons need on scratch keys; only permission errors count.

    Raises:
        UnsafeStoreError: A command is denied; the error names it.
    """
    key = f"{PREFIX}{{/check/{secrets.token_hex(8)}}}"
    other, log, record = f"{key}:o", event_log_key(key), bytes(HEADER_BYTES)

    def script(expect: bytes, *, keep_ttl: bool = False, send_source: bool = True) -> Sequence[Argument]:
        return script_call(
            [Commit(key, expect, record)], ttl_ms=_TTL_MS, entry_ttl_ms=1, keep_ttl=keep_ttl, send_source=send_source
        )

    commands: list[Sequence[Argument]] = [
        ("GET", key),
        ("GETRANGE", key, 16, 23),
        ("PTTL", key),
        # The commands of the scripts, by themselves: not every server names the command that it denies to a script.
        ("SET", other, b"", "PX", _TTL_MS),
        ("PEXPIRE", other, _TTL_MS),
        script(b"", send_source=False),
        script(b""),  # writes the record, unless the previous call did
        script(b""),  # returns DUPLICATE
        script(record[8:64], keep_ttl=True),
        ("RPUSH", log, b"event"),
        ("LTRIM", log, -1, -1),
        ("PUBLISH", _TOPIC, b""),
        *(command for addon in addons for command in addon.store_commands(key)),
        ("DEL", key, other, log),
    ]
    try:
        _check_replies(commands, await store.transport.call(*commands))
        if not store.transport.is_cluster:
            _check_replies([("MGET",)], await store.transport.call(("MGET", key)))
        for primary in (await store.transport.primaries())[1]:
            everywhere: list[Sequence[Argument]] = [("PING",), ("TIME",), ("SCAN", 0, "MATCH", key, "COUNT", 1)]
            if store.waits_for_replica:
                everywhere.append(("WAIT", 0, 1))
            if store.transport.is_cluster:
                everywhere.append(("ASKING",))
            _check_replies(everywhere, await primary.call(*everywhere))
        # A connection of its own: a subscribed connection accepts no other commands.
        connection = PipelinedConnection(await store.transport.open_dedicated(), store.transport.timeout)
        subscribing: list[Sequence[Argument]] = [("SUBSCRIBE", _TOPIC), ("UNSUBSCRIBE", _TOPIC)]
        try:
            _check_replies(subscribing, await connection.call(subscribing, store.transport.timeout))
        finally:
            connection.abort("checked")
    except (NotSentError, NoReplyError, TimeoutError):
        return  # the store replied before this check, so this may pass; requests retry until it replies


def _check_replies(commands: Sequence[Sequence[Argument]], replies: Sequence[object]) -> None:
    for command, reply in zip(commands, replies, strict=True):
        message = str(reply) if isinstance(reply, CommandError) else ""
        # For commands in a script, servers use different texts.
        if message.startswith(("NOPERM", "NOAUTH")) or "permission" in message or "ACL" in message:
            raise UnsafeStoreError(
                f"The store denies the command {command[0]!s} to our user: {message}.",
                fix='Give the user all rights that the page "The store" of the documentation lists, with ACL SETUSER.',
            )
