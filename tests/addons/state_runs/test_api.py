"""Packed states, and timesteps whose state is in the request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest

from stepwell_export.runtime.state_packing import decode_packed_state, encode_packed_state
from tests.api.running import Service, running_service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import scaled, write_model, write_models
from tests.servers import Server

X = [0.1, -0.2, 0.3, 0.4]


def run(service: Service, model: str, inputs: Any, state: Any = None, query: str = "", **more: Any) -> httpx2.Response:
    return service.http.post(f"/v1/models/{model}/run{query}", json={"inputs": inputs, "state": state, **more})


def ran(service: Service, model: str, inputs: Any, state: Any = None) -> dict[str, Any]:
    answer = run(service, model, inputs, state)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def packed(service: Service, model: str, stream: str) -> dict[str, Any]:
    answer = service.http.get(service.path(model, stream, "state"), params={"packed": "true"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def put(service: Service, model: str, stream: str, query: str = "", **body: Any) -> httpx2.Response:
    return service.http.put(service.path(model, stream, "state") + query, json=body)


# ------------------------------------------------------------------- packed states


def test_a_packed_state_is_fingerprint_state_bytes_and_checksum_in_base64url(service: Service, stream: str) -> None:
    service.step("fold", stream, [5])
    found = packed(service, "fold", stream)
    plain = service.http.get(service.path("fold", stream, "state")).json()

    text = found["state"]
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    [values] = plain["states"].values()
    assert found.keys() == {"state", "step"}
    assert found["step"] == 1
    assert raw[:8].hex() == plain["fingerprint"]
    assert np.frombuffer(raw[8:-4], "<i8").tolist() == np.ravel(values).tolist()
    assert raw[-4:] == binascii.crc32(raw[:-4]).to_bytes(4, "little")


def test_a_stream_continues_from_a_packed_state_of_another(service: Service, stream: str) -> None:
    service.http.post(service.path("lstm", stream, "steps"), json={"inputs": [X, X[::-1]]})
    moved = put(service, "lstm", f"{stream}.b", **packed(service, "lstm", stream)).json()

    there, here = service.step("lstm", f"{stream}.b", X).json(), service.step("lstm", stream, X).json()
    assert moved["step"] == 2
    assert (there["outputs"], there["step"]) == (here["outputs"], here["step"]) == (here["outputs"], 3)


def test_the_step_of_an_imported_packed_state_is_0_by_default(service: Service, stream: str) -> None:
    state = ran(service, "lstm", X)["state"]

    assert put(service, "lstm", stream, state=state).json()["step"] == 0


def damaged(text: str) -> list[Any]:
    other = "A" if text[4] != "A" else "B"
    return ["", "A", "AAAA", text[:-1], text[:-4], f"{text}=", f"{text}AAAA", f"{text[:4]}{other}{text[5:]}",
            f"{text} ", f"{text[:4]}+{text[5:]}", "é" * 40, text.swapcase()]  # fmt: skip


def test_a_text_that_is_no_packed_state_is_refused_by_both_entrances(service: Service, stream: str) -> None:
    for text in [*damaged(ran(service, "lstm", X)["state"]), 7, True, {"h": [1]}]:
        for answer in (run(service, "lstm", X, text), put(service, "lstm", stream, state=text)):
            assert (answer.status_code, code_of(answer)) == (400, "bad_request"), text


def test_an_import_has_either_states_or_a_packed_state(service: Service, stream: str) -> None:
    both = [{"state": "AAAA", "states": {"s": [1]}}, {"state": "AAAA", "fingerprint": "0" * 16}]
    for body in ({}, {"step": 1}, {"state": None}, *both):
        assert code_of(put(service, "fold", stream, **body)) == "bad_request", body  # type: ignore[arg-type]


def test_a_state_that_the_model_cannot_have_is_refused_by_both_entrances(service: Service, stream: str) -> None:
    fingerprint, state = decode_packed_state(ran(service, "lstm", X)["state"])
    infinite = encode_packed_state(fingerprint, np.float32(np.inf).tobytes() + state[4:])
    longer = encode_packed_state(fingerprint, state + bytes(4))
    others = ran(service, "fold", [1])["state"]

    for text, expected in (
        (others, (409, "model_changed")),
        (longer, (400, "bad_request")),
        (infinite, (422, "non_finite_state")),
    ):
        for answer in (run(service, "lstm", X, text), put(service, "lstm", stream, state=text)):
            assert (answer.status_code, code_of(answer)) == expected


# ------------------------------------------------------------------- run


def test_runs_equal_the_steps_of_a_stream_bit_for_bit(service: Service, stream: str) -> None:
    state = None
    for t in range(5):
        x = [value * t for value in X]
        found, stepped = ran(service, "lstm", x, state), service.step("lstm", stream, x).json()
        state = found["state"]
        assert found.keys() == {"outputs", "state"}
        assert found["outputs"] == stepped["outputs"]
    assert packed(service, "lstm", stream)["state"] == state


def test_a_run_stores_nothing(service: Service) -> None:
    before = service.http.get("/v1/models/lstm/streams").json()
    ran(service, "lstm", X)

    assert service.http.get("/v1/models/lstm/streams").json() == before


def test_a_run_of_a_model_without_states_has_a_state_too(service: Service) -> None:
    found = ran(service, "stateless", ran_input := [1.0, 2.0])

    assert ran(service, "stateless", ran_input, found["state"]) == found


def test_states_are_packed_in_the_type_of_the_store(service: Service, stream: str) -> None:
    service.step("half", stream, [1.5, 2.5])

    assert ran(service, "half", [1.5, 2.5])["state"] == packed(service, "half", stream)["state"]


def test_a_run_needs_inputs_and_state_and_nothing_else(service: Service) -> None:
    """Also no fields of a stream."""
    names = ("key", "seq", "after", "step", "create", "return", "source")
    bodies: list[Any] = [{"inputs": X}, {"state": None}, [], *({"inputs": X, "state": None, name: 1} for name in names)]
    answers = [service.http.post("/v1/models/lstm/run", json=body) for body in bodies]

    assert [code_of(answer) for answer in answers] == ["bad_request"] * len(bodies)


@pytest.mark.parametrize(
    ("model", "x", "code"),
    [
        ("lstm", [1.0], "bad_input"),
        ("lstm", None, "bad_input"),
        ("fold", [0.5], "bad_input"),
        ("none", X, "model_not_found"),
    ],
)
def test_the_inputs_of_a_run_are_checked_as_those_of_a_step(service: Service, model: str, x: Any, code: str) -> None:
    assert code_of(run(service, model, x)) == code


def test_a_number_that_is_not_finite_is_refused_with_its_index(service: Service) -> None:
    body = b'{"inputs": {"x": [0.1, 1e39, 0, 3]}, "state": null}'
    answer = service.http.post("/v1/models/lstm/run", content=body)

    assert (answer.status_code, code_of(answer)) == (422, "non_finite")
    assert "[1]" in answer.json()["detail"]


def test_a_key_that_occurs_twice_is_refused(service: Service) -> None:
    body = b'{"inputs": [5], "state": null, "state": null}'

    assert code_of(service.http.post("/v1/models/fold/run", content=body)) == "bad_json"


def test_a_run_whose_next_state_is_not_finite_fails(service: Service) -> None:
    state = None
    for _ in range(2):
        state = ran(service, "nan_at_3", [3], state)["state"]
    answer = run(service, "nan_at_3", [3], state)

    assert (answer.status_code, code_of(answer)) == (422, "non_finite_state")


def test_missing_values_of_a_run_reach_the_graph(service: Service) -> None:
    state = ran(service, "last_seen", {"a": [3, 4], "b": 5})["state"]

    assert ran(service, "last_seen", {"a": [1, None]}, state)["outputs"] == {"y": [1, 4], "z": 5}


def test_a_run_in_msgpack_equals_one_in_json(service: Service) -> None:
    x = {"d": "float32", "s": [4], "b": np.array(X, "<f4").tobytes()}
    body = msgspec.msgpack.encode({"inputs": {"x": x}, "state": None})
    found = msgspec.msgpack.decode(service.http.post("/v1/models/lstm/run", content=body, headers=MSGPACK).content)
    in_json = ran(service, "lstm", X)

    [y] = found["outputs"].values()
    [values] = in_json["outputs"].values()
    assert np.frombuffer(y["b"], "<f4").tolist() == np.array(values, "f4").tolist()
    assert found["state"] == in_json["state"]


# ------------------------------------------------------------------- columns


def test_columns_of_runs_equal_single_runs(service: Service) -> None:
    state = ran(service, "lstm", X)["state"]
    rows = [(X, None), (X, state), (X[::-1], state)]
    columns = ran(service, "lstm", [x for x, _ in rows], [state for _, state in rows])
    single = [ran(service, "lstm", x, state) for x, state in rows]

    [ys] = columns["outputs"].values()
    assert columns.keys() == {"outputs", "state", "errors"}
    assert ys == [next(iter(one["outputs"].values())) for one in single]
    assert columns["state"] == [one["state"] for one in single]
    assert columns["errors"] == {}


def test_a_row_of_columns_that_fails_is_null_and_in_errors(service: Service) -> None:
    state, other = ran(service, "lstm", X)["state"], ran(service, "fold", [1])["state"]
    fingerprint, raw = decode_packed_state(state)
    infinite = encode_packed_state(fingerprint, np.float32(np.nan).tobytes() + raw[4:])
    found = ran(service, "lstm", [X, X, X, X, [1.0], X], [state, "!", other, infinite, None, None])

    [ys] = found["outputs"].values()
    codes = {row: (problem["status"], problem["code"]) for row, problem in found["errors"].items()}
    assert codes == {
        "1": (400, "bad_request"),
        "2": (409, "model_changed"),
        "3": (422, "non_finite_state"),
        "4": (422, "bad_input"),
    }
    assert (
        [y is None for y in ys] == [text is None for text in found["state"]] == [False, True, True, True, True, False]
    )
    assert ys[0] == next(iter(ran(service, "lstm", X, state)["outputs"].values()))


def test_a_row_whose_next_state_is_not_finite_fails_alone(service: Service) -> None:
    state = None
    for _ in range(2):
        state = ran(service, "nan_at_3", [3], state)["state"]
    found = ran(service, "nan_at_3", [[3], [3]], [state, None])

    assert found["errors"]["0"]["code"] == "non_finite_state"
    assert found["state"][1] is not None


def test_a_failed_row_is_zeros_and_nil_in_msgpack(service: Service) -> None:
    body = msgspec.msgpack.encode({"inputs": [X, X], "state": ["!", None]})
    found = msgspec.msgpack.decode(service.http.post("/v1/models/lstm/run", content=body, headers=MSGPACK).content)

    [y] = found["outputs"].values()
    rows = np.frombuffer(y["b"], "<f4").reshape(y["s"])
    assert not rows[0].any()
    assert rows[1].any()
    assert (found["state"][0], found["errors"]["0"]["code"]) == (None, "bad_request")


@pytest.mark.parametrize(
    ("inputs", "state", "code"),
    [([], [], "bad_input"), ([X], [None, None], "bad_input"), ([X, X], [None], "bad_input"), ([X], [7], "bad_request")],
    ids=["none", "too few rows", "too few states", "a number"],
)
def test_columns_that_do_not_fit_each_other_are_refused(service: Service, inputs: Any, state: Any, code: str) -> None:
    assert code_of(run(service, "lstm", inputs, state)) == code


def test_missing_values_of_columns_reach_the_graph(service: Service) -> None:
    state = ran(service, "last_seen", {"a": [3, 4], "b": 5})["state"]
    found = ran(service, "last_seen", {"a": [[1, None], None]}, [state, state])

    assert found["outputs"] == {"y": [[1, 4], [3, 4]], "z": [5, 5]}


def test_a_thousand_rows_of_a_large_body_run(service: Service) -> None:
    state = ran(service, "lstm", X)["state"]
    found = ran(service, "lstm", [[t / 1000] * 4 for t in range(1000)], [state] * 1000)

    assert found["errors"] == {}
    assert found["state"][999] == ran(service, "lstm", [0.999] * 4, state)["state"]


# ------------------------------------------------------------------- versions, keys


def test_a_run_names_its_version(shared_redis: Server, tmp_path: Path) -> None:
    for version in (1, 2):
        write_model(tmp_path, "scaled", partial(scaled, version + 1), version=version)
    with running_service(shared_redis.url, tmp_path) as service:
        old = run(service, "scaled", [1, 2], None, "?version=1").json()
        new = run(service, "scaled", [1, 2]).json()
        both = run(service, "scaled", [1, 2], old["state"], "?version=1")
        refused = run(service, "scaled", [1, 2], old["state"])
        put_old = put(service, "scaled", "a", state=old["state"])
        put_refused = put(service, "scaled", "b", "?version=2", state=old["state"])
        unknown = run(service, "scaled", [1, 2], None, "?version=3")
        version = service.http.get(service.path("scaled", "a")).json()["version"]

    assert old["outputs"] != new["outputs"]
    assert both.status_code == 200
    assert (refused.status_code, code_of(refused)) == (409, "model_changed")
    assert "Send ?version=1." in refused.json()["detail"]
    assert (put_old.status_code, version) == (200, 1)
    assert (put_refused.status_code, code_of(put_refused)) == (409, "model_changed")
    assert code_of(unknown) == "model_not_found"


def test_a_run_needs_the_scope_step(shared_redis: Server, tmp_path: Path) -> None:
    keys = {"step": "s" * 32, "read": "r" * 32}
    entries = [
        {"id": scope, "sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": "t", "scopes": [scope]}
        for scope, key in keys.items()
    ]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": entries}))
    folder = write_models(tmp_path / "models", scaled)
    with running_service(shared_redis.url, folder, api_keys_file=tmp_path / "keys.json") as service:
        body = {"inputs": [1, 2], "state": None}
        answers = {
            scope: service.http.post("/v1/models/scaled/run", json=body, headers={"authorization": f"Bearer {key}"})
            for scope, key in keys.items()
        }
        without = service.http.post("/v1/models/scaled/run", json=body)

    assert answers["step"].status_code == 200
    assert code_of(answers["read"]) == "forbidden"
    assert code_of(without) == "unauthenticated"
