"""docker/nginx-grpc.conf, the proxy's port for gRPC in the stack of compose, forwards calls and streams."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.grpc_api.client import GrpcClient, infer_request, integer, y_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold_reference
from tests.processes import free_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
CONFIG = Path(__file__).parents[3] / "docker/nginx-grpc.conf"


@contextlib.contextmanager
def proxy(folder: Path, upstream: int) -> Iterator[int]:
    """Run nginx with this server until the block ends; the result is its port."""
    assert NGINX is not None
    port = free_port()
    server = CONFIG.read_text().replace("8081", f"127.0.0.1:{port}").replace("service;", "127.0.0.1;")
    paths = "".join(f"{kind}_temp_path {folder}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = f"pid {folder}/pid; events {{}} http {{ access_log off; {paths}\n{server.replace('8001', str(upstream))} }}"
    (folder / "nginx.conf").write_text(text)
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr", "-g", "daemon off;"]
    with subprocess.Popen(command) as process:
        try:
            yield port
        finally:
            process.terminate()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
def test_calls_and_streams_pass_the_proxy(service: GrpcService, tmp_path: Path, stream: str) -> None:
    with proxy(tmp_path, service.grpc_port) as port:
        client = GrpcClient(port)
        called = [client.predict(n, stream, sequence_start=n == 0) for n in range(3)]
        sent = (infer_request("fold", {"x": integer(n)}, sequence_id=stream) for n in range(3, 6))
        streamed = [y_of(one.infer_response) for one in client.stream(sent)]
        client.close()

    assert [*called, *streamed] == fold_reference(range(6))
