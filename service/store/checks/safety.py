"""What the store's own settings must be, and what was found, at the start and ever after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model_export.errors import StepwellError
from service.errors import ServiceError
from service.store.state_store import Durability, StateStore
from service.store.transport.connection import CommandError, NoReplyError, NotSentError

_log = logging.getLogger(__name__)
_TIMEOUT_S = 5.0


class UnsafeStoreError(StepwellError):
    """The store would lose what we promise to keep, or cannot be reached; the service does not start."""

    code = "unsafe_store"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a store says about itself; of a Cluster's primaries each fact is the worst.

    Attributes:
        server: `redis` or `valkey`, with its version.
        primaries: Servers that take writes; more than one in a Cluster.
        policy: What it does at its memory limit; only `noeviction` is safe.
        appendonly: Whether it keeps an append-only file.
        appendfsync: When it flushes that file; None where it may not be asked.
        replicas: Replicas that are connected.
        evicted: Keys that it deleted for want of memory.
        history: Names of its histories of replication: another one begins with a restart or a failover.
    """

    server: str
    primaries: int
    policy: str
    appendonly: bool
    appendfsync: str | None
    replicas: int
    evicted: int
    history: str

    def as_dict(self) -> dict[str, Any]:
        """Return what people want to know, as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "history"}


async def read_server_info(store: StateStore, *, patience: float) -> ServerInfo:
    """Ask a store about itself.

    Args:
        store: Which.
        patience: Seconds to wait for a store that is still starting.

    Raises:
        UnsafeStoreError: It does not answer, or refuses our credentials.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            _, parts = await store.transport.primaries()
            answers = [await part.call(("INFO",), ("CONFIG", "GET", "appendfsync")) for part in parts]
            return _worst_of([_facts(*answer) for answer in answers])
        except (NotSentError, NoReplyError, CommandError) as exc:
            passing = not isinstance(exc, CommandError) or exc.code in ("LOADING", "MASTERDOWN")
            hopeless = isinstance(exc, NotSentError) and exc.is_permanent
            if hopeless or not passing or loop.time() >= deadline:
                raise UnsafeStoreError(
                    f"The store does not serve us: {exc}.",
                    fix="Check that the server runs, that `redis` names it, and the user's password and rights.",
                ) from exc
            await asyncio.sleep(0.05)


def check_safe(facts: ServerInfo, durability: Durability, *, allow_eviction: bool) -> None:
    """Check that a store can keep what a durability level promises.

    Raises:
        UnsafeStoreError: It cannot.
    """
    check_no_eviction(facts, allow_eviction=allow_eviction)
    check_durability(facts, durability)


def check_no_eviction(facts: ServerInfo, *, allow_eviction: bool) -> None:
    """Check that a store deletes no live streams.

    Raises:
        UnsafeStoreError: It does, when its memory is short.
    """
    if facts.policy != "noeviction" and not allow_eviction:
        raise UnsafeStoreError(
            f"The store's maxmemory-policy is {facts.policy!r}; expected 'noeviction': any other silently deletes "
            "live streams when memory is short.",
            fix="Set `maxmemory-policy noeviction` in the store, or start with --allow-eviction to accept the loss.",
        )


def check_durability(facts: ServerInfo, durability: Durability) -> None:
    """Check that what is answered lasts as long as promised.

    Raises:
        UnsafeStoreError: It does not.
    """
    if durability == "fsync" and not (facts.appendonly and facts.appendfsync == "always"):
        found = f"appendonly {'yes' if facts.appendonly else 'no'}, appendfsync {facts.appendfsync or 'not readable'}"
        raise UnsafeStoreError(
            f"Durability is 'fsync' but the store has {found}; expected appendonly yes, appendfsync always.",
            fix="Set both in the store (and allow us CONFIG GET), or choose durability 'memory'.",
        )
    if durability == "replica" and facts.replicas < 1:
        raise UnsafeStoreError(
            "Durability is 'replica' but no replica is connected to the store; expected at least 1"
            + (" for each primary." if facts.primaries > 1 else "."),
            fix="Add a replica, or choose durability 'memory' or 'fsync'.",
        )


class SafetyMonitor:
    """Looks again and again whether the store still keeps what is promised, and stops commits that it would not keep.

    Attributes:
        facts: What the last look found; None before the first one.
        reasons: Why the store is not safe now.
    """

    def __init__(self, store: StateStore, durability: Durability, *, allow_eviction: bool) -> None:
        """Begin without a look.

        Args:
            store: Whose settings, and whose commits.
            durability: What is promised.
            allow_eviction: Whether the loss of live streams is accepted.
        """
        self.info: ServerInfo | None = None
        self.reasons: list[str] = []
        self._store = store
        self._durability: Durability = durability
        self._allow_eviction = allow_eviction

    async def check(self) -> None:
        """Look once. A store that does not answer is not judged: requests and readiness notice that by themselves."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                facts = await read_server_info(self._store, patience=0)
        except (UnsafeStoreError, TimeoutError):
            return
        before, self.info = self.info, facts
        if before is not None:
            _tell_changes(before, facts)
        reasons = []
        refusal: ServiceError | None = None
        try:
            check_no_eviction(facts, allow_eviction=self._allow_eviction)
        except UnsafeStoreError as exc:
            reasons.append(exc.problem)
        try:
            check_durability(facts, self._durability)
        except UnsafeStoreError as exc:
            reasons.append(exc.problem)
            refusal = ServiceError("not_durable", f"{exc.problem} Nothing was applied.", fix="Tell the operator.")
        for reason in reasons:
            if reason not in self.reasons:
                _log.error("The store is not safe: %s", reason)
        if self.reasons and not reasons:
            _log.warning("The store is safe again")
        # Without a replica each commit finds out by itself, and can be confirmed as soon as there is one.
        self._store.commit_error = refusal if self._durability == "fsync" else None
        self.reasons = reasons


def _tell_changes(before: ServerInfo, after: ServerInfo) -> None:
    if after.history != before.history:
        _log.warning("The store restarted or failed over: streams may have fallen back, and will say so")
    if after.evicted > before.evicted:
        _log.error("The store deleted %d live keys for want of memory", after.evicted - before.evicted)


def _facts(info: Any, fsync: Any) -> ServerInfo:
    """Read one server's answers.

    Raises:
        RefusalError: It does not say.
    """
    if isinstance(info, CommandError):
        raise info
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    known: Mapping[str, str] = {name: value for name, _, value in lines}
    name = "valkey" if "valkey_version" in known else "redis"
    may_ask = isinstance(fsync, list) and len(fsync) == 2  # an account with least rights may not
    return ServerInfo(
        server=f"{name} {known.get(name + '_version', '?')}",
        primaries=1,
        policy=known.get("maxmemory_policy", "noeviction"),
        appendonly=known.get("aof_enabled") == "1",
        appendfsync=fsync[1].decode() if may_ask else None,
        replicas=int(known.get("connected_slaves", 0)),
        evicted=int(known.get("evicted_keys", 0)),
        history=known.get("master_replid", ""),
    )


def _worst_of(found: Sequence[ServerInfo]) -> ServerInfo:
    evicting = [one.policy for one in found if one.policy != "noeviction"]
    fsyncs = [one.appendfsync for one in found if one.appendfsync != "always"]
    return ServerInfo(
        server=", ".join(dict.fromkeys(one.server for one in found)),
        primaries=len(found),
        policy=evicting[0] if evicting else "noeviction",
        appendonly=all(one.appendonly for one in found),
        appendfsync=fsyncs[0] if fsyncs else "always",
        replicas=min(one.replicas for one in found),
        evicted=sum(one.evicted for one in found),
        history=" ".join(one.history for one in found),
    )
