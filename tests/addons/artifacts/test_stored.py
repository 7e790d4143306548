"""Artifacts in the store: kept in pieces, complete or not there, on every server and on a Cluster."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from stepwell.addons.artifacts.stored import StoredArtifacts, artifact_key
from stepwell.store.state_store import StateStore
from tests.servers import Server
from tests.store.clusters import KINDS, Cluster, server_or_cluster

TTL_S = 1000.0


@pytest.fixture(scope="module", params=KINDS)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with server_or_cluster(request.param) as running:
        yield running


@pytest.fixture
async def store(any_server: Server | Cluster) -> AsyncIterator[StateStore]:
    store = StateStore(any_server.url)
    yield store
    await store.close()


@pytest.fixture
def fingerprint() -> bytes:
    return secrets.token_bytes(8)


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


async def test_an_artifact_of_several_pieces_is_read_back(store: StateStore, fingerprint: bytes) -> None:
    artifacts, content = StoredArtifacts(store, longest_ttl_s=TTL_S), secrets.token_bytes(3 * 2**20 + 7)
    assert not await artifacts.renew("m", fingerprint, deadline=soon())
    assert await artifacts.get("m", fingerprint) is None

    await artifacts.put("m", fingerprint, content)

    assert await artifacts.renew("m", fingerprint, deadline=soon())
    assert await artifacts.get("m", fingerprint) == content
    assert await artifacts.get("other", fingerprint) is None


async def test_an_artifact_that_was_not_written_to_its_end_does_not_exist(
    store: StateStore, fingerprint: bytes
) -> None:
    artifacts, key = StoredArtifacts(store, longest_ttl_s=TTL_S), artifact_key("m", fingerprint)
    await artifacts.put("m", fingerprint, bytes(10))
    await store.execute(soon(), "HDEL", key, "chunks")

    assert await artifacts.get("m", fingerprint) is None
    assert not await artifacts.renew("m", fingerprint, deadline=soon())


async def test_a_renewed_artifact_outlives_every_record_until_the_next_renewal(
    store: StateStore, fingerprint: bytes
) -> None:
    artifacts, key = StoredArtifacts(store, longest_ttl_s=TTL_S), artifact_key("m", fingerprint)
    await artifacts.put("m", fingerprint, bytes(10))
    for left_s in (1, 1.2 * TTL_S, 1.3 * TTL_S):
        await store.execute(soon(), "PEXPIRE", key, int(1000 * left_s))
        await artifacts.renew("m", fingerprint, deadline=soon())
        ttl_s = await store.execute(soon(), "PTTL", key) / 1000

        assert TTL_S + artifacts.check_s < ttl_s <= 1.5 * TTL_S


async def test_a_key_of_another_type_is_an_error(store: StateStore, fingerprint: bytes) -> None:
    await store.execute(soon(), "SET", artifact_key("m", fingerprint), b"text")

    with pytest.raises(OSError, match="cannot be read or written: WRONGTYPE"):
        await StoredArtifacts(store, longest_ttl_s=TTL_S).get("m", fingerprint)
