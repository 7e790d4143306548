"""The release of a model over HTTP, on two replicas: every rule of the document, and every rejection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.running import Service, running_service
from tests.graphs import Build, Built, fold, last_seen, lstm, write_model
from tests.graphs import count as counting
from tests.servers import Server

FOLLOWED_S = 30.0  # at most; an idle machine takes less than two seconds
N_MODELS = 40
numbers = count()


def without_gaps() -> Built:
    """The model `last_seen`, whose inputs have to be there."""
    graph, manifest = last_seen()
    inputs = [spec.model_copy(update={"missing": "refuse"}) for spec in manifest.inputs]
    return graph, manifest.model_copy(update={"inputs": inputs})


class Replicas:
    """Two replicas on one store, and a model of three versions for one test.

    Attributes:
        first: One replica.
        second: The other.
        model: The model's name; versions 1 and 2 have equal states, version 3 has another input.
    """

    def __init__(self, first: Service, second: Service, model: str) -> None:
        self.first, self.second, self.model = first, second, model

    @property
    def path(self) -> str:
        return f"/v1/models/{self.model}/release"

    def get(self, replica: Service | None = None) -> dict[str, Any]:
        found: dict[str, Any] = (replica or self.first).http.get(self.path).json()
        return found

    def put(self, body: Any, replica: Service | None = None) -> httpx2.Response:
        return (replica or self.first).http.put(self.path, json=body)

    def post(self, what: str, body: Any = None, replica: Service | None = None) -> httpx2.Response:
        return (replica or self.first).http.post(f"{self.path}/{what}", json=body)

    def started(self, **more: Any) -> dict[str, Any]:
        """Pin version 1 and try version 2; return the release."""
        body = {"current": 1, "candidate": 2, "mode": "ramp", "percent": 5, **more}
        response = self.put(body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def default_version(self, replica: Service) -> int:
        found: int = replica.http.get(f"/v1/models/{self.model}").json()["version"]
        return found


def write_versions(folder: Path, name: str, *builds: Build) -> None:
    """Write versions 1, 2, .. of a model."""
    for version, build in enumerate(builds, 1):
        write_model(folder, name, build, version=version)


@pytest.fixture(scope="module")
def both(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    folder = tmp_path_factory.mktemp("releases")
    for i in range(N_MODELS):
        write_versions(folder, f"release{i}", lambda: fold(3), lambda: fold(5), counting)
    write_versions(folder, "strict", lambda: fold(3), lambda: fold(5), counting)
    write_versions(folder, "sizes", lstm, lambda: lstm(units=16))
    write_versions(folder, "same", fold, fold)
    write_versions(folder, "gaps", last_seen, without_gaps)
    with running_service(shared_redis.url, folder) as one, running_service(shared_redis.url, folder) as two:
        yield one, two


@pytest.fixture
def replicas(both: tuple[Service, Service]) -> Replicas:
    return Replicas(*both, f"release{next(numbers)}")


@pytest.fixture
def strict(both: tuple[Service, Service]) -> Replicas:
    """A model that no test changes; its version 3 is current."""
    return Replicas(*both, "strict")


def until(fact: Callable[[], object], within_s: float) -> bool:
    """Whether a fact holds within some seconds."""
    ends_at, pause = time.monotonic() + within_s, threading.Event()
    while not fact():
        if time.monotonic() > ends_at:
            return False
        pause.wait(0.02)
    return True


def code_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


# ---------------------------------------------------------------- the document


def test_without_a_release_the_highest_version_is_current(replicas: Replicas) -> None:
    found = replicas.get()

    assert found["model"] == replicas.model
    assert (found["revision"], found["current"], found["candidate"], found["ended"]) == (0, 3, None, None)
    assert [row["version"] for row in found["versions"]] == [1, 2, 3]
    assert [row["status"] for row in found["versions"]] == ["inactive", "inactive", "current"]


def test_a_release_has_the_fields_of_its_request(replicas: Replicas) -> None:
    gate = {"min_compared": 500, "max_abs": {"y": 0.5}, "max_lost": 0}
    before = time.time()
    found = replicas.started(percent=[[0, 1], [600, 100]], gate=gate, existing=False, rollback=True)

    assert (found["revision"], found["current"], found["candidate"], found["mode"]) == (1, 1, 2, "ramp")
    assert (found["percent"], found["schedule"]) == (1, [[0, 1], [600, 100]])
    assert (found["take"], found["warm_steps"], found["existing"], found["rollback"]) == ("keep", 0, False, True)
    assert found["gate"] == gate
    assert found["started_at"] == pytest.approx(before, abs=30)
    compared = {"steps": 0, "lost": 0, "fell_back": 0, "non_finite": 0, "outputs": {}, "error": None}
    assert found["compared"] == compared
    assert (found["moved"], found["left"]) == (0, 0)
    assert replicas.get(replicas.second) | {"counted_at": 0} == found | {"counted_at": 0}


def test_of_two_versions_that_are_one_file_the_pinned_one_is_shown(both: tuple[Service, Service]) -> None:
    same = Replicas(*both, "same")
    assert same.put({"current": 1}).status_code == 200

    assert [(row["version"], row["status"]) for row in same.get()["versions"]] == [(1, "current")]
    assert code_of(same.put({"candidate": 1, "mode": "shadow", "percent": 1})) == (422, "bad_release")


def test_a_new_stream_starts_on_the_pinned_version_and_the_other_replica_follows(replicas: Replicas) -> None:
    replicas.put({"current": 1})
    answer = replicas.first.step(replicas.model, "s", [7]).json()

    assert answer["outputs"]["y"] == [8]
    assert replicas.first.http.get(replicas.first.path(replicas.model, "s")).json()["version"] == 1
    assert replicas.default_version(replicas.first) == 1
    assert until(lambda: replicas.default_version(replicas.second) == 1, FOLLOWED_S)


def test_a_replica_that_starts_later_has_the_release(replicas: Replicas, shared_redis: Server) -> None:
    replicas.put({"current": 2})
    with running_service(shared_redis.url, replicas.first.app.state.context.settings.models[0]) as third:
        assert replicas.default_version(third) == 2


def test_a_schedule_goes_on_by_itself_on_every_replica(replicas: Replicas) -> None:
    replicas.started(percent=[[0, 1], [1, 50], [2, 100]])

    assert until(lambda: replicas.get(replicas.second)["percent"] >= 50, FOLLOWED_S)
    assert until(lambda: replicas.get(replicas.second)["percent"] == 100, FOLLOWED_S)


def test_percent_alone_changes_the_share_and_nothing_else(replicas: Replicas) -> None:
    before = replicas.started(gate={"max_lost": 3})
    after = replicas.put({"percent": 50}).json()

    assert (after["percent"], after["revision"]) == (50, 2)
    changed = {name for name in before if before[name] != after[name]} - {"counted_at", "versions"}
    assert changed == {"percent", "schedule", "revision"}


def test_the_candidate_named_again_gets_another_mode_and_keeps_the_trial(replicas: Replicas) -> None:
    before = replicas.started(mode="shadow", gate={"max_lost": 3}, rollback=True)
    after = replicas.put({"candidate": 2, "mode": "ramp", "percent": 10}).json()
    without = replicas.put({"candidate": 2, "mode": "ramp", "percent": 10, "gate": None}).json()

    assert (after["mode"], after["percent"], after["revision"]) == ("ramp", 10, 2)
    assert (after["started_at"], after["gate"], after["rollback"]) == (before["started_at"], before["gate"], True)
    assert without["gate"] is None


# ---------------------------------------------------------------- ends


def test_a_promotion_makes_the_candidate_current_everywhere(replicas: Replicas) -> None:
    replicas.started()
    found = replicas.post("promote", {"why": "it is better"}).json()

    assert (found["current"], found["candidate"], found["mode"], found["percent"]) == (2, None, None, 100)
    assert (found["ended"]["how"], found["ended"]["why"]) == ("promoted", "it is better")
    assert [row["status"] for row in found["versions"]] == ["drained", "current", "inactive"]
    assert until(lambda: replicas.default_version(replicas.second) == 2, FOLLOWED_S)


def test_an_abort_leaves_the_current_version(replicas: Replicas) -> None:
    replicas.started()
    found = replicas.post("abort").json()

    assert (found["current"], found["candidate"], found["percent"]) == (1, None, 0)
    assert (found["ended"]["how"], found["ended"]["why"], found["ended"]["candidate"]) == ("aborted", None, 2)


def test_an_end_sent_again_changes_nothing_and_the_other_end_is_refused(both: tuple[Service, Service]) -> None:
    for end, other in (("promote", "abort"), ("abort", "promote")):
        replicas = Replicas(*both, f"release{next(numbers)}")
        revision = replicas.started()["revision"]
        first = replicas.post(end, {"revision": revision}).json()
        again = replicas.post(end, {"revision": revision}, replicas.second)

        assert again.status_code == 200
        assert again.json()["ended"] == first["ended"]
        assert again.json()["revision"] == first["revision"]
        assert code_of(replicas.post(other)) == (409, "release_refused")


def test_a_promotion_with_rollback_can_be_aborted(replicas: Replicas) -> None:
    replicas.started(rollback=True)
    replicas.post("promote")
    found = replicas.post("abort", {"why": "it was not"}, replicas.second).json()

    assert (found["current"], found["ended"]["how"], found["ended"]["why"]) == (1, "aborted", "it was not")


def test_the_next_release_starts_from_zero(replicas: Replicas) -> None:
    replicas.started(salt="a")
    replicas.post("abort")
    found = replicas.put({"candidate": 2, "mode": "shadow", "percent": 100, "salt": "b"}).json()

    assert (found["ended"], found["mode"], found["revision"], found["compared"]["steps"]) == (None, "shadow", 3, 0)


# ---------------------------------------------------------------- edits by several people


def test_a_change_of_an_older_revision_is_rejected_with_the_newer_one(replicas: Replicas) -> None:
    replicas.started()
    rejected = [
        replicas.put({"percent": 50, "revision": 0}, replicas.second),
        replicas.post("promote", {"revision": 0}),
        replicas.post("abort", {"revision": 7}),
        replicas.put({"candidate": 3, "mode": "ramp", "percent": 1, "revision": 0}),
    ]

    assert [code_of(response) for response in rejected] == [(409, "release_changed")] * 4
    assert [response.json()["revision"] for response in rejected] == [1] * 4


def test_of_concurrent_changes_of_one_revision_one_is_applied(replicas: Replicas) -> None:
    replicas.started()

    def change(i: int) -> httpx2.Response:
        return replicas.put({"percent": 10 + i, "revision": 1}, (replicas.first, replicas.second)[i % 2])

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(change, range(8)))

    applied = [i for i, response in enumerate(responses) if response.status_code == 200]
    assert len(applied) == 1
    assert {code_of(responses[i]) for i in range(8) if i not in applied} == {(409, "release_changed")}
    assert replicas.get()["percent"] == 10 + applied[0]
    assert replicas.get()["revision"] == 2


def test_concurrent_changes_without_a_revision_are_all_applied(replicas: Replicas) -> None:
    replicas.started()

    def change(i: int) -> int:
        return replicas.put({"percent": i}, (replicas.first, replicas.second)[i % 2]).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(change, range(8))) == {200}
    assert replicas.get()["revision"] == 9


# ---------------------------------------------------------------- rejections


TRY_2: dict[str, Any] = {"candidate": 2, "mode": "ramp", "percent": 5}


BAD: list[dict[str, Any]] = [
    {},
    {"revision": 1},
    {"candidate": 2},
    {"candidate": 2, "mode": "ramp"},
    {"candidate": 2, "percent": 5},
    {"percent": 5},
    {"gate": {}},
    {"current": 1, "percent": 5},
    {"mode": "ramp", "percent": 5},
    {"candidate": 3, "mode": "ramp", "percent": 5},
    {"candidate": 2, "current": 2, "mode": "ramp", "percent": 5},
    {**TRY_2, "candidate": "2"},
    {**TRY_2, "candidate": None},
    {**TRY_2, "candidate": 0},
    {**TRY_2, "mode": "canary"},
    {**TRY_2, "percent": "5"},
    {**TRY_2, "percent": True},
    {**TRY_2, "percent": -1},
    {**TRY_2, "percent": 100.5},
    {**TRY_2, "percent": []},
    {**TRY_2, "percent": [5]},
    {**TRY_2, "percent": [[0, 1], [0, 2]]},
    {**TRY_2, "percent": [[0, 1, 2]]},
    {**TRY_2, "percent": [[-1, 1]]},
    {**TRY_2, "percent": 10**400},
    {**TRY_2, "take": "guess"},
    {**TRY_2, "warm_steps": 10},
    {**TRY_2, "warm_steps": 10, "take": "keep"},
    {**TRY_2, "warm_steps": -1, "take": "reset"},
    {**TRY_2, "existing": 1},
    {**TRY_2, "rollback": "yes"},
    {**TRY_2, "salt": 5},
    {**TRY_2, "gate": 5},
    {**TRY_2, "gate": {"max_abs": 0.1}},
    {**TRY_2, "gate": {"max_abs": {"z": 0.1}}},
    {**TRY_2, "gate": {"max_abs": {"y": -0.1}}},
    {**TRY_2, "gate": {"max_disagree": 2}},
    {**TRY_2, "gate": {"max_errors": 2}},
    {**TRY_2, "gate": {"min_compared": 1.5}},
    {**TRY_2, "revision": "1"},
    {**TRY_2, "colour": "blue"},
]


def test_a_release_that_is_not_well_formed_is_rejected(strict: Replicas) -> None:
    for body in BAD:
        assert code_of(strict.put(body)) == (422, "bad_release"), body
    for text in (b"[]", b"5", b'"text"', b"null"):
        assert code_of(strict.first.http.put(strict.path, content=text)) == (400, "bad_request")
    assert code_of(strict.first.http.put(strict.path, content=b"{")) == (400, "bad_json")


def test_a_missing_version_or_model_is_named(replicas: Replicas) -> None:
    assert code_of(replicas.put({**TRY_2, "candidate": 9})) == (404, "version_not_found")
    assert code_of(replicas.put({"current": 9})) == (404, "version_not_found")
    assert code_of(replicas.first.http.get("/v1/models/missing/release")) == (404, "model_not_found")
    assert code_of(replicas.first.http.put("/v1/models/missing/release", json=TRY_2)) == (404, "model_not_found")


def test_a_candidate_with_other_inputs_is_refused_and_named(replicas: Replicas) -> None:
    refused = replicas.put({"current": 1, "candidate": 3, "mode": "shadow", "percent": 1})

    assert code_of(refused) == (409, "release_refused")
    assert "'x'" in refused.json()["detail"]
    assert replicas.get()["revision"] == 0


def test_a_candidate_whose_inputs_may_not_be_missing_any_more_is_refused_and_named(replicas: Replicas) -> None:
    gaps = Replicas(replicas.first, replicas.second, "gaps")
    refused = gaps.put({"current": 1, "candidate": 2, "mode": "shadow", "percent": 1})

    assert code_of(refused) == (409, "release_refused")
    assert "input 'a' takes no missing values and did" in refused.json()["detail"]
    assert gaps.put({"current": 2, "candidate": 1, "mode": "shadow", "percent": 1}).status_code == 200


def test_keep_with_other_states_is_refused_and_named(replicas: Replicas) -> None:
    sizes = Replicas(replicas.first, replicas.second, "sizes")
    body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 1}
    refused = sizes.put(body)

    assert code_of(refused) == (409, "release_refused")
    assert "[8]" in refused.json()["detail"]
    assert "[16]" in refused.json()["detail"]
    assert code_of(sizes.put({**body, "take": "translate"})) == (409, "release_refused")
    assert sizes.put({**body, "take": "reset", "warm_steps": 5}).status_code == 200


def test_while_a_candidate_runs_no_other_version_may_take_a_place(replicas: Replicas) -> None:
    replicas.started()

    assert code_of(replicas.put({"candidate": 3, "mode": "ramp", "percent": 1})) == (409, "release_refused")
    assert code_of(replicas.put({"current": 3})) == (409, "release_refused")
    assert code_of(replicas.put({**TRY_2, "salt": "another"})) == (422, "bad_release")
    assert replicas.put({**TRY_2, "current": 1}).status_code == 200


def test_ends_and_sweeps_need_a_release(replicas: Replicas) -> None:
    assert code_of(replicas.post("promote")) == (422, "bad_release")
    assert code_of(replicas.post("abort")) == (422, "bad_release")
    assert code_of(replicas.post("move")) == (422, "bad_release")
    assert code_of(replicas.post("abort", {"why": 5})) == (422, "bad_release")
    assert code_of(replicas.post("abort", [])) == (400, "bad_request")
    replicas.put({"current": 1})  # a pin alone has no candidate
    assert code_of(replicas.post("promote")) == (422, "bad_release")
    assert code_of(replicas.put({"percent": 5})) == (422, "bad_release")


def test_a_sweep_is_accepted_and_shown(replicas: Replicas) -> None:
    replicas.started()
    replicas.post("promote")
    accepted = replicas.post("move", {"limit_per_s": 100})

    assert accepted.status_code == 202
    assert accepted.json()["moved"] == 0
    assert accepted.json()["revision"] == 2


# ---------------------------------------------------------------- streams by version


def test_streams_are_counted_by_version(replicas: Replicas) -> None:
    for version, n in ((1, 3), (2, 5)):
        replicas.put({"current": version})
        for i in range(n):
            replicas.first.step(replicas.model, f"v{version}-{i}", [1])

    def counted() -> dict[int, tuple[int, str]]:
        return {row["version"]: (row["streams"], row["status"]) for row in replicas.get()["versions"]}

    assert until(lambda: counted() == {1: (3, "draining"), 2: (5, "current"), 3: (0, "inactive")}, 30), counted()
    assert replicas.get()["counted_at"] == pytest.approx(time.time(), abs=60)
    for i in range(3):
        replicas.first.http.delete(replicas.first.path(replicas.model, f"v1-{i}"))
    assert until(lambda: counted()[1] == (0, "drained"), 30)
