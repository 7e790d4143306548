"""A service that runs in a thread of the test process: the real application on uvicorn and a TCP port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from websockets.sync.client import ClientConnection, connect

from stepwell.app import create_app
from stepwell.process import server
from stepwell.service_addon import ServiceAddon
from stepwell.settings import Settings

PATIENCE_S = 60  # on a machine that runs other tests, a process may get no processor for seconds
# A timestep is refused if it would wait longer than a fifth of `request_timeout_s`. A busy machine may process ten a
# second; the last of the 256 that a feed may have open then waits for half a minute.
_LIMITS = {"request_timeout_s": 10 * PATIENCE_S, "run_timeout_s": PATIENCE_S, "receive_timeout_s": PATIENCE_S}


class Service:
    """A service that runs in a thread of this process.

    Attributes:
        app: The application.
        lane: Whether the fast path is on; None: as in the environment.
        config: uvicorn's configuration, which each new connection reads.
        http: A client connected to the service.
    """

    def __init__(self, app: FastAPI, uvicorn_server: uvicorn.Server, port: int, *, lane: bool | None = None) -> None:
        self.app = app
        self.lane = lane
        self.port = port
        self.config = uvicorn_server.config
        self._server = uvicorn_server
        self._loop: asyncio.AbstractEventLoop | None = None
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=2 * PATIENCE_S)

    def path(self, model: str, stream: str, what: str = "") -> str:
        return f"/v1/models/{model}/streams/{stream}" + (f"/{what}" if what else "")

    def step(self, model: str, stream: str, inputs: Any, **more: Any) -> httpx2.Response:
        return self.http.post(self.path(model, stream, "step"), json={"inputs": inputs, **more})

    def feed(self, model: str, stream: str | None = None, *, query: str = "", **more: Any) -> ClientConnection:
        path = f"/v1/models/{model}/feed" if stream is None else self.path(model, stream, "feed")
        return self.websocket(path + query, **more)

    def websocket(self, path: str, **more: Any) -> ClientConnection:
        url = f"ws://127.0.0.1:{self.port}{path}"
        opened: ClientConnection = connect(url, compression=None, max_size=None, open_timeout=PATIENCE_S, **more)
        return opened

    def wait_for_websockets(self, n: int) -> None:
        """Wait until the service has exactly `n` open WebSockets."""

        async def poll() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while self.app.state.context.websockets != n:  # noqa: ASYNC110 - no event is published
                    await asyncio.sleep(0.005)

        self.run_in_loop(poll)

    def wait_for_connections(self, n: int) -> None:
        """Wait until the service has exactly `n` open connections, those of WebSockets included."""

        async def poll() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while len(self.connections()) != n:  # noqa: ASYNC110 - no event is published
                    await asyncio.sleep(0.005)

        self.run_in_loop(poll)

    def run_in_loop(self, work: Callable[[], Any]) -> Any:
        """Run a coroutine function on the event loop of the service and return its result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(2 * PATIENCE_S)

    def connections(self) -> list[Any]:
        """Return uvicorn's protocol objects of the open connections."""
        return list(self._server.server_state.connections)

    def open_connection(self) -> socket.socket:
        """Return a bare TCP connection to the service."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=2 * PATIENCE_S)


def leave_out_fast_path(app: FastAPI) -> None:
    """Leave all requests to FastAPI, as where no add-on has protocols of its own."""
    app.state.addons = [addon for addon in app.state.addons if type(addon).protocols is ServiceAddon.protocols]


@contextlib.contextmanager
def running_service(redis: str, models: Path, *, lane: bool | None = None, **settings: Any) -> Iterator[Service]:
    """Run a service until the block ends, with limits of time that a busy machine keeps unless `settings` has others.

    `lane=None`: the fast path is on unless the environment switches it off.
    """
    defaults = {"port": 0, "drain_s": 0.0, "model_probe_s": 0, **_LIMITS}
    chosen = Settings.load(redis=redis, models=[models], **(defaults | settings))
    app = create_app(chosen)
    if lane is False:
        leave_out_fast_path(app)
    listening = server.listen(chosen)
    uvicorn_server = uvicorn.Server(server.config(chosen, app))
    service = Service(app, uvicorn_server, listening.getsockname()[1], lane=lane)
    started = threading.Event()

    async def serve() -> None:
        service._loop = asyncio.get_running_loop()
        serving = asyncio.create_task(uvicorn_server.serve(sockets=[listening]))
        while not uvicorn_server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        started.set()
        await serving

    def work() -> None:
        with asyncio.Runner(loop_factory=uvicorn_server.config.get_loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(2 * PATIENCE_S)
    assert uvicorn_server.started, "the application did not start; see its log"
    try:
        yield service
    finally:
        service.http.close()
        uvicorn_server.should_exit = True
        thread.join(2 * PATIENCE_S)
