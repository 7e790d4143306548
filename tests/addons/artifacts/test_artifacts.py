"""A live stream's model is always there: a replica loads what a record names, whatever its folder has."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.running import Service, running_service
from tests.graphs import Build, fold, fold_reference, total, write_model
from tests.servers import Server

OLD, NEW = 3, 5  # factors of two models that differ in nothing else


def factor(n: int) -> Build:
    return lambda: fold(factor=n)


def y_of(response: httpx2.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.json()["outputs"]["y"][0])


def artifacts(server: Server) -> list[str]:
    return sorted(key.decode() for key in server.client().scan_iter(match="swl:artifact:*"))


@contextlib.contextmanager
def two_replicas(server: Server, first: Path, second: Path, **settings: Any) -> Iterator[tuple[Service, Service]]:
    with running_service(server.url, first, **settings) as a, running_service(server.url, second, **settings) as b:
        yield a, b


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Path, Path]:
    """Two models folders whose `m.onnx` differ."""
    write_model(tmp_path / "old", "m", factor(OLD))
    write_model(tmp_path / "new", "m", factor(NEW))
    return tmp_path / "old", tmp_path / "new"


def test_replicas_with_different_files_step_each_others_streams(
    redis_server: Server, old_and_new: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Failure table, R8. A model is loaded once, whatever the number of streams that wait for it."""
    caplog.set_level(logging.INFO)
    with two_replicas(redis_server, *old_and_new, model_probe_s=30) as (old, new), ThreadPoolExecutor(10) as pool:
        for n in range(10):
            y_of(old.step("m", f"a{n}", [1], seq=1))
            y_of(new.step("m", f"b{n}", [1], seq=1))
        of_old = list(pool.map(lambda n: y_of(new.step("m", f"a{n}", [2], seq=2)), range(10)))
        of_new = list(pool.map(lambda n: y_of(old.step("m", f"b{n}", [2], seq=2)), range(10)))

    assert of_old == [fold_reference([1, 2], factor=OLD)[-1]] * 10
    assert of_new == [fold_reference([1, 2], factor=NEW)[-1]] * 10
    assert caplog.text.count("was loaded from its artifact") == len(artifacts(redis_server)) == 2


def test_a_stream_of_a_replaced_file_has_every_operation_on_a_replica_that_never_had_it(
    redis_server: Server, old_and_new: tuple[Path, Path]
) -> None:
    with running_service(redis_server.url, old_and_new[0]) as old:
        y_of(old.step("m", "s", [1], seq=1))
        old.http.put(old.path("m", "s", "snapshots/one")).raise_for_status()
        first = old.step("m", "s", [2], seq=2)
    with running_service(redis_server.url, old_and_new[1]) as new:
        peeked = y_of(new.http.post(new.path("m", "s", "peek"), json={"inputs": [3]}))
        replayed = new.step("m", "s", [2], seq=2)
        status = new.http.get(new.path("m", "s"))
        state = new.http.get(new.path("m", "s", "state"))
        fork = new.http.post(new.path("m", "s", "fork"), json={"to": "t"})
        forked = y_of(new.step("m", "t", [3], seq=3))
        chunk = new.http.post(new.path("m", "s", "steps"), json={"inputs": [[3], [4]], "seq": 3})
        bulk = new.http.post("/v1/models/m/step", json={"streams": ["s", "u"], "inputs": {"x": [[5], [1]]}})
        reset = new.http.post(new.path("m", "s", "reset"), json={"to": {"snapshot": "one"}})
        again = y_of(new.step("m", "s", [2], seq=2))

    of_old = fold_reference([1, 2, 3, 4, 5], factor=OLD)
    assert y_of(first) == y_of(replayed) == of_old[1]
    assert replayed.json()["replayed"] is True
    assert (status.json()["version"], state.json()["step"]) == (1, 2)
    assert (fork.status_code, reset.status_code) == (200, 200)
    assert peeked == forked == of_old[2]
    assert chunk.json()["outputs"]["y"] == [[of_old[2]], [of_old[3]]]
    assert bulk.json()["outputs"]["y"] == [[of_old[4]], [fold_reference([1], factor=NEW)[0]]]
    assert again == of_old[1]


def test_an_artifact_is_stored_again_before_the_first_stream_of_an_emptied_store(
    redis_server: Server, old_and_new: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Failure table, R7: the models of the folder are served, and log and readiness of all replicas report the loss."""
    with two_replicas(redis_server, old_and_new[0], old_and_new[0]) as replicas:
        y_of(replicas[0].step("m", "s", [1]))
        redis_server.client().flushall()
        assert y_of(replicas[0].step("m", "s", [1])) == fold_reference([1], factor=OLD)[0]
        stored = artifacts(redis_server)
        for replica in replicas:
            ready = replica.http.get("/readyz")
            while "notes" not in ready.json():  # the store is read once a second
                ready = replica.http.get("/readyz")
    with running_service(redis_server.url, old_and_new[1]) as new:
        goes_on = y_of(new.step("m", "s", [2], seq=2))

    assert len(stored) == 1
    assert (ready.status_code, ready.json()["reasons"]) == (200, [])
    assert "the store has lost data" in ready.json()["notes"][0]
    assert caplog.text.count("The store has lost data") == 2
    assert goes_on == fold_reference([1, 2], factor=OLD)[-1]


def test_a_corrupted_artifact_is_refused_and_never_loaded(
    redis_server: Server, old_and_new: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with running_service(redis_server.url, old_and_new[0]) as old:
        y_of(old.step("m", "s", [1]))
    [key] = artifacts(redis_server)
    store: Any = redis_server.client()
    [field] = [name.decode() for name in store.hkeys(key) if name != b"chunks"]
    chunk = bytearray(store.hget(key, field))
    chunk[-2000] ^= 1
    store.hset(key, field, bytes(chunk))
    with running_service(redis_server.url, old_and_new[1]) as new:
        refused = new.step("m", "s", [2], seq=2)
        others = y_of(new.step("m", "t", [1]))

    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["applied"], problem["step"]) == (
        409,
        "model_changed",
        "no",
        1,
    )
    assert "its artifact was refused: The checksum" in problem["detail"]
    assert "whose artifact was refused" in caplog.text
    assert others == fold_reference([1], factor=NEW)[0]


def test_an_artifact_of_another_model_is_refused(redis_server: Server, old_and_new: tuple[Path, Path]) -> None:
    with two_replicas(redis_server, *old_and_new) as (old, new):
        y_of(old.step("m", "s", [1]))
        y_of(new.step("m", "t", [1]))
    store: Any = redis_server.client()
    one, other = artifacts(redis_server)
    contents = [store.dump(key) for key in (one, other)]
    for key, content in zip((other, one), contents, strict=True):
        store.restore(key, 0, content, replace=True)
    with two_replicas(redis_server, *old_and_new) as (old, new):
        refused = [new.step("m", "s", [2]).json(), old.step("m", "t", [2]).json()]

    assert [problem["code"] for problem in refused] == ["model_changed"] * 2
    assert all("Its model has the fingerprint" in problem["detail"] for problem in refused)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"artifacts": "off"}, "`artifacts` is off"), ({"artifact_max_bytes": 100}, "and `artifact_max_bytes` is 100")],
)
def test_a_model_whose_artifact_is_not_kept_is_reported(
    redis_server: Server,
    old_and_new: tuple[Path, Path],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    reason: str,
) -> None:
    with running_service(redis_server.url, old_and_new[0], **settings) as old:
        y_of(old.step("m", "s", [1]))
        report = old.http.post("/v1/models/reload").json()
    with running_service(redis_server.url, old_and_new[1], **settings) as new:
        refused = new.step("m", "s", [2], seq=2).json()

    assert (report["loaded"], report["failed"], len(report["not_kept"])) == ([], [], 1)
    assert report["not_kept"][0].startswith("m/1: ")
    assert reason in report["not_kept"][0]
    assert f"its streams need its file: {report['not_kept'][0]}" in caplog.text
    assert artifacts(redis_server) == []
    assert (refused["code"], refused["step"]) == ("model_changed", 1)


def test_the_refusal_of_a_replaced_model_has_what_replaced_it_and_what_to_do(
    redis_server: Server, old_and_new: tuple[Path, Path]
) -> None:
    folder = old_and_new[0]
    with running_service(redis_server.url, folder, artifacts="off") as service:
        y_of(service.step("m", "s", [1]))
        write_model(folder, "m", total)
        service.http.post("/v1/models/reload").raise_for_status()
        refused = service.step("m", "s", [1.0, 2.0]).json()

    assert refused["code"] == "model_changed"
    assert "which has other inputs: x float32[2] instead of x int64[1]. It was version 1 until 2" in refused["detail"]
    assert "its file was replaced by " in refused["detail"]
    assert "Put the file that wrote it back, as models/m/1/model.onnx" in refused["detail"]


def test_artifacts_may_be_files_of_a_shared_folder(
    redis_server: Server, old_and_new: tuple[Path, Path], tmp_path: Path
) -> None:
    shared = str(tmp_path / "shared")
    with running_service(redis_server.url, old_and_new[0], artifacts=shared) as old:
        y_of(old.step("m", "s", [1]))
    with running_service(redis_server.url, old_and_new[1], artifacts=shared) as new:
        goes_on = y_of(new.step("m", "s", [2], seq=2))

    assert goes_on == fold_reference([1, 2], factor=OLD)[-1]
    assert [file.name.split(".", 1)[1] for file in (tmp_path / "shared").iterdir()] == ["m.artifact"]
    assert artifacts(redis_server) == []


def test_a_reload_is_followed_by_every_replica_before_its_response(
    redis_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    write_model(folder, "m", factor(OLD), version=1)
    caplog.set_level(logging.INFO)
    with two_replicas(redis_server, folder, folder) as (a, b):
        for n in range(5):
            write_model(folder, f"new{n}", fold)
            write_model(folder, "m", factor(NEW + n), version=2 + n)
            report = a.http.post("/v1/models/reload").json()
            assert sorted(report["loaded"]) == [f"m/{2 + n}", f"new{n}/1"]
            assert y_of(b.step(f"new{n}", "s", [1])) == fold_reference([1])[0]
            assert y_of(a.step("m", f"s{n}", [1], seq=1)) == fold_reference([1], factor=NEW + n)[0]
            assert y_of(b.step("m", f"s{n}", [2], seq=2)) == fold_reference([1, 2], factor=NEW + n)[-1]
        shutil.rmtree(folder / "m" / "6")
        a.http.post("/v1/models/reload").raise_for_status()
        assert b.http.get("/v1/models/m").json()["versions"] == [1, 2, 3, 4, 5]
        assert y_of(b.step("m", "s4", [3], seq=3)) == fold_reference([1, 2, 3], factor=NEW + 4)[-1]
        metrics = b.http.get("/metrics").text

    assert 'stepwell_model_changes_total{change="retired"} 1.0' in metrics
    assert 'stepwell_model_changes_total{change="loaded"} 11.0' in metrics
    assert caplog.text.count("Model new3/1 was loaded") == caplog.text.count("Model m/6 was retired") == 2


def test_a_replica_that_cannot_see_a_reloaded_file_logs_it(
    redis_server: Server, old_and_new: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with two_replicas(redis_server, *old_and_new) as (old, new):
        write_model(old_and_new[0], "only_here", fold)
        old.http.post("/v1/models/reload").raise_for_status()
        missing = new.step("only_here", "s", [1])

    assert missing.status_code == 404
    assert "Another replica has loaded only_here/1, which is not in the models folders of this one" in caplog.text
