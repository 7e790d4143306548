"""Replicas that have different documents, or different files."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from tests.addons.releases.builds import wide_fold, widening, widening_by
from tests.addons.releases.fleet import MODEL, NEW_FACTOR, OLD_FACTOR, Fleet, folded, two_folds
from tests.api.running import running_service
from tests.graphs import fold, write_model
from tests.servers import Server


def test_a_replica_that_has_no_release_steps_a_pair_as_a_pair(releases: Fleet) -> None:
    """R2: it builds the pair from the record, and never undoes what another replica has done."""

    def step_on(number: int, x: int) -> Any:
        return releases.send(releases.replicas[number], "s", "step", {"inputs": [x]})

    first = releases.step("s", [0])
    releases.put(candidate=2, mode="ramp", percent=100)
    answers = [step_on(0, x) for x in (1, 2)]
    documents = releases.replicas[1].app.state.context.engine.placing.documents

    async def forget() -> None:
        documents.put(releases.model, None)

    for x in (3, 4):
        releases.replicas[1].run_in_loop(forget)
        answers.append(step_on(1, x))
    releases.end("abort")
    answers.append(releases.step("s", [5]))

    old = folded(range(6))
    new = folded(range(1, 5), start=old[0], factor=NEW_FACTOR)
    assert first["outputs"]["y"] == old[:1]
    assert [answer["outputs"]["y"][0] for answer in answers] == [*new, old[5]]


def test_a_stream_that_a_replica_without_the_release_has_moved_by_hand_stays(releases: Fleet) -> None:
    """A promotion that had moved the stream before must not move it again."""
    releases.step("s", [0])
    for candidate in (2, 1):
        releases.put(candidate=candidate, mode="ramp", percent=100)
        releases.end("promote")
        state = releases.step("s", [0])["outputs"]["y"][0]
    behind = releases.replicas[1]
    documents = behind.app.state.context.engine.placing.documents

    async def forget() -> None:
        documents.put(releases.model, None)

    behind.run_in_loop(forget)
    moved = behind.http.post(behind.path(releases.model, "s", "move"), json={"version": 2})
    answers = [releases.send(releases.replicas[0], "s", "step", {"inputs": [x]}) for x in (1, 2)]

    assert moved.is_success, moved.text
    assert [answer["outputs"]["y"][0] for answer in answers] == folded([1, 2], start=state, factor=NEW_FACTOR)


def test_a_replica_without_the_candidates_file_loads_its_artifact(redis_server: Server, tmp_path: Path) -> None:
    """R8: versions are compared by fingerprint."""
    write_model(tmp_path / "both", MODEL, lambda: fold(OLD_FACTOR), version=1)
    write_model(tmp_path / "both", MODEL, lambda: fold(NEW_FACTOR), version=2)
    write_model(tmp_path / "old", MODEL, lambda: fold(OLD_FACTOR), version=1)
    with contextlib.ExitStack() as stack:
        both, old = (stack.enter_context(running_service(redis_server.url, tmp_path / one)) for one in ("both", "old"))
        releases = Fleet([both, old])

        def step(stream: str, x: int) -> Any:
            return releases.send(old, stream, "step", {"inputs": [x]})

        for body in ({"current": 1}, {"candidate": 2, "mode": "ramp", "percent": 100}):
            both.http.put(f"/v1/models/{MODEL}/release", json=body).raise_for_status()
        document = both.http.get(f"/v1/models/{MODEL}/release").json()
        releases.wait_for(document["revision"])
        answers = [step("s", x) for x in (1, 2)]
        both.http.post(f"/v1/models/{MODEL}/release/promote").raise_for_status()
        releases.wait_for(document["revision"] + 1)
        answers += [step("s", x) for x in (3, 4)]
        answers.append(step("new", 1))

    assert [answer["outputs"]["y"][0] for answer in answers[:4]] == folded([1, 2, 3, 4], factor=NEW_FACTOR)
    assert answers[4]["outputs"]["y"] == folded([1], factor=NEW_FACTOR)


def test_a_replica_without_the_translation_loads_its_artifact(redis_server: Server, tmp_path: Path) -> None:
    """R8: also after its file is gone everywhere, and with the candidate's file but not the translation's."""
    for folder, versions in {"both": (1, 2), "old": (1,), "no-translation": (1, 2)}.items():
        for version in versions:
            build = (lambda: fold(OLD_FACTOR)) if version == 1 else (lambda: wide_fold(NEW_FACTOR))
            write_model(tmp_path / folder, MODEL, build, version=version)
    translation = tmp_path / "both" / MODEL / "2" / "translate-from-1.onnx"
    translation.write_bytes(widening())
    with contextlib.ExitStack() as stack:
        both, old, other = (
            stack.enter_context(running_service(redis_server.url, tmp_path / one))
            for one in ("both", "old", "no-translation")
        )
        releases = Fleet([both, old, other])
        streams = {"s": old, "t": other}
        release = f"/v1/models/{MODEL}/release"
        releases.wait_for(both.http.put(release, json={"current": 1}).json()["revision"])
        before = {name: replica.step(MODEL, name, [1]).json() for name, replica in streams.items()}
        body = {"candidate": 2, "mode": "ramp", "percent": 100, "take": "translate"}
        refused = other.http.put(release, json=body)
        document = both.http.put(release, json=body).json()
        releases.wait_for(document["revision"])
        translation.unlink()
        again = other.http.put(release, json=body)
        answers = {name: [replica.step(MODEL, name, [x]).json() for x in (2, 3)] for name, replica in streams.items()}

    expected = folded([2, 3], start=folded([1])[0], factor=NEW_FACTOR)
    assert refused.json()["code"] == "release_refused"
    assert again.status_code == 200
    for name in streams:
        assert before[name]["outputs"]["y"] == folded([1])
        assert [answer["outputs"]["y"][0] for answer in answers[name]] == expected
        assert [answer.get("version") for answer in answers[name]] == [2, None]


def test_all_replicas_translate_by_the_graph_that_the_release_names(redis_server: Server, tmp_path: Path) -> None:
    """The file is replaced in one of them, and the same candidate is put again."""
    for folder in ("first", "second"):
        write_model(tmp_path / folder, MODEL, lambda: fold(OLD_FACTOR), version=1)
        write_model(tmp_path / folder, MODEL, lambda: wide_fold(NEW_FACTOR), version=2)
    file = tmp_path / "first" / MODEL / "2" / "translate-from-1.onnx"
    file.write_bytes(widening())
    release = f"/v1/models/{MODEL}/release"
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(running_service(redis_server.url, tmp_path / one)) for one in ("first", "second")
        ]
        releases, http = Fleet(replicas), replicas[0].http
        releases.wait_for(http.put(release, json={"current": 1}).json()["revision"])
        for n, replica in enumerate(replicas):
            replica.step(MODEL, f"s{n}", [1])
        body = {"candidate": 2, "mode": "ramp", "percent": 100, "take": "translate"}
        releases.wait_for(http.put(release, json={**body, "percent": 0}).json()["revision"])
        file.write_bytes(widening_by(1000))
        releases.wait_for(http.put(release, json=body).json()["revision"])
        answers = [replica.step(MODEL, f"s{n}", [2]).json() for n, replica in enumerate(replicas)]

    [expected] = folded([2], start=folded([1])[0] + 1000, factor=NEW_FACTOR)
    assert [answer["outputs"]["y"] for answer in answers] == [[expected]] * 2


def test_a_stream_moves_although_the_old_versions_file_is_gone(redis_server: Server, tmp_path: Path) -> None:
    with two_folds(redis_server.url, tmp_path / "first") as releases:
        first = releases.step("s", [0])
        releases.put(candidate=2, mode="shadow", percent=0)
        releases.end("promote")
        shutil.copytree(tmp_path / "first" / MODEL / "2", tmp_path / "second" / MODEL / "2")
    with running_service(redis_server.url, tmp_path / "second") as service:
        answers = [service.step(MODEL, "s", [x]).json() for x in (1, 2)]

    assert [answer["outputs"]["y"][0] for answer in answers] == folded(
        [1, 2], start=first["outputs"]["y"][0], factor=NEW_FACTOR
    )
    assert [answer.get("version") for answer in answers] == [2, None]
