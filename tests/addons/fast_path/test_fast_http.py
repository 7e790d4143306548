"""The fast path: which requests use it, response order, deadlines, flow control and shutdown of connections."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.stepping.pipeline import BatchedVersion
from tests.addons.fast_path.both_paths import (
    LAST,
    UPGRADE,
    BothPaths,
    chunked,
    connected,
    read_to_end,
    request,
    responses_of,
    statuses,
)
from tests.addons.fast_path.conftest import WITHIN_S
from tests.addons.fast_path.test_same_answers import infer, raw_infer
from tests.api.running import Service, running_service
from tests.graphs import fold_reference
from tests.servers import Server

GOOD = b'{"inputs": [5]}'


@pytest.fixture
def fast(both_paths: BothPaths) -> Service:
    return both_paths.lane


@pytest.fixture(params=["lane", "declared"])
def either(request: pytest.FixtureRequest, both_paths: BothPaths) -> Service:
    service: Service = getattr(both_paths, request.param)
    return service


@pytest.fixture(params=["lane", "declared"])
def hasty_one(request: pytest.FixtureRequest, hasty: BothPaths) -> Service:
    service: Service = getattr(hasty, request.param)
    return service


@pytest.fixture
def closed_app(fast: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the application by one that always returns 418: a request with another status used the fast path."""

    async def teapot(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(fast.app, "middleware_stack", teapot)


def path(stream: str, what: str = "step") -> str:
    return f"/v1/models/fold/streams/{stream}/{what}"


def metrics(service: Service, *lines: str) -> list[float]:
    page = service.http.get("/metrics").text
    found = [re.search(rf"^{re.escape(line)} (\S+)$", page, re.MULTILINE) for line in lines]
    return [float(one[1]) if one else 0.0 for one in found]


def requests_line(code: int, path: str, door: str = "http") -> str:
    return f'stepwell_requests_total{{code="{code}",door="{door}",route="POST {path}"}}'


# ------------------------------------------------------------------- requests on the fast path


@pytest.mark.usefixtures("closed_app")
def test_a_hot_request_bypasses_the_application(fast: Service, stream: str) -> None:
    """Bare, as curl or Triton's clients send it, with a key or an unknown header, refused, in parts, as columns."""
    plain = request(GOOD, path(stream))
    columns = json.dumps({"streams": [stream], "inputs": [[1]]}).encode()
    curl = ("Content-Type: application/json", "Accept: */*", "User-Agent: x")
    hot = [
        [plain],
        [request(GOOD, path(stream), *curl)],
        [request(GOOD, path(stream), "Idempotency-Key: k")],
        [request(GOOD, path(stream), "X-Request-Id: 1")],
        [plain[:-15], plain[-15:-5], plain[-5:]],
        [request(b'{"inputs": [[1], [2]]}', path(stream, "steps"))],
        [request(columns, "/v1/models/fold/step")],
        [request(columns.replace(b"[[1]]", b"[[[1]]]"), "/v1/models/fold/steps?version=1")],
        [raw_infer(sequence_id=stream)],
        [infer(1, sequence_id=stream)],
        [infer(1, "/v2/models/fold/versions/1/infer")],
    ]

    assert [statuses(responses_of(fast, [*parts, LAST])) for parts in hot] == [[200, 418]] * len(hot)
    assert statuses(responses_of(fast, [request(b"{", path(stream)), LAST])) == [400, 418]


@pytest.mark.usefixtures("closed_app")
def test_an_unusual_request_uses_the_declared_route(fast: Service) -> None:
    unusual = [
        chunked(GOOD),
        request(GOOD, path("a"), "Expect: 100-continue"),
        request(GOOD, path("a"), "Connection: close"),
        request(GOOD, path("a%20b")),
        request(GOOD, path("a") + "?x=1"),
        request(GOOD, path("a"), version="1.0"),
    ]

    assert [statuses(responses_of(fast, [one, LAST]))[0] for one in unusual] == [418] * len(unusual)


# ------------------------------------------------------------------- order


def test_responses_are_in_the_order_of_their_requests(fast: Service, stream: str) -> None:
    """For hot and other routes, even if a later response is ready first."""
    parts = [
        request(b'{"inputs": [1], "seq": 1}', path(stream)),
        request(b"", path(stream), method="GET", length=None).replace(b"/step ", b" "),
        request(b"{", path(stream)),
        request(b'{"inputs": [2], "seq": 2}', path(stream)),
        request(b'{"inputs": [3], "seq": 9}', path(stream)),
        request(b"", "/healthz", method="GET", length=None),
        request(b'{"inputs": [3], "seq": 3}', path(stream)),
    ]
    text = responses_of(fast, [b"".join(parts) + LAST])

    assert statuses(text) == [200, 200, 400, 200, 409, 200, 200, 404]
    assert [int(step) for step in re.findall(rb'"step":(\d+)', text)] == [1, 1, 2, 2, 3]


def test_a_step_waits_for_an_earlier_request_on_the_declared_route(fast: Service, stream: str) -> None:
    with connected(fast) as sock:
        sock.sendall(chunked(b'{"inputs": [300000]}', f"/v1/models/slow/streams/{stream}/step"))
        fast.http.get("/healthz")  # came later and is answered: so that one was taken
        sock.sendall(request(b"{", path(stream)) + LAST)
        text = read_to_end(sock)

    assert statuses(text) == [200, 400, 404]


def test_many_pipelined_steps_of_one_stream_are_applied_in_order(fast: Service, stream: str) -> None:
    xs = list(range(300))
    text = responses_of(fast, [b"".join(request(b'{"inputs": [%d]}' % x, path(stream)) for x in xs) + LAST])

    assert [int(y) for y in re.findall(rb'"y":\[(-?\d+)\]', text)] == fold_reference(xs)


def test_pipelined_requests_of_one_connection_do_not_fill_the_queue(fast: Service, stream: str) -> None:
    """More steps than the queue limit (500) are submitted only as earlier ones complete."""
    text = responses_of(fast, [b"".join(request(GOOD, path(f"{stream}-{n}")) for n in range(1500)) + LAST])

    assert statuses(text) == [200] * 1500 + [404]


def test_invalid_http_is_answered_after_earlier_requests(fast: Service, stream: str) -> None:
    parts = [request(b'{"inputs": [%d]}' % x, path(stream)) for x in range(3)]

    assert statuses(responses_of(fast, [b"".join(parts) + b"no HTTP\r\n\r\n"])) == [200, 200, 200, 400]


# ------------------------------------------------------------------- bounds


def test_a_body_that_never_arrives_times_out(hasty_one: Service, stream: str) -> None:
    began = time.monotonic()
    with connected(hasty_one) as sock:
        sock.sendall(request(GOOD, path(stream))[:-1])
        text = read_to_end(sock)

    assert statuses(text) == [400]
    assert b"The body did not arrive within 0.5 s" in text
    assert b'"code":"bad_request"' in text
    assert b"\r\nconnection: close\r\n" in text
    assert time.monotonic() - began > WITHIN_S * 0.9


def test_a_body_that_arrives_byte_by_byte_times_out(hasty_one: Service, stream: str) -> None:
    text = b""
    with connected(hasty_one) as sock:
        sock.sendall(request(b" " * 1000, path(stream))[:-1000])
        sock.settimeout(0.1)
        for _ in range(999):  # the last byte never comes
            with contextlib.suppress(ConnectionError):
                sock.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                text = sock.recv(65536)
                break

    assert statuses(text) == [400]


def test_a_rejected_head_is_answered_before_its_body_arrives(fast: Service) -> None:
    with connected(fast) as sock:
        sock.sendall(request(GOOD, "/v1/models/none/streams/s/step")[:-1])
        answer = sock.recv(65536)

    assert statuses(answer) == [404]


def test_a_client_that_does_not_read_is_paused(fast: Service, stream: str) -> None:
    """The data that the service buffers is bounded, whatever the client sends."""
    with connected(fast) as sock:
        sock.settimeout(1)
        taken = sent_until_full(sock, request(b"{", path(stream)) * 100, most=2**26)
        sock.settimeout(30)
        answered = 0
        while answered < 1000:  # the service continues once the client reads again
            answered += sock.recv(65536).count(b"HTTP/1.1 400")

    assert taken < 2**25


def test_pipelined_requests_of_one_connection_are_limited_by_bytes(redis_server: Server, folder: Path) -> None:
    """At most 4 MiB of large requests are submitted before earlier ones complete."""
    asked = [request(GOOD.ljust(1_000_000), path(f"large-{n}")) for n in range(12)]
    with (
        running_service(redis_server.url, folder, lane=True, max_wait_ms=500) as one,
        connected(one) as sock,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        sending = pool.submit(sock.sendall, b"".join(asked) + LAST)
        while not (connections := one.connections()):
            pass
        answering = pool.submit(read_to_end, sock)
        most = 0
        while not answering.done():
            most = max(most, len(connections[0]._in_flight))
        sending.result()

    assert statuses(answering.result()) == [200] * 12 + [404]
    assert most <= 5


def sent_until_full(sock: socket.socket, part: bytes, *, most: int) -> int:
    """Send until the socket's timeout passes without progress."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += sock.send(part)
    return sent


def test_the_step_of_a_disconnected_client_is_applied(fast: Service, stream: str) -> None:
    with connected(fast) as sock:
        sock.sendall(request(b'{"inputs": [1], "seq": 1}', path(stream)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    while (status := fast.http.get(path(stream, "")[:-1])).status_code == 404:
        pass

    assert status.json()["step"] == 1


@pytest.mark.parametrize("last", [b"no HTTP\r\n\r\n", UPGRADE], ids=["no HTTP", "an upgrade"])
def test_a_client_that_disconnects_with_pending_requests_causes_no_error(
    fast: Service, stream: str, last: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request is in flight, another waits behind it, and then invalid data arrives."""
    requests = request(b"", path(stream, "reset")) + chunked(GOOD, "/v1/nothing") + last
    for _ in range(50):
        with connected(fast) as sock:
            sock.sendall(requests)
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
    fast.http.get("/healthz")

    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


_H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


def test_an_offer_of_http_2_is_ignored(either: Service, stream: str) -> None:
    """Java's client makes it with its first request, and curl with `--http2`."""
    for cut in (0, 20, 60, -20, -3):
        offered = request(GOOD, path(f"{stream}{cut}"), *_H2C)
        plain = request(GOOD, path(f"{stream}{cut}"))

        text = responses_of(either, [offered[:cut], offered[cut:], offered * 3 + plain, LAST])

        assert statuses(text) == [200, 200, 200, 200, 200, 404], cut
        assert b'"step":5' in text
    with_two_headers = request(GOOD, path(stream), *_H2C, "Connection: keep-alive")

    assert statuses(responses_of(either, [with_two_headers * 2, LAST])) == [200, 200, 404]


def test_a_request_of_http_1_0_that_offers_another_protocol_ends_its_connection(either: Service, stream: str) -> None:
    with connected(either) as sock:
        sock.sendall(request(GOOD, path(stream), *_H2C, version="1.0"))
        text = read_to_end(sock)

    assert statuses(text) == [200]
    assert b"\r\nconnection: close\r\n" in text


def test_an_offer_of_http_2_may_be_repeated_as_often_as_fits_into_one_packet(either: Service, stream: str) -> None:
    offered = request(b"", "/v1/models/fold", *_H2C)

    assert set(statuses(responses_of(either, [offered * 300, LAST]))) == {404, 405}


def test_a_websocket_that_cannot_be_opened_gets_a_response(either: Service) -> None:
    for handshake in (
        UPGRADE.replace(b"GET", b"POST", 1),
        UPGRADE.replace(b"Host: x", b"Host: x\r\nCookie: " + b"x" * 9000),
        UPGRADE.replace(b"Host: x", b"Host: x\r\n" + b"\r\n".join(b"X-%d: 1" % i for i in range(200))),
        UPGRADE.replace(b"/feed", b"/nothing"),
    ):
        text = responses_of(either, [handshake, LAST])

        assert statuses(text)[0] in (400, 404, 431), handshake
        assert b"\r\ncontent-type: application/problem+json\r\n" in text.lower()


def test_a_websocket_that_cannot_be_opened_is_no_error_in_the_log(
    either: Service, caplog: pytest.LogCaptureFixture
) -> None:
    handshake = UPGRADE.replace(b"Host: x", b"Host: x\r\nOrigin: http://evil.example")

    with caplog.at_level(logging.ERROR):
        assert statuses(responses_of(either, [handshake])) == [403]
        either.http.get("/healthz")  # is answered after the handshake's task has ended

    assert not caplog.records


def test_a_websocket_upgrade_behind_a_pending_request_is_rejected(fast: Service, stream: str) -> None:
    text = responses_of(fast, [chunked(GOOD, path(stream)) + UPGRADE])

    assert statuses(text) == [200, 400]
    assert b"before the earlier requests of this connection were answered" in text


def test_an_idle_connection_is_closed_and_a_busy_one_is_kept(
    fast: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast.config, "timeout_keep_alive", 3)
    with connected(fast) as sock:
        for _ in range(4):  # longer than the idle timeout in all
            sock.settimeout(60)
            sock.sendall(request(GOOD, path(stream)))
            assert statuses(sock.recv(65536)) == [200]
            sock.settimeout(1)
            with pytest.raises(TimeoutError):
                sock.recv(65536)
        sock.settimeout(60)
        assert sock.recv(65536) == b""


def test_the_last_response_before_a_shutdown_closes_the_connection(folder: Path, redis_server: Server) -> None:
    """A process that shuts down responds to the requests that it has received, then closes the connection."""
    with contextlib.ExitStack() as stack:
        with running_service(redis_server.url, folder, lane=True, drain_s=5, run_timeout_s=0.5) as one:
            sock = stack.enter_context(connected(one))
            sock.sendall(request(b'{"inputs": [1000000000000]}', "/v1/models/slow/streams/s/step"))
            one.http.get("/healthz")  # a later request has its response: the step was received
        text = read_to_end(sock)

    assert statuses(text) == [503]
    assert b"\r\nconnection: close\r\n\r\n" in text


# ------------------------------------------------------------------- ids of requests


TRACE = "0af7651916cd43dd8448eb211c80319c"


IDS: list[tuple[list[str], str | None]] = [
    (["X-Request-Id: order-7/3"], "order-7/3"),
    ([f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"], TRACE),
    (["X-Request-Id: a", f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"], "a"),
    ([f"Traceparent: 00-{TRACE}-b7ad6b7169203331-00", "X-Request-Id: two words"], TRACE),
    (["X-Request-Id: first", "X-Request-Id: second"], "first"),
    (["X-Request-Id: " + "x" * 128], "x" * 128),
    (["X-Request-Id: " + "x" * 129], None),
    (["X-Request-Id: a\x09b"], None),
    (["X-Request-Id:"], None),
    ([f"traceparent: 00-{TRACE.upper()}-b7ad6b7169203331-01"], None),
    (["traceparent: 00-" + "0" * 32 + "-b7ad6b7169203331-01"], None),
    ([], None),
]


def test_the_id_of_a_request_is_in_its_response(either: Service, stream: str) -> None:
    """Also when the order of the header names has become frequent, for responses of each status."""
    for headers, expected in IDS:
        parts = [request(body, path(stream), *headers) for body in (GOOD, b"{")] * 70
        text = responses_of(either, [b"".join(parts) + LAST])
        found = re.findall(rb"\r\nx-request-id: ([^\r]*)\r\n", text)

        assert statuses(text).count(200) == statuses(text).count(400) == 70
        assert found == ([] if expected is None else [expected.encode()] * 140), headers


def test_requests_of_one_connection_get_their_own_ids(either: Service, stream: str) -> None:
    ids = [f"id-{n}" if n % 3 else None for n in range(200)]
    answers = [
        either.http.post(path(stream), json={"inputs": [1]}, headers={} if one is None else {"X-Request-Id": one})
        for one in ids
    ]

    assert [answer.headers.get("x-request-id") for answer in answers] == ids


@pytest.mark.usefixtures("closed_app")
def test_pipelined_requests_get_their_own_ids(fast: Service, stream: str) -> None:
    parts = [request(GOOD, path(stream), f"X-Request-Id: id-{n}") for n in range(20)]
    text = responses_of(fast, [b"".join(parts) + LAST])

    assert re.findall(rb"\r\nx-request-id: (\S+)\r\n", text) == [b"id-%d" % n for n in range(20)]


def test_a_log_line_about_a_request_has_its_id(
    either: Service, stream: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(BatchedVersion, "submit_single", broken)
    text = responses_of(either, [request(GOOD, path(stream), "X-Request-Id: order-8"), LAST])

    assert statuses(text) == [500, 404]
    assert [getattr(record, "request_id", None) for record in caplog.records if record.exc_info] == ["order-8"]


# ------------------------------------------------------------------- counts


def test_both_paths_count_requests_under_the_same_routes(either: Service, stream: str) -> None:
    columns = json.dumps({"streams": [stream], "inputs": [[1]]}).encode()
    requests = {
        "/v1/models/{model}/streams/{stream}/step": (path(stream), GOOD, b"{"),
        "/v1/models/{model}/streams/{stream}/steps": (path(stream, "steps"), b'{"inputs": [[1], [2]]}', b"{"),
        "/v1/models/{model}/step": ("/v1/models/fold/step", columns, b"{"),
        "/v1/models/{model}/steps": ("/v1/models/fold/steps", columns.replace(b"[[1]]", b"[[[1]]]"), b"{"),
    }
    lines = [requests_line(code, route) for route in requests for code in (200, 400)]
    *before, refusals = metrics(either, *lines, 'stepwell_refusals_total{code="bad_json"}')
    for target, good, bad in requests.values():
        assert statuses(responses_of(either, [request(good, target), request(bad, target), LAST])) == [200, 400, 404]

    expected = [*(count + 1 for count in before), refusals + len(requests)]
    assert metrics(either, *lines, 'stepwell_refusals_total{code="bad_json"}') == expected


def test_both_paths_count_inferences_under_the_same_routes(either: Service, stream: str) -> None:
    routes = {"/v2/models/{model}/infer": "/v2/models/fold/infer"}
    routes["/v2/models/{model}/versions/{version}/infer"] = "/v2/models/fold/versions/1/infer"
    lines = [requests_line(code, route, "oip") for route in routes for code in (200, 400)]
    before = metrics(either, *lines)
    for target in routes.values():
        good = infer(1, target, sequence_id=stream, sequence_start=True)
        assert statuses(responses_of(either, [good, request(b"{", target), LAST])) == [200, 400, 404]

    assert metrics(either, *lines) == [count + 1 for count in before]


def test_a_request_that_its_client_does_not_complete_is_counted_under_its_route(either: Service, stream: str) -> None:
    line = requests_line(499, "/v1/models/{model}/streams/{stream}/step")
    [before] = metrics(either, line)
    n_open = len(either.connections())
    with either.open_connection() as sock:
        either.wait_for_connections(n_open + 1)
        sock.sendall(request(GOOD, path(stream))[:-3])
    either.wait_for_connections(n_open)

    assert metrics(either, line) == [before + 1]


def test_requests_without_a_route_share_one_label(either: Service) -> None:
    line = 'stepwell_requests_total{code="404",door="http",route="none"}'
    [before] = metrics(either, line)
    for n in range(3):
        either.http.get(f"/unknown-{n}")

    assert metrics(either, line) == [before + 3]
    assert "unknown-" not in either.http.get("/metrics").text


def test_messages_of_a_feed_are_counted_under_its_route(either: Service, stream: str) -> None:
    routes = ["/v1/models/{model}/streams/{stream}/feed", "/v1/models/{model}/feed"]
    lines = [f'stepwell_requests_total{{code="200",door="websocket",route="WS {route}"}}' for route in routes]
    before = metrics(either, *lines)
    for name in (stream, None):
        with either.feed("fold", name) as feed:
            feed.send(json.dumps({"inputs": [1]} | ({} if name else {"stream": stream})))
            feed.recv()

    assert metrics(either, *lines) == [count + 1 for count in before]


def test_rejected_rows_of_a_bulk_step_are_counted(fast: Service, stream: str) -> None:
    line = 'stepwell_refusals_total{code="seq_gap"}'
    [before] = metrics(fast, line)
    fast.step("fold", stream, [1])
    columns = json.dumps({"streams": [stream], "inputs": [[1]], "seq": [7]}).encode()
    responses_of(fast, [request(columns, "/v1/models/fold/step"), LAST])

    assert metrics(fast, line) == [before + 1]
