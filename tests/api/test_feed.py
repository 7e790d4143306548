"""WebSocket feeds: replies in order, many at once, in both formats, and every way in which a socket ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.client import ClientConnection

from stepwell.addons.fast_path.fast_feed import FastFeedProtocol
from stepwell.requests.feed_session import FeedSession
from stepwell_client.wire.formats import JSON
from tests.api.running import Service, running_service
from tests.graphs import fold, fold_reference, lstm, write_models
from tests.servers import Server


@pytest.fixture(scope="module", params=[True, False], ids=["on the lane", "under any server"])
def service(
    request: pytest.FixtureRequest, shared_redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A running service whose feeds are served by the fast lane, or by the application."""
    folder = write_models(tmp_path_factory.mktemp("models"), fold, lstm)
    with running_service(
        shared_redis.url, folder, lane=request.param, max_body_bytes=1_000_000, max_chunk_steps=64
    ) as one:
        yield one


@pytest.fixture
def restart_with(shared_redis: Server, service: Service) -> Again:
    """Starts another such service with other settings."""
    folder = service.app.state.context.settings.models[0]
    return functools.partial(running_service, shared_redis.url, folder, lane=service.lane)


Again = Callable[..., contextlib.AbstractContextManager[Service]]


def send(feed: ClientConnection, **message: Any) -> None:
    feed.send(json.dumps(message))


def request(feed: ClientConnection, **message: Any) -> dict[str, Any]:
    send(feed, **message)
    return receive(feed)


def receive(feed: ClientConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(feed.recv(timeout=30))
    return answer


def close_code(feed: ClientConnection) -> int:
    """Return the close code, discarding the messages before it."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            feed.recv(timeout=30)
    assert feed.protocol.close_rcvd is not None
    return feed.protocol.close_rcvd.code


# ------------------------------------------------------------------- one stream


def test_a_feed_answers_each_step_as_http_does(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        first, second = (request(feed, inputs={"x": [x]}, seq=n) for n, x in enumerate([3, 1], 1))

    repeated = service.step("fold", stream, [1], seq=2).json()
    assert (first["outputs"]["y"], first["created"]) == (fold_reference([3]), True)
    assert {**second, "replayed": True} == repeated


def test_a_reply_carries_the_id_of_its_message(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        assert [request(feed, inputs=[1], id=name)["id"] for name in (1, "a:b", None, [1, {"x": "é"}])] == [
            1, "a:b", None, [1, {"x": "é"}],
        ]  # fmt: skip


def test_replies_come_in_the_order_of_their_messages(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        for n in range(1, 501):  # more than the 256 replies that may wait
            send(feed, inputs=[n], seq=n)

        answers = [receive(feed) for _ in range(500)]
        problems = [answer for answer in answers if "outputs" not in answer]
        assert not problems
        assert [answer["outputs"]["y"][0] for answer in answers] == fold_reference(range(1, 501))


def test_a_chunk_has_a_time_axis_in_and_out(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        answer = request(feed, inputs=[[1], [2]], chunk=True)

        assert (answer["outputs"]["y"], answer["step"]) == ([[y] for y in fold_reference([1, 2])], 2)
        assert request(feed, inputs=[[3], [4]], chunk=True, **{"return": "none"})["outputs"] == {}


def test_a_problem_leaves_the_feed_open(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        gap = request(feed, inputs=[1], seq=7, id="g")
        bad = request(feed, inputs=["1"], id="b")
        unknown = request(feed, inputs=[1], id="u", extra=1)
        other = request(feed, inputs=[1], id="o", stream="other")

        assert [(p["error"]["code"], p["id"]) for p in (gap, bad, unknown, other)] == [
            ("stream_not_found", "g"), ("bad_input", "b"), ("bad_request", "u"), ("bad_request", "o"),
        ]  # fmt: skip
        assert request(feed, inputs=[1], seq=1)["step"] == 1
    with service.feed("fold") as feed:
        for name in ("a/b", "", "..", "é", "x" * 129):
            refused = request(feed, stream=name, inputs=[1], id=1)

            assert (refused["error"]["code"], refused["id"]) == ("bad_request", 1), name
        assert request(feed, inputs=[1])["error"]["code"] == "bad_request"
        assert request(feed, stream=stream, inputs=[1], seq=2)["step"] == 2


# ------------------------------------------------------------------- many streams


def test_bulk_messages_are_answered_as_bulk_steps_over_http(service: Service, stream: str) -> None:
    names = [f"{stream}-a", f"{stream}-b"]
    with service.feed("fold") as feed:
        answer = request(feed, streams=names, inputs=[[1], [2]], seq=[1, 5], id=9)
        chunks = request(feed, streams=names[1:], inputs=[[[1], [2]]], chunk=True, **{"return": "last"})

    assert (answer["id"], answer["outputs"], answer["step"]) == (9, {"y": [[2], None]}, [1, None])
    assert answer["errors"]["1"]["code"] == "stream_not_found"
    assert chunks["outputs"] == {"y": [[fold_reference([1, 2])[-1]]]}


# ------------------------------------------------------------------- msgpack


def test_msgpack_frames_carry_packed_tensors_both_ways(service: Service, stream: str) -> None:
    x = np.array([[0.5, -1, 2, 0], [1, 1, 1, 1]], np.float32)
    message = {
        "streams": [f"{stream}-a", f"{stream}-b"],
        "inputs": {"x": {"d": "float32", "s": [2, 4], "b": x.tobytes()}},
    }
    with service.feed("lstm", subprotocols=["stepwell.msgpack"]) as feed:
        feed.send(msgspec.msgpack.encode({**message, "id": 1}))
        data = feed.recv(timeout=30)
        feed.send(msgspec.msgpack.encode({"stream": stream, "inputs": [1.5]}))
        problem = feed.recv(timeout=30)

    assert isinstance(data, bytes)
    assert isinstance(problem, bytes)
    assert msgspec.msgpack.decode(problem)["error"]["code"] == "bad_input"
    answer = msgspec.msgpack.decode(data)
    y = np.frombuffer(answer["outputs"]["y"]["b"], np.float32).reshape(answer["outputs"]["y"]["s"])
    alone = service.step("lstm", f"{stream}-c", x[1].tolist()).json()["outputs"]["y"]
    assert (answer["id"], answer["step"]) == (1, [1, 1])
    assert np.array_equal(y[1], np.array(alone, np.float32))


def test_the_first_known_subprotocol_is_chosen(service: Service, stream: str) -> None:
    cases: list[tuple[Any, str | None]] = [
        (None, None),
        (["stepwell.json"], "stepwell.json"),
        (["stepwell.msgpack", "stepwell.json"], "stepwell.msgpack"),
        (["other", "stepwell.json"], "stepwell.json"),
    ]
    for offered, chosen in cases:
        with service.feed("fold", stream, subprotocols=offered) as feed:
            assert feed.subprotocol == chosen


# ------------------------------------------------------------------- ends


def test_a_message_that_cannot_be_decoded_ends_the_feed_with_a_problem(service: Service, stream: str) -> None:
    """Those before it are answered."""
    bad: list[str | bytes] = [
        *("", "{", "nonsense", "[1", '{"inputs": [1], "inputs": [1]}', "[" * 100_000),
        b"\xff\xfe",
    ]
    for n, message in enumerate(bad):
        with service.feed("fold", f"{stream}{n}") as feed:
            for seq in (1, 2, 3):
                send(feed, inputs=[seq], seq=seq)
            feed.send(message)

            assert [receive(feed).get("step") for _ in range(3)] == [1, 2, 3]
            assert receive(feed)["error"]["code"] == "bad_json", message
            assert close_code(feed) == 1007


def test_a_feed_that_cannot_be_opened_gets_a_problem_and_is_closed(service: Service) -> None:
    cases = [
        ("nope", "s", "", "model_not_found"),
        ("nope", None, "", "model_not_found"),
        ("fold", "a%20b", "", "bad_request"),
        ("fold", "s", "?version=0", "bad_request"),
        ("fold", "s", "?version=9", "model_not_found"),
    ]
    for model, stream, query, code in cases:
        with service.feed(model, stream, query=query) as feed:
            assert receive(feed)["error"]["code"] == code, (model, stream, query)
            assert close_code(feed) == 1008


def test_an_escaped_slash_opens_no_feed(service: Service) -> None:
    """After decoding, the path would be the feed of another model's stream."""
    with pytest.raises(InvalidStatus) as caught, service.feed("fold%2Fstreams%2Fs"):
        pass

    assert caught.value.response.status_code == 400


def test_a_client_that_disconnects_at_once_leaves_each_step_applied_or_not(service: Service, stream: str) -> None:
    with service.feed("fold", stream, max_queue=None) as feed:  # else its close waits behind the unread answers
        request(feed, inputs=[1], seq=1)
        for n in range(2, 50):
            send(feed, inputs=[n], seq=n)

    step = service.http.get(service.path("fold", stream)).json()["step"]
    assert 1 <= step < 50
    while step < 49:  # resend the rest, as a disconnected client would
        step = service.step("fold", stream, [step + 1], seq=step + 1).json()["step"]
    answer = service.step("fold", stream, [50], seq=50).json()
    assert answer["outputs"]["y"] == fold_reference(range(1, 51))[-1:]


def test_draining_answers_accepted_messages_then_closes_1012(restart_with: Again, stream: str) -> None:
    with restart_with() as own, own.feed("fold", stream) as feed:
        assert request(feed, inputs=[1], seq=1)["step"] == 1
        own.run_in_loop(lambda: own.app.state.engine.drain(1.0))
        refused = request(feed, inputs=[2], seq=2)

        assert (refused["error"]["code"], refused["error"]["applied"]) == ("draining", "no")
        assert close_code(feed) == 1012


def test_an_idle_feed_is_closed_1012_when_the_service_ends(restart_with: Again, stream: str) -> None:
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(restart_with())
        feed = contextlib.ExitStack().enter_context(own.feed("fold", stream))
        request(feed, inputs=[1])
        stack.close()

        assert close_code(feed) == 1012


def test_sockets_over_the_limit_are_refused(restart_with: Again, stream: str) -> None:
    with restart_with(max_websockets=1) as own:
        with own.feed("fold", stream) as feed:
            request(feed, inputs=[1])
            with pytest.raises(Exception, match="503"), own.feed("fold", stream):
                pass
        while own.app.state.context.websockets:
            own.http.get("/healthz")
        with own.feed("fold", stream) as feed:
            assert request(feed, inputs=[1])["step"] == 2


def test_what_waits_for_its_answers_is_bounded_by_bytes_too(service: Service) -> None:
    """A feed reads no further while messages of 4 MiB wait, however few they are, or while a large one is decoded."""
    context = service.app.state.context

    async def filled(size: int) -> int:
        line = FeedSession(context, JSON, "fold", None, stream=None, on_ready=lambda: None)
        taken = 0
        while not line.is_full:
            line.handle_message(b'{"stream":"s%d","inputs":[1]}'.ljust(size) % taken, "default")
            taken += 1
        left = taken
        while left:
            left -= len(line.pop_ready())
            await asyncio.sleep(0)
        assert not line.is_full
        return taken

    assert [service.run_in_loop(functools.partial(filled, size)) for size in (100, 200_000, 1_000_000)] == [
        256,
        21,
        1,
    ]


def test_the_answer_to_a_refused_handshake_is_worked_out_once(
    service: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    accept = ServerProtocol.accept

    def noted(protocol: ServerProtocol, request: Request) -> Response:
        asked.append(request.path)
        return accept(protocol, request)

    monkeypatch.setattr(ServerProtocol, "accept", noted)
    with pytest.raises(InvalidStatus), service.feed("fold", stream, origin="http://elsewhere"):
        pass

    assert len(asked) == 1


# ------------------------------------------------------------------- unusual frames


def read_frame(one: socket.socket) -> tuple[int, bytes]:
    """Read one frame from a raw socket and return its first byte and its payload."""

    def read(n: int) -> bytes:
        return one.recv(n, socket.MSG_WAITALL)  # exactly n bytes: the next frame may have arrived already

    first, length = read(2)
    size = int.from_bytes(read(2)) if length == 126 else length
    return first, read(size)


def open_raw_feed(service: Service, stream: str) -> socket.socket:
    """Open a feed on a raw socket and read the handshake."""
    one = open_unread_feed(service, service.path("fold", stream, "feed"), receive_buffer=65536)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += one.recv(1)
    return one


def test_a_ping_between_fragments_is_answered_and_does_not_break_the_message(service: Service, stream: str) -> None:
    one = open_raw_feed(service, stream)
    one.sendall(
        b"\x01\x8a" + bytes(4) + b'{"inputs":' + b"\x89\x82" + bytes(4) + b"hi" + b"\x80\x84" + bytes(4) + b"[3]}"
    )

    assert read_frame(one) == (0x8A, b"hi")
    assert json.loads(read_frame(one)[1])["outputs"]["y"] == fold_reference([3])
    one.close()


def test_a_message_may_come_byte_by_byte_and_masked(service: Service, stream: str) -> None:
    mask, text = b"\x01\x80\xff\x07", b'{"inputs":[3]}'
    one = open_raw_feed(service, stream)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in frame(text.ljust(200)):
        one.sendall(bytes([byte]))
    first = read_frame(one)[1]
    one.sendall(b"\x81" + bytes([0x80 | len(text)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(text)))
    second = read_frame(one)[1]
    one.close()

    assert [json.loads(found)["outputs"]["y"][0] for found in (first, second)] == fold_reference([3, 3])


def test_protocol_violations_close_1002(service: Service, stream: str) -> None:
    for bad in (
        b"\x81\x02hi",  # not masked
        b"\xc1\x82" + bytes(4) + b"hi",  # a reserved bit
        b"\x83\x82" + bytes(4) + b"hi",  # no such kind of frame
        b"\x80\x82" + bytes(4) + b"hi",  # a continuation frame without a first fragment
        b"\x09\x82" + bytes(4) + b"hi",  # a fragmented ping
        b"\x01\x82" + bytes(4) + b"hi" + b"\x81\x82" + bytes(4) + b"hi",  # a new message inside a fragmented one
    ):
        one = open_raw_feed(service, stream)
        one.sendall(bad)
        first, payload = read_frame(one)
        one.close()

        assert (first, payload[:2]) == (0x88, (1002).to_bytes(2)), bad


OVERSIZED = {
    "announced by its header": [(b"\x81", 1_000_001, b"")],
    "fragments, together": [(b"\x01", 1_000_000, b" " * 1_000_000), (b"\x80", 1, b" ")],
    "a fragment that declares it before it comes": [(b"\x01", 1, b"{"), (b"\x80", 2**40, b"")],
    "one with more to follow": [(b"\x01", 1, b"{"), (b"\x00", 2**40, b"")],
}


def test_a_message_over_the_size_limit_closes_1009(service: Service, stream: str) -> None:
    """The test sends nothing that the server does not have to read.

    Closing a socket with unread bytes resets the connection, and the reset may overtake the reply.
    """
    for what, frames in OVERSIZED.items():
        one = open_raw_feed(service, stream)
        for opcode, size, payload in frames:
            one.sendall(opcode + (b"\xff" + size.to_bytes(8) if size > 1 else b"\x81") + bytes(4) + payload)
        first, said = read_frame(one)
        while first != 0x88:
            first, said = read_frame(one)
        one.close()

        assert said[:2] == (1009).to_bytes(2), what


def test_what_comes_after_the_end_of_a_feed_is_not_kept(restart_with: Again, service: Service, stream: str) -> None:
    """The feed waits for one more answer before it closes; what the client sends meanwhile is dropped."""
    if not service.lane:
        pytest.skip("uvicorn alone reads the application's feeds")
    with restart_with(max_body_bytes=1_000_000, max_wait_ms=1000) as own:
        one = open_raw_feed(own, stream)
        [connection] = [c for c in own.connections() if isinstance(c, FastFeedProtocol)]
        one.sendall(frame(b'{"inputs": [1]}') + frame(b"{") + b"\x82\xff" + (2**40).to_bytes(8) + bytes(4))
        for _ in range(20):
            one.sendall(bytes(1_000_000))  # the socket's buffers do not hold so much: it was received
        kept = connection._buffered
        answers = [read_frame(one)[1] for _ in range(3)]
        one.close()

    assert kept <= 1_000_000
    assert json.loads(answers[0])["step"] == 1
    assert json.loads(answers[1])["error"]["code"] == "bad_json"
    assert answers[2][:2] == (1007).to_bytes(2)


def test_a_client_that_goes_on_behind_a_fragment_that_is_too_big_is_told_so(service: Service, stream: str) -> None:
    if not service.lane:
        pytest.skip("uvicorn resets the connection of one that goes on")
    one = open_raw_feed(service, stream)
    one.sendall(b"\x01\x81" + bytes(4) + b"{" + b"\x80\xff" + (1_000_001).to_bytes(8) + bytes(4) + bytes(1_000_001))
    one.sendall(frame(b'{"inputs": [1]}'))
    answers = [read_frame(one)[1] for _ in range(2)]
    one.close()

    assert json.loads(answers[0])["error"]["code"] == "too_large"
    assert answers[1][:2] == (1009).to_bytes(2)


def test_on_the_fast_lane_an_oversized_message_gets_a_problem_first(service: Service, stream: str) -> None:
    if not service.lane:
        pytest.skip("uvicorn closes before the application gets the message")
    with service.feed("fold", stream) as feed:
        feed.send('{"inputs": [1]}'.ljust(1_000_001))

        assert receive(feed)["error"]["code"] == "too_large"


# ------------------------------------------------------------------- slow readers


def open_unread_feed(service: Service, path: str, *, receive_buffer: int) -> socket.socket:
    """Open a WebSocket on a raw socket whose replies are not read."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(60)
    one.connect(("127.0.0.1", service.port))
    key = base64.b64encode(os.urandom(16)).decode()
    one.sendall(
        f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{service.port}\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        f"sec-websocket-key: {key}\r\nsec-websocket-version: 13\r\n\r\n".encode()
    )
    assert one.recv(12) == b"HTTP/1.1 101"
    return one


def hold_little(service: Service, slow: socket.socket) -> None:
    """Give the service's side of a connection a small send buffer; the kernel else holds megabytes of replies."""
    for connection in service.connections():
        if connection.transport.get_extra_info("peername") == slow.getsockname():
            number = connection.transport.get_extra_info("socket").fileno()
            with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as theirs:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            return
    raise AssertionError("the service does not have the connection")


def frame(text: bytes) -> bytes:
    """Return a text frame, masked with zeros."""
    length = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + struct.pack("!H", len(text))
    return b"\x81" + length + bytes(4) + text


def test_a_client_that_does_not_read_is_no_longer_read_from_and_nothing_grows(service: Service, stream: str) -> None:
    """TCP flow control stops its sending, at most 256 replies wait, and other feeds are not affected."""
    path = f"{service.path('lstm', stream, 'feed')}"
    chunk = json.dumps({"inputs": [[0.1, 0.2, 0.3, 0.4]] * 60, "chunk": True}).encode()
    slow = open_unread_feed(service, path, receive_buffer=4096)
    slow.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            slow.sendall(frame(chunk))
            sent += 1
            assert sent < 20_000

    with service.feed("fold", stream) as other:
        assert request(other, inputs=[1])["step"] == 1
    step = service.http.get(service.path("lstm", stream)).json()["step"]
    slow.close()

    assert step < 60 * sent


GIVEN_UP = b"\x88" + struct.pack("!BH", 2, 1013)


async def _task_names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


def is_closing(service: Service) -> bool:
    """Return whether the service has started to close its only feed, or has closed it."""
    if service.lane:
        sent = any(getattr(connection, "close_sent", False) for connection in service.connections())
        return sent or service.app.state.context.websockets == 0
    return "feed-writer" not in service.run_in_loop(_task_names)


def send_until_closed(slow: socket.socket, service: Service) -> None:
    """Send chunks without reading until the service starts to close the feed."""
    chunk = json.dumps({"inputs": [[0.1, 0.2, 0.3, 0.4]] * 60, "chunk": True}).encode()
    frames, sent = memoryview(frame(chunk) * 5_000), 0
    slow.settimeout(0.05)
    service.wait_for_websockets(1)
    hold_little(service, slow)
    while not is_closing(service):
        with contextlib.suppress(TimeoutError, ConnectionError):  # it may be closed since the last look
            sent += slow.send(frames[sent : sent + 100_000])


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the ten-second timeout, so that the tests are short."""
    for module in ("stepwell.asgi.routes.feed", "stepwell.addons.fast_path.fast_feed"):
        monkeypatch.setattr(f"{module}.SEND_TIMEOUT_S", 0.2)


@pytest.mark.usefixtures("short_timeouts")
def test_a_client_that_does_not_read_is_closed(
    restart_with: Again, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("stepwell.asgi.websocket", "stepwell.addons.fast_path.fast_feed"):
        monkeypatch.setattr(f"{module}._CLOSE_TIMEOUT_S", 60)  # the client reads again, however late
    with restart_with() as own:
        own.config.ws_ping_interval = 600.0  # nor does it answer a ping
        slow = open_unread_feed(own, own.path("lstm", stream, "feed"), receive_buffer=4096)
        send_until_closed(slow, own)
        slow.settimeout(30)
        received = bytearray()
        while not received.endswith(GIVEN_UP) and (data := slow.recv(65536)):
            received += data
        slow.close()

        assert received[-4:] == GIVEN_UP


@pytest.mark.usefixtures("short_timeouts")
def test_a_client_that_never_reads_is_disconnected(
    restart_with: Again, service: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not service.lane:
        pytest.skip("an ASGI application cannot cut a connection")
    monkeypatch.setattr("stepwell.addons.fast_path.fast_feed._CLOSE_TIMEOUT_S", 0.2)
    with restart_with() as own:
        slow = open_unread_feed(own, own.path("lstm", stream, "feed"), receive_buffer=4096)
        send_until_closed(slow, own)
        while own.app.state.context.websockets:
            own.http.get("/healthz")
        slow.close()


@pytest.mark.usefixtures("short_timeouts")
def test_a_watcher_that_never_reads_is_disconnected(
    restart_with: Again, service: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is aborted, not only closed, so nothing waits for a client that may never react."""
    if not service.lane:
        pytest.skip("an ASGI application cannot cut a connection")
    monkeypatch.setattr("stepwell.addons.fast_path.fast_feed._CLOSE_TIMEOUT_S", 0.2)
    chunk = {"inputs": [[0.1, 0.2, 0.3, 0.4]] * 60}
    with restart_with() as own:
        slow = open_unread_feed(own, "/v1/watch", receive_buffer=4096)
        slow.sendall(frame(json.dumps({"watch": [{"model": "lstm"}], "inputs": True}).encode()))
        own.wait_for_websockets(1)
        hold_little(own, slow)
        while own.app.state.context.websockets:
            assert own.http.post(own.path("lstm", stream, "steps"), json=chunk).status_code == 200
        slow.close()
