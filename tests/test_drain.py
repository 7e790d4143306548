"""How a process ends: no connection is reset, and whatever reached it in time is answered."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import uvicorn

from stepwell.app import create_app
from stepwell.process import server
from stepwell.settings import Settings
from tests.addons.fast_path.both_paths import UPGRADE, read_to_end, request, statuses
from tests.api.running import leave_out_fast_path
from tests.graphs import fold, write_model
from tests.servers import Server

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")


Act = Callable[[socket.socket], Awaitable[None]]
"""Does something with the listening socket."""


class Ending(server.Server):
    """A server, and a moment to act in: it has decided to close its port, and does so next."""

    def __init__(self, config: uvicorn.Config, at_the_end: Callable[[], Awaitable[None]], parent: int | None) -> None:
        super().__init__(config, drain_s=10, parent=parent)
        self.at_the_end = at_the_end

    async def on_tick(self, counter: int) -> bool:
        ends = await super().on_tick(counter)
        if ends:
            await self.at_the_end()
        return ends


async def nothing(_listening: socket.socket) -> None:
    """Do nothing."""


class End(Protocol):
    """Serves, does something, ends, does something at the last moment, and returns how many seconds the end took."""

    def __call__(self, at_the_end: Act, *, before: Act = nothing, parent: int | None = None) -> float: ...


@pytest.fixture(params=[True, False], ids=["on the lane", "the declared way"])
def end(request: pytest.FixtureRequest, redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> End:
    monkeypatch.setattr(server, "freeze_startup_objects", lambda: None)  # it is the tests' process, too
    folder = write_model(tmp_path / "models", "fold", fold).parent
    settings = Settings.load(redis=redis_server.url, models=[folder], port=0, model_probe_s=0)

    def run(at_the_end: Act, *, before: Act = nothing, parent: int | None = None) -> float:
        listening = server.listen(settings)
        app = create_app(settings)
        if not request.param:
            leave_out_fast_path(app)
        config = server.config(settings, app)
        one = Ending(config, lambda: at_the_end(listening), parent)

        async def serve() -> float:
            serving = asyncio.create_task(one.serve([listening]))
            while not one.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            await before(listening)
            began = time.monotonic()
            one.config.loaded_app.state.context.draining = True
            one.should_exit = True
            await serving
            return time.monotonic() - began

        with asyncio.Runner(loop_factory=one.config.get_loop_factory()) as runner:
            return runner.run(serve())

    return run


def step(stream: str) -> bytes:
    return request(b'{"inputs": [5]}', f"/v1/models/fold/streams/{stream}/step")


def connected(listening: socket.socket, *, within: float = 30) -> socket.socket:
    return socket.create_connection(listening.getsockname(), timeout=within)


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Connections that are closed in the end."""
    found: list[socket.socket] = []
    yield found
    for one in found:
        one.close()


def test_what_waits_to_be_accepted_when_the_port_closes_is_answered(end: End, clients: list[socket.socket]) -> None:
    async def come_late(listening: socket.socket) -> None:
        for n in range(20):
            clients.append(connected(listening))
            clients[-1].sendall(step(f"s{n}"))

    end(come_late)
    answers = [read_to_end(one) for one in clients]

    assert [statuses(answer) for answer in answers] == [[200]] * 20
    assert [b"\r\nconnection: close\r\n" in answer for answer in answers] == [True] * 20


def test_a_request_that_comes_after_the_port_is_closed_is_answered(end: End, clients: list[socket.socket]) -> None:
    """On a new connection, and on one that was idle when the end came."""

    async def connect_and_wait(listening: socket.socket) -> None:
        clients.append(connected(listening))
        clients[0].sendall(step("a"))
        assert statuses(await asyncio.to_thread(clients[0].recv, 65536)) == [200]

    async def connect(listening: socket.socket) -> None:
        clients.append(connected(listening))
        later.append(asyncio.create_task(send_when_closed(listening)))

    async def send_when_closed(listening: socket.socket) -> None:
        await closed(listening)
        for one in clients:
            one.sendall(step("a"))

    later: list[asyncio.Task[None]] = []
    end(connect, before=connect_and_wait)

    assert [statuses(read_to_end(one)) for one in clients] == [[200], [200]]


async def closed(listening: socket.socket) -> None:
    """Wait until a socket is closed."""
    while listening.fileno() >= 0:  # noqa: ASYNC110 - there is no event of it
        await asyncio.sleep(0.001)


def test_a_websocket_that_is_asked_for_after_the_port_is_closed_is_refused(
    end: End, clients: list[socket.socket]
) -> None:
    later: list[asyncio.Task[None]] = []

    async def connect(listening: socket.socket) -> None:
        clients.append(connected(listening))
        later.append(asyncio.create_task(ask_when_closed(listening)))

    async def ask_when_closed(listening: socket.socket) -> None:
        await closed(listening)
        clients[0].sendall(UPGRADE)

    end(connect)
    answer = read_to_end(clients[0])

    assert statuses(answer) == [503]
    assert b'"code":"draining","applied":"no"' in answer


def test_a_connection_that_sends_nothing_is_not_waited_for_long(end: End, clients: list[socket.socket]) -> None:
    async def connect(listening: socket.socket) -> None:
        clients.append(connected(listening))

    assert end(connect) < 5  # of 10 that answers may take
    assert read_to_end(clients[0]) == b""


def test_a_worker_that_ends_alone_leaves_the_port_to_the_others(end: End, clients: list[socket.socket]) -> None:
    """It shares the socket with them; whoever comes now is to be connected at once."""
    shared: list[socket.socket] = []

    async def share(listening: socket.socket) -> None:
        shared.append(listening.dup())

    end(share, parent=os.getppid())
    with shared[0]:
        clients.append(connected(shared[0], within=0.5))  # a packet that is dropped is sent again after a second
        accepted, _ = shared[0].accept()
        clients.append(accepted)
        clients[0].sendall(b"there")

        assert accepted.recv(5) == b"there"


def test_a_worker_whose_siblings_end_too_lets_go_of_the_port_after_nobody_is_let_in(
    end: End, clients: list[socket.socket]
) -> None:
    """Its parent sees to that, maybe a little later than the worker gets there."""
    later: list[asyncio.Task[None]] = []

    async def share(listening: socket.socket) -> None:
        later.append(asyncio.create_task(come_and_let_nobody_in(listening.dup())))

    async def come_and_let_nobody_in(shared: socket.socket) -> None:
        await asyncio.sleep(0.3)
        clients.append(connected(shared))
        clients[0].sendall(step("s"))
        server.stop_new_connections(shared)
        shared.close()

    end(share, parent=os.getppid())

    assert statuses(read_to_end(clients[0])) == [200]


@linux
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_socket_that_lets_nobody_in_gives_what_waits_and_refuses_the_rest(
    family: socket.AddressFamily, host: str, clients: list[socket.socket]
) -> None:
    """Who comes too late is not connected, and refused as soon as the port is closed: so nothing is lost."""
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind((host, 0))
        listening.listen(100)
        address = listening.getsockname()
        clients.extend(socket.create_connection(address[:2]) for _ in range(5))
        server.stop_new_connections(listening)
        late = socket.socket(family)
        clients.append(late)
        late.setblocking(False)
        late.connect_ex(address)
        is_connected = bool(select.select([], [late], [], 0.2)[1])
        listening.setblocking(False)
        accepted = [listening.accept()[0] for _ in range(5)]
        with pytest.raises(BlockingIOError):
            listening.accept()
    clients.extend(accepted)
    for one in clients[:5]:
        one.sendall(b"there")
    select.select([], [late], [], 30)

    assert not is_connected
    assert [one.recv(5) for one in accepted] == [b"there"] * 5
    assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
