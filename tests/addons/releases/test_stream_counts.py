"""Streams are counted by the version that responds, by one worker at a time."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator

import pytest

from stepwell.addons.releases import keys
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.pair_state import PairState
from stepwell.addons.releases.store import ReleaseStore
from stepwell.addons.releases.stream_counts import StreamCounter
from stepwell.store.keys import record_key
from stepwell.store.record import Kind, Record, SourcePosition
from stepwell.store.state_store import StateStore
from tests.servers import Server

OLD, NEW = b"version1", b"version2"


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[ReleaseStore]:
    one = StateStore(redis_server.url)
    yield ReleaseStore(one)
    await one.close()


def record(fingerprint: bytes, state: bytes = b"state" * 10, *, with_source: bool = False) -> bytes:
    sources = (SourcePosition(b"digest00", 7),) if with_source else ()
    return Record(1, 1, 1, Kind.STEP, b"o" * 16, b"h" * 16, fingerprint, 0, 0, b"y", state, sources).encode()


def pair(*, responded: bool) -> bytes:
    state = PairState(OLD, NEW, "ramp", 1, responded=responded)
    return record(state.assignment.fingerprint, b"both states" + state.encode())


def put(server: Server, tenant: str, model: str, *records: bytes) -> None:
    with server.client() as client:
        for value in records:
            client.set(record_key(tenant, model, secrets.token_hex(8)), value)


async def test_pairs_count_for_the_version_that_responded(redis_server: Server, store: ReleaseStore) -> None:
    put(redis_server, "a", "pump", record(OLD), record(OLD, with_source=True), record(NEW))
    put(redis_server, "b", "pump", pair(responded=True), pair(responded=True), pair(responded=False))
    put(redis_server, "a", "fan", record(OLD))
    counter = StreamCounter(store, Releases())
    await counter.refresh()

    assert counter.counts is not None
    assert counter.counts.of("pump") == {OLD.hex(): 3, NEW.hex(): 3}
    assert counter.counts.of("fan") == {OLD.hex(): 1}
    assert counter.counts.of("other") == {}


async def test_other_keys_and_values_are_not_counted(redis_server: Server, store: ReleaseStore) -> None:
    put(redis_server, "a", "pump", record(OLD), b"", struct.pack("<Q", 1))
    with redis_server.client() as client:
        client.hset(record_key("a", "pump", "hash"), "field", b"value")
        client.set(record_key("a", "pump", "s") + ":k:1", record(OLD))
    counter = StreamCounter(store, Releases())
    await counter.refresh()

    assert counter.counts is not None
    assert counter.counts.of("pump") == {OLD.hex(): 1}


async def test_all_pages_are_counted(redis_server: Server, store: ReleaseStore) -> None:
    put(redis_server, "a", "pump", *([record(OLD)] * 2500), *([record(NEW)] * 700))
    releases = Releases()
    releases.put("pump", ReleaseDocument("pump", 1, ReleaseVersion(1, OLD), 0.0))
    counter = StreamCounter(store, releases)
    await counter.refresh()

    assert counter.counts is not None
    assert counter.counts.of("pump") == {OLD.hex(): 2500, NEW.hex(): 700}
    assert counter.counts.pages > 3


async def test_one_worker_counts_and_the_others_read(redis_server: Server, store: ReleaseStore) -> None:
    put(redis_server, "a", "pump", record(OLD))
    first, second = StreamCounter(store, Releases()), StreamCounter(store, Releases())
    await first.refresh()
    put(redis_server, "a", "pump", record(OLD))
    await second.refresh()

    assert second.counts == first.counts
    with redis_server.client() as client:
        client.delete(keys.COUNT_LEASE)
    await second.refresh()
    assert second.counts is not None
    assert second.counts.of("pump") == {OLD.hex(): 2}


async def test_the_lease_of_a_worker_that_was_killed_expires(redis_server: Server, store: ReleaseStore) -> None:
    with redis_server.client() as client:
        client.set(keys.COUNT_LEASE, "killed", px=200)
    put(redis_server, "a", "pump", record(OLD))
    counter = StreamCounter(store, Releases())
    async with asyncio.timeout(10):
        while counter.counts is None:
            await counter.refresh()

    assert counter.counts.of("pump") == {OLD.hex(): 1}
