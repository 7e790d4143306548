"""Missing values of inputs that may have some: `null`, an input left out, and NaN in msgpack reach the graph as NaN."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from tests.api.running import Service, running_service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import Built, last_seen, write_model
from tests.servers import Server

NAN = float("nan")


def step(service: Service, stream: str, inputs: Any) -> dict[str, Any]:
    answer = service.step("last_seen", stream, inputs)
    assert answer.status_code == 200, answer.text
    outputs: dict[str, Any] = answer.json()["outputs"]
    return outputs


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"a": [1, None], "b": 7}, {"y": [1, 4], "z": 7}),
    ({"a": None, "b": 7}, {"y": [3, 4], "z": 7}),
    ({"b": 7}, {"y": [3, 4], "z": 7}),
    ({"a": [1, 2]}, {"y": [1, 2], "z": 5}),
    ({"a": [1, 2], "b": None}, {"y": [1, 2], "z": 5}),
    ({}, {"y": [3, 4], "z": 5}),
]
"""A number, a row, a row left out, the other left out, a scalar, all."""


def test_a_missing_value_of_a_step_reaches_the_graph(service: Service, stream: str) -> None:
    for n, (inputs, outputs) in enumerate(CASES):
        step(service, f"{stream}{n}", {"a": [3, 4], "b": 5})

        assert step(service, f"{stream}{n}", inputs) == outputs, inputs


def test_missing_values_of_a_chunk_reach_the_graph(service: Service, stream: str) -> None:
    body = {"inputs": {"a": [[1, 2], None, [None, 4]]}}
    answer = service.http.post(service.path("last_seen", stream, "steps"), json=body).json()

    assert answer["outputs"] == {"y": [[1, 2], [1, 2], [1, 4]], "z": [0, 0, 0]}


def test_a_chunk_of_nothing_is_rejected_with_the_way_out(service: Service, stream: str) -> None:
    answer = service.http.post(service.path("last_seen", stream, "steps"), json={"inputs": {}})

    assert (answer.status_code, code_of(answer)) == (422, "bad_input")
    assert "one `null` for each timestep" in answer.text
    body = {"inputs": {"a": [None, None]}}
    assert service.http.post(service.path("last_seen", stream, "steps"), json=body).json()["step"] == 2


@pytest.mark.parametrize("what", ["step", "steps"])
def test_missing_values_in_columns_reach_the_graph(service: Service, stream: str, what: str) -> None:
    streams = [f"{stream}{i}" for i in range(3)]
    batches: list[dict[str, Any]] = [{"a": [[1, 2], [3, 4], [5, 6]], "b": [7, 8, 9]}, {"a": [[0, None], None, [1, 1]]}]
    for columns in batches:
        chunks = {name: [None if row is None else [row] for row in rows] for name, rows in columns.items()}
        body = {"streams": streams, "inputs": chunks if what == "steps" else columns}
        answer = service.http.post(f"/v1/models/last_seen/{what}", json=body)
        assert (answer.status_code, answer.json()["errors"]) == (200, {})
    y, z = (np.reshape(answer.json()["outputs"][name], (3, -1)).tolist() for name in ("y", "z"))

    assert (y, z) == ([[0, 2], [3, 4], [1, 1]], [[7], [8], [9]])


@pytest.mark.parametrize("packed", [False, True])
def test_nan_in_msgpack_is_a_missing_value(service: Service, stream: str, packed: bool) -> None:
    step(service, stream, {"a": [3, 4], "b": 5})
    a: Any = [NAN, 1.0]
    if packed:
        a = {"d": "float32", "s": [2], "b": np.array(a, "<f4").tobytes()}
    body = msgspec.msgpack.encode({"inputs": {"a": a, "b": NAN}})
    answer = service.http.post(service.path("last_seen", stream, "step"), content=body, headers=MSGPACK)

    assert answer.status_code == 200, answer.text
    assert step(service, stream, {}) == {"y": [3, 1], "z": 5}


def test_a_retry_in_another_format_is_the_same_request(service: Service, stream: str) -> None:
    path = service.path("last_seen", stream, "step")
    first = service.http.post(path, json={"inputs": {"a": [None, 1]}, "seq": 1}).json()
    other_nan = np.array([0x7FC00001, 0x3F800000], "<u4").tobytes()
    inputs = {"a": {"d": "float32", "s": [2], "b": other_nan}, "b": NAN}
    body = msgspec.msgpack.encode({"inputs": inputs, "seq": 1})
    again = service.http.post(path, content=body, headers={**MSGPACK, "accept": "application/json"}).json()

    assert (again["replayed"], again["state_id"]) == (True, first["state_id"])


def test_an_infinite_value_or_an_input_that_may_not_be_missing_is_rejected(service: Service, stream: str) -> None:
    for value in (1e39, -1e39):
        answer = service.step("last_seen", stream, {"a": [None, value], "b": 1})

        assert (answer.status_code, code_of(answer)) == (422, "non_finite")
        assert "at index [1]" in answer.json()["detail"]
    assert code_of(service.step("total", stream, [None, 1.0])) == "bad_input"
    assert code_of(service.step("two_inputs", stream, {"a": [1, 2]})) == "bad_input"


def test_missing_values_reach_the_graph_over_the_open_inference_protocol(service: Service, stream: str) -> None:
    """Also where every input is left out."""
    step(service, stream, {"a": [3, 4], "b": 5})
    a = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [None, 9]}
    for inputs, outputs in (([a], {"y": [3, 9], "z": [5]}), ([], {"y": [3, 9], "z": [5]})):
        body = {"inputs": inputs, "parameters": {"sequence_id": stream}}
        answer = service.http.post("/v2/models/last_seen/infer", json=body)

        assert answer.status_code == 200, answer.text
        assert {one["name"]: one["data"] for one in answer.json()["outputs"]} == outputs


def test_the_description_of_a_model_says_which_values_may_be_missing(service: Service) -> None:
    described = service.http.get("/v1/models/last_seen").json()["inputs"]

    assert [one["missing"] for one in described] == ["nan", "nan"]
    assert "missing" not in json.dumps(service.http.get("/v1/models/total").json()["inputs"])


def test_an_input_without_a_rule_is_missing_in_each_timestep_of_a_rollout(service: Service, stream: str) -> None:
    step(service, stream, {"a": [3, 4], "b": 5})
    path = service.path("last_seen", stream, "rollout")
    for inputs in ({"a": [1, 2]}, None):
        body = {"inputs": inputs, "horizon": 2, "feedback": {"a": "y"}}
        found = service.http.post(path, json={key: value for key, value in body.items() if value is not None})

        assert found.status_code == 200, found.text
        y = [3, 4] if inputs is None else [1, 2]
        assert found.json()["outputs"] == {"y": [y, y], "z": [5, 5]}


def test_a_committed_rollout_and_its_retry_agree_where_an_input_is_missing(service: Service, stream: str) -> None:
    path = service.path("last_seen", stream, "rollout")
    body = {"inputs": {"a": [1, 2]}, "horizon": 2, "feedback": {"a": "y"}, "commit": True, "seq": 1}
    first, again = (service.http.post(path, json=body).json() for _ in range(2))

    assert first["outputs"] == again["outputs"] == {"y": [[1, 2], [1, 2]], "z": [0, 0]}
    assert (again["replayed"], again["state_id"]) == (True, first["state_id"])


def needs_values() -> Built:
    """`last_seen` with a prediction `y` that is negated, as a version that accepts no missing values."""
    graph, manifest = last_seen()
    model = onnx.load_model_from_string(graph)
    next(node for node in model.graph.node if node.output[0] == "y").op_type = "Neg"
    inputs = [spec.model_copy(update={"missing": "refuse"}) for spec in manifest.inputs]
    return bytes(model.SerializeToString()), manifest.model_copy(update={"inputs": inputs, "feedback": {"a": "y"}})


@pytest.fixture
def two_versions(redis_server: Server, tmp_path: Path) -> Iterator[Service]:
    """A model whose default version accepts missing values; the streams `s` and `t` are on one that accepts none."""
    write_model(tmp_path, "m", needs_values, version=1)
    with running_service(redis_server.url, tmp_path) as service:
        for stream in ("s", "t"):
            assert service.step("m", stream, {"a": [1, 2], "b": 3}).status_code == 200
        write_model(tmp_path, "m", last_seen, version=2)
        assert service.http.post("/v1/models/reload").json()["loaded"] == ["m/2"]
        yield service


def test_a_stream_on_a_version_without_missing_values_refuses_them(two_versions: Service) -> None:
    inputs, chunk = {"a": [None, 2], "b": 3}, {"a": [[1, 1], [None, 2]], "b": [3, 3]}
    post, path = two_versions.http.post, two_versions.path
    answers = [
        two_versions.step("m", "s", inputs),
        two_versions.step("m", "s", inputs, seq=2),
        post(path("m", "s", "steps"), json={"inputs": chunk}),
        post(path("m", "s", "peek"), json={"inputs": inputs}),
        post(path("m", "s", "rollout"), json={"inputs": inputs, "horizon": 1}),
    ]
    with two_versions.feed("m", "s") as feed:
        feed.send(json.dumps({"inputs": inputs}))
        problem = json.loads(feed.recv())["error"]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(422, "bad_input")] * 5
    assert all("Input 'a' has a missing value" in answer.text for answer in answers)
    assert (problem["code"], problem["applied"]) == ("bad_input", "no")
    assert two_versions.step("m", "s", {"a": [4, 5], "b": 3}).json()["outputs"]["y"] == [-4, -5]


def test_only_the_columns_whose_version_needs_values_refuse_missing_ones(two_versions: Service) -> None:
    columns = {"streams": ["s", "t", "u"], "inputs": {"a": [[None, 2], [3, 4], [5, None]], "b": [1, 1, 1]}}
    answer = two_versions.http.post("/v1/models/m/step", json=columns).json()

    assert {row: problem["code"] for row, problem in answer["errors"].items()} == {"0": "bad_input"}
    assert answer["outputs"]["y"] == [None, [-3, -4], [5, 0]]
    assert answer["step"] == [None, 2, 1]
