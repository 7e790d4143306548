"""Responses to timesteps of a source name the version that computed each, whatever was promoted in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.store.keys import record_key
from tests.addons.releases.fleet import Fleet, over_both, two_folds, wait_until
from tests.servers import Server


def at(*positions: int) -> dict[str, Any]:
    return {"id": "log", "at": list(positions)}


def promote(releases: Fleet) -> None:
    """Switch the streams to version 2 at their next step."""
    releases.put(candidate=2, mode="switch", percent=0)
    releases.end("promote")


@over_both
def test_each_response_has_the_version_that_computed_it(releases: Fleet) -> None:
    before = [releases.step("a", [n], source=at(n)) for n in range(4)]
    promote(releases)
    after = [releases.step("a", [n], source=at(n)) for n in range(4, 7)]

    assert "version" not in releases.step("b", [1]), "without a source, only where it has changed"
    assert [answer["version"] for answer in before] == [1] * 4
    assert [answer["version"] for answer in after] == [2] * 3


def test_a_retry_after_a_promotion_has_the_version_of_its_first_response(releases: Fleet) -> None:
    first = releases.chunk("a", [[1], [2]], source=at(1, 2))
    promote(releases)
    releases.step("b", [1])  # another stream moves
    again = releases.chunk("a", [[1], [2]], source=at(1, 2))

    assert again["outputs"] == first["outputs"]
    assert (first["version"], again["version"], again["skipped"]) == (1, 1, 2)


@pytest.mark.parametrize("how", ["the first timestep", "one timestep", "columns"])
def test_a_retry_after_a_sweep_has_the_version_of_its_first_response(releases: Fleet, how: str) -> None:
    """The sweep gives the record the fingerprint of the new version; its answers are of the old one."""
    names = [f"s{n}" for n in range(20)]
    [first, _] = releases.replicas

    def send(n: int) -> Any:
        if how != "columns":
            return releases.send(first, "s0", "step", {"inputs": [n], "source": at(n)})
        body = {"streams": names, "inputs": [[n]] * 20, "source": {"id": "log", "at": [n] * 20}}
        return first.http.post(f"/v1/models/{releases.model}/step", json=body).json()

    for n in range(1 if how == "the first timestep" else 3):
        send(n)
    promote(releases)
    releases.release("POST", "/move")
    wait_until(lambda: first.http.get(first.path(releases.model, "s0")).json()["version"] == 2)
    again = send(n)

    version, skipped = (again[name] if how != "columns" else again[name][0] for name in ("version", "skipped"))
    assert (version, skipped) == (1, 1)


def test_a_record_whose_answers_are_of_one_version_is_read_by_the_release_before(
    redis_server: Server, tmp_path: Path
) -> None:
    """It has format 2, whichever way the timestep was processed; only answers of several versions need format 3."""
    formats = []
    with two_folds(redis_server.url, tmp_path) as releases, redis_server.client() as client:
        [first, _] = releases.replicas
        for n in range(3):
            releases.send(first, "a", "step", {"inputs": [n], "source": at(n)})
            formats.append(client.get(record_key("default", releases.model, "a"))[:4])
        promote(releases)
        releases.chunk("a", [[2], [3]], source=at(2, 3))
        formats.append(client.get(record_key("default", releases.model, "a"))[:4])

    assert formats == [b"SW2\0"] * 3 + [b"SW3\0"]


def test_a_retry_after_a_move_by_hand_has_the_version_of_its_first_response(releases: Fleet) -> None:
    releases.step("a", [1], source=at(1))
    service = releases.replica
    service.http.post(service.path(releases.model, "a", "move"), json={"version": 2}).raise_for_status()
    again = releases.step("a", [1], source=at(1))

    assert (again["version"], again["skipped"]) == (1, 1)


def test_a_chunk_of_several_versions_has_the_version_of_each_timestep(releases: Fleet) -> None:
    """A part was applied before the promotion. It is read again twice, as after two crashes."""
    releases.chunk("a", [[1], [2]], source=at(1, 2))
    promote(releases)
    answers = [releases.chunk("a", [[n] for n in (1, 2, 3, 4)], source=at(1, 2, 3, 4)) for _ in range(2)]
    part = releases.chunk("a", [[1], [2]], source=at(1, 2))
    longer = releases.chunk("a", [[n] for n in (1, 2, 3, 4, 5)], source=at(1, 2, 3, 4, 5))

    assert [(answer["version"], answer["versions"]) for answer in answers] == [(2, [1, 1, 2, 2])] * 2
    assert (part["version"], part.get("versions")) == (1, None)
    assert longer["versions"] == [1, 1, 2, 2, 2]


def test_timesteps_whose_answers_are_not_stored_have_no_version(releases: Fleet) -> None:
    releases.chunk("a", [[1]], source=at(1))
    releases.chunk("a", [[2]], source=at(2))
    promote(releases)
    answer = releases.chunk("a", [[1], [2], [3]], source=at(1, 2, 3))

    assert answer["outputs"]["y"][0] is None
    assert (answer["version"], answer["versions"]) == (2, [None, 1, 2])


def test_a_retry_by_a_key_has_the_versions_of_its_first_response(releases: Fleet) -> None:
    releases.chunk("a", [[1], [2]], source=at(1, 2))
    promote(releases)
    service = releases.replica
    body = {"inputs": [[1], [2], [3]], "source": at(1, 2, 3)}
    path, headers = service.path(releases.model, "a", "steps"), {"Idempotency-Key": "k"}
    first, again = (service.http.post(path, json=body, headers=headers).json() for _ in range(2))

    assert again["replayed"] is True
    assert [(one["version"], one["versions"]) for one in (first, again)] == [(2, [1, 1, 2])] * 2


def test_a_candidate_that_becomes_warm_in_a_chunk_responds_to_its_end(releases: Fleet) -> None:
    releases.step("a", [1], source=at(1))
    releases.put(candidate=2, mode="ramp", percent=100, take="reset", warm_steps=2)
    answers = [releases.chunk("a", [[n] for n in range(4)], source=at(2, 3, 4, 5)) for _ in range(2)]

    assert [(answer["version"], answer["versions"]) for answer in answers] == [(2, [1, 1, 2, 2])] * 2


@pytest.mark.parametrize(("releases", "mode"), [("feed", "ramp"), ("http", "shadow")], indirect=["releases"])
def test_columns_have_the_version_of_each_row(releases: Fleet, mode: str) -> None:
    names = [f"s{n}" for n in range(16)]
    answers = []
    for t in range(6):
        if t == 3:
            releases.put(candidate=2, mode=mode, percent=50)
        answers.append(releases.bulk(names, [[1]] * 16, source={"id": "log", "at": [t] * 16}))
    http, path = releases.replica.http, releases.replica.path
    status = [http.get(path(releases.model, name)).json()["version"] for name in names]

    assert [answer["version"] for answer in answers] == [[1] * 16] * 3 + [status] * 3
    assert set(status) == ({1, 2} if mode == "ramp" else {1})


def test_columns_of_chunks_have_the_versions_of_each_row(releases: Fleet) -> None:
    releases.chunk("a", [[1]], source=at(1))
    promote(releases)
    body = {"streams": ["a", "b"], "inputs": [[[1], [2]], [[1], [2]]], "source": {"id": "log", "at": [[1, 2], [1, 2]]}}
    answer = releases.replica.http.post(f"/v1/models/{releases.model}/steps", json=body).json()

    assert (answer["version"], answer["versions"]) == ([2, 2], [[1, 2], None])
