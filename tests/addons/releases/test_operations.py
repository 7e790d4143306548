"""Operations on streams that are pairs: copies, states, rollouts, peeks, moves by hand and the sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.addons.releases.fleet import NEW_FACTOR, OLD_FACTOR, Fleet, fleet, folded, wait_until
from tests.graphs import fold
from tests.servers import Server

XS = [3, 1, 4, 1, 5]


def request(releases: Fleet, method: str, stream: str, what: str, **body: Any) -> httpx2.Response:
    service = releases.replica
    return service.http.request(method, service.path(releases.model, stream, what), json=body or None)


def paired(releases: Fleet, stream: str, mode: str) -> tuple[int, int]:
    """Step a stream through `XS` as a pair from the second timestep on, and return both versions' last predictions."""
    releases.step(stream, XS[:1])
    releases.put(candidate=2, mode=mode, percent=100)
    for i, x in enumerate(XS[1:]):
        releases.step(stream, [x], seq=i + 2)
    old = folded(XS)
    return old[-1], folded(XS[1:], start=old[0], factor=NEW_FACTOR)[-1]


def test_a_peek_names_the_version_as_the_step_would(releases: Fleet) -> None:
    releases.step("s", XS[:1])
    releases.put(candidate=2, mode="ramp", percent=100)
    peeks = [request(releases, "POST", "s", "peek", inputs=[2]).json() for _ in range(2)]
    stepped = releases.step("s", [2])
    after = request(releases, "POST", "s", "peek", inputs=[3]).json()
    new = request(releases, "POST", "new", "peek", inputs=[3]).json()

    assert [(peek["outputs"], peek["version"]) for peek in peeks] == [(stepped["outputs"], 2)] * 2
    assert stepped["version"] == 2
    assert "version" not in after
    assert "version" not in new


@pytest.mark.parametrize("mode", ["shadow", "ramp"])
def test_status_state_and_peek_are_of_the_version_that_responds(releases: Fleet, mode: str) -> None:
    old, new = paired(releases, "s", mode)
    responding, factor, version = (old, OLD_FACTOR, 1) if mode == "shadow" else (new, NEW_FACTOR, 2)
    status = request(releases, "GET", "s", "").json()
    state = request(releases, "GET", "s", "state").json()
    peeked = request(releases, "POST", "s", "peek", inputs=[9]).json()
    models = releases.replica.app.state.context.engine.models

    assert (status["version"], status["step"]) == (version, 5)
    assert state["states"] == {"h": [responding]}
    assert state["fingerprint"] == models.get(releases.model, version).fingerprint.hex()
    assert peeked["outputs"]["y"] == folded([9], start=responding, factor=factor)


def test_a_fork_copies_both_halves_and_so_does_a_snapshot(releases: Fleet) -> None:
    old, new = paired(releases, "s", "ramp")
    request(releases, "POST", "s", "fork", to="copy").raise_for_status()
    request(releases, "PUT", "s", "snapshots/kept").raise_for_status()
    releases.step("s", [7])
    request(releases, "POST", "s", "reset", to={"snapshot": "kept"}).raise_for_status()
    by_new = [releases.step(stream, [9])["outputs"]["y"] for stream in ("copy", "s")]
    releases.end("abort")
    by_old = [releases.step(stream, [9])["outputs"]["y"] for stream in ("copy", "s")]

    assert by_new == [folded([9], start=new, factor=NEW_FACTOR)] * 2
    assert by_old == [folded([9, 9], start=old)[1:]] * 2


def test_a_new_state_and_a_reset_end_the_trial_for_a_stream_which_is_taken_over_again(releases: Fleet) -> None:
    paired(releases, "s", "ramp")
    put = request(releases, "PUT", "s", "state", states={"h": [100]}, step=7)
    put.raise_for_status()
    after_put = request(releases, "GET", "s", "").json()
    stepped = releases.step("s", [1])
    request(releases, "POST", "s", "reset").raise_for_status()
    after_reset = request(releases, "GET", "s", "").json()
    again = releases.step("s", [1])

    assert [(found["version"], found["step"]) for found in (after_put, after_reset)] == [(1, 7), (1, 0)]
    assert (stepped["outputs"]["y"], stepped["version"]) == (folded([1], start=100, factor=NEW_FACTOR), 2)
    assert (again["outputs"]["y"], again["version"]) == (folded([1], factor=NEW_FACTOR), 2)


def test_a_committed_rollout_feeds_both_halves(releases: Fleet) -> None:
    old, new = paired(releases, "s", "ramp")
    body = {"horizon": 3, "feedback": {"x": "y"}, "commit": True}
    rolled = request(releases, "POST", "s", "rollout", **body).json()
    releases.end("abort")
    after = releases.step("s", [9])

    fed = [new]
    answers: list[int] = []
    for _ in range(3):
        [y] = folded(fed[-1:], start=answers[-1] if answers else new, factor=NEW_FACTOR)
        answers.append(y)
        fed.append(y)
    assert rolled["outputs"] == {"y": [[y] for y in answers]}
    assert after["outputs"]["y"] == folded([*fed[:3], 9], start=old)[-1:]


@pytest.mark.parametrize("mode", ["shadow", "ramp", "switch"])
def test_a_rollout_that_creates_a_stream_starts_it_as_any_new_stream(releases: Fleet, mode: str) -> None:
    releases.put(candidate=2, mode=mode, percent=100)
    body = {"inputs": {"x": [7]}, "horizon": 3, "feedback": {"x": "y"}}
    tried = request(releases, "POST", "s", "rollout", **body).json()
    rolled = request(releases, "POST", "s", "rollout", **body, commit=True).json()
    releases.end("abort")
    after = releases.step("s", [9])

    factor = OLD_FACTOR if mode == "shadow" else NEW_FACTOR
    fed, answers = [7], list[int]()
    for _ in range(3):
        answers += folded(fed[-1:], start=answers[-1] if answers else 0, factor=factor)
        fed.append(answers[-1])
    goes_on_with = NEW_FACTOR if mode == "switch" else OLD_FACTOR
    assert tried["outputs"] == rolled["outputs"] == {"y": [[y] for y in answers]}
    assert after["outputs"]["y"] == folded([*fed[:3], 9], factor=goes_on_with)[-1:]


def test_a_stream_is_moved_by_hand_exactly_once(releases: Fleet) -> None:
    old, new = paired(releases, "s", "shadow")
    position = request(releases, "GET", "s", "").json()
    moves = [request(releases, "POST", "s", "move", version=2, after=position["state_id"]).json() for _ in range(2)]
    late = releases.replica.step(releases.model, "s", XS[-1:], seq=5)
    unknown = request(releases, "POST", "s", "move", version=3)
    after = releases.step("s", [9], after=moves[0]["state_id"])
    back = request(releases, "POST", "s", "move", version=1).json()

    assert [(move["step"], move["version"], move.get("replayed")) for move in moves] == [(5, 2, None), (5, 2, True)]
    assert moves[0]["state_id"] == moves[1]["state_id"] != position["state_id"]
    assert (late.status_code, late.json()["code"]) == (409, "seq_passed")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "version_not_found")
    assert after["outputs"]["y"] == folded([9], start=new, factor=NEW_FACTOR)
    assert (back["version"], back["step"]) == (1, 6)
    assert old != new


def test_a_sweep_moves_the_streams_that_sleep_and_leaves_position_and_answer(releases: Fleet) -> None:
    old, new = paired(releases, "s", "shadow")
    releases.step("slept", [0])
    positions = [request(releases, "GET", stream, "").json() for stream in ("s", "slept")]
    releases.end("promote")
    releases.release("POST", "/move", limit_per_s=1000)
    wait_until(lambda: (found := releases.release())["left"] == 0 and found["moved"] >= 1)  # it has begun, and ended
    swept = [request(releases, "GET", stream, "").json() for stream in ("s", "slept")]
    again = releases.step("s", XS[-1:], seq=5)
    unsent = releases.step("s", [9], after=positions[0]["state_id"])

    assert [found["version"] for found in swept] == [2, 2]
    for before, after in zip(positions, swept, strict=True):
        assert (before["step"], before["state_id"]) == (after["step"], after["state_id"])
    assert unsent["outputs"]["y"] == folded([9], start=new, factor=NEW_FACTOR)
    assert old != new
    assert (again["replayed"], again["step"], again["outputs"]["y"]) == (True, 5, [old])


@pytest.mark.parametrize("keyed", [False, True])
def test_a_retry_after_a_sweep_repeats_the_version_of_its_first_answer(releases: Fleet, *, keyed: bool) -> None:
    headers, seq = ({"Idempotency-Key": "once"}, {}) if keyed else ({}, {"seq": 2})

    def send() -> Any:
        service = releases.replica
        return service.http.post(
            service.path(releases.model, "s", "step"), json={"inputs": [1], **seq}, headers=headers
        ).json()  # fmt: skip

    releases.step("s", [0])
    releases.put(candidate=2, mode="ramp", percent=100)
    first = send()
    releases.end("abort")
    releases.release("POST", "/move")
    wait_until(lambda: releases.release()["left"] == 0)
    swept = request(releases, "GET", "s", "").json()
    again = [send() for _ in range(2)]
    after = releases.step("s", [2])

    assert (first["version"], swept["version"]) == (2, 1)
    assert again == [{**first, "replayed": True}] * 2
    assert after["outputs"]["y"] == folded([0, 1, 2])[-1:]


def test_a_savepoint_carries_pairs(releases: Fleet, tmp_path: Path) -> None:
    old, new = paired(releases, "s", "ramp")
    service = releases.replica
    saved = service.http.get(f"/v1/models/{releases.model}/streams/export")
    saved.raise_for_status()
    service.http.delete(service.path(releases.model, "s")).raise_for_status()
    loaded = service.http.post(f"/v1/models/{releases.model}/streams/import", content=saved.content)
    answer = releases.step("s", [9])
    releases.end("abort")
    after = releases.step("s", [9])

    assert loaded.json()["loaded"] == 1
    assert answer["outputs"]["y"] == folded([9], start=new, factor=NEW_FACTOR)
    assert after["outputs"]["y"] == folded([9, 9], start=old)[1:]


def test_requests_with_a_version_do_not_move_a_stream(releases: Fleet) -> None:
    releases.step("s", [0])
    releases.put(candidate=2, mode="ramp", percent=100)
    service = releases.replica
    named = [
        service.http.post(service.path(releases.model, "s", "step") + "?version=1", json={"inputs": [1]}) for _ in "ab"
    ]
    unnamed = releases.step("s", [1])
    other = service.http.post(service.path(releases.model, "s", "step") + "?version=1", json={"inputs": [1]})
    same = service.http.post(service.path(releases.model, "s", "step") + "?version=2", json={"inputs": [1]})

    old = folded([0, 1, 1])
    assert [answer.json()["outputs"]["y"] for answer in named] == [[y] for y in old[1:]]
    new = folded([1, 1], start=old[-1], factor=NEW_FACTOR)
    assert (unnamed["outputs"]["y"], unnamed["version"]) == (new[:1], 2)
    assert (other.status_code, other.json()["code"]) == (409, "model_changed")
    assert same.json()["outputs"]["y"] == new[1:]


def test_without_existing_only_streams_that_begin_take_part(redis_server: Server, tmp_path: Path) -> None:
    builds = (lambda: fold(OLD_FACTOR), lambda: fold(NEW_FACTOR))
    with fleet(redis_server.url, tmp_path, *builds) as releases:
        releases.step("old", [1])
        releases.put(candidate=2, mode="ramp", percent=100, existing=False)
        answers = [releases.step(stream, [2]) for stream in ("old", "new")]
        releases.end("promote")
        answers += [releases.step(stream, [3]) for stream in ("old", "new")]

    old, new = folded([1, 2, 3]), folded([2, 3], factor=NEW_FACTOR)
    assert [answer["outputs"]["y"][0] for answer in answers] == [old[1], new[0], old[2], new[1]]
    assert [answer.get("version") for answer in answers] == [None] * 4


def _fork(releases: Fleet) -> str:
    service = releases.replica
    path = service.path(releases.model, "s", "fork") + "?version=1"
    service.http.post(path, json={"to": "copy"}).raise_for_status()
    return "copy"


def _reset_to_snapshot(releases: Fleet) -> str:
    service = releases.replica
    service.http.put(service.path(releases.model, "s", "snapshots/before")).raise_for_status()
    path = service.path(releases.model, "s", "reset") + "?version=1"
    service.http.post(path, json={"to": {"snapshot": "before"}}).raise_for_status()
    return "s"


def _reset(releases: Fleet) -> str:
    service = releases.replica
    service.http.post(service.path(releases.model, "s", "reset") + "?version=1").raise_for_status()
    return "s"


def _import_state(releases: Fleet) -> str:
    service = releases.replica
    state = service.http.get(service.path(releases.model, "s", "state")).json()["states"]
    path = service.path(releases.model, "s", "state") + "?version=1"
    service.http.put(path, json={"states": state, "step": len(XS)}).raise_for_status()
    return "s"


@pytest.mark.parametrize("put_on_version_1", [_fork, _reset_to_snapshot, _reset, _import_state])
def test_a_stream_that_is_put_on_a_version_by_hand_stays_there_after_a_promotion(
    releases: Fleet, put_on_version_1: Callable[[Fleet], str]
) -> None:
    """Version 1 is that from which streams were promoted; with `reset` a move would discard the state."""
    releases.chunk("s", [[x] for x in XS])
    releases.put(candidate=2, mode="switch", percent=0, take="reset")
    releases.end("promote")
    stream = put_on_version_1(releases)
    before = 0 if put_on_version_1 is _reset else folded(XS)[-1]
    answers = [releases.step(stream, [x]) for x in (7, 8)]
    version = request(releases, "GET", stream, "").json()["version"]

    assert [answer["outputs"]["y"][0] for answer in answers] == folded([7, 8], start=before)
    assert version == 1
