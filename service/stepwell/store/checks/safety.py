"""`SafetyMonitor`: checks the store's settings against the configured durability, at start and while serving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.errors import ServiceError
from stepwell.store.state_store import Durability, StateStore
from stepwell.store.transport.connection import CommandError, NoReplyError, NotSentError
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.errors import StepwellError

_log = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
_NO_SETTINGS = frozenset({"history", "used_memory", "max_memory"})


class UnsafeStoreError(StepwellError):
    """The store does not provide the configured durability, or cannot be reached; the service does not start."""

    code = "unsafe_store"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The settings and counters of a store; in a Cluster the worst of all primaries, or their sum.

    Attributes:
        server: `redis` or `valkey`, with its version.
        primaries: Number of servers that accept writes; more than one in a Cluster.
        policy: `maxmemory-policy`; only `noeviction` is safe.
        appendonly: Whether it writes an append-only file.
        appendfsync: When it flushes that file; None if we are not allowed to read the setting.
        replicas: Number of connected replicas.
        evicted: Number of keys that it evicted because its memory was full.
        history: Ids of the processes and of their data, which change with a restart or a failover.
        used_memory: Bytes of memory that it uses.
        max_memory: Bytes of memory that it may use; 0: there is no limit.
    """

    server: str
    primaries: int
    policy: str
    appendonly: bool
    appendfsync: str | None
    replicas: int
    evicted: int
    history: str
    used_memory: int
    max_memory: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that describe the store's settings, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in _NO_SETTINGS}


async def read_server_info(store: StateStore, *, timeout: float) -> ServerInfo:
    """Read the settings and counters of a store.

    Args:
        store: The store.
        timeout: Seconds to wait for a store that is still starting.

    Raises:
        UnsafeStoreError: It does not reply, or refuses our credentials.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        try:
            _, primaries = await store.transport.primaries()
            replies = [await primary.call(("INFO",), ("CONFIG", "GET", "appendfsync")) for primary in primaries]
            return _worst_of([_server_info(*reply) for reply in replies])
        except (NotSentError, NoReplyError, CommandError) as exc:
            is_transient = not isinstance(exc, CommandError) or exc.code in ("LOADING", "MASTERDOWN")
            is_permanent = isinstance(exc, NotSentError) and exc.is_permanent
            if is_permanent or not is_transient or loop.time() >= deadline:
                raise UnsafeStoreError(
                    f"The store cannot be used: {str(exc).rstrip('.')}.",
                    fix="Check that the server runs, that `redis` is its URL, and the user's password and permissions.",
                ) from exc
            await asyncio.sleep(0.05)


def check_safe(info: ServerInfo, durability: Durability, *, allow_eviction: bool) -> None:
    """Check that a store provides a durability and evicts no live streams.

    Raises:
        UnsafeStoreError: It does not.
    """
    check_no_eviction(info, allow_eviction=allow_eviction)
    check_durability(info, durability)


def check_no_eviction(info: ServerInfo, *, allow_eviction: bool) -> None:
    """Check that a store evicts no live streams.

    Raises:
        UnsafeStoreError: It does when its memory is full.
    """
    if info.policy != "noeviction" and not allow_eviction:
        raise UnsafeStoreError(
            f"The store's maxmemory-policy is {info.policy!r}; expected 'noeviction': any other policy silently "
            "deletes live streams when memory is full.",
            fix="Set `maxmemory-policy noeviction` in the store, or start with --allow-eviction to accept the loss.",
        )


def check_durability(info: ServerInfo, durability: Durability) -> None:
    """Check that confirmed commits survive what the durability requires.

    Raises:
        UnsafeStoreError: They do not.
    """
    if durability == "fsync" and not (info.appendonly and info.appendfsync == "always"):
        found = f"appendonly {'yes' if info.appendonly else 'no'}, appendfsync {info.appendfsync or 'not readable'}"
        raise UnsafeStoreError(
            f"Durability is 'fsync' but the store has {found}; expected appendonly yes, appendfsync always.",
            fix="Set both in the store (and allow CONFIG GET to our user), or choose durability 'memory'.",
        )
    if durability == "replica" and info.replicas < 1:
        raise UnsafeStoreError(
            "Durability is 'replica' but no replica is connected to the store; expected at least 1"
            + (" for each primary." if info.primaries > 1 else "."),
            fix="Add a replica, or choose durability 'memory' or 'fsync'.",
        )


class SafetyMonitor:
    """Checks that the store provides the configured durability, and stops commits while it does not.

    Attributes:
        info: Result of the last check; None before the first one.
        reasons: Why the store is not safe now; empty if it is.
    """

    def __init__(self, store: StateStore, durability: Durability, *, allow_eviction: bool) -> None:
        """Create it; the first check is the first call of `check`.

        Args:
            store: The store to check, whose commits are stopped.
            durability: The configured durability.
            allow_eviction: Whether the loss of live streams is accepted.
        """
        self.info: ServerInfo | None = None
        self.reasons: list[str] = []
        self._store = store
        self._durability: Durability = durability
        self._allow_eviction = allow_eviction

    async def check(self) -> None:
        """Check once. A store that does not reply changes nothing here: requests and readiness handle that."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                info = await read_server_info(self._store, timeout=0)
        except (UnsafeStoreError, TimeoutError):
            return
        before, self.info = self.info, info
        if before is not None:
            _log_changes(before, info)
        reasons = []
        error: ServiceError | None = None
        try:
            check_no_eviction(info, allow_eviction=self._allow_eviction)
        except UnsafeStoreError as exc:
            reasons.append(exc.problem)
        try:
            check_durability(info, self._durability)
        except UnsafeStoreError as exc:
            reasons.append(exc.problem)
            error = ServiceError("not_durable", f"{exc.problem} Nothing was applied.", fix="Tell the operator.")
        for reason in reasons:
            if reason not in self.reasons:
                _log.error("The store is not safe: %s", reason)
        if self.reasons and not reasons:
            _log.warning("The store is safe again")
        # With durability 'replica' each commit waits for the replica itself, and succeeds as soon as there is one.
        self._store.commit_error = error if self._durability == "fsync" else None
        self.reasons = reasons


def _log_changes(before: ServerInfo, after: ServerInfo) -> None:
    if after.history != before.history:
        _log.warning("The store restarted or failed over: it may have lost the newest timesteps of streams")
    if after.evicted > before.evicted:
        n_evicted = counted(after.evicted - before.evicted, "live key")
        _log.error("The store evicted %s because its memory is full", n_evicted)


def _server_info(info: Any, fsync: Any) -> ServerInfo:
    """Decode one server's replies to INFO and CONFIG GET.

    Raises:
        CommandError: The server refused INFO.
    """
    if isinstance(info, CommandError):
        raise info
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    fields: Mapping[str, str] = {name: value for name, _, value in lines}
    name = "valkey" if "valkey_version" in fields else "redis"
    is_readable = isinstance(fsync, list) and len(fsync) == 2  # a user with minimal permissions gets an error
    return ServerInfo(
        server=f"{name} {fields.get(name + '_version', '?')}",
        primaries=1,
        policy=fields.get("maxmemory_policy", "noeviction"),
        appendonly=fields.get("aof_enabled") == "1",
        appendfsync=fsync[1].decode() if is_readable else None,
        replicas=int(fields.get("connected_slaves", 0)),
        evicted=int(fields.get("evicted_keys", 0)),
        history=_history(fields),
        used_memory=int(fields.get("used_memory", 0)),
        max_memory=int(fields.get("maxmemory", 0)),
    )


def _history(fields: Mapping[str, str]) -> str:
    """Return ids of a server's process and of its data: a restart or a failover changes them.

    The replication id alone also changes when the first replica connects, and `stepwell backup` is one. Only a server
    that has taken over from another one has a second replication id.
    """
    process, has_taken_over = fields.get("run_id", ""), fields.get("master_replid2", "").strip("0") != ""
    return f"{process} {fields.get('master_replid', '')}" if has_taken_over or not process else process


def _worst_of(servers: Sequence[ServerInfo]) -> ServerInfo:
    evicting = [server.policy for server in servers if server.policy != "noeviction"]
    fsyncs = [server.appendfsync for server in servers if server.appendfsync != "always"]
    return ServerInfo(
        server=", ".join(dict.fromkeys(server.server for server in servers)),
        primaries=len(servers),
        policy=evicting[0] if evicting else "noeviction",
        appendonly=all(server.appendonly for server in servers),
        appendfsync=fsyncs[0] if fsyncs else "always",
        replicas=min(server.replicas for server in servers),
        evicted=sum(server.evicted for server in servers),
        history=" ".join(server.history for server in servers),
        used_memory=sum(server.used_memory for server in servers),
        max_memory=sum(server.max_memory for server in servers) if all(server.max_memory for server in servers) else 0,
    )
