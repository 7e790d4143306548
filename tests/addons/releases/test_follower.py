"""Every replica follows the release: without an announcement, with other files, and after the store has lost all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.releases.keys import release_key
from tests.addons.releases.fleet import wait_until
from tests.api.running import Service, running_service
from tests.graphs import fold, write_model
from tests.servers import Server

RELEASE = "/v1/models/fold/release"


def default_version(one: Service) -> int:
    found: int = one.http.get("/v1/models/fold").json()["version"]
    return found


def put(one: Service, body: Any) -> dict[str, Any]:
    response = one.http.put(RELEASE, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def folder_with(folder: Path, *factors: int) -> Path:
    """Write versions 1, 2, .. of `fold`; a factor of 0 leaves a version out."""
    folder.mkdir()
    for version, factor in enumerate(factors, 1):
        if factor:
            write_model(folder, "fold", lambda factor=factor: fold(factor), version=version)  # type: ignore[misc]
    return folder


def pin_unannounced(one: Service, store: Server) -> None:
    """Make version 1 current in the store, without an announcement; version 2 was announced last."""
    put(one, {"current": 1})
    with store.client() as client:
        pinned = client.get(release_key("fold"))
        put(one, {"current": 2})
        client.set(release_key("fold"), pinned)


def test_a_document_whose_announcement_was_missed_is_followed(redis_server: Server, tmp_path: Path) -> None:
    with running_service(redis_server.url, folder_with(tmp_path / "models", 3, 5)) as one:
        pin_unannounced(one, redis_server)

        wait_until(lambda: default_version(one) == 1)


def test_a_replica_that_has_shown_a_release_follows_it_at_once(redis_server: Server, tmp_path: Path) -> None:
    with running_service(redis_server.url, folder_with(tmp_path / "models", 3, 5)) as one:
        pin_unannounced(one, redis_server)

        assert one.http.get(RELEASE).json()["current"] == 1
        assert default_version(one) == 1


def test_a_replica_without_the_current_version_loads_it_from_its_artifact(redis_server: Server, tmp_path: Path) -> None:
    with (
        running_service(redis_server.url, folder_with(tmp_path / "one", 3, 5)) as one,
        running_service(redis_server.url, folder_with(tmp_path / "two", 0, 5)) as two,
    ):
        put(one, {"current": 1, "candidate": 2, "mode": "shadow", "percent": 0})
        wait_until(lambda: default_version(two) == 1)
        answer = two.step("fold", "s", [7]).json()
        status = two.http.get(two.path("fold", "s")).json()

    assert answer["outputs"]["y"] == [8]
    assert status["version"] == 1


def test_the_fingerprint_decides_if_replicas_have_other_files_for_a_version(
    redis_server: Server, tmp_path: Path
) -> None:
    with (
        running_service(redis_server.url, folder_with(tmp_path / "one", 3, 5)) as one,
        running_service(redis_server.url, folder_with(tmp_path / "two", 7, 5)) as two,
    ):
        fingerprint = put(one, {"current": 1, "candidate": 2, "mode": "shadow", "percent": 0})["versions"][0]
        wait_until(lambda: default_version(two) == 1)
        for x in (1, 2):
            answer = two.step("fold", "s", [x]).json()
        rows = two.http.get(RELEASE).json()["versions"]

    assert answer["outputs"]["y"] == [2 * 3 + 2 + 1]
    assert [row["status"] for row in rows if row["fingerprint"] == fingerprint["fingerprint"]] == ["current"]
    assert [row["version"] for row in rows] == [1, 1, 2]


def test_a_current_version_that_was_deleted_from_the_folder_stays_current_and_can_be_requested(
    redis_server: Server, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "models", 3, 5)
    with running_service(redis_server.url, folder) as one:
        put(one, {"current": 1})
        (folder / "fold" / "1" / "model.onnx").unlink()
        one.http.post("/v1/models/reload")
        described = one.http.get("/v1/models/fold").json()
        listed = one.http.get("/v1/models").json()["models"]
        new = one.step("fold", "s", [7])
        named = one.http.post(one.path("fold", "t", "step?version=1"), json={"inputs": [7]})
        put(one, {"current": 2})
        afterwards = one.http.get("/v1/models/fold").json()

    assert (described["version"], described["versions"], listed) == (1, [1, 2], [described])
    assert new.json()["outputs"]["y"] == named.json()["outputs"]["y"] == [8]
    assert (afterwards["version"], afterwards["versions"]) == (2, [2])


def test_without_the_store_the_highest_version_is_current_and_it_is_logged(
    redis_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_service(redis_server.url, folder_with(tmp_path / "models", 3, 5)) as one:
        put(one, {"current": 1})
        with redis_server.client() as client:
            client.flushall()

        wait_until(lambda: default_version(one) == 2)
        assert one.http.get(RELEASE).json()["revision"] == 0
    assert "The store has no release of model fold any more: its highest version is current" in caplog.text


def test_a_document_that_cannot_be_read_leaves_the_one_before(
    redis_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_service(redis_server.url, folder_with(tmp_path / "models", 3, 5)) as one:
        put(one, {"current": 1})
        with redis_server.client() as client:
            client.set(release_key("fold"), b'{"model": 5}')

        wait_until(lambda: "cannot be read, the one before stays" in caplog.text)
        assert default_version(one) == 1
        found = one.http.get(RELEASE)
    assert (found.status_code, found.json()["code"]) == (500, "state_corrupt")
