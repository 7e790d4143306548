"""Routes for health, models and documentation, and answers to unknown routes."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from stepwell.addons.local import LocalModel
from stepwell.addons.oip.infer_handler import codec_of
from stepwell_client import Client
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.graphs import Built, fold, last_seen, nan_at, total, write_model, write_models
from tests.requests.test_api_keys import documented
from tests.servers import Server


def test_every_problem_type_links_to_its_documentation(service: Service) -> None:
    problem = service.http.get("/nope").json()
    path, _, anchor = problem["type"].partition("#")

    assert f'id="{anchor}"' in service.http.get(path).text


def test_a_model_description_has_every_field(service: Service) -> None:
    assert service.http.get("/v1/models/two_inputs").json() == {
        "name": "two_inputs",
        "version": 1,
        "versions": [1],
        "inputs": [
            {"name": "a", "dtype": "int64", "shape": [2]},
            {"name": "b", "dtype": "int32", "shape": []},
        ],
        "outputs": [
            {"name": "total", "dtype": "int64", "shape": [2], "kind": "value"},
            {"name": "last", "dtype": "int32", "shape": [], "kind": "value"},
        ],
        "states": [{"name": "s", "dtype": "int64", "shape": [2]}],
        "feedback": {},
        "bytes_per_stream": 16,
        "parity": None,
    }


def test_a_model_description_has_its_grid_and_the_latency_of_outputs_that_have_samples(
    redis_server: Server, tmp_path: Path
) -> None:
    def late() -> Built:
        graph, manifest = last_seen()
        y, z = manifest.outputs
        outputs = [y.model_copy(update={"latency": 48}), z]
        return graph, manifest.model_copy(update={"outputs": outputs, "latency": 48, "every": "1s"})

    file = write_model(tmp_path, "late", late)
    with running_service(redis_server.url, tmp_path) as own, Client(f"http://127.0.0.1:{own.port}") as client:
        found = own.http.get("/v1/models/late").json()
        described = client.model("late").describe()

    assert (found["every"], described.every) == ("1s", "1s")
    assert (found["latency"], [one.get("latency") for one in found["outputs"]]) == (48, [48, None])
    assert (described.latency, [one.latency for one in described.outputs]) == (48, [48, None])
    assert LocalModel.load(file).describe() == described


def test_a_problem_of_the_models_folder_is_logged_when_it_begins(
    redis_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reload responds with all of them; the log has each once, also if another one begins or ends."""
    write_model(tmp_path, "pump", fold, version=1)
    second = write_model(tmp_path, "pump", fold)
    with running_service(redis_server.url, tmp_path) as own:
        first = own.http.post("/v1/models/reload").json()
        (tmp_path / "valve.keras").write_bytes(b"")
        both = own.http.post("/v1/models/reload").json()
        (tmp_path / "valve.keras").unlink()
        assert own.http.post("/v1/models/reload").json()["ignored"] == first["ignored"]

    assert [str(second) in line for line in first["ignored"]] == [True]
    assert len(both["ignored"]) == 2
    logged = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    assert [str(second) in line for line in logged] == [True, False]


def test_the_model_list_has_the_same_descriptions(service: Service) -> None:
    listed = service.http.get("/v1/models").json()["models"]

    assert [model["name"] for model in listed] == sorted(model["name"] for model in listed)
    assert service.http.get("/v1/models/fold").json() in listed


def test_a_reload_loads_new_and_changed_models_and_reports_failures(shared_redis: Server, tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", m=lambda: total(2))
    with running_service(shared_redis.url, folder) as own:
        assert own.step("m", "before", [1.0, 2.0]).status_code == 200
        write_models(folder, total, m=lambda: total(3))
        (folder / "broken.onnx").write_bytes(b"no graph")

        report = own.http.post("/v1/models/reload").json()

        assert report["loaded"] == ["m/1", "total/1"]
        assert [failed.split(":")[0] for failed in report["failed"]] == ["broken.onnx"]
        assert own.step("total", "reloaded", [1.0, 2.0]).status_code == 200
        assert own.step("m", "after", [1.0, 2.0, 3.0]).json()["outputs"] == {"y": [1.0, 2.0, 3.0]}
        assert code_of(own.step("m", "other", [1.0, 2.0])) == "bad_input"


def test_a_broken_link_beside_a_model_ends_neither_reloading_nor_watching(shared_redis: Server, tmp_path: Path) -> None:
    """What comes and goes beside a model, as copies and editors make it, is not the model's."""
    folder = write_models(tmp_path / "models", fold)
    with running_service(shared_redis.url, folder, watch_models=True) as own:
        (folder / "fold.onnx.part").symlink_to("nowhere")
        report = own.http.post("/v1/models/reload")
        write_models(folder, total)

        assert (report.status_code, report.json()) == (200, {"loaded": [], "failed": []})
        while own.http.get("/v1/models/total").status_code != 200:
            assert own.http.get("/v1/models/total").status_code in (200, 404)


def test_the_gauges_are_read_again_after_an_error(shared_redis: Server, tmp_path: Path) -> None:
    """What goes on in the background outlives an error: only a restart would bring it back."""
    read, errors = threading.Event(), [OSError("gone")]

    def websockets() -> int:
        if errors:
            raise errors.pop()
        read.set()
        return 0

    with running_service(shared_redis.url, write_models(tmp_path / "models", fold)) as own:
        metrics = own.app.state.context.metrics
        others = {"queue_rows": dict, "connections": int, "ready": bool}

        async def bind_gauges() -> None:
            with contextlib.suppress(OSError):  # it reads them at once
                metrics.bind_gauges(websockets=websockets, **others)
            errors.append(OSError("gone"))

        own.run_in_loop(bind_gauges)

        assert read.wait(60)


def test_other_requests_are_answered_while_a_page_of_metrics_is_made(
    shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many models and workers it takes long."""
    begun, may_end = threading.Event(), threading.Event()

    def slow_page(*args: Any) -> bytes:
        begun.set()
        assert may_end.wait(60)
        return generate_latest(*args)

    monkeypatch.setattr("stepwell.metrics.exposition.generate_latest", slow_page)
    with (
        running_service(shared_redis.url, write_models(tmp_path / "models", fold)) as own,
        ThreadPoolExecutor(1) as other,
    ):
        page = other.submit(own.http.get, "/metrics")
        assert begun.wait(60)
        alive = own.http.get("/healthz", timeout=30).status_code
        may_end.set()

        assert (alive, page.result(60).status_code) == (200, 200)


def step_in_one_packet(service: Service, model: str) -> None:
    body = b'{"inputs": [1]}'
    head = f"POST {service.path(model, 'any', 'step')} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with service.open_connection() as connection:
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(1 << 16)


def test_models_that_are_gone_leave_nothing_behind(shared_redis: Server, tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", fold, total)
    with running_service(shared_redis.url, folder) as own:
        context, registry = own.app.state.context, own.app.state.engine.models
        own.step("total", "gone", [1.0, 2.0])
        served = registry.get("total")
        readers = [weakref.ref(found) for found in (context.decoder(served), codec_of(context, served))]
        del served
        before = own.http.get("/metrics").text
        (folder / "total.onnx").unlink()
        write_models(folder, fold)  # read again, as it is a new file
        own.http.post("/v1/models/reload")
        context.decoder(registry.get("fold"))
        step_in_one_packet(own, "fold")  # the fast path, too, lets go of what is gone with its next request
        gc.collect()

        assert 'model="total"' in before
        assert 'model="total"' not in own.http.get("/metrics").text
        assert [reader() for reader in readers] == [None, None]


def test_info_reports_version_durability_and_limits(service: Service) -> None:
    info = service.http.get("/v1/info").json()

    assert info["durability"] == "memory"
    assert info["version"] == service.app.version
    assert info["limits"]["max_body_bytes"] == 1_000_000


def test_a_healthy_service_is_alive_and_ready(service: Service) -> None:
    for path in ("/healthz", "/readyz"):
        for method in ("GET", "HEAD"):
            assert service.http.request(method, path).status_code == 200


def test_a_service_without_models_is_not_ready_and_gives_the_reason(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, tmp_path) as own:
        answer = own.http.get("/readyz")

        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["no model is loaded"]
        assert "retry-after" in answer.headers


def test_metrics_count_steps_requests_and_rejections(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold, nan_at_3=lambda: nan_at(3))) as own:
        own.step("fold", "metered", [1])
        own.step("fold", "metered", [1, 2])
        own.http.get("/nope")

        text = own.http.get("/metrics").text

        assert 'stepwell_steps_total{door="http",model="fold"} 1.0' in text
        assert 'stepwell_requests_total{code="404",door="http",route="none"} 1.0' in text
        route = "POST /v1/models/{model}/streams/{stream}/step"
        assert f'stepwell_requests_total{{code="422",door="http",route="{route}"}} 1.0' in text
        assert 'stepwell_refusals_total{code="bad_input"} 1.0' in text
        assert 'stepwell_refusals_total{code="not_found"} 1.0' in text
        assert "stepwell_ready 1.0" in text
        assert "metered" not in text


def test_metrics_have_connections_cached_streams_and_the_memory_of_the_store(
    shared_redis: Server, tmp_path: Path
) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold)) as own, own.feed("fold", "counted"):
        own.wait_for_websockets(1)
        own.step("fold", "cached", [1])
        idle = [own.open_connection() for _ in range(3)]
        own.wait_for_connections(5)  # the client's, the feed, and three without a request
        text = own.http.get("/metrics").text
        for connection in idle:
            connection.close()
        own.wait_for_connections(2)

        assert "stepwell_connections 5.0" in text
        assert "stepwell_connections 2.0" in own.http.get("/metrics").text
        assert "stepwell_websockets 1.0" in text
        assert 'stepwell_cached_streams{model="fold"} 1.0' in text
        [used] = re.findall(r"^stepwell_store_used_memory_bytes (\S+)$", text, re.MULTILINE)
        assert float(used) > 100_000


# ------------------------------------------------------------------- unknown routes


UNKNOWN = (
    *("/nope", "/v1", "/v1/", "/v1/models/", "/v1//models", "/v1/models/fold/streams/a/nope"),
    *("/v1/models/fold/streams/a/step/", "/dashboard/nope.js", "/dashboard/../ops.py", "/dashboard/%2e%2e/ops.py"),
)


def test_an_unknown_route_is_not_found(service: Service) -> None:
    for path in UNKNOWN:
        answer = service.http.get(path)

        assert (answer.status_code, code_of(answer)) == (404, "not_found"), path


def test_an_unsupported_method_is_rejected_with_the_allowed_ones(service: Service) -> None:
    for method, path, allow in (
        ("GET", "/v1/models/fold/streams/a/step", "POST"),
        ("PUT", "/v1/models/fold/streams/a", "DELETE, GET"),
        ("OPTIONS", "/v1/models/fold/streams/a/step", "POST"),
        ("HEAD", "/v1/models/fold/streams/a/step", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("POST", "/", "GET"),
        ("PATCH", "/v1/info", "GET"),
    ):
        answer = service.http.request(method, path)

        assert (answer.status_code, answer.headers["allow"]) == (405, allow), (method, path)
        assert method == "HEAD" or code_of(answer) == "method_not_allowed"


# ------------------------------------------------------------------- pages


def test_the_page_may_load_from_its_own_origin_only(service: Service) -> None:
    for path in ("/", "/dashboard/app.js", "/docs/errors", "/docs", "/reference/reference.js"):
        policy = service.http.get(path).headers["content-security-policy"]

        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_responses_forbid_content_type_sniffing_and_allow_no_other_origin(service: Service) -> None:
    for path in ("/", "/dashboard/app.js", "/v1/info", "/nope", "/v1/models/fold/streams/none"):
        headers = service.http.get(path, headers={"origin": "https://evil.example"}).headers

        assert headers.get_list("x-content-type-options") == ["nosniff"], path
        assert not [name for name in headers if name.startswith("access-control")]


PAGES = {"/", "/docs", "/docs/errors", "/openapi.json", "/asyncapi.json", "/v2/"}


def test_the_openapi_document_has_every_documented_route_but_sockets_and_pages(service: Service) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]

    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert found == {(method, path) for method, path in documented() if method != "WS" and path not in PAGES}


def test_the_openapi_document_names_every_path_parameter(service: Service) -> None:
    for path, methods in service.http.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == {part.strip("{}") for part in path.split("/") if part.startswith("{")}


def test_the_reference_page_shows_the_openapi_document(service: Service) -> None:
    assert "openapi.json" in service.http.get("/docs").text
    assert "openapi.json" in service.http.get("/reference/reference.js").text


def test_in_production_there_is_no_reference_page(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), production=True) as one:
        closed = {
            path: one.http.get(path).status_code
            for path in ("/docs", "/openapi.json", "/asyncapi.json", "/reference/reference.js")
        }

        assert set(closed.values()) == {404}
        assert one.http.get("/docs/errors").status_code == 200  # the target of every problem's `type`


REBOUND = {"host": "evil.example:8000", "sec-fetch-site": "same-origin"}
"""A browser's request to a name that its owner has made to point at this machine (DNS rebinding)."""


def test_dns_rebinding_can_neither_read_nor_change_anything(service: Service, stream: str) -> None:
    posted = service.http.post(
        service.path("fold", stream, "step"),
        json={"inputs": [1]},
        headers={**REBOUND, "origin": "http://evil.example:8000"},
    )
    read = service.http.get("/v1/models", headers=REBOUND)

    assert [(one.status_code, code_of(one)) for one in (posted, read)] == [(403, "forbidden")] * 2
    assert "allowed_origins" in read.json()["detail"]


def test_local_host_names_are_accepted(service: Service, stream: str) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "stepwell.localhost"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        path = service.path("fold", stream, "step")

        assert service.http.get("/v1/models", headers=headers).status_code == 200, host
        assert service.http.post(path, json={"inputs": [1]}, headers=headers).is_success, host


def test_another_host_name_can_be_allowed(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), allowed_origins=["http://box.example"]) as own:
        headers = {"host": "box.example", "origin": "http://box.example", "sec-fetch-site": "same-origin"}

        assert own.http.get("/v1/models", headers=headers).status_code == 200
        assert own.http.post(own.path("fold", "s", "step"), json={"inputs": [1]}, headers=headers).is_success


def test_a_page_of_a_foreign_origin_cannot_change_anything(service: Service, stream: str) -> None:
    path = service.path("fold", stream, "step")

    evil = service.http.post(path, json={"inputs": [1]}, headers={"origin": "https://evil.example"})
    own = service.http.post(path, json={"inputs": [1]}, headers={"origin": f"http://127.0.0.1:{service.port}"})

    assert (evil.status_code, code_of(evil)) == (403, "forbidden")
    assert own.json()["step"] == 1


def test_a_look_up_that_finds_no_stream_is_no_refusal(shared_redis: Server, tmp_path: Path) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold)) as own:
        looked_up = own.http.get(own.path("fold", "nothing"))
        refused = own.http.post(own.path("fold", "nothing", "step"), json={"inputs": [1], "seq": 7})
        text = own.http.get("/metrics").text

    assert [looked_up.json()["code"], refused.json()["code"]] == ["stream_not_found"] * 2
    assert 'stepwell_refusals_total{code="stream_not_found"} 1.0' in text
    assert 'code="404"' in text


def test_history_of_a_model_that_is_not_served_is_logged(
    shared_redis: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), history="fold=8,flod=64"):
        pass

    assert "`history` names the model 'flod', which is not served" in caplog.text
