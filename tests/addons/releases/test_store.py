"""The release documents in the store: compare-and-set, and everything else that they use, also on a Cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from msgspec.structs import replace

from stepwell.addons.releases.counters import TrialCounts, add_counts, read_counts
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.keys import release_key
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.store import ReleaseStore, StoredRelease
from stepwell.addons.releases.stream_counts import StreamCounter
from stepwell.addons.releases.sweep_progress import SweepProgress, read_sweep, request_sweep
from stepwell.errors import CorruptRecordError
from stepwell.store.keys import record_key
from stepwell.store.record import Kind, Record
from stepwell.store.state_store import StateStore
from tests.servers import Server
from tests.store.clusters import KINDS, Cluster, server_or_cluster


@pytest.fixture(scope="module", params=KINDS)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with server_or_cluster(request.param) as running:
        yield running


@pytest.fixture
async def store(any_server: Server | Cluster) -> AsyncIterator[ReleaseStore]:
    one = StateStore(any_server.url)
    yield ReleaseStore(one)
    await one.close()


@pytest.fixture
def document() -> ReleaseDocument:
    return ReleaseDocument(f"m{secrets.token_hex(4)}", 1, ReleaseVersion(1, b"version1"), 1000.0)


async def test_a_document_is_read_as_it_was_written(store: ReleaseStore, document: ReleaseDocument) -> None:
    missing = await store.read(document.model)

    assert missing == StoredRelease(None, b"")
    assert await store.write(missing, document)
    assert (await store.read(document.model)).document == document


async def test_of_two_writes_of_one_revision_one_is_applied(store: ReleaseStore, document: ReleaseDocument) -> None:
    before = await store.read(document.model)
    others = [replace(document, started_at=float(i)) for i in range(8)]
    written = await asyncio.gather(*(store.write(before, other) for other in others))

    assert sum(written) == 1
    assert (await store.read(document.model)).document == others[written.index(True)]


async def test_a_write_that_is_sent_twice_is_applied_once(store: ReleaseStore, document: ReleaseDocument) -> None:
    before = await store.read(document.model)

    assert await store.write(before, document)
    assert await store.write(before, document)
    assert not await store.write(before, replace(document, revision=2))


async def test_documents_of_several_models_are_read_at_once(store: ReleaseStore, document: ReleaseDocument) -> None:
    await store.write(await store.read(document.model), document)
    found = await store.read_all([document.model, "missing", document.model])

    assert [one.document for one in found if isinstance(one, StoredRelease)] == [document, None, document]
    assert await store.read_all([]) == []


async def test_a_value_that_is_no_document_is_an_error_of_its_model_only(
    store: ReleaseStore, document: ReleaseDocument
) -> None:
    loop = asyncio.get_running_loop()
    await store.write(await store.read(document.model), document)
    await store.state_store.execute(loop.time() + 5, "SET", release_key("broken"), b"[]")
    good, broken = await store.read_all([document.model, "broken"])

    assert isinstance(good, StoredRelease)
    assert isinstance(broken, CorruptRecordError)


async def test_the_time_is_that_of_the_store(store: ReleaseStore) -> None:
    assert await store.time() == pytest.approx(time.time(), abs=5)


async def test_counts_and_sweeps_are_stored(store: ReleaseStore, document: ReleaseDocument) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    counts, sweep = TrialCounts(steps=5, fell_back=1), SweepProgress(1.5, 3, 100, 0, 7)
    await add_counts(store.state_store, document.model, 1, counts, worker="w", number=1, deadline=deadline)
    await request_sweep(store.state_store, document.model, sweep)

    assert await read_counts(store.state_store, document.model, 1, deadline=deadline) == counts
    assert await read_sweep(store.state_store, document.model) == sweep
    assert await read_sweep(store.state_store, "missing") == SweepProgress()


async def test_streams_on_all_servers_are_counted(store: ReleaseStore, document: ReleaseDocument) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    record = Record(1, 1, 1, Kind.STEP, b"o" * 16, b"h" * 16, b"version1", 0, 0, b"y", b"state" * 10).encode()
    for i in range(60):
        await store.state_store.execute(deadline, "SET", record_key("t", document.model, f"s{i}"), record)
    counter = StreamCounter(store, Releases())
    await counter.refresh()

    assert counter.counts is not None
    assert counter.counts.of(document.model) == {b"version1".hex(): 60}
