"""The artifact of a model is stored once for all who wait for it, each as long as its own deadline allows."""

from __future__ import annotations

import asyncio

import pytest

from stepwell.addons.artifacts.keeper import KeptArtifact
from stepwell.errors import StoreUnavailableError


class SlowBackend:
    """A backend that replies once it is released, as a store that was unavailable; it keeps to the given deadline."""

    check_s = 60.0

    def __init__(self) -> None:
        self.replies = asyncio.Event()

    async def renew(self, _name: str, _fingerprint: bytes, *, deadline: float) -> bool:
        try:
            async with asyncio.timeout_at(deadline):
                await self.replies.wait()
        except TimeoutError:
            raise StoreUnavailableError("The store did not reply.") from None
        return True

    async def put(self, name: str, fingerprint: bytes, artifact: bytes) -> None:
        raise AssertionError(name, fingerprint, artifact)

    async def get(self, name: str, fingerprint: bytes) -> bytes | None:
        raise AssertionError(name, fingerprint)


async def test_a_request_that_is_about_to_expire_does_not_fail_those_that_wait_with_it() -> None:
    backend, now = SlowBackend(), asyncio.get_running_loop().time()
    artifact = KeptArtifact("pump", 1, b"version1", backend=backend, read=bytes)
    late, early = (asyncio.create_task(artifact.ensure(now + seconds)) for seconds in (0.05, 30))
    with pytest.raises(StoreUnavailableError, match="before the deadline"):
        await late
    backend.replies.set()

    await early
