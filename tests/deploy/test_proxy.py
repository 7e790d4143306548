"""The shipped nginx configuration in front of real services: the fast path, WebSockets, and retries."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect

from tests.api.running import Service, running_service
from tests.faults.proxy import Proxy
from tests.graphs import fold, fold_reference, write_models
from tests.processes import free_port
from tests.servers import Server

TEMPLATE = (Path(__file__).parents[2] / "docker/nginx.conf.template").read_text()
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PASS = "proxy_pass http://replicas;"
STEP = "/v1/models/fold/streams/{}/step"

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt install nginx-light)")
StartNginx = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models", fold)


@pytest.fixture
def service(redis_server: Server, folder: Path) -> Iterator[Service]:
    with running_service(redis_server.url, folder, lane=True) as one:
        yield one


@pytest.fixture
def another(redis_server: Server, folder: Path) -> Iterator[Service]:
    """A second replica with the same store."""
    with running_service(redis_server.url, folder, lane=True) as one:
        yield one


@pytest.fixture
def nginx(tmp_path: Path) -> StartNginx:
    """Starts nginx in front of services at some ports; the result is a client with one connection to it."""

    @contextlib.contextmanager
    def start(*upstreams: int) -> Iterator[httpx2.Client]:
        port = free_port()
        servers = "".join(f"server 127.0.0.1:{upstream} max_fails=0; " for upstream in upstreams)
        text, replaced = re.subn(r"(?s)set \$replicas service;\s+proxy_pass http://\$replicas:8000;", PASS, TEMPLATE)
        assert replaced == 1
        text = text.replace("    server {\n", f"    upstream replicas {{ {servers}}}\n    server {{\n", 1)
        text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace(" /tmp/", f" {tmp_path}/")
        file = tmp_path / "nginx.conf"
        file.write_text(text.replace("${MAX_BODY_BYTES}", "8388608"))
        command = [str(NGINX), "-c", str(file), "-p", str(tmp_path), "-g", "daemon off;"]
        with (tmp_path / "nginx.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            limits = httpx2.Limits(max_connections=1)
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=20, trust_env=False
            ) as client:
                wait_until_it_responds(client, process, tmp_path / "nginx.log")
                yield client
        finally:
            process.terminate()
            process.wait(20)

    return start


def wait_until_it_responds(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        with contextlib.suppress(httpx2.ConnectError):
            client.get("/")
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(f"nginx ended:\n{log.read_text()}")


def step(client: httpx2.Client, stream: str, x: int, **more: Any) -> httpx2.Response:
    return client.post(STEP.format(stream), json={"inputs": [x], **more})


async def respond_418(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def test_a_step_through_the_proxy_takes_the_fast_path(
    service: Service, nginx: StartNginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nginx(service.port) as client:
        monkeypatch.setattr(service.app, "middleware_stack", respond_418)  # all declared routes

        assert client.get("/readyz").status_code == 418
        assert step(client, "s", 1).status_code == 200


def test_an_upgrade_other_than_to_a_websocket_is_not_passed_on(
    service: Service, nginx: StartNginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nginx(service.port) as client:
        monkeypatch.setattr(service.app, "middleware_stack", respond_418)  # all declared routes
        response = client.post(
            STEP.format("s"), json={"inputs": [1]}, headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
        )

    assert response.status_code == 200


def test_a_feed_through_the_proxy_gets_predictions(service: Service, nginx: StartNginx) -> None:
    with (
        nginx(service.port) as client,
        connect(f"ws://{client.base_url.netloc.decode()}/v1/models/fold/streams/s/feed", compression=None) as feed,
    ):
        for seq in (1, 2, 3):
            feed.send(json.dumps({"inputs": [seq], "seq": seq}))
        predictions = [json.loads(feed.recv(timeout=20)) for _ in range(3)]

    assert [prediction["step"] for prediction in predictions] == [1, 2, 3]


def test_a_step_goes_to_the_other_replica_if_one_does_not_accept_connections(
    service: Service, nginx: StartNginx
) -> None:
    with nginx(free_port(), service.port) as client:
        responses = [step(client, "s", x) for x in range(1, 11)]

    assert [response.status_code for response in responses] == [200] * 10
    assert [response.json()["step"] for response in responses] == list(range(1, 11))


def test_a_step_whose_response_is_lost_is_not_sent_twice(service: Service, another: Service, nginx: StartNginx) -> None:
    """Also with a second replica at hand; the client's retry gets the stored response."""
    with (
        Proxy(("127.0.0.1", service.port)) as first,
        Proxy(("127.0.0.1", another.port)) as second,
        nginx(first.port, second.port) as client,
    ):
        before = [step(client, "s", x, seq=x) for x in (1, 2)]
        for proxy in (first, second):
            proxy.lose_reply(to=b"POST")
        lost = step(client, "s", 3, seq=3)
        for proxy in (first, second):
            proxy.heal()
        again = step(client, "s", 3, seq=3)

    assert [response.status_code for response in before] == [200, 200]
    assert (lost.status_code, lost.json()["code"], lost.json()["retry"]) == (503, "outcome_unknown", "same")
    assert (again.status_code, again.json()["step"], again.json()["replayed"]) == (200, 3, True)
    assert again.json()["outputs"]["y"] == [fold_reference([1, 2, 3])[-1]]


def test_a_get_that_a_replica_rejects_with_503_goes_to_the_other_one(
    service: Service, another: Service, nginx: StartNginx
) -> None:
    with nginx(service.port, another.port) as client:
        service.app.state.context.draining = True
        one = [client.get("/readyz").status_code for _ in range(6)]
        another.app.state.context.draining = True
        neither = [client.get("/readyz").json() for _ in range(6)]
        service.app.state.context.draining = another.app.state.context.draining = False
        both = [client.get("/readyz").status_code for _ in range(6)]

    assert one == both == [200] * 6
    assert [document["ready"] for document in neither] == [False] * 6, "the response is not a replica's"


def test_without_a_replica_the_response_reports_that_nothing_was_applied(nginx: StartNginx) -> None:
    with nginx(free_port()) as client:
        responses = [step(client, "s", 1) for _ in range(3)]

    assert [(response.status_code, response.json()["applied"]) for response in responses] == [(503, "no")] * 3
