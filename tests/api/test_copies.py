"""Forks, snapshots, and export and import of states over HTTP, as the API contract specifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.api.running import Service, running_service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import count, fold, fold_reference, lstm, total_half, write_models
from tests.servers import Server


def y_of(answer: Any) -> int:
    return int(answer.json()["outputs"]["y"][0])


def step_through(service: Service, stream: str, xs: list[int]) -> None:
    """Start a stream of `fold` with these timesteps."""
    answer = service.http.post(service.path("fold", stream, "steps"), json={"inputs": [[x] for x in xs], "seq": 1})
    assert answer.is_success


def position(service: Service, stream: str, model: str = "fold") -> tuple[int, str]:
    found = service.http.get(service.path(model, stream)).json()
    return found["step"], found["state_id"]


# ------------------------------------------------------------------- forks


def test_a_retried_fork_gets_its_first_answer(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    _, history = position(service, stream)
    body = {"to": f"{stream}-b", "after": history}
    first = service.http.post(service.path("fold", stream, "fork"), json=body).json()
    service.step("fold", stream, [3], seq=3)  # the source has moved on; the retry still refers to its earlier state
    again = service.http.post(service.path("fold", stream, "fork"), json=body).json()

    assert again == {**first, "replayed": True}


def test_a_fork_with_a_key_gets_its_first_answer_after_later_steps(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    path, key = service.path("fold", stream, "fork"), {"idempotency-key": "k"}
    first = service.http.post(path, json={"to": f"{stream}-b"}, headers=key).json()
    for name in (stream, f"{stream}-b"):
        service.step("fold", name, [3], seq=3)
    again = service.http.post(path, json={"to": f"{stream}-b"}, headers=key).json()
    other = service.http.post(path, json={"to": f"{stream}-b", "from": {"snapshot": "s"}}, headers=key)

    assert again == {**first, "replayed": True}
    assert (other.status_code, code_of(other)) == (422, "idempotency_key_reused")
    assert position(service, f"{stream}-b")[0] == 3


def test_a_fork_onto_an_existing_stream_is_rejected_and_leaves_it_unchanged(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    step_through(service, f"{stream}-b", [7])
    before = position(service, f"{stream}-b")
    refused = service.http.post(service.path("fold", stream, "fork"), json={"to": f"{stream}-b"})
    itself = service.http.post(service.path("fold", stream, "fork"), json={"to": stream})

    assert (refused.status_code, code_of(refused), refused.json()["step"]) == (409, "stream_exists", 1)
    assert (itself.status_code, code_of(itself)) == (409, "stream_exists")
    assert position(service, f"{stream}-b") == before


def test_a_fork_of_another_history_or_of_a_missing_stream_is_rejected(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    _, history = position(service, stream)
    service.step("fold", stream, [2], seq=2)
    moved = service.http.post(service.path("fold", stream, "fork"), json={"to": f"{stream}-b", "after": history})
    none = service.http.post(service.path("fold", f"{stream}-none", "fork"), json={"to": f"{stream}-b"})
    no_snapshot = service.http.post(
        service.path("fold", stream, "fork"), json={"to": f"{stream}-b", "from": {"snapshot": "none"}}
    )

    assert (moved.status_code, code_of(moved), moved.json()["step"]) == (409, "state_changed", 2)
    assert (none.status_code, code_of(none)) == (404, "stream_not_found")
    assert (no_snapshot.status_code, code_of(no_snapshot)) == (404, "snapshot_not_found")
    assert service.http.get(service.path("fold", f"{stream}-b")).status_code == 404


# ------------------------------------------------------------------- snapshots


def test_a_reset_to_a_snapshot_reproduces_the_continuation_bit_for_bit(service: Service, stream: str) -> None:
    xs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32).tolist()
    path = service.path("lstm", stream, "steps")
    service.http.post(path, json={"inputs": xs[:3]})
    taken = service.http.put(service.path("lstm", stream, "snapshots/three")).json()
    first = service.http.post(path, json={"inputs": xs[3:]}).json()["outputs"]
    back = service.http.post(service.path("lstm", stream, "reset"), json={"to": {"snapshot": "three"}}).json()
    again = service.http.post(path, json={"inputs": xs[3:], "seq": 4}).json()["outputs"]

    assert (taken["name"], taken["step"], back["step"]) == ("three", 3, 3)
    assert again == first


def test_a_snapshot_keeps_the_state_at_its_step_and_is_listed_with_it(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    step, history = position(service, stream)
    taken = service.http.put(service.path("fold", stream, "snapshots/b.2"), json={"after": history}).json()
    service.http.put(service.path("fold", stream, "snapshots/a"))
    service.step("fold", stream, [3])
    service.http.put(service.path("fold", stream, "snapshots/a"))  # replaces the older one of that name
    listed = service.http.get(service.path("fold", stream, "snapshots")).json()["snapshots"]
    one = service.http.get(service.path("fold", stream, "snapshots/b.2")).json()

    assert taken == {"name": "b.2", "step": step, "state_id": history}
    assert [(s["name"], s["step"], s["version"]) for s in listed] == [("a", 3, 1), ("b.2", 2, 1)]
    assert listed[1]["state_id"] == history
    assert one == {**listed[1], "states": {"h": fold_reference([1, 2])[-1:]}, "fingerprint": one["fingerprint"]}


def test_a_retried_snapshot_keeps_its_first_state(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    _, history = position(service, stream)
    path, key = service.path("fold", stream, "snapshots/"), {"idempotency-key": "k"}
    first = service.http.put(f"{path}s", json={"after": history}).json()
    keyed = service.http.put(f"{path}keyed", headers=key).json()
    service.step("fold", stream, [2])
    again = service.http.put(f"{path}s", json={"after": history}).json()
    keyed_again = service.http.put(f"{path}keyed", headers=key).json()
    late = service.http.put(f"{path}other", json={"after": history})
    reused = service.http.put(f"{path}other", headers=key)

    assert (again, keyed_again) == ({**first, "replayed": True}, {**keyed, "replayed": True})
    assert (late.status_code, code_of(late)) == (409, "state_changed")
    assert (reused.status_code, code_of(reused)) == (422, "idempotency_key_reused")
    assert [s["step"] for s in service.http.get(path[:-1]).json()["snapshots"]] == [1, 1]


def test_a_retried_reset_to_a_snapshot_is_applied_once(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    service.http.put(service.path("fold", stream, "snapshots/s"))
    service.step("fold", stream, [3])
    _, history = position(service, stream)
    path, body = service.path("fold", stream, "reset"), {"to": {"snapshot": "s"}, "after": history}
    first = service.http.post(path, json=body).json()
    again = service.http.post(path, json=body).json()
    service.step("fold", stream, [9], seq=3)
    late = service.http.post(path, json=body)

    assert again == {**first, "replayed": True}
    assert (late.status_code, code_of(late)) == (409, "state_changed")
    assert position(service, stream)[0] == 3


def test_a_fork_of_a_snapshot_continues_from_its_state(service: Service, stream: str) -> None:
    step_through(service, stream, [1, 2])
    service.http.put(service.path("fold", stream, "snapshots/s"))
    service.step("fold", stream, [3])
    body = {"to": f"{stream}-b", "from": {"snapshot": "s"}}
    forked = service.http.post(service.path("fold", stream, "fork"), json=body).json()
    again = service.http.post(service.path("fold", stream, "fork"), json=body).json()

    assert (forked["step"], again["replayed"]) == (2, True)
    assert y_of(service.step("fold", f"{stream}-b", [7])) == fold_reference([1, 2, 7])[-1]


def test_deleting_a_snapshot_twice_is_no_error(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    path = service.path("fold", stream, "snapshots/s")
    service.http.put(path)
    statuses = [service.http.delete(path, headers={"idempotency-key": "k"}).status_code for _ in range(2)]
    service.http.put(path)
    late = service.http.delete(path, headers={"idempotency-key": "k"})  # a late copy of the first delete

    assert [*statuses, late.status_code] == [204] * 3
    assert service.http.get(path).status_code == 200
    service.http.delete(path)
    gone = service.http.get(path)
    assert (gone.status_code, code_of(gone)) == (404, "snapshot_not_found")


def test_snapshots_are_deleted_with_their_stream(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    service.http.put(service.path("fold", stream, "snapshots/s"))
    service.http.delete(service.path("fold", stream))
    listed = service.http.get(service.path("fold", stream, "snapshots"))
    taken = service.http.put(service.path("fold", stream, "snapshots/s"))
    back = service.http.post(service.path("fold", stream, "reset"), json={"to": {"snapshot": "s"}})

    assert [code_of(answer) for answer in (listed, taken)] == ["stream_not_found"] * 2
    assert code_of(back) == "snapshot_not_found"


def test_the_number_of_snapshots_of_a_stream_is_limited(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), max_snapshots=2, snapshot_ttl_s=60) as few:
        step_through(few, stream, [1])
        made = [few.http.put(few.path("fold", stream, f"snapshots/{name}")).status_code for name in ("a", "b", "a")]
        more = few.http.put(few.path("fold", stream, "snapshots/c"))
        limits = few.http.get("/v1/info").json()["limits"]

    assert made == [200] * 3
    assert (more.status_code, code_of(more)) == (429, "stream_quota")
    assert (limits["max_snapshots"], limits["snapshot_ttl_s"]) == (2, 60)


def test_snapshot_names_follow_the_rules_of_model_names(service: Service, stream: str) -> None:
    for name in ("-a", "a%20b", "a" * 65, ".a"):
        for method in ("GET", "PUT", "DELETE"):
            answer = service.http.request(method, service.path("fold", stream, f"snapshots/{name}"))

            assert (answer.status_code, code_of(answer)) == (400, "bad_request"), (method, name)


# ------------------------------------------------------------------- states


def test_a_state_can_be_exported_and_imported_and_continues_equally(
    service: Service, redis_server: Server, tmp_path: Path, stream: str
) -> None:
    """From one service to another with another store; in JSON and in msgpack."""
    xs = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32).tolist()
    path = service.path("lstm", stream, "steps")
    service.http.post(path, json={"inputs": xs[:5]})
    state = service.http.get(service.path("lstm", stream, "state")).json()
    packed = service.http.get(service.path("lstm", stream, "state"), headers={"accept": MSGPACK["accept"]}).content
    with running_service(redis_server.url, write_models(tmp_path, lstm)) as other:
        put = other.http.put(other.path("lstm", "json", "state"), json=state)
        other.http.put(other.path("lstm", "msgpack", "state"), content=packed, headers=MSGPACK)
        moved = [
            other.http.post(other.path("lstm", name, "steps"), json={"inputs": xs[5:], "seq": 6}).json()
            for name in ("json", "msgpack")
        ]
    stayed = service.http.post(path, json={"inputs": xs[5:], "seq": 6}).json()

    assert sorted(state["states"]) == sorted(msgspec.msgpack.decode(packed)["states"])
    assert put.json()["step"] == 5
    assert [answer["outputs"] for answer in moved] == [stayed["outputs"]] * 2
    assert [answer["step"] for answer in moved] == [8, 8]


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({}, "no names"),
    ({"h": [1], "x": [1]}, "x"),
    ({"h": [1, 2]}, "shape"),
    ({"h": 1}, "shape"),
    ({"h": [1.5]}, "int64"),
    ({"h": ["1"]}, "text"),
    ({"h": [2**63]}, "int64"),
]


def test_a_state_that_does_not_fit_or_is_not_finite_changes_nothing(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    service.step("total", stream, [1.0, 2.0])
    before = position(service, stream), position(service, stream, "total")
    for states, found in UNFIT:
        answer = service.http.put(service.path("fold", stream, "state"), json={"states": states, "step": 4})

        assert (answer.status_code, code_of(answer)) == (422, "bad_input")
        assert found in answer.json()["detail"]
    for value in ("NaN", "1e999", "-Infinity", "1e39"):
        body = f'{{"states": {{"s": [{value}, 0]}}}}'
        answer = service.http.put(service.path("total", stream, "state"), content=body)

        assert (answer.status_code, code_of(answer)) == (422, "non_finite"), value
    assert (position(service, stream), position(service, stream, "total")) == before


def test_a_state_that_overflows_its_store_dtype_is_rejected(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, total_half)) as narrow:
        answer = narrow.http.put(narrow.path("total_half", stream, "state"), json={"states": {"s": [1e6, 0]}})

    assert (answer.status_code, code_of(answer)) == (422, "non_finite")


def test_an_invalid_body_of_a_state_or_a_fork_is_a_bad_request(service: Service, stream: str) -> None:
    states = (
        *("", "{}", '{"states": [1]}', '{"states": {"h": [1]}, "step": -1}', '{"states": {"h": [1]}, "step": 1.0}'),
        *('{"states": {"h": [1]}, "step": true}', '{"states": {"h": [1]}, "fingerprint": "xy"}'),
        '{"states": {"h": [1]}, "seq": 1}',
    )
    forks = ("", "{}", '{"to": 1}', '{"to": "a b"}', '{"to": "b", "from": "past"}', '{"to": "b", "x": 1}')
    for method, what, bodies in (("PUT", "state", states), ("POST", "fork", forks)):
        for body in bodies:
            answer = service.http.request(method, service.path("fold", stream, what), content=body)

            assert (answer.status_code, code_of(answer)) == (400, "bad_request" if body else "bad_json"), body


def test_a_retried_import_gets_its_first_answer(service: Service, stream: str) -> None:
    step_through(service, stream, [1])
    _, history = position(service, stream)
    path, body = service.path("fold", stream, "state"), {"states": {"h": [5]}, "step": 2, "after": history}
    key = {"idempotency-key": "k"}
    first = service.http.put(path, json=body).json()
    again = service.http.put(path, json=body).json()
    keyed = service.http.put(path, json={"states": {"h": [6]}}, headers=key).json()  # without a step: at 0
    stepped = service.step("fold", stream, [1], seq=1)
    late = service.http.put(path, json=body)
    keyed_again = service.http.put(path, json={"states": {"h": [6]}}, headers=key).json()
    reused = service.http.put(path, json={"states": {"h": [7]}}, headers=key)

    assert (again, keyed_again) == ({**first, "replayed": True}, {**keyed, "replayed": True})
    assert (late.status_code, code_of(late)) == (409, "state_changed")
    assert (reused.status_code, code_of(reused)) == (422, "idempotency_key_reused")
    assert (keyed["step"], y_of(stepped)) == (0, fold_reference([1], start=6)[0])
    assert position(service, stream)[0] == 1


def test_a_state_of_another_model_version_is_rejected_unless_the_version_is_named(
    redis_server: Server, tmp_path: Path, stream: str
) -> None:
    """Names, dtypes and shapes of the states match; only the caller can know whether they mean the same."""
    old_folder, new_folder = write_models(tmp_path / "old", fold=lambda: fold(factor=3)), tmp_path / "new"
    with running_service(redis_server.url, old_folder, artifacts="off") as old:
        step_through(old, stream, [1, 2])
        state = old.http.get(old.path("fold", stream, "state")).json()
    with running_service(redis_server.url, write_models(new_folder, fold=fold), artifacts="off") as new:
        path = new.path("fold", f"{stream}-b", "state")
        refused = new.http.put(path, json=state)
        unread = new.http.get(new.path("fold", stream, "state"))
        taken = new.http.put(path, params={"version": 1}, json=state)
        unsaid = new.http.put(path, json={"states": state["states"], "step": 2})
        goes_on = new.step("fold", f"{stream}-b", [3], seq=3)

    assert [(a.status_code, code_of(a)) for a in (refused, unread)] == [(409, "model_changed")] * 2
    assert (taken.status_code, unsaid.status_code) == (200, 200)
    assert y_of(goes_on) == fold_reference([3], start=fold_reference([1, 2], factor=3)[-1])[0]


def test_copies_move_to_another_version_only_if_it_carries_the_same_states(
    redis_server: Server, tmp_path: Path, stream: str
) -> None:
    for version, build in (("1", count), ("2", lambda: fold(factor=3)), ("3", fold)):
        (tmp_path / "m" / version).mkdir(parents=True)
        (write_models(tmp_path, model=build) / "model.onnx").rename(tmp_path / "m" / version / "model.onnx")
    with running_service(redis_server.url, tmp_path) as service:
        service.http.post(service.path("m", stream, "step"), params={"version": 2}, json={"inputs": [1]})
        path = service.path("m", stream, "fork")
        same = service.http.post(path, json={"to": "same"})
        newer = service.http.post(path, params={"version": 3}, json={"to": "newer"})
        other = service.http.post(path, params={"version": 1}, json={"to": "other"})
        stepped = [service.step("m", name, [2]) for name in ("same", "newer")]
        service.http.put(service.path("m", stream, "snapshots/s"))
        rewound = service.http.post(
            service.path("m", stream, "reset"), params={"version": 3}, json={"to": {"snapshot": "s"}}
        )
        versions = [service.http.get(service.path("m", name)).json()["version"] for name in ("same", "newer", stream)]

    assert (same.status_code, newer.status_code, rewound.status_code) == (200, 200, 200)
    assert (other.status_code, code_of(other)) == (409, "model_changed")
    assert [y_of(a) for a in stepped] == [fold_reference([1, 2], factor=3)[-1], fold_reference([2], start=2)[0]]
    assert versions == [2, 3, 3]


def test_a_missing_stream_cannot_be_copied(service: Service, stream: str) -> None:
    requests: list[tuple[str, str, Any]] = [
        *(("GET", "state", None), ("GET", "snapshots", None), ("GET", "snapshots/s", None)),
        *(("PUT", "snapshots/s", {}), ("POST", "fork", {"to": "b"})),
        ("PUT", "state", {"states": {"h": [1]}, "after": "A" * 22}),
    ]
    for method, what, body in requests:
        answer = service.http.request(method, service.path("fold", stream, what), json=body)

        assert (answer.status_code, code_of(answer)) == (404, "stream_not_found"), (method, what)


def test_preconditions_can_be_required_for_copies_and_deletions(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), require_preconditions=True) as strict:
        step_through(strict, stream, [1])
        state, snapshot = strict.path("fold", stream, "state"), strict.path("fold", stream, "snapshots/s")
        bare = [
            strict.http.put(state, json={"states": {"h": [1]}}),
            strict.http.put(snapshot),
            strict.http.delete(snapshot),
        ]
        keyed = [
            strict.http.put(state, json={"states": {"h": [1]}}, headers={"idempotency-key": "1"}),
            strict.http.put(snapshot, headers={"idempotency-key": "2"}),
            strict.http.delete(snapshot, headers={"idempotency-key": "3"}),
        ]

    assert [(a.status_code, code_of(a)) for a in bare] == [(428, "precondition_required")] * 3
    assert [a.status_code for a in keyed] == [200, 200, 204]
