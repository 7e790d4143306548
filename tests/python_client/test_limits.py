"""What bounds the Python client: a call's time, the handles that it keeps, the end of what waits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import pytest

from stepwell_client import AsyncClient, Client, ClientError, StepResult
from tests.api.running import Service, running_service
from tests.graphs import fold, fold_reference, write_models
from tests.python_client.test_client import CuttingProxy, error_of
from tests.python_client.transports import TRANSPORTS, engine_in_process
from tests.servers import Server

TIMEOUT_S = 3.0  # enough for the steps before the connection drips, on a busy machine
IN_TIME_S = 15.0  # what is held up for longer than its timeout takes more than this: six calls in turn, or the bytes
DRIP_S = 1.0  # between two bytes of a response, or two parts of a request


@pytest.fixture(scope="module")
def one(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = write_models(tmp_path_factory.mktemp("models"), fold)
    with running_service(shared_redis.url, folder) as made:
        yield made


@pytest.fixture
def http_url(one: Service) -> str:
    return f"http://127.0.0.1:{one.port}"


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service, by each transport."""
    if request.param == "http":
        one: Service = request.getfixturevalue("one")
        yield f"http://127.0.0.1:{one.port}"
    else:
        with engine_in_process(write_models(tmp_path_factory.mktemp("models"), fold)) as engine:
            yield engine.url


@pytest.fixture
def proxy(one: Service) -> Iterator[CuttingProxy]:
    made = CuttingProxy(one.port)
    yield made
    made.close()


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id that no other test has."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


# -------------------------------------------------------------------- a call's time


class SlowProxy(CuttingProxy):
    """A proxy that passes on, once it is `slow`, a byte at a time: of answers, of their bodies, or of requests."""

    def __init__(self, service_port: int, part: str) -> None:
        self.slow = threading.Event()
        self.ended = threading.Event()
        self._part = part
        super().__init__(service_port)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        if self._part == "request":
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            while data := near.recv(4096):
                if not self.slow.is_set() or self._part != "request" or not self.ended.wait(DRIP_S):
                    far.sendall(data)

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError), far, near:
            while data := far.recv(65536):
                head = data.find(b"\r\n\r\n") if self._part == "body" else 0
                if not self.slow.is_set() or self._part == "request":
                    head = len(data)
                near.sendall(data[:head])
                for byte in data[head:]:
                    if self.ended.wait(DRIP_S):
                        return
                    near.sendall(bytes((byte,)))


@pytest.fixture
def slow(one: Service, request: pytest.FixtureRequest) -> Iterator[SlowProxy]:
    made = SlowProxy(one.port, getattr(request, "param", "answer"))
    yield made
    made.ended.set()
    made.close()


@pytest.fixture(scope="module")
def large() -> list[list[int]]:
    """2 MiB of inputs, more than the buffers on the way hold."""
    return [[n] for n in range(2**18)]


def assert_call_ends_in_time(url: str, slow: SlowProxy, inputs: list[list[int]], stream: str) -> None:
    with Client(url, timeout=TIMEOUT_S) as client:
        handle = client.model("fold").stream(stream)
        handle.step([1])
        slow.slow.set()

        began = time.monotonic()
        error = error_of(handle.steps, inputs)

    assert (error.code, error.applied, error.retry) == ("no_answer", "unknown", "same")
    assert time.monotonic() - began < IN_TIME_S


@pytest.mark.parametrize("slow", ["answer", "body", "request"], indirect=True)
def test_a_call_that_drips_ends_in_time(slow: SlowProxy, large: list[list[int]], stream: str) -> None:
    assert_call_ends_in_time(slow.url, slow, large, stream)


def test_a_call_through_a_proxy_that_drips_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, slow: SlowProxy, large: list[list[int]], stream: str
) -> None:
    for name in ("all_proxy", "no_proxy", "ALL_PROXY", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", slow.url)
    assert_call_ends_in_time("http://steps.test", slow, large, stream)


async def test_a_step_on_a_feed_that_drips_ends_in_time(slow: SlowProxy, stream: str) -> None:
    async with (
        asyncio.timeout(IN_TIME_S),
        AsyncClient(slow.url, timeout=TIMEOUT_S) as client,
        client.model("fold").feed() as feed,
    ):
        await client.model("fold").stream(stream).step([1])  # what a feed reads over HTTP
        slow.slow.set()

        with pytest.raises(ClientError, match="No response"):
            await feed.step(stream, [1])


def test_calls_that_wait_for_one_another_end_in_time_too(slow: SlowProxy, large: list[list[int]], stream: str) -> None:
    """Or the sixth would take six times as long as it may."""
    errors: list[ClientError] = []
    with Client(slow.url, timeout=TIMEOUT_S) as client:
        handle = client.model("fold").stream(stream)
        handle.step([1])
        slow.slow.set()

        began = time.monotonic()
        threads = [threading.Thread(target=lambda: errors.append(error_of(handle.steps, large))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert time.monotonic() - began < IN_TIME_S
    assert {error.code for error in errors} == {"no_answer"}


async def test_calls_that_wait_for_one_another_end_in_time_by_asyncio(
    slow: SlowProxy, large: list[list[int]], stream: str
) -> None:
    async with AsyncClient(slow.url, timeout=TIMEOUT_S) as client:
        model = client.model("fold")
        handle = model.stream(stream)
        await handle.step([1])
        slow.slow.set()

        async with asyncio.timeout(IN_TIME_S):
            errors = await asyncio.gather(
                *(handle.steps(large) for _ in range(3)),
                *(model.step_many({stream: [1]}) for _ in range(3)),
                return_exceptions=True,
            )

    assert {getattr(error, "code", error) for error in errors} == {"no_answer"}


# -------------------------------------------------------------------- the handles that are kept


def test_a_client_keeps_so_many_handles_and_no_more(url: str, stream: str) -> None:
    with Client(url, keep_streams=4) as client:
        model = client.model("fold")
        gone = weakref.ref(model.stream(f"{stream}0"))
        model.stream(f"{stream}0").step([7])
        for n in range(1, 5):
            model.stream(f"{stream}{n}").step([7])

        assert gone() is None
        assert model.stream(f"{stream}0").step([-3]).output[0] == fold_reference([7, -3])[-1]


async def test_an_asyncio_client_keeps_so_many_handles_too(url: str, stream: str) -> None:
    async with AsyncClient(url, keep_streams=4) as client, client.model("fold").feed() as feed:
        model = client.model("fold")
        gone = weakref.ref(model.stream(f"{stream}0"))
        for n in range(5):
            await model.stream(f"{stream}{n}").step([7])

        assert gone() is None
        assert [(await feed.step(f"{stream}{n}", [-3])).step for n in range(5)] == [2] * 5


def test_a_handle_that_is_held_stays_the_same(url: str, stream: str) -> None:
    with Client(url, keep_streams=1) as client:
        model = client.model("fold")
        handle = model.stream(stream)
        handle.step([7])
        model.step_many({f"{stream}{n}": [7] for n in range(10)})

        assert model.stream(stream) is handle


def test_a_handle_in_doubt_is_kept_so_that_the_same_call_is_applied_once(proxy: CuttingProxy, stream: str) -> None:
    with Client(proxy.url, timeout=TIMEOUT_S, keep_streams=2) as client:
        model = client.model("fold")
        model.stream(stream).step([7])
        proxy.cut_answer()
        proxy.close()
        assert error_of(model.stream(stream).step, [-3]).applied == "unknown"
        assert error_of(model.stream(stream).step, [-3]).applied == "no"  # this one; the one before is still open
        proxy.open()
        for n in range(10):
            model.stream(f"{stream}{n}").step([7])

        again = model.stream(stream).step([-3])

    assert (again.replayed, again.step) == (True, 2)


def test_the_handle_of_a_fork_in_doubt_is_kept_so_that_the_fork_can_be_repeated(
    proxy: CuttingProxy, stream: str
) -> None:
    with Client(proxy.url, timeout=TIMEOUT_S, keep_streams=2) as client:
        model = client.model("fold")
        source = model.stream(stream)
        source.step([7])
        proxy.cut_answer()
        proxy.close()
        assert error_of(source.fork, f"{stream}-b").applied == "unknown"
        proxy.open()
        for n in range(10):
            model.stream(f"{stream}{n}").step([7])

        assert source.fork(f"{stream}-b").step([-3]).step == 2


def test_the_handle_that_is_forked_is_kept_until_the_outcome_is_known(proxy: CuttingProxy, stream: str) -> None:
    """Its position identifies the fork; without it, the repeated call would find the stream that the first one made."""
    with Client(proxy.url, timeout=TIMEOUT_S, keep_streams=1) as client:
        model = client.model("fold")
        model.stream(stream).step([7])
        proxy.cut_answer()
        proxy.close()
        assert error_of(model.stream(stream).fork, f"{stream}-b").applied == "unknown"
        gc.collect()
        proxy.open()

        assert model.stream(stream).fork(f"{stream}-b").step([-3]).step == 2


@pytest.mark.parametrize("keep_streams", [0, 1])
def test_a_stream_in_doubt_among_many_is_kept_too(proxy: CuttingProxy, stream: str, keep_streams: int) -> None:
    """Also one that was evicted before the call failed, because the call has more streams than are kept."""
    with Client(proxy.url, timeout=TIMEOUT_S, keep_streams=keep_streams) as client:
        model = client.model("fold")
        names = [f"{stream}-{n}" for n in range(3)]
        handles = [model.stream(name) for name in names]
        model.step_many({name: [7] for name in names})
        proxy.cut_answer()
        proxy.close()
        assert error_of(model.step_many, {name: [-3] for name in names}).applied == "unknown"
        del handles
        gc.collect()
        proxy.open()
        for n in range(10):
            model.stream(f"{stream}{n}").step([7])

        again = model.step_many({name: [-3] for name in names})

    assert [(one.replayed, one.step) for one in again.values() if isinstance(one, StepResult)] == [(True, 2)] * 3


# -------------------------------------------------------------------- two handles


class HoldingProxy(CuttingProxy):
    """A proxy that keeps back what is answered of a stream that is not there: until `forked`, or for a second."""

    def __init__(self, service_port: int) -> None:
        self.held = threading.Event()
        self.forked = threading.Event()
        super().__init__(service_port)

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError), far, near:
            while data := far.recv(65536):
                if b" 404 " in data[:20]:
                    self.held.set()
                    self.forked.wait(1)
                near.sendall(data)


@pytest.fixture
def held(one: Service) -> Iterator[HoldingProxy]:
    made = HoldingProxy(one.port)
    yield made
    made.close()


def test_a_fork_waits_for_what_the_other_handle_does(held: HoldingProxy, http_url: str, stream: str) -> None:
    """Or the answer that came first is written over by the one that was sent first."""
    with Client(held.url) as client, Client(http_url) as direct:
        direct.model("fold").stream(stream).prime([[7], [-3]])
        model = client.model("fold")
        handle, other = model.stream(stream), model.stream(f"{stream}-other")
        looking = threading.Thread(target=other.resume)
        looking.start()
        assert held.held.wait(60)

        handle.fork(f"{stream}-other")
        held.forked.set()
        looking.join()

        assert other.step([2**40]).step == 3


# -------------------------------------------------------------------- the end


async def everything(watch: AsyncIterator[Any]) -> list[Any]:
    return [news async for news in watch]


class Refusing:
    """A server that closes each connection at once, and counts them."""

    def __init__(self, attempts: int) -> None:
        self.has_refused = asyncio.Event()
        self._left = attempts

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._refuse, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        self._left -= 1
        if self._left == 0:
            self.has_refused.set()


def test_closing_a_client_ends_a_watch_that_waits(one: Service, http_url: str, stream: str) -> None:
    client = Client(http_url)
    ended = threading.Thread(target=lambda: list(client.model("fold").watch(stream)), daemon=True)
    ended.start()
    one.wait_for_websockets(1)

    client.close()
    ended.join(10)

    assert not ended.is_alive()
    assert list(client.model("fold").watch(stream)) == []


async def test_closing_an_asyncio_client_ends_a_watch_that_waits(one: Service, http_url: str, stream: str) -> None:
    client = AsyncClient(http_url)
    watch = asyncio.create_task(everything(client.model("fold").watch(stream)))
    await asyncio.to_thread(one.wait_for_websockets, 1)

    await client.aclose()

    async with asyncio.timeout(10):
        assert await watch == await everything(client.model("fold").watch(stream)) == []


@pytest.mark.parametrize("attempts", [1, 5])
async def test_closing_a_client_ends_a_watch_that_is_about_to_connect_again(stream: str, attempts: int) -> None:
    """After five attempts it pauses for up to three seconds."""
    async with Refusing(attempts) as refusing:
        client = AsyncClient(refusing.url)
        watch = asyncio.create_task(everything(client.model("fold").watch(stream)))
        await refusing.has_refused.wait()

        await client.aclose()

        async with asyncio.timeout(1):
            assert await watch == []


class Overloaded(Refusing):
    """A server that responds to each request with 503 and `Retry-After` of half a minute."""

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await reader.read()  # until the client has read the response
        await super()._refuse(reader, writer)


async def test_closing_an_asyncio_client_ends_a_call_that_waits_before_its_next_attempt(stream: str) -> None:
    async with Overloaded(1) as overloaded:
        client = AsyncClient(overloaded.url)
        call = asyncio.create_task(client.model("fold").stream(stream).step([7]))
        await overloaded.has_refused.wait()

        await client.aclose()

        async with asyncio.timeout(10):
            with pytest.raises(ClientError, match="closed"):
                await call


def test_closing_a_client_ends_a_call_that_waits_before_its_next_attempt(stream: str) -> None:
    errors: list[ClientError] = []

    async def close_while_it_waits() -> None:
        async with Overloaded(1) as overloaded:
            client = Client(overloaded.url)
            handle = client.model("fold").stream(stream)
            call = threading.Thread(target=lambda: errors.append(error_of(handle.step, [7])), daemon=True)
            call.start()
            await overloaded.has_refused.wait()
            client.close()
            await asyncio.to_thread(call.join, 10)

    asyncio.run(close_while_it_waits())

    assert [error.code for error in errors] == ["closed"]


def test_a_call_on_a_closed_client_is_refused(url: str, stream: str) -> None:
    client = Client(url)
    client.close()

    assert error_of(client.model("fold").stream(stream).step, [7]).code == "closed"
