"""Pairs through every transport: columns, chunks, feeds, the Open Inference Protocol, and what watchers receive."""

from __future__ import annotations

import json

import pytest

from tests.addons.releases.fleet import NEW_FACTOR, Fleet, folded


def test_columns_name_the_version_of_the_rows_that_change_it_and_so_does_a_replay(releases: Fleet) -> None:
    releases.step("a", [1], seq=1)
    releases.put(candidate=2, mode="ramp", percent=100, existing=False)
    releases.step("b", [1], seq=1)
    releases.put(candidate=2, mode="ramp", percent=100, existing=True)
    answers = [releases.bulk(["a", "b"], [[2], [2]], seq=[2, 2]) for _ in range(2)]
    after = releases.bulk(["a", "b"], [[3], [3]], seq=[3, 3])

    a = folded([1])[0]
    expected = [folded([2, 3], start=a, factor=NEW_FACTOR), folded([1, 2, 3], factor=NEW_FACTOR)[1:]]
    assert [answer["outputs"]["y"] for answer in answers] == [[[expected[0][0]], [expected[1][0]]]] * 2
    assert [answer["version"] for answer in answers] == [[2, None]] * 2
    assert answers[1]["replayed"] == [0, 1]
    assert after["outputs"]["y"] == [[expected[0][1]], [expected[1][1]]]
    assert "version" not in after


@pytest.mark.parametrize("key", [None, "once"])
def test_a_retry_after_a_promotion_gets_its_first_answer_with_its_version(releases: Fleet, key: str | None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    seq = {"seq": 2} if key is None else {}
    releases.step("s", [1], seq=1)
    releases.put(candidate=2, mode="ramp", percent=100)

    def send() -> dict[str, object]:
        service = releases.replica
        answer = service.http.post(
            service.path(releases.model, "s", "step"), json={"inputs": [2], **seq}, headers=headers
        )
        found: dict[str, object] = answer.json()
        return found

    first = send()
    releases.end("promote")
    retries = [send() for _ in range(3)]

    assert first["version"] == 2
    assert retries == [{**first, "replayed": True}] * 3


def infer(releases: Fleet, x: int, **parameters: object) -> tuple[str, int]:
    """Step the sequence `s` by the Open Inference Protocol, and return the version and the prediction."""
    body = {
        "inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}],
        "parameters": {"sequence_id": "s", **parameters},
    }
    answer = releases.replicas[0].http.post(f"/v2/models/{releases.model}/infer", json=body).json()
    return answer["model_version"], answer["outputs"][0]["data"][0]


def test_the_open_inference_protocol_names_the_version_that_responds(releases: Fleet) -> None:
    answers = [infer(releases, 1, sequence_start=True)]
    releases.put(candidate=2, mode="shadow", percent=100)
    answers.append(infer(releases, 2))
    releases.put(candidate=2, mode="ramp", percent=100)
    answers.append(infer(releases, 3))
    releases.end("abort")
    answers.append(infer(releases, 4, sequence_end=True))

    old = folded([1, 2, 3, 4])
    new = folded([2, 3], start=old[0], factor=NEW_FACTOR)
    assert answers == [("1", old[0]), ("1", old[1]), ("2", new[1]), ("1", old[3])]


def test_watchers_receive_the_version_and_on_request_what_the_candidate_computed(releases: Fleet) -> None:
    releases.step("s", [1])
    releases.put(candidate=2, mode="shadow", percent=100)
    with releases.replicas[0].websocket("/v1/watch") as watching:
        watching.send(json.dumps({"watch": [{"model": releases.model}], "candidate": True}))
        watching.recv(60)
        for x in (2, 3):
            releases.step("s", [x])
        events = [json.loads(watching.recv(60)) for _ in range(2)]

    old = folded([1, 2, 3])
    new = folded([2, 3], start=old[0], factor=NEW_FACTOR)
    assert [(event["version"], event["outputs"]["y"]) for event in events] == [(1, [old[1]]), (1, [old[2]])]
    assert [event["candidate"] for event in events] == [{"version": 2, "outputs": {"y": [y]}} for y in new]


def test_a_sequence_that_starts_again_begins_where_the_release_wants_new_streams(releases: Fleet) -> None:
    infer(releases, 1, sequence_start=True)
    releases.put(candidate=2, mode="ramp", percent=100, existing=False)
    kept = infer(releases, 2)
    started = [infer(releases, 3, sequence_start=True), infer(releases, 4)]
    again = [infer(releases, 3, sequence_start=True), infer(releases, 4)]
    releases.end("abort")
    after = infer(releases, 5)

    new = folded([3, 4], factor=NEW_FACTOR)
    assert kept == ("1", folded([1, 2])[-1])
    assert started == again == [("2", new[0]), ("2", new[1])]
    assert after == ("1", folded([3, 4, 5])[-1])
