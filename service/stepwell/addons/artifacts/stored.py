"""`StoredArtifacts`: artifacts in the store, one hash of chunks per fingerprint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from stepwell.errors import ServiceError
from stepwell.store.record import blake2b_128
from stepwell.store.transport.retry import deadline, replies_of

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore

_CHUNK_BYTES: Final = 2**20  # so that one of them passes within the timeout of an exchange on a slow network
_COUNT_FIELD: Final = "chunks"  # digest and number of the chunks; written last: without it, it is not complete
_TIMEOUT_S: Final = 60.0
_CHECK_S: Final = 60.0


def artifact_key(name: str, fingerprint: bytes) -> str:
    """Return the key of the artifact of a model."""
    return f"swl:artifact:{{{fingerprint.hex()}}}:{name}"


class StoredArtifacts:
    """Keeps artifacts in the store; one that is not renewed expires.

    A renewal leaves at least 1.25 times the longest time that a record may live, so an artifact that is renewed every
    `check_s` seconds expires after the last record that names it.

    Attributes:
        check_s: Seconds within which an artifact has to be renewed while records are written that name it.
    """

    def __init__(self, store: StateStore, *, longest_ttl_s: float) -> None:
        """Create it on top of a state store.

        Args:
            store: The store of the records.
            longest_ttl_s: The longest time that a record or a snapshot may live after it was last written.
        """
        self._store = store
        self.check_s = min(_CHECK_S, 0.2 * longest_ttl_s)
        self._ttl_ms = int(1.5 * 1000 * longest_ttl_s)
        self._renew_below_ms = int(1.25 * 1000 * longest_ttl_s)

    async def renew(self, name: str, fingerprint: bytes, *, deadline: float) -> bool:
        """Return whether an artifact is stored, and extend its life if a sixth of it has passed.

        Raises:
            StoreUnavailableError: The store did not reply.
            OSError: The key holds a value of another type.
        """
        key = artifact_key(name, fingerprint)
        commands = [("HGET", key, _COUNT_FIELD), ("PTTL", key)]
        count, ttl = map(_checked, await replies_of(self._store.transport, commands, deadline=deadline))
        if count is None:
            return False
        if ttl < self._renew_below_ms:
            await self._execute(deadline, "PEXPIRE", key, self._ttl_ms)
        return True

    async def put(self, name: str, fingerprint: bytes, artifact: bytes) -> None:
        """Store an artifact; complete, or as if it was not stored.

        Raises:
            StoreUnavailableError: The store did not reply, or is full.
            OSError: The key holds a value of another type.
        """
        key, until = artifact_key(name, fingerprint), deadline(_TIMEOUT_S)
        digest = (await asyncio.to_thread(blake2b_128, artifact)).hex()  # of hundreds of megabytes it takes a while
        starts = range(0, len(artifact), _CHUNK_BYTES)
        try:
            for i, start in enumerate(starts):
                await self._execute(until, "HSET", key, f"{digest}:{i}", artifact[start : start + _CHUNK_BYTES])
                await self._execute(until, "PEXPIRE", key, self._ttl_ms)
            await self._execute(until, "HSET", key, _COUNT_FIELD, f"{digest}:{len(starts)}")
        except ServiceError:
            if await self._execute(deadline(_TIMEOUT_S), "HGET", key, _COUNT_FIELD) is None:
                await self._execute(deadline(_TIMEOUT_S), "DEL", key)  # a store that is full needs the room
            raise

    async def get(self, name: str, fingerprint: bytes) -> bytes | None:
        """Return an artifact, None if it is not stored.

        Raises:
            StoreUnavailableError: The store did not reply.
            OSError: The key holds a value of another type.
        """
        key, until = artifact_key(name, fingerprint), deadline(_TIMEOUT_S)
        count = await self._execute(until, "HGET", key, _COUNT_FIELD)
        if count is None:
            return None
        digest, _, n = count.decode(errors="replace").partition(":")
        fields = [f"{digest}:{i}" for i in range(int(n) if n.isdecimal() else 0)]
        return b"".join([await self._execute(until, "HGET", key, field) or b"" for field in fields])

    async def _execute(self, until: float, *command: Any) -> Any:
        return _checked(await self._store.execute(until, *command))


def _checked(reply: Any) -> Any:
    """Return a reply unless it is an error: the key may hold a value of another type."""
    if isinstance(reply, Exception):
        raise OSError(f"its key cannot be read or written: {reply}")
    return reply
