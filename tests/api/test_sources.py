"""Timesteps with their positions in a log, through every door: applied once, however late and however cut they come."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import msgspec
import numpy as np

from tests.addons.oip.client import InferClient
from tests.api.running import Service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import fold_reference

XS = [7, -3, 2**40, 0, -(2**50), 11, 5, 1]
YS = fold_reference(XS)


def source(*at: int, log: str = "orders/3") -> dict[str, Any]:
    return {"id": log, "at": list(at)}


def chunk(service: Service, stream: str, first: int, end: int, **more: Any) -> httpx2.Response:
    """Send a part of `XS`, whose positions are ten times their indices."""
    body = {"inputs": [[x] for x in XS[first:end]], "source": source(*(10 * i for i in range(first, end)))}
    return service.http.post(service.path("fold", stream, "steps"), json={**body, **more})


def ys(answer: httpx2.Response) -> list[int | None]:
    assert answer.status_code == 200, answer.text
    return [y and y[0] for y in answer.json()["outputs"]["y"]]


# ---------------------------------------------------------------- one stream


def test_a_timestep_of_a_source_is_applied_once(service: Service, stream: str) -> None:
    at = {"id": "orders/3", "at": 41}
    first = service.step("fold", stream, [7], source=at).json()
    again = service.step("fold", stream, [7], source=at).json()
    following = service.step("fold", stream, [-3], source={"id": "orders/3", "at": 50}).json()

    shared = {"outputs": {"y": [YS[0]]}, "step": 1, "state_id": first["state_id"], "version": 1}
    assert first == {**shared, "created": True}
    assert again == {**shared, "replayed": True, "skipped": 1}
    assert (following["outputs"]["y"], following["step"]) == ([YS[1]], 2)
    assert service.http.get(service.path("fold", stream)).json()["source"] == {"at": 50}


def test_the_part_of_a_chunk_that_was_applied_is_skipped_and_keeps_its_answers(service: Service, stream: str) -> None:
    """Twice, as after two crashes: the answers of the first chunk are known to the end."""
    chunk(service, stream, 0, 3)
    second = chunk(service, stream, 0, 5)
    third = chunk(service, stream, 0, 6)
    part = chunk(service, stream, 1, 3)

    assert [ys(second), ys(third), ys(part)] == [YS[:5], YS[:6], YS[1:3]]
    assert [answer.json().get("skipped") for answer in (second, third, part)] == [3, 5, 2]
    assert [answer.json()["step"] for answer in (second, third, part)] == [5, 6, 3]
    assert part.json()["state_id"] is None
    assert "replayed" not in third.json()


def test_answers_that_are_not_known_any_more_are_null(service: Service, stream: str) -> None:
    """In msgpack they are zeros, and counted; if none is known, the request is refused as applied."""
    for name in (stream, f"{stream}-b"):
        chunk(service, name, 0, 3)
        chunk(service, name, 3, 5)
    refused = chunk(service, stream, 0, 3)
    packed = {"x": {"d": "int64", "s": [4, 1], "b": np.array(XS[2:6], np.int64).tobytes()}}
    body = msgspec.msgpack.encode({"inputs": packed, "source": source(20, 30, 40, 50)})
    answer = chunk(service, stream, 1, 6)
    in_msgpack = service.http.post(service.path("fold", f"{stream}-b", "steps"), content=body, headers=MSGPACK)
    document, problem = msgspec.msgpack.decode(in_msgpack.content), refused.json()

    assert ys(answer) == [None, None, *YS[3:6]]
    assert answer.json()["skipped"] == 4
    assert (document["skipped"], document["unknown"]) == (3, 1)
    assert np.frombuffer(document["outputs"]["y"]["b"], np.int64).tolist() == [0, *YS[3:6]]
    assert code_of(refused) == "source_passed"
    assert (refused.status_code, problem["applied"], problem["at"], problem["step"]) == (409, "yes", 40, 5)


def test_a_chunk_that_returns_less_is_skipped_likewise(service: Service, stream: str) -> None:
    for keep, outputs in (("last", {"y": [YS[4]]}), ("none", {})):
        answers = [chunk(service, f"{stream}-{keep}", first, 5, **{"return": keep}).json() for first in (0, 0, 4)]

        assert [answer["outputs"] for answer in answers] == [outputs] * 3
        assert [answer["step"] for answer in answers] == [5, 5, 5]
        assert [answer.get("skipped") for answer in answers] == [None, 5, 1]


def test_seq_numbers_the_first_timestep_whether_skipped_or_not(service: Service, stream: str) -> None:
    chunk(service, stream, 0, 3, seq=1)
    fits = chunk(service, stream, 1, 5, seq=2)
    conflict = chunk(service, stream, 3, 5, seq=3)
    gap = chunk(service, stream, 4, 7, seq=9)

    assert (fits.json()["skipped"], fits.json()["step"]) == (2, 5)
    assert [code_of(conflict), code_of(gap)] == ["seq_conflict", "seq_gap"]
    assert service.http.get(service.path("fold", stream)).json()["step"] == 5


def test_a_fifth_source_replaces_the_one_used_longest_ago_and_the_answer_reports_it(
    service: Service, stream: str
) -> None:
    answers = [service.step("fold", stream, [1], source=source(0, log=f"log-{n}")).json() for n in range(5)]
    kept = service.step("fold", stream, [1], source=source(0, log="log-1"))
    replaced = service.step("fold", stream, [1], source=source(0, log="log-0")).json()

    assert [answer.get("source_changed") for answer in answers] == [None] * 4 + [True]
    assert code_of(kept) == "source_passed"
    assert (replaced["step"], replaced["source_changed"]) == (6, True)


def test_the_status_of_a_stream_has_the_ids_and_positions_of_its_sources(service: Service, stream: str) -> None:
    for n in (1, 2, 1):
        service.step("fold", stream, [1], source=source(n * 10 + (n == 1), log=f"log {n}"))
    service.step("fold", stream, [1], source=source(99, log="log 1"))

    expected = [{"id": "log 1", "at": 99}, {"id": "log 2", "at": 20}]
    assert service.http.get(service.path("fold", stream)).json()["sources"] == expected


def test_the_list_of_streams_has_their_sources_on_request(service: Service, stream: str) -> None:
    service.step("fold", f"{stream}-a", [1], source=source(5, log="l"))
    service.step("fold", f"{stream}-b", [1])
    path = f"/v1/models/fold/streams?prefix={stream}"

    found = service.http.get(f"{path}&sources=true").json()["streams"]
    without = service.http.get(path).json()["streams"]
    assert sorted(found, key=lambda entry: entry["stream"]) == [
        {"stream": f"{stream}-a", "step": 1, "sources": [{"id": "l", "at": 5}]},
        {"stream": f"{stream}-b", "step": 1, "sources": []},
    ]
    assert all(entry.keys() == {"stream", "step"} for entry in without)


def test_a_timestep_without_a_source_in_between_keeps_the_position(service: Service, stream: str) -> None:
    chunk(service, stream, 0, 3)
    service.step("fold", stream, [9])
    again = chunk(service, stream, 0, 3)
    following = chunk(service, stream, 2, 4)

    assert code_of(again) == "source_passed"
    assert (following.json()["skipped"], following.json()["step"]) == (1, 5)
    assert ys(following) == [None, fold_reference([*XS[:3], 9, XS[3]])[-1]]


def test_an_idempotency_key_may_stand_beside_a_source(service: Service, stream: str) -> None:
    path, body = service.path("fold", stream, "step"), {"inputs": [7], "source": source(3)}
    first, again = (service.http.post(path, json=body, headers={"Idempotency-Key": "k"}).json() for _ in range(2))
    service.step("fold", stream, [1])
    later = service.http.post(path, json=body, headers={"Idempotency-Key": "k"}).json()

    assert [answer["outputs"] for answer in (first, again, later)] == [{"y": [YS[0]]}] * 3
    assert service.http.get(service.path("fold", stream)).json()["step"] == 2


# ---------------------------------------------------------------- resets, copies


def test_a_reset_and_an_imported_state_keep_the_position(service: Service, stream: str) -> None:
    path = service.path("fold", stream)
    chunk(service, stream, 0, 3)
    state = service.http.get(f"{path}/state").json()["states"]
    service.http.post(f"{path}/reset")
    after_reset = chunk(service, stream, 2, 4)
    service.http.put(f"{path}/state", json={"states": state, "step": 3})
    after_import = chunk(service, stream, 3, 5)

    assert ys(after_reset) == [None, fold_reference([XS[3]])[0]]
    assert ys(after_import) == [None, fold_reference([*XS[:3], XS[4]])[-1]]


def test_a_reset_to_a_snapshot_keeps_the_newest_position(service: Service, stream: str) -> None:
    path = service.path("fold", stream)
    chunk(service, stream, 0, 2)
    service.http.put(f"{path}/snapshots/then")
    chunk(service, stream, 2, 4)
    service.http.post(f"{path}/reset", json={"to": {"snapshot": "then"}})

    assert service.http.get(path).json()["source"] == {"at": 30}
    assert code_of(chunk(service, stream, 2, 4)) == "source_passed"


def test_a_fork_copies_positions_and_a_new_stream_has_none(service: Service, stream: str) -> None:
    chunk(service, stream, 0, 3)
    service.http.post(service.path("fold", stream, "fork"), json={"to": f"{stream}-copy"})
    of_copy = chunk(service, f"{stream}-copy", 2, 4)
    service.http.delete(service.path("fold", stream))
    of_new = chunk(service, stream, 2, 4)

    assert (of_copy.json()["skipped"], of_copy.json()["step"]) == (1, 4)
    assert of_new.json()["step"] == 2
    assert "skipped" not in of_new.json()


def test_a_savepoint_has_the_positions(service: Service, stream: str) -> None:
    streams = "/v1/models/fold/streams"
    chunk(service, stream, 0, 3)
    saved = service.http.get(f"{streams}/export", params={"prefix": stream}).content
    service.http.delete(service.path("fold", stream))
    loaded = service.http.post(f"{streams}/import", content=saved).json()
    answer = chunk(service, stream, 1, 4)

    assert loaded["loaded"] == 1
    assert ys(answer)[-1] == YS[3]
    assert (answer.json()["skipped"], answer.json()["step"]) == (2, 4)


def test_a_committed_rollout_keeps_the_position(service: Service, stream: str) -> None:
    chunk(service, stream, 0, 3)
    body = {"horizon": 2, "commit": True, "inputs": {"x": [1]}, "feedback": {"x": "y"}}
    answer = service.http.post(service.path("fold", stream, "rollout"), json=body)

    assert answer.status_code == 200, answer.text
    assert service.http.get(service.path("fold", stream)).json()["source"] == {"at": 20}
    assert code_of(chunk(service, stream, 0, 3)) == "source_passed"


# ---------------------------------------------------------------- columns


def columns(service: Service, what: str, names: list[str], inputs: Any, sources: Any, **more: Any) -> dict[str, Any]:
    body = {"streams": names, "inputs": inputs, "source": sources, **more}
    answer = service.http.post(f"/v1/models/fold/{what}", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_columns_have_a_position_for_each_stream(service: Service, stream: str) -> None:
    names = [f"{stream}-{i}" for i in range(20)]
    inputs = [[i] for i in range(20)]
    at = {"id": "rows", "at": list(range(100, 120))}
    first = columns(service, "step", names, inputs, at)
    again = columns(service, "step", names, inputs, at)
    behind = columns(service, "step", names, inputs, {"id": "rows", "at": [110] * 20})

    assert first["outputs"] == again["outputs"]
    assert "skipped" not in first
    assert (again["step"], again["skipped"], again["replayed"]) == ([1] * 20, [1] * 20, list(range(20)))
    assert behind["step"] == [2] * 10 + [1] + [None] * 9
    assert behind["skipped"] == [0] * 10 + [1] + [0] * 9
    assert list(map(int, behind["errors"])) == list(range(11, 20))
    assert {problem["code"] for problem in behind["errors"].values()} == {"source_passed"}


def test_columns_of_chunks_may_have_a_source_for_each_stream(service: Service, stream: str) -> None:
    names = [f"{stream}-a", f"{stream}-b"]
    chunk(service, names[0], 0, 2)
    chunk(service, names[0], 2, 4)
    rows = {"id": ["orders/3", "other"], "at": [[10, 20, 40], [0, 1, 2]]}
    answer = columns(service, "steps", names, [[[x] for x in (XS[1], XS[2], XS[4])]] * 2, rows)

    assert answer["skipped"] == [2, 0]
    assert answer["outputs"]["y"][0] == [None, [YS[2]], [YS[4]]]
    assert [y for [y] in answer["outputs"]["y"][1]] == fold_reference([XS[1], XS[2], XS[4]])
    assert answer["step"] == [5, 3]


def test_positions_of_columns_may_be_packed_in_msgpack(service: Service, stream: str) -> None:
    xs = np.array([[[x] for x in XS[:3]]], np.int64)
    body = {
        "streams": [stream],
        "inputs": {"x": {"d": "int64", "s": [1, 3, 1], "b": xs.tobytes()}},
        "source": {"id": "rows", "at": {"d": "int64", "s": [1, 3], "b": np.array([1, 2, 3], np.int64).tobytes()}},
    }
    first, again = (
        msgspec.msgpack.decode(
            service.http.post("/v1/models/fold/steps", content=msgspec.msgpack.encode(body), headers=MSGPACK).content
        )
        for _ in range(2)
    )

    assert first["outputs"] == again["outputs"]
    assert again["skipped"] == [3]


def test_columns_report_the_rows_whose_source_replaced_another(service: Service, stream: str) -> None:
    for n in range(4):
        service.step("fold", stream, [1], source=source(0, log=f"log-{n}"))
    answer = columns(service, "step", [f"{stream}-new", stream], [[1], [1]], {"id": "log-4", "at": [0, 0]})

    assert answer["source_changed"] == [1]


# ---------------------------------------------------------------- feeds, OIP


def test_a_message_of_a_feed_may_have_a_source(service: Service, stream: str) -> None:
    messages: list[dict[str, Any]] = [
        {"inputs": [XS[0]], "source": {"id": "l", "at": 0}},
        {"inputs": [[x] for x in XS[:3]], "source": {"id": "l", "at": [0, 1, 2]}, "chunk": True},
        {"inputs": [XS[2]], "source": {"id": "l", "at": 2}},
    ]
    with service.feed("fold", stream) as feed:
        replies = []
        for message in messages:
            feed.send(json.dumps(message))
            replies.append(json.loads(feed.recv()))

    assert replies[1]["outputs"]["y"] == [[y] for y in YS[:3]]
    assert [reply.get("skipped") for reply in replies] == [None, 1, 1]
    assert replies[2]["outputs"]["y"] == [YS[2]]


def test_a_message_with_columns_may_have_sources(service: Service, stream: str) -> None:
    names = [f"{stream}-a", f"{stream}-b"]
    message = {"streams": names, "inputs": [[7], [8]], "source": {"id": ["l", "m"], "at": [3, 4]}}
    with service.feed("fold") as feed:
        replies = []
        for _ in range(2):
            feed.send(json.dumps(message))
            replies.append(json.loads(feed.recv()))

    assert replies[0]["outputs"] == replies[1]["outputs"]
    assert [reply.get("skipped") for reply in replies] == [None, [1, 1]]


def test_an_infer_request_may_have_a_source(service: Service, stream: str) -> None:
    client = InferClient(service)
    first = client.send(7, stream, sequence_start=True, source_id="l", source_at=0).json()
    again = client.send(7, stream, sequence_start=True, source_id="l", source_at=0).json()
    second = client.send(-3, stream, source_id="l", source_at=1).json()
    passed = client.send(7, stream, sequence_start=True, source_id="l", source_at=0)

    assert first["outputs"] == again["outputs"]
    assert again["parameters"] == {"sequence_id": stream, "step": 1, "replayed": True, "skipped": 1}
    assert second["outputs"][0]["data"] == [YS[1]]
    assert "at position 1 of this source" in passed.json()["error"]
    assert "(code: source_passed, applied: yes)" in passed.json()["error"]
    assert service.http.get(service.path("fold", stream)).json()["step"] == 2


def test_an_infer_request_needs_both_parameters_of_a_source(service: Service, stream: str) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source_id": "l"}, "Unable to parse 'source_at': it is null; expected an integer from 0"),
        ({"source_at": 1}, "Unable to parse 'source_id': it is null; expected text"),
        ({"source_id": "", "source_at": 1}, "Unable to parse 'source_id'"),
        ({"source_id": "l", "source_at": 2**63}, "Unable to parse 'source_at'"),
        ({"source_id": "l", "source_at": True}, "Unable to parse 'source_at'"),
    ]
    for parameters, message in cases:
        answer = InferClient(service).send(7, stream, sequence_start=True, **parameters)

        assert answer.status_code == 400
        assert message in answer.json()["error"]


# ---------------------------------------------------------------- bad requests


BAD: list[tuple[Any, str]] = [
    ("orders", "`source`"),
    ({"id": "l"}, '`source` is {"id": "l"};'),
    ({"id": "", "at": 1}, '`source` is {"id": "", "at": 1};'),
    ({"id": "l" * 256, "at": 1}, "`source`"),
    ({"id": "l", "at": -1}, '`source` is {"id": "l", "at": -1};'),
    ({"id": "l", "at": 2**63}, "`source`"),
    ({"id": "l", "at": 1.5}, '`source` is {"id": "l", "at": 1.5};'),
    ({"id": "l", "at": True}, '`source` is {"id": "l", "at": true};'),
    ({"id": "l", "at": 1, "to": 2}, "`source`"),
    ({"id": "l", "at": [1, 2]}, "`source.at` has 2 positions for 1 timestep"),
    ({"id": "l", "at": []}, "`source.at` has 0 positions for 1 timestep"),
]
BAD_CHUNKS = [[10, 10], [10, 9], [10], 10]
"""Positions of two timesteps that do not grow, or are not one for each."""
BAD_COLUMNS: list[dict[str, Any]] = [
    {"id": ["a"], "at": [1, 2]},
    {"id": "a", "at": [1]},
    {"id": "a", "at": [[1], [2]]},
    {"id": "a", "at": {"d": "int64", "s": [2], "b": "AAAA"}},
    {"id": "a", "at": [1, -2]},
    {"id": "a"},
]


def test_a_bad_source_is_refused_with_what_was_expected(service: Service, stream: str) -> None:
    for bad, what in BAD:
        answer = service.step("fold", stream, [7], source=bad)

        assert code_of(answer) == "bad_request"
        assert what in answer.json()["detail"]
        assert "expected" in answer.json()["detail"]
    for at in BAD_CHUNKS:
        answer = chunk(service, stream, 0, 2, source={"id": "l", "at": at})

        assert code_of(answer) == "bad_request"
        assert "`source.at` has" in answer.json()["detail"]
    for bad in BAD_COLUMNS:
        body = {"streams": [stream, f"{stream}-b"], "inputs": [[1], [2]], "source": bad}
        answer = service.http.post("/v1/models/fold/step", json=body)

        assert code_of(answer) == "bad_request"
        assert "`source" in answer.json()["detail"]


def test_a_peek_takes_no_source(service: Service, stream: str) -> None:
    body = {"inputs": [7], "source": source(1)}

    assert code_of(service.http.post(service.path("fold", stream, "peek"), json=body)) == "bad_request"
