"""Watching over SSE and WebSocket: what one replica commits, another publishes, complete and in order."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from stepwell.addons.watch.addon import Watching
from stepwell.addons.watch.commit_events import CommitEvent, PackedTensor
from stepwell.addons.watch.event_stream import SseResponse
from stepwell.addons.watch.events import queued_events
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.socket import MAX_GROUP_BYTES, groups_of
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.context import AppContext
from stepwell_client.wire.formats import MSGPACK, encode, encode_tensor
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.graphs import fold, fold_reference, total, write_models
from tests.processes import service_process as process
from tests.requests.test_api_keys import bearer, key, write_keys_file
from tests.servers import Server

WIDE = 32768  # so wide that few events fill the buffer of a client that does not read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), fold, wide=lambda: total(WIDE))


@pytest.fixture(scope="module")
def replicas(shared_redis: Server, folder: Path) -> Iterator[tuple[Service, Service]]:
    """Two replicas on one store; `fold` has an event log."""
    with (
        running_service(shared_redis.url, folder, history=["fold=100"]) as one,
        running_service(shared_redis.url, folder, history=["fold=100"]) as two,
    ):
        yield one, two


def context_and_hub(service: Service) -> tuple[AppContext, WatchHub]:
    [watching] = [addon for addon in service.app.state.addons if isinstance(addon, Watching)]
    return watching.context, watching.hub


class EventReader:
    """An open SSE response, read line by line."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert self.next() == {"event": "watching", "data": {"watching": 1}, "retry": "1000"}

    def next(self) -> dict[str, Any]:
        """Return the fields of the next event."""
        fields: dict[str, Any] = {}
        for line in self._lines:
            if not line and fields:
                return fields
            name, _, value = line.partition(": ")
            if name:
                fields[name] = json.loads(value) if name == "data" else value
        raise EOFError

    def take(self, n: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(n)]


@pytest.fixture
def events() -> Iterator[Callable[..., EventReader]]:
    """Opens SSE responses, which are closed after the test."""
    opened = []

    def open_stream(service_process: Service, model: str, stream: str, **more: Any) -> EventReader:
        url = f"http://127.0.0.1:{service_process.port}" + service_process.path(model, stream, "events")
        answer = httpx2.stream("GET", url, timeout=20, trust_env=False, **more)
        opened.append(answer)
        return EventReader(answer.__enter__())

    yield open_stream
    for answer in opened:
        answer.__exit__(None, None, None)


def watch(
    service_process: Service,
    *follows: dict[str, Any],
    wait: bool = True,
    packed: bool = False,
    query: str = "",
    **more: Any,
) -> ClientConnection:
    """Return a WebSocket that watches, in JSON or msgpack."""
    ws: ClientConnection = connect(
        f"ws://127.0.0.1:{service_process.port}/v1/watch{query}",
        compression=None,
        max_size=None,
        additional_headers=more.pop("headers", None),
        subprotocols=[Subprotocol("stepwell.msgpack")] if packed else None,
    )
    hello = {"watch": follows, **more}
    ws.send(encode(hello, MSGPACK) if packed else json.dumps(hello))
    if wait:
        assert take(ws, 1) == [{"watching": len(follows)}]
    return ws


def take(ws: ClientConnection, n: int) -> list[dict[str, Any]]:
    messages = [ws.recv(60) for _ in range(n)]
    return [json.loads(one) if isinstance(one, str) else msgspec.msgpack.decode(one) for one in messages]


def send(service_process: Service, stream: str, xs: range) -> None:
    for x in xs:
        assert service_process.step("fold", stream, [x]).status_code == 200


def test_the_commits_of_one_replica_are_received_from_another(
    replicas: tuple[Service, Service], stream: str, events: Callable[..., EventReader]
) -> None:
    here, there = replicas
    by_events = events(here, "fold", stream, params={"inputs": "true"})
    with watch(here, {"model": "fold", "stream": stream}, inputs=True) as ws:
        sending = threading.Thread(target=send, args=(there, stream, range(300)))
        sending.start()
        received, also = take(ws, 300), by_events.take(300)
        sending.join()

    assert [one["step"] for one in received] == list(range(1, 301))
    assert [one["outputs"]["y"][0] for one in received] == fold_reference(range(300))
    assert [one["inputs"]["x"][0] for one in received] == list(range(300))
    assert [one["data"] for one in also] == received
    assert [one["id"] for one in also] == [str(number) for number in range(1, 301)]


def test_of_a_chunk_that_was_applied_in_part_the_rest_is_received(
    replicas: tuple[Service, Service], stream: str
) -> None:
    here, there = replicas
    with watch(here, {"model": "fold", "stream": stream}, inputs=True) as ws:
        for end in (2, 5):
            body = {"inputs": [[x] for x in range(end)], "source": {"id": "log", "at": list(range(end))}}
            assert there.http.post(there.path("fold", stream, "steps"), json=body).status_code == 200
        received = take(ws, 2)

    assert [[x for [x] in one["inputs"]["x"]] for one in received] == [[0, 1], [2, 3, 4]]
    assert [y for one in received for [y] in one["outputs"]["y"]] == fold_reference(range(5))
    assert [one["step"] for one in received] == [2, 5]


def test_a_chunk_is_one_message_with_a_time_axis(replicas: tuple[Service, Service], stream: str) -> None:
    here, there = replicas
    with watch(here, {"model": "fold", "stream": stream}, inputs=True) as ws:
        answer = there.http.post(there.path("fold", stream, "steps"), json={"inputs": {"x": [[1], [2], [3]]}}).json()
        [received] = take(ws, 1)

    assert received == {
        "model": "fold",
        "stream": stream,
        "step": 3,
        "state_id": answer["state_id"],
        "outputs": answer["outputs"],
        "version": 1,
        "inputs": {"x": [[1], [2], [3]]},
    }


def test_a_reconnect_with_last_event_id_misses_nothing(
    replicas: tuple[Service, Service], stream: str, events: Callable[..., EventReader]
) -> None:
    here, there = replicas
    send(there, stream, range(20))
    first = events(here, "fold", stream, params={"since": 0})
    assert first.take(20)[-1]["id"] == "20"
    first.answer.close()
    send(there, stream, range(20, 50))
    again = events(there, "fold", stream, params={"since": 0}, headers={"Last-Event-ID": "20"})
    send(here, stream, range(50, 60))

    received = again.take(40)
    assert [one["id"] for one in received] == [str(number) for number in range(21, 61)]
    assert [one["data"]["outputs"]["y"][0] for one in received] == fold_reference(range(60))[20:]


def test_a_websocket_that_reconnects_since_its_step_misses_nothing(
    replicas: tuple[Service, Service], stream: str
) -> None:
    here, there = replicas
    with watch(here, {"model": "fold", "stream": stream}) as ws:
        send(there, stream, range(10))
        seen = take(ws, 5)
        ws.socket.shutdown(socket.SHUT_RDWR)
    send(there, stream, range(10, 20))
    with watch(there, {"model": "fold", "stream": stream, "since": seen[-1]["step"]}) as ws:
        seen += take(ws, 15)

    assert [one["outputs"]["y"][0] for one in seen] == fold_reference(range(20))


def test_events_that_are_no_longer_kept_are_reported_as_a_gap(
    replicas: tuple[Service, Service], stream: str, events: Callable[..., EventReader]
) -> None:
    here, _ = replicas
    send(here, stream, range(130))

    gap, first = events(here, "fold", stream, params={"since": 10}).take(2)
    assert gap == {"event": "gap", "data": {"gap": 20}}
    assert first["id"] == "31"
    with watch(here, {"model": "fold", "stream": stream, "since": 10}) as ws:
        assert take(ws, 101)[0] == {"gap": 20}


def open_unread_watch(service_process: Service, stream: str) -> socket.socket:
    """Return a watcher of `wide` that does not read, with a small receive buffer."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", service_process.port))
    path = service_process.path("wide", stream, "events")
    one.sendall(f"GET {path}?inputs=true HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    head = b""
    while b"watching" not in head:
        head += one.recv(4096)
    return one


def send_wide(service_process: Service, stream: str, steps: int) -> None:
    body = encode({"inputs": {"x": encode_tensor(np.zeros(WIDE, np.float32), MSGPACK)}}, MSGPACK)
    for _ in range(steps):
        path = service_process.path("wide", stream, "step")
        service_process.http.post(
            path, content=body, headers={"content-type": "application/msgpack"}
        ).raise_for_status()


@pytest.fixture
def write_timeout(replicas: tuple[Service, Service]) -> Iterator[Callable[[float], None]]:
    """Sets how long the first replica waits for a client that does not read."""
    connection = replicas[0].config.http_protocol_class
    before = connection.write_stall_s  # type: ignore[attr-defined]  # uvicorn's type does not declare it

    def set_timeout(seconds: float) -> None:
        connection.write_stall_s = seconds  # type: ignore[attr-defined]

    yield set_timeout
    set_timeout(before)


def test_a_client_that_never_reads_is_disconnected(
    replicas: tuple[Service, Service], stream: str, write_timeout: Callable[[float], None]
) -> None:
    here, there = replicas
    write_timeout(0.2)
    with open_unread_watch(here, stream):
        send_wide(there, stream, 30)
        _, hub = context_and_hub(here)
        while len(hub):
            here.http.get("/healthz")


def test_a_slow_reader_receives_its_gap_and_others_miss_nothing(
    replicas: tuple[Service, Service], stream: str, write_timeout: Callable[[float], None]
) -> None:
    here, there = replicas
    write_timeout(60)
    steps = 70
    readers = [watch(here, {"model": "wide", "stream": stream}, packed=True) for _ in range(5)]
    with open_unread_watch(here, stream) as lazy, ThreadPoolExecutor(5) as threads:
        seen = [threads.submit(take, one, steps) for one in readers]
        send_wide(there, stream, steps)
        assert [[one["step"] for one in some.result(30)] for some in seen] == [list(range(1, steps + 1))] * 5
        received, gap = [], 0
        for line in lazy.makefile("rb"):
            if line.startswith(b"id: "):
                received.append(int(line[4:]))
            elif line.startswith(b'data: {"gap"'):
                gap += json.loads(line[6:])["gap"]
            if received and received[-1] == steps:
                break
    for reader in readers:
        reader.close()

    assert len(received) + gap == steps
    assert gap > 0


@pytest.mark.parametrize(
    ("follow", "word"),
    [
        ({"model": "fold", "since": 3}, "since"),
        ({"model": "fold", "stream": "a/b"}, "a/b"),
        ({"model": "fold", "prefix": "a*"}, "prefix"),
        ({"model": "fold", "stream": "a", "since": -1}, "since"),
        ({"model": "absent"}, "absent"),
        ({"model": "fold", "streams": ["a"]}, "streams"),
    ],
)
def test_an_invalid_subscription_gets_a_problem(
    replicas: tuple[Service, Service], follow: dict[str, Any], word: str
) -> None:
    with watch(replicas[0], follow, wait=False) as ws:
        problem = json.loads(ws.recv(60))["error"]

        assert word in problem["detail"]
        with pytest.raises(ConnectionClosed):
            ws.recv(60)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"since": "x"}, {}, 400),
        ({"since": "-1"}, {}, 400),
        ({"inputs": "yes"}, {}, 400),
        ({}, {"Last-Event-ID": "half"}, 400),
    ],
)
def test_an_invalid_sse_request_is_rejected(
    replicas: tuple[Service, Service], query: dict[str, str], headers: dict[str, str], status: int
) -> None:
    one = replicas[0]
    answer = one.http.get(one.path("fold", "a", "events"), params=query, headers=headers)

    assert (answer.status_code, code_of(answer)) == (status, "bad_request")


def test_events_of_a_missing_model_are_not_found(replicas: tuple[Service, Service]) -> None:
    assert code_of(replicas[0].http.get("/v1/models/absent/streams/a/events")) == "model_not_found"


def test_tenants_receive_events_of_their_own_streams_only(
    shared_redis: Server, folder: Path, tmp_path: Path, stream: str, events: Callable[..., EventReader]
) -> None:
    keys = write_keys_file(tmp_path / "keys.json", key("a"), key("b", tenant="b"), key("step", scopes=["step"]))
    with running_service(shared_redis.url, folder, api_keys_file=keys, history=["100"]) as one:
        mine = events(one, "fold", stream, headers=bearer("a"))
        theirs = events(one, "fold", stream, headers=bearer("b"))
        with watch(one, {"model": "fold"}, headers=bearer("a")) as ws:
            for name, x in (("b", 7), ("a", 1)):
                path = one.path("fold", stream, "step")
                assert one.http.post(path, json={"inputs": [x]}, headers=bearer(name)).status_code == 200

            assert mine.next()["data"]["outputs"] == {"y": fold_reference([1])}
            assert theirs.next()["data"]["outputs"] == {"y": fold_reference([7])}
            assert take(ws, 1)[0]["outputs"] == {"y": fold_reference([1])}
        past = events(one, "fold", stream, headers=bearer("a"), params={"since": 0})
        assert past.next()["data"]["outputs"] == {"y": fold_reference([1])}

        path = one.path("fold", stream, "events")
        assert one.http.get(path).status_code == 401
        assert one.http.get(path, headers=bearer("step")).status_code == 403


def test_a_stopping_service_ends_its_watchers(folder: Path, short_path: Path) -> None:
    path = "/v1/models/fold/streams/a/events"
    with (
        process(folder, short_path) as one,
        httpx2.stream("GET", one.url + path, timeout=20, trust_env=False) as answer,
        connect(f"ws://127.0.0.1:{one.port}/v1/watch") as ws,
    ):
        text = answer.iter_text()
        assert "watching" in next(text)
        ws.send('{"watch": [{"model": "fold"}]}')
        ws.recv(60)
        assert one.stop() == 0
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(60)
        list(text)  # it ends as a complete response, not in the middle

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


def test_a_grouped_watch_gets_every_commit_in_its_order(replicas: tuple[Service, Service]) -> None:
    with watch(replicas[1], {"model": "fold", "prefix": "grouped-"}, query="?grouped=true") as ws:
        for step in range(1, 21):
            body = {"streams": [f"grouped-{i}" for i in range(20)], "inputs": [[step]] * 20}
            assert replicas[0].http.post("/v1/models/fold/step", json=body).status_code == 200
        found: dict[str, list[int]] = {}
        while sum(map(len, found.values())) < 400:
            for event in take(ws, 1)[0]["events"]:
                found.setdefault(event["stream"], []).append(event["step"])

    assert found == {f"grouped-{i}": list(range(1, 21)) for i in range(20)}


def test_a_group_is_bounded_and_gaps_are_between_groups() -> None:
    def event(step: int, nbytes: int) -> CommitEvent:
        tensor = PackedTensor("uint8", (nbytes,), bytes(nbytes))
        return CommitEvent("", "m", "s", step, 1, b"", {"y": tensor}, {})

    half = MAX_GROUP_BYTES // 2
    small, large, last, gap = event(1, half), event(2, 2 * half), event(3, half), EventGap(7)

    assert list(groups_of([small, large, last, small, gap, last])) == [[small], [large], [last, small], gap, [last]]
    assert list(groups_of([gap])) == [gap]
    assert list(groups_of([])) == [[]]


@pytest.mark.parametrize("query", ["?grouped=1", "?grouped="])
def test_a_watch_with_another_value_of_grouped_is_rejected(replicas: tuple[Service, Service], query: str) -> None:
    with replicas[0].websocket(f"/v1/watch{query}") as ws:
        assert take(ws, 1)[0]["error"]["code"] == "bad_request"


async def test_an_idle_watch_gets_heartbeats(replicas: tuple[Service, Service]) -> None:
    context, hub = context_and_hub(replicas[0])
    watcher = Subscriber([], inputs=False)
    answer = SseResponse(hub, watcher, SocketAuth(context, "read", None, ()), heartbeat_s=0.01)
    texts = answer.texts()

    assert [await anext(texts) for _ in range(3)][1:] == [b":\n\n", b":\n\n"]


async def test_what_is_queued_when_a_watch_ends_is_sent() -> None:
    watcher = Subscriber([], inputs=False)
    lists = queued_events(watcher)
    watcher.push(CommitEvent("default", "fold", "a", 1, 1, bytes(16), {}, {}))
    found = await anext(lists)
    watcher.push(CommitEvent("default", "fold", "a", 2, 1, bytes(16), {}, {}))  # while the first is sent
    watcher.close()
    async with asyncio.timeout(20):
        found += [event async for events in lists for event in events]

    assert [event.step for event in found if isinstance(event, CommitEvent)] == [1, 2]


async def test_a_pause_between_groups_ends_before_events_are_dropped() -> None:
    watcher = Subscriber([], inputs=False)
    lists = queued_events(watcher, pause_s=3600)
    found = []
    for first in range(0, 2000, 200):
        for step in range(first, first + 200):
            watcher.push(CommitEvent("default", "fold", "a", step, 1, bytes(16), {}, {}))
        async with asyncio.timeout(20):
            found += await anext(lists)

    assert [event.step for event in found if isinstance(event, CommitEvent)] == [*range(2000)]


async def test_a_revoked_key_ends_the_watch(shared_redis: Server, folder: Path, tmp_path: Path) -> None:
    keys = write_keys_file(tmp_path / "keys.json", key("a"))
    with running_service(shared_redis.url, folder, api_keys_file=keys) as one:
        context, hub = context_and_hub(one)
        visitor = SocketAuth(context, "read", "Bearer a", ())
        texts = SseResponse(hub, Subscriber([], inputs=False), visitor, heartbeat_s=0.01).texts()
        await anext(texts)
        write_keys_file(keys)
        rest = [text async for text in texts]

    assert rest[-1].startswith(b"event: problem\n")
    assert b"unauthenticated" in rest[-1]
