"""What the store's own settings must be, and what was found."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError, ResponseError

from model_export.errors import StepwellError
from service.store.redis import Durability, StateStore


class UnsafeStoreError(StepwellError):
    """The store would lose what we promise to keep, or cannot be reached; the service does not start."""

    code = "unsafe_store"


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store says about itself.

    Attributes:
        server: `redis` or `valkey`, with its version.
        policy: What it does at its memory limit; only `noeviction` is safe.
        appendonly: Whether it keeps an append-only file.
        appendfsync: When it flushes that file; None where it may not be asked.
        replicas: Replicas that are connected.
    """

    server: str
    policy: str
    appendonly: bool
    appendfsync: str | None
    replicas: int


async def read_facts(store: StateStore, *, patience: float) -> StoreFacts:
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
            async with asyncio.timeout(max(deadline - loop.time(), 0.1)):
                client = store.wire.client
                info = await client.info()
                fsync = await _appendfsync(client)
                break
        except (RedisError, OSError, TimeoutError) as exc:
            passing = not isinstance(exc, ResponseError) or str(exc).startswith(("LOADING", "MASTERDOWN"))
            if not passing or loop.time() >= deadline:
                raise UnsafeStoreError(
                    f"The store does not serve us: {str(exc) or 'no answer in time'}.",
                    fix="Check that the server runs, that `redis` names it, and the user's password and rights.",
                ) from exc
            await asyncio.sleep(0.05)
    name = "valkey" if "valkey_version" in info else "redis"
    return StoreFacts(
        server=f"{name} {info.get(name + '_version', '?')}",
        policy=str(info.get("maxmemory_policy", "noeviction")),
        appendonly=bool(int(info.get("aof_enabled", 0))),
        appendfsync=fsync,
        replicas=int(info.get("connected_slaves", 0)),
    )


def demand_safe(facts: StoreFacts, durability: Durability, *, allow_eviction: bool) -> None:
    """Check that a store can keep what a durability level promises.

    Raises:
        UnsafeStoreError: It cannot.
    """
    if facts.policy != "noeviction" and not allow_eviction:
        raise UnsafeStoreError(
            f"The store's maxmemory-policy is {facts.policy!r}; expected 'noeviction': any other silently deletes "
            "live streams when memory is short.",
            fix="Set `maxmemory-policy noeviction` in the store, or start with --allow-eviction to accept the loss.",
        )
    if durability == "fsync" and not (facts.appendonly and facts.appendfsync == "always"):
        found = f"appendonly {'yes' if facts.appendonly else 'no'}, appendfsync {facts.appendfsync or 'not readable'}"
        raise UnsafeStoreError(
            f"Durability is 'fsync' but the store has {found}; expected appendonly yes, appendfsync always.",
            fix="Set both in the store (and allow us CONFIG GET), or choose durability 'memory'.",
        )
    if durability == "replica" and facts.replicas < 1:
        raise UnsafeStoreError(
            "Durability is 'replica' but no replica is connected to the store; expected at least 1.",
            fix="Add a replica, or choose durability 'memory' or 'fsync'.",
        )


async def _appendfsync(client: Any) -> str | None:
    try:
        found = await client.config_get("appendfsync")
    except ResponseError:  # an account with least rights may not ask
        return None
    value = found.get("appendfsync")
    return None if value is None else str(value.decode() if isinstance(value, bytes) else value)
