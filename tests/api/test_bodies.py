"""Bodies that are too large, too slow or malformed: each gets its 4xx, none a 500, and the service keeps working."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

from tests.api.running import Service
from tests.api.test_streams import code_of
from tests.codec.test_codec import BAD_INPUT, BAD_JSON, BAD_MSGPACK, BAD_REQUEST, body_of

LIMIT = 1_000_000


def head(service: Service, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"host: 127.0.0.1:{service.port}", *lines, "", ""]).encode()


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], Any, bool]:
    """Read one response: status, headers, document, and whether the connection was closed after it."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while (line := file.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    document = json.loads(file.read(int(headers["content-length"])))
    closed = headers.get("connection") == "close" and file.read(1) == b""
    return status, headers, document, closed


def test_a_body_at_the_limit_is_accepted(service: Service, stream: str) -> None:
    body = b'{"inputs": [1]}'.ljust(LIMIT)

    assert service.http.post(service.path("fold", stream, "step"), content=body).status_code == 200


def test_a_body_over_the_limit_is_rejected_by_its_content_length(service: Service, stream: str) -> None:
    """The response arrives although no byte of the body was sent, also to a client that waits for 100."""
    for more in ((), ("expect: 100-continue",)):
        with service.open_connection() as connection:
            lines = (f"content-length: {LIMIT + 1}", *more)
            connection.sendall(head(service, service.path("fold", stream, "step"), *lines))
            status, _, problem, closed = read_response(connection)

        assert (status, problem["code"], problem["applied"]) == (413, "too_large", "no")
        assert f"{LIMIT + 1} bytes; at most {LIMIT}" in problem["detail"]
        assert closed


def test_a_body_in_an_encoding_is_refused_without_being_read(service: Service, stream: str) -> None:
    """The answer comes although not a byte of the body was sent."""
    for encoding in ("BR", "identity, gzip"):
        lines = (f"content-encoding: {encoding}", "content-length: 100")
        with service.open_connection() as connection:
            connection.sendall(head(service, service.path("fold", stream, "step"), *lines))
            status, _, problem, closed = read_response(connection)

        assert (status, problem["code"], problem["applied"], problem["retry"]) == (
            415, "unsupported_encoding", "no", "never",
        )  # fmt: skip
        assert f"Content-Encoding is '{encoding.lower()}'; expected none, or identity" in problem["detail"]
        assert closed


def test_a_body_as_it_is_may_say_so(service: Service, stream: str) -> None:
    for encoding in ("identity", "Identity", ""):
        headers = {"Content-Encoding": encoding}
        answer = service.http.post(service.path("fold", stream, "step"), content=b'{"inputs": [1]}', headers=headers)

        assert answer.status_code == 200, encoding


def test_no_route_reads_a_body_in_an_encoding(service: Service) -> None:
    posts = (*("streams/s/steps", "step", "steps", "streams/s/peek", "streams/s/rollout", "streams/s/reset"),
             "streams/s/fork")  # fmt: skip
    routes = [("POST", path) for path in posts] + [("PUT", "streams/s/state"), ("PUT", "streams/s/snapshots/a")]
    for method, path in routes:
        headers = {"Content-Encoding": "gzip"}
        answer = service.http.request(method, f"/v1/models/fold/{path}", content=gzip.compress(b"{}"), headers=headers)

        assert (answer.status_code, code_of(answer)) == (415, "unsupported_encoding"), path


def test_a_rejected_body_that_is_sent_anyway_does_not_hide_the_response(service: Service, stream: str) -> None:
    with service.open_connection() as connection:
        connection.sendall(head(service, service.path("fold", stream, "step"), f"content-length: {8 * LIMIT}"))
        connection.sendall(b" " * (8 * LIMIT))
        status, _, problem, _ = read_response(connection)

    assert (status, problem["code"]) == (413, "too_large")


def test_a_chunked_body_is_cut_off_at_the_limit(service: Service, stream: str) -> None:
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with service.open_connection() as connection:
        connection.sendall(head(service, service.path("fold", stream, "step"), "transfer-encoding: chunked"))
        connection.sendall(part * (LIMIT // 65536 + 1))
        status, _, problem, closed = read_response(connection)

    assert (status, problem["code"], closed) == (413, "too_large", True)


def test_a_chunked_body_within_the_limit_is_accepted(service: Service, stream: str) -> None:
    def parts() -> Any:
        yield b'{"inputs"'
        yield b": [1]}"

    assert service.http.post(service.path("fold", stream, "step"), content=parts()).json()["step"] == 1


def test_a_client_that_disconnects_within_its_body_moves_nothing(service: Service, stream: str) -> None:
    with service.open_connection() as connection:
        connection.sendall(head(service, service.path("fold", stream, "step"), "content-length: 15"))
        connection.sendall(b'{"inputs"')

    assert code_of(service.http.get(service.path("fold", stream))) == "stream_not_found"


def test_a_body_for_an_unknown_model_leaves_the_connection_usable(service: Service, stream: str) -> None:
    with service.open_connection() as connection:
        body = b"x" * 300_000
        connection.sendall(head(service, service.path("nope", stream, "step"), f"content-length: {len(body)}") + body)
        assert read_response(connection)[0] == 404
        line = "content-length: 15"
        connection.sendall(head(service, service.path("fold", stream, "step"), line) + b'{"inputs": [1]}')
        assert read_response(connection)[0] == 200


def test_a_malformed_body_is_refused(service: Service, stream: str) -> None:
    packed = {"content-type": "application/msgpack"}
    expected: list[tuple[dict[str, bytes], dict[str, str], int, str]] = [
        (BAD_JSON, {}, 400, "bad_json"),
        (BAD_MSGPACK, packed, 400, "bad_json"),
        (BAD_REQUEST, {}, 400, "bad_request"),
        ({name: body_of({"inputs": inputs}) for name, inputs in BAD_INPUT.items()}, {}, 422, "bad_input"),
    ]
    for bodies, headers, status, code in expected:
        for name, body in bodies.items():
            answer = service.http.post(service.path("lstm", stream, "step"), content=body, headers=headers)

            assert (answer.status_code, code_of(answer), answer.json()["applied"]) == (status, code, "no"), name
