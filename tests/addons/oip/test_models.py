"""The Open Inference Protocol: metadata, readiness, repository and statistics, and who may read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.addons.oip.client import InferClient, document, error_message, tensor
from tests.api.running import Service, running_service
from tests.graphs import fold, fold_reference, total, write_model, write_models
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server


def test_server_metadata_lists_name_version_and_extensions(service: Service) -> None:
    assert (
        service.http.get("/v2/").json()
        == service.http.get("/v2").json()
        == {
            "name": "stepwell",
            "version": service.app.version,
            "extensions": [
                *("sequence", "sequence(string_id)", "binary_tensor_data", "parameters"),
                *("model_configuration", "model_repository", "statistics"),
            ],
        }
    )


def test_a_healthy_server_is_live_and_ready(service: Service) -> None:
    assert service.http.get("/v2/health/live").json() == {"live": True}
    assert service.http.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_a_server_without_models_is_live_but_not_ready(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, tmp_path) as own:
        ready = own.http.get("/v2/health/ready")

        assert (ready.status_code, ready.json()) == (503, {"live": True, "ready": False})
        assert own.http.get("/v2/health/live").status_code == 200
        assert own.http.post("/v2/repository/index").json() == []


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_model_metadata_lists_inputs_and_outputs_but_no_states(service: Service, version: str) -> None:
    assert service.http.get(f"/v2/models/two_inputs{version}").json() == {
        "name": "two_inputs",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "a", "datatype": "INT64", "shape": [-1, 2]},
            {"name": "b", "datatype": "INT32", "shape": [-1]},
        ],
        "outputs": [
            {"name": "total", "datatype": "INT64", "shape": [-1, 2]},
            {"name": "last", "datatype": "INT32", "shape": [-1]},
        ],
    }


def test_a_stateful_models_configuration_has_sequence_batching(service: Service) -> None:
    config = service.http.get("/v2/models/lstm/versions/1/config").json()

    assert config == {
        "name": "lstm",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 256,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
        "model_transaction_policy": {"decoupled": False},
        "sequence_batching": {
            "max_sequence_idle_microseconds": 7 * 86400 * 1_000_000,
            "direct": {},
            "state": [
                {"input_name": "h", "output_name": "h_next", "data_type": "TYPE_FP32", "dims": [8]},
                {"input_name": "c", "output_name": "c_next", "data_type": "TYPE_FP32", "dims": [8]},
            ],
        },
    }


def test_a_stateless_models_configuration_has_no_sequence_batching(service: Service) -> None:
    assert "sequence_batching" not in service.http.get("/v2/models/stateless/config").json()


def test_a_loaded_model_is_ready(service: Service) -> None:
    assert service.http.get("/v2/models/fold/versions/1/ready").json() == {"name": "fold", "ready": True}


@pytest.mark.parametrize(
    ("model", "which", "what"),
    [
        ("nope", "'nope'", ""),
        ("nope/versions/3", "'nope' version 3", "/stats"),
        ("fold/versions/v1", "'fold' version v1", "/ready"),
        ("fold/versions/01", "'fold' version 01", "/config"),
        ("fold/versions/9", "'fold' version 9", "/infer"),
    ],
)
def test_a_missing_model_is_unknown(service: Service, model: str, which: str, what: str) -> None:
    method = "POST" if what == "/infer" else "GET"
    answer = service.http.request(method, f"/v2/models/{model}{what}")

    assert (answer.status_code, error_message(answer)) == (404, f"Request for unknown model: {which} is not found")


# ------------------------------------------------------------------- the repository


def test_the_index_lists_every_version(shared_redis: Server, tmp_path: Path) -> None:
    folder = write_models(tmp_path, total)
    for version in (1, 3):
        write_model(folder, "fold", fold, version=version)
    with running_service(shared_redis.url, folder) as own:
        assert own.http.post("/v2/repository/index").json() == [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, version in (("fold", "1"), ("fold", "3"), ("total", "1"))
        ]
        assert own.http.get("/v2/models/fold").json()["versions"] == ["1", "3"]
        assert own.http.get("/v2/models/fold/versions/1").json()["versions"] == ["1"]


def test_a_load_request_scans_the_model_folders_again(shared_redis: Server, tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", fold)
    with running_service(shared_redis.url, folder) as own:
        assert own.http.post("/v2/repository/models/total/load").status_code == 400
        write_models(folder, total)
        (folder / "broken.onnx").write_bytes(b"no graph")

        assert own.http.post("/v2/repository/models/total/load").status_code == 200
        assert own.http.post("/v2/repository/models/total/load", content=b'{"parameters": {}}').status_code == 200
        assert own.http.get("/v2/models/total/ready").status_code == 200
        failed = own.http.post("/v2/repository/models/broken/load")
        assert (failed.status_code, error_message(failed)[:37]) == (400, "failed to load 'broken', broken.onnx:")
        absent = own.http.post("/v2/repository/models/none/load")
        assert error_message(absent) == "failed to load 'none', there is no such file in the models folders"


def test_an_unloaded_model_is_served_by_no_replica_until_it_is_loaded(redis_server: Server, tmp_path: Path) -> None:
    """Also not by one that starts later; and its streams continue."""
    folder = write_models(tmp_path, fold, total)
    with running_service(redis_server.url, folder) as one, running_service(redis_server.url, folder) as other:
        assert InferClient(one).predict(1, "s", sequence_start=True) == fold_reference([1])[0]
        for _ in range(2):  # again: nothing happens
            assert one.http.post("/v2/repository/models/fold/unload").status_code == 200
        with running_service(redis_server.url, folder) as later:
            found = [each.http.get("/v2/models/fold/ready").status_code for each in (one, other, later)]
        native = other.step("fold", "s", {"x": [2]})
        index = [other.http.post("/v2/repository/index", json={"ready": ready}).json() for ready in (False, True)]
        assert other.http.post("/v2/repository/models/fold/load").status_code == 200
        went_on = [InferClient(each).predict(x, "s") for each, x in ((one, 2), (other, 3))]

    assert found == [404, 404, 404]
    assert (native.status_code, native.json()["code"]) == (404, "model_not_found")
    assert "was unloaded" in native.json()["detail"]
    assert [[(each["name"], each["state"]) for each in part] for part in index] == [
        [("total", "READY"), ("fold", "UNAVAILABLE")],
        [("total", "READY")],
    ]
    assert went_on == fold_reference([1, 2, 3])[1:]


def test_a_model_is_not_unloaded_where_the_folders_are_watched(redis_server: Server, tmp_path: Path) -> None:
    with running_service(redis_server.url, write_models(tmp_path, fold), watch_models=True) as own:
        unload = own.http.post("/v2/repository/models/fold/unload")

    expected = "explicit model load / unload is not allowed if polling is enabled"
    assert (unload.status_code, error_message(unload)) == (400, expected)


def test_unsupported_repository_requests_are_rejected_with_a_reason(service: Service) -> None:
    load = service.http.post("/v2/repository/models/fold/load", content=b'{"parameters": {"config": "{}"}}')
    unload = service.http.post("/v2/repository/models/nope/unload")

    assert [(answer.status_code, error_message(answer)[:32]) for answer in (load, unload)] == [
        (501, "load of 'fold' with parameters i"),
        (404, "Request for unknown model: 'nope"),
    ]
    assert service.http.get("/v2/models/fold/ready").status_code == 200


# ------------------------------------------------------------------- statistics


def test_the_statistics_of_all_models_are_collected_in_one_go(shared_redis: Server, tmp_path: Path) -> None:
    """Gauges are read for each collection, and once a second besides."""
    read: list[None] = []

    def queue_rows() -> dict[str, int]:
        read.append(None)
        return {}

    folder = write_models(tmp_path / "models", **{f"m{n}": fold for n in range(20)})
    with running_service(shared_redis.url, folder) as own:

        async def bind_gauges() -> None:
            own.app.state.context.metrics.bind_gauges(queue_rows=queue_rows, websockets=int, ready=bool)
            read.clear()

        own.run_in_loop(bind_gauges)
        stats = own.http.get("/v2/models/stats").json()["model_stats"]

        assert len(stats) == 20
        assert len(read) < 10


def stats_of(service: Service, model: str) -> tuple[int, int, dict[str, Any]]:
    [one] = service.http.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return one["inference_count"], one["execution_count"], one["inference_stats"]


def test_statistics_are_counted(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold, total)) as own:
        ask = InferClient(own)
        for x in range(5):
            ask.predict(x, stream, sequence_start=x == 0)
        ask.send(1, stream, step=99)
        count, runs, stats = stats_of(own, "fold")

        assert (count, runs) == (5, 5)
        assert {name: part["count"] for name, part in stats.items() if part["count"]} == {
            **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 5),
            "fail": 1,
        }
        assert stats["compute_infer"]["ns"] > 0
        assert stats_of(own, "total")[0] == 0
        all_of = own.http.get("/v2/models/stats").json()["model_stats"]
        assert [(one["name"], one["version"], one["inference_count"]) for one in all_of] == [
            ("fold", "1", 5),
            ("total", "1", 0),
        ]


def test_requests_are_counted_under_their_own_transport(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold)) as own:
        ask = InferClient(own)
        ask.predict(1, stream, sequence_start=True)
        ask.send(1, stream, step=99)
        own.http.get("/v2/models/nope")
        own.http.get("/v2/nope")
        text = own.http.get("/metrics").text

    assert 'stepwell_steps_total{door="oip",model="fold"} 1.0' in text
    for code, route in [
        (200, "POST /v2/models/{model}/infer"),
        (400, "POST /v2/models/{model}/infer"),
        (404, "GET /v2/models/{model}"),
        (404, "none"),
    ]:
        assert f'stepwell_requests_total{{code="{code}",door="oip",route="{route}"}} 1.0' in text
    assert 'stepwell_refusals_total{code="seq_gap"} 1.0' in text


# ------------------------------------------------------------------- unknown routes, access


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nope", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/fold/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("POST", "/v2/models/fo%2Fld/infer", 400),
    ],
)
def test_an_unknown_route_is_rejected_in_tritons_error_format(
    service: Service, method: str, path: str, status: int
) -> None:
    answer = service.http.request(method, path)

    assert answer.status_code == status
    assert error_message(answer)
    assert answer.headers["content-type"] == "application/json"


def test_a_page_of_a_foreign_origin_cannot_step_a_sequence(service: Service, stream: str) -> None:
    body = document(tensor("x", np.array([[1]])), sequence_id=stream, sequence_start=True)
    answer = InferClient(service).post(body, headers={"Origin": "https://evil.example"})

    assert (answer.status_code, "code: forbidden" in error_message(answer)) == (403, True)


def test_keys_tenants_and_scopes_are_enforced(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    keys = [key("full"), key("other", tenant="b"), key("reader", scopes=["read"]), key("stepper", scopes=["step"])]
    file = write_keys_file(tmp_path / "keys.json", *keys)
    with running_service(shared_redis.url, write_models(tmp_path / "models", fold), api_keys_file=file) as own:
        ask = InferClient(own)

        def status(name: str, **flags: bool) -> int:
            return ask.send(1, stream, headers={"Authorization": f"Bearer {name}"}, **flags).status_code

        assert status("wrong", sequence_start=True) == 401
        assert status("reader", sequence_start=True) == 403
        assert status("stepper", sequence_start=True) == 200
        assert status("full") == 200
        assert status("other") == 400  # the other tenant has no such sequence
        assert error_message(ask.send(1, stream)).startswith("The request has no Authorization header")
        for path, may in (("/v2", "reader"), ("/v2/models/fold", "reader"), ("/v2/models/stats", "reader")):
            assert own.http.get(path, headers={"Authorization": f"Bearer {may}"}).status_code == 200
            assert own.http.get(path, headers={"Authorization": "Bearer stepper"}).status_code == 403
            assert own.http.get(path).status_code == 401
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert own.http.get(path).status_code == 200
        loaded = own.http.post("/v2/repository/models/fold/load", headers={"Authorization": "Bearer reader"})
        assert loaded.status_code == 403


def test_a_draining_server_answers_in_tritons_error_format(
    service: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.engine.admission, "draining", True)
    answer = InferClient(service).send(1, stream, sequence_start=True)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert error_message(answer).startswith("Server is stopping, scheduler for model has stopped accepting")
