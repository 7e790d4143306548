"""`stepwell serve --grpc-port`: what it refuses, several workers on one port, and a restart under streams."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.graphs import fold, fold_reference, slow, write_models
from tests.processes import LAUNCH
from tests.servers import Server

SERVE = (
    "import sys; sys.modules['{package}'] = None; sys.argv = {words}; from stepwell.commands.cli import main; main()"
)


def test_without_the_extra_it_refuses_to_start(tmp_path: Path) -> None:
    words = ["stepwell", "serve", "--grpc-port", "8001"]
    run = SERVE.format(package="grpc_health", words=words)
    done = subprocess.run([sys.executable, "-P", "-c", run], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 3
    assert "pip install 'stepwell[grpc]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed: STEPWELL_EXTRAS=grpc")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*LAUNCH, "--models", str(write_models(tmp_path / "models", fold)), "--port", "0"]
        command += ["--data-dir", str(tmp_path / "data"), "--grpc-port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 3
    assert f"Cannot listen on 127.0.0.1:{port} for gRPC" in done.stderr


def test_two_services_do_not_share_a_port(redis_server: Server, tmp_path: Path) -> None:
    """Each worker listens with SO_REUSEPORT, which must not let another service in."""
    from tests.addons.grpc_api.conftest import GrpcService

    pytest.importorskip("grpc", reason="grpcio is not installed: STEPWELL_EXTRAS=grpc")
    models = write_models(tmp_path / "models", fold)
    one = GrpcService(models, tmp_path / "one", "--redis", redis_server.url, "--drain-s", "0")
    one.start()
    other = GrpcService(models, tmp_path / "other", "--redis", redis_server.url, grpc_port=one.grpc_port)
    other.launch()

    assert other.process.wait(60) == 3
    assert f"127.0.0.1:{one.grpc_port} for gRPC" in other.log.read_text()
    assert one.stop() == 0


def test_a_call_that_was_accepted_before_a_drain_is_answered(redis_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("grpc_health", reason="grpcio-health-checking is not installed: STEPWELL_EXTRAS=grpc")
    from stepwell.addons.grpc_api.messages import ModelInferResponse
    from tests.addons.grpc_api.client import GrpcClient, infer_request, integer, y_of
    from tests.addons.grpc_api.conftest import GrpcService

    models = write_models(tmp_path / "models", slow, fold)
    patient = ("--run-timeout-s", "60", "--request-timeout-s", "600", "--drain-s", "60")
    with GrpcService(models, tmp_path, "--redis", redis_server.url, *patient).running() as one:
        client = GrpcClient(one.grpc_port)
        request = infer_request("slow", {"x": integer(400_000)}, sequence_id="s", sequence_start=True)
        send = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call = send.future(request.SerializeToString(), wait_for_ready=True)
        client.predict(1, "f", sequence_start=True)  # over the same connection, so the service has the first one, too
        one.process.terminate()
        response = ModelInferResponse.FromString(call.result(60))
        client.close()

        assert one.process.wait(60) == 0
    assert y_of(response) == 400_000


def test_the_health_service_reports_a_drain(redis_server: Server, tmp_path: Path) -> None:
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2", reason="gRPC is not installed: STEPWELL_EXTRAS=grpc")
    from grpc_health.v1 import health_pb2_grpc

    from tests.addons.grpc_api.client import GrpcClient
    from tests.addons.grpc_api.conftest import GrpcService

    one = GrpcService(write_models(tmp_path / "models", fold), tmp_path, "--redis", redis_server.url).start()
    client = GrpcClient(one.grpc_port)
    request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    watched = health_pb2_grpc.HealthStub(client.channel).Watch(request, timeout=60)
    found = [next(watched).status]
    one.process.terminate()
    found.append(next(watched).status)
    client.close()

    assert found == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert one.process.wait(60) == 0


def test_several_workers_share_the_port(redis_server: Server, tmp_path: Path) -> None:
    """Connections are distributed among them, and a sequence continues on any of them."""
    from tests.addons.grpc_api.client import GrpcClient
    from tests.addons.grpc_api.conftest import GrpcService

    flags = ("--redis", redis_server.url, "--workers", "2", "--drain-s", "0")
    one = GrpcService(write_models(tmp_path / "models", fold), tmp_path, *flags)
    one.start()
    found = []
    for n in range(30):
        client = GrpcClient(one.grpc_port)
        found.append(client.predict(n, "s", sequence_start=n == 0, step=n + 1))
        client.close()
    client = GrpcClient(one.grpc_port)
    while f"gRPC 127.0.0.1:{one.grpc_port}" not in one.log.read_text():  # printed when every worker is ready
        assert client.call("ServerLive").live
    client.close()

    assert found == fold_reference(range(30))
    assert one.stop() == 0
