"""A release document that is lost, or read while a newer one was written: no stream is stranded, none goes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepwell.addons.artifacts.keeper import ArtifactKeeper
from stepwell.addons.artifacts.settings import ArtifactSettings
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.follower import ReleaseFollower
from stepwell.addons.releases.keys import release_key
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.store import ReleaseStore, StoredRelease
from stepwell.addons.releases.translations import Translations
from stepwell.models.registry import ModelRegistry
from stepwell.store.keys import record_key
from stepwell.store.record import decode
from stepwell.store.state_store import StateStore
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.fleet import MODEL, Fleet, wait_until
from tests.graphs import fold, total, write_models
from tests.servers import Server


def lose_document(releases: Fleet, server: Server) -> None:
    """Delete the release's key, as the error for one that cannot be read advises, and wait until all have noticed."""
    with server.client() as client:
        assert client.delete(release_key(releases.model)) == 1
    engines = [replica.app.state.context.engine for replica in releases.replicas]
    wait_until(lambda: all(engine.placing.documents.current(releases.model) is None for engine in engines))


def fingerprint_of(server: Server, model: str, stream: str) -> bytes:
    with server.client() as client:
        return decode(client.get(record_key("default", model, stream))).fingerprint


@pytest.mark.parametrize("mode", ["switch", "ramp"])
def test_streams_that_a_lost_release_has_moved_move_by_the_next_one(
    releases: Fleet, shared_redis: Server, mode: str
) -> None:
    """With `ramp` the stream is a pair of the lost trial; else a share of it has come and gone."""
    releases.step("s", [1])
    for percent in (10, 20, 30, 100):
        before = releases.put(candidate=2, mode=mode, percent=percent)["revision"]
    releases.step("s", [2])
    if mode == "switch":
        releases.end("abort")
        service = releases.replica
        service.http.post(service.path(releases.model, "s", "move"), json={"version": 1}).raise_for_status()
    lose_document(releases, shared_redis)
    assert releases.release()["revision"] == 0
    releases.put(current=1, revision=0)
    after = releases.put(candidate=2, mode=mode, percent=100)["revision"]
    releases.end("promote")
    answer = releases.step("s", [3])
    new = releases.replica.app.state.context.engine.models.get(releases.model, 2)

    assert after > before
    assert answer["step"] == 3
    assert fingerprint_of(shared_redis, releases.model, "s") == new.fingerprint


def document(revision: int) -> ReleaseDocument:
    return ReleaseDocument(MODEL, revision, ReleaseVersion(1, b"version1"), 1.0)


def test_a_document_that_was_read_before_a_newer_one_was_written_does_not_replace_it() -> None:
    releases = Releases()
    read_at = releases.changes(MODEL)
    releases.put(MODEL, document(2), releases.changes(MODEL))

    assert not releases.put(MODEL, document(1), read_at)
    assert not releases.put(MODEL, None, read_at)
    assert releases.current(MODEL) == document(2)


def test_a_document_that_the_store_has_lost_is_replaced_by_the_older_one() -> None:
    """As after a restart of the store with an older file."""
    releases = Releases()
    releases.put(MODEL, document(2), releases.changes(MODEL))

    assert releases.put(MODEL, document(1), releases.changes(MODEL))
    assert (releases.current(MODEL), releases.largest_revision(MODEL)) == (document(1), 2)


class AwayBackend:
    """A place of artifacts that does not reply before it is released."""

    check_s = 60.0

    def __init__(self) -> None:
        self.replies = asyncio.Event()

    async def renew(self, _name: str, _fingerprint: bytes, *, deadline: float) -> bool:
        raise AssertionError(deadline)

    async def put(self, name: str, fingerprint: bytes, artifact: bytes) -> None:
        raise AssertionError(name, fingerprint, artifact)

    async def get(self, _name: str, _fingerprint: bytes) -> bytes | None:
        await self.replies.wait()
        return None


async def test_a_model_that_is_slow_to_load_does_not_delay_the_releases_of_others(
    redis_server: Server, tmp_path: Path
) -> None:
    away = AwayBackend()
    models = ModelRegistry(
        [write_models(tmp_path, fold, total)], StepModel, ArtifactKeeper(away, StepModel, ArtifactSettings())
    )
    assert not (await models.reload()).failed
    store = StateStore(redis_server.url)
    documents, releases = ReleaseStore(store), Releases()
    unknown, known = ReleaseVersion(9, b"unknown!"), ReleaseVersion(1, models.get("total").fingerprint)
    for model, current in (("fold", unknown), ("total", known)):
        assert await documents.write(StoredRelease(None, b""), ReleaseDocument(model, 1, current, 1.0))
    follower = ReleaseFollower(documents, releases, models, StorePubSub(store.transport), Translations(None))
    try:
        async with asyncio.timeout(30):
            await follower.refresh()
            after = ReleaseDocument("total", 2, known, 1.0)
            assert await documents.write(await documents.read("total"), after)
            await follower.refresh()

        assert releases.current("total") == after
    finally:
        away.replies.set()
        await follower.close()
        await store.close()
