"""The methods of the service beside inference, its health and reflection, and who may call what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.addons.grpc_api.client import CallError, GrpcClient, grpc, infer_request, integer
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, write_models
from tests.requests.test_api_keys import ALL, key, write_keys_file
from tests.servers import Server

health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")  # the module above skips where they are not installed
health_pb2_grpc = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
reflection_pb2 = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
reflection_pb2_grpc = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2_grpc")


def test_the_server_is_live_and_ready(client: GrpcClient) -> None:
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready


@pytest.mark.parametrize(("name", "version", "ready"), [("fold", "", True), ("fold", "1", True), ("fold", "2", False),
                                                        ("nope", "", False), ("fold", "x", False)])  # fmt: skip
def test_a_model_is_ready_if_it_is_served(client: GrpcClient, name: str, version: str, ready: bool) -> None:
    assert client.call("ModelReady", name=name, version=version).ready is ready


def test_metadata_config_and_index_are_those_of_http(service: GrpcService, client: GrpcClient) -> None:
    with httpx2.Client(base_url=service.url, timeout=30) as http:
        about, model, config = (http.get(path).json() for path in ("/v2", "/v2/models/lstm", "/v2/models/lstm/config"))
        index = http.post("/v2/repository/index").json()
    server, metadata = client.call("ServerMetadata"), client.call("ModelMetadata", name="lstm")
    configured = client.call("ModelConfig", name="lstm").config

    assert (server.name, list(server.extensions)) == (about["name"], about["extensions"])
    for side in ("inputs", "outputs"):
        found = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                 for one in getattr(metadata, side)]  # fmt: skip
        assert found == model[side]
    assert (metadata.name, list(metadata.versions)) == ("lstm", model["versions"])
    assert (configured.name, configured.max_batch_size) == ("lstm", config["max_batch_size"])
    idle = "max_sequence_idle_microseconds"
    assert getattr(configured.sequence_batching, idle) == config["sequence_batching"][idle]
    assert [(one.input_name, list(one.dims)) for one in configured.sequence_batching.state] == [
        (one["input_name"], one["dims"]) for one in config["sequence_batching"]["state"]
    ]
    assert [(one.name, one.version, one.state) for one in client.call("RepositoryIndex").models] == [
        (one["name"], one["version"], one["state"]) for one in index
    ]


def test_statistics_count_steps_of_grpc(client: GrpcClient, stream: str) -> None:
    def count() -> int:
        return int(client.call("ModelStatistics", name="two_inputs").model_stats[0].inference_count)

    before = count()
    tensors = {"a": integer(1).repeat(2, axis=1), "b": integer(1)[0].astype("int32")}
    client.infer(infer_request("two_inputs", tensors, sequence_id=stream, sequence_start=True))

    assert count() == before + 1
    assert {one.name for one in client.call("ModelStatistics").model_stats} >= {"fold", "lstm"}


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_is_an_error_in_tritons_words(client: GrpcClient, method: str) -> None:
    found = client.call(method, name="nope")

    assert found[:2] == ("NOT_FOUND", "Request for unknown model: 'nope' is not found")


def test_a_model_can_be_loaded(service: GrpcService, client: GrpcClient, tmp_path: Path) -> None:
    write_models(service.folder / "models", newcomer=fold)
    missing = client.call("RepositoryModelLoad", model_name="nope")

    assert not isinstance(client.call("RepositoryModelLoad", model_name="newcomer"), CallError)
    assert client.call("ModelReady", name="newcomer").ready
    assert (missing.code, "failed to load 'nope'" in missing.message) == ("INVALID_ARGUMENT", True)


def test_methods_that_the_service_does_not_have_are_unimplemented(client: GrpcClient) -> None:
    send = client.channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")
    with pytest.raises(grpc.RpcError) as error:
        send(b"", timeout=60)

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_requests_are_counted_by_method_and_status(service: GrpcService, client: GrpcClient, stream: str) -> None:
    def lines() -> dict[str, float]:
        text = httpx2.get(f"{service.url}/metrics", timeout=30).text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}

    before = lines()
    client.predict(1, stream, sequence_start=True)
    client.predict(2, f"{stream}-none")
    list(client.stream([infer_request("fold", {"x": integer(1)}, sequence_id=stream)] * 3))
    after = lines()

    route = "/inference.GRPCInferenceService/"
    counts = {
        'stepwell_steps_total{door="grpc",model="fold"}': 4,
        f'stepwell_requests_total{{code="200",door="grpc",route="{route}ModelInfer"}}': 1,
        f'stepwell_requests_total{{code="400",door="grpc",route="{route}ModelInfer"}}': 1,
        f'stepwell_requests_total{{code="200",door="grpc",route="{route}ModelStreamInfer"}}': 3,
    }
    assert {line: after[line] - before.get(line, 0) for line in counts} == counts


# ------------------------------------------------------------------- health and reflection


def test_the_health_service_reports_that_the_service_serves(client: GrpcClient) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    for name in ("", "inference.GRPCInferenceService"):
        found = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=60)

    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def reflected(client: GrpcClient, **request: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    sent = iter([reflection_pb2.ServerReflectionRequest(**request)])
    return next(stub.ServerReflectionInfo(sent, timeout=60))


def test_reflection_describes_every_service(client: GrpcClient) -> None:
    services = reflected(client, list_services="").list_services_response.service
    names = {one.name for one in services}

    assert names == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in names:
        assert reflected(client, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto


# ------------------------------------------------------------------- keys


CALLS: list[tuple[str, dict[str, Any], str | None]] = [
    ("ServerLive", {}, None), ("ServerReady", {}, None), ("ServerMetadata", {}, "read"),
    ("ModelReady", {"name": "fold"}, "read"), ("ModelMetadata", {"name": "fold"}, "read"),
    ("ModelConfig", {"name": "fold"}, "read"), ("ModelStatistics", {}, "read"), ("RepositoryIndex", {}, "read"),
    ("RepositoryModelLoad", {"model_name": "fold"}, "models"),
    ("RepositoryModelUnload", {"model_name": "nope"}, "models"),
    ("ModelInfer", {"model_name": "fold"}, "step"),
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcService]:
    """A production service with a key for each scope, and one of another tenant."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = [key(f"only-{scope}", scopes=[scope]) for scope in ALL]
    file = write_keys_file(folder / "keys.json", key("other", tenant="b"), *keys)
    flags = ("--redis", shared_redis.url, "--api-keys-file", str(file), "--production", "--drain-s", "0")
    one = GrpcService(write_models(folder / "models", fold), folder, *flags)
    with one.running():
        yield one


@pytest.mark.parametrize(("method", "fields", "scope"), CALLS, ids=[call[0] for call in CALLS])
def test_each_method_needs_its_scope(
    guarded: GrpcService, method: str, fields: dict[str, Any], scope: str | None
) -> None:
    found = {}
    for name in [None, "wrong", *(f"only-{one}" for one in ALL)]:
        client = GrpcClient(guarded.grpc_port, name)
        result = client.call(method, **fields)
        found[name] = result.code if isinstance(result, CallError) else "OK"
        client.close()

    unknown = {code for name, code in found.items() if name in {None, "wrong"}}
    allowed = {name for name, code in found.items() if code not in {"PERMISSION_DENIED", "UNAUTHENTICATED"}}
    assert unknown == ({"OK"} if scope is None else {"UNAUTHENTICATED"})
    assert allowed == (set(found) if scope is None else {f"only-{scope}"})


def test_tenants_have_streams_of_their_own(guarded: GrpcService, stream: str) -> None:
    mine, others = (GrpcClient(guarded.grpc_port, name) for name in ("only-step", "other"))
    mine.predict(1, stream, sequence_start=True)
    found = others.predict(2, stream)
    for one in (mine, others):
        one.close()

    assert (found.code, "must specify the START flag" in found.message) == ("INVALID_ARGUMENT", True)


def test_there_is_no_reflection_in_production(guarded: GrpcService) -> None:
    client = GrpcClient(guarded.grpc_port)
    with pytest.raises(grpc.RpcError) as error:
        reflected(client, list_services="")
    client.close()

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
