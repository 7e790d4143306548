"""Cached request heads are dropped when the keys, tokens or models behind them change."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.fast_path.hot_step_routes import make_handler
from stepwell.requests.auth.api_keys import ApiKeys, Caller, unauthenticated
from tests.addons.fast_path.both_paths import connected, request
from tests.api.running import running_service
from tests.graphs import fold, fold_reference, stateless, write_model
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server


def step(stream: str = "s") -> bytes:
    return request(b'{"inputs": [5]}', f"/v1/models/m/streams/{stream}/step", "Authorization: Bearer a.b.c")


STEP = step()


def answer(sock: socket.socket, text: bytes) -> bytes:
    """Send a request and return the response."""
    sock.sendall(text)
    return sock.recv(65536)


def asked_again(sock: socket.socket, text: bytes = STEP) -> int:
    """Send the same request again and return the status of the response."""
    return int(answer(sock, text).split(b" ", 2)[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for one test alone, which changes its model."""
    write_model(tmp_path / "models", "m", fold)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def connection(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """A connection to a service that accepts one key."""
    shared = tmp_path_factory.mktemp("shared")
    write_model(shared / "models", "m", fold)
    file = write_keys_file(shared / "keys.json", key("a.b.c"))
    with (
        running_service(shared_redis.url, shared / "models", lane=True, api_keys_file=file) as service,
        connected(service) as sock,
    ):
        yield sock


def test_a_revoked_key_is_rejected_also_if_another_connection_noticed_it_first(
    shared_redis: Server, folder: Path, tmp_path: Path
) -> None:
    file = write_keys_file(tmp_path / "keys.json", key("a.b.c"))
    with (
        running_service(shared_redis.url, folder, lane=True, api_keys_file=file) as service,
        connected(service) as sock,
        connected(service) as other,
    ):
        before = [asked_again(one) for one in (sock, sock, other, other)]
        write_keys_file(file, key("another"))

        assert [*before, asked_again(other), asked_again(sock)] == [200, 200, 200, 200, 401, 401]


def test_headers_of_equal_length_are_not_confused_with_cached_ones(connection: socket.socket, stream: str) -> None:
    right = step(stream)
    wrong = right.replace(b"a.b.c", b"a.b.x")

    assert [asked_again(connection, text) for text in (right, right, wrong, right, wrong, wrong, right)] == [
        200, 200, 401, 200, 401, 401, 200
    ]  # fmt: skip


def test_each_of_many_streams_on_one_connection_gets_its_own_response(connection: socket.socket, stream: str) -> None:
    answers = [
        answer(connection, step(f"{stream}-{x}").replace(b"[5]", b"[%d]" % x))  # x has one digit
        for _ in range(3)
        for x in range(10)
    ]

    found = [json.loads(text.partition(b"\r\n\r\n")[2]) for text in answers]
    assert [(one["step"], one["outputs"]["y"]) for one in found] == [
        (seq, [fold_reference([x] * seq)[-1]]) for seq in (1, 2, 3) for x in range(10)
    ]


def test_a_connection_whose_stream_or_header_changes_stays_in_single_request_mode(
    connection: socket.socket, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header as a trace id, or the client's address behind a proxy."""
    text = step(stream)
    first = asked_again(connection, text)  # its header lines are cached from here on
    monkeypatch.setattr("stepwell.addons.fast_path.fast_http.FastHttpProtocol._start_request", None)
    others = [text.replace(f"/{stream}/".encode(), f"/{stream}-{i}/".encode()) for i in range(3)]
    others += [text.replace(b"Host: x\r\n", b"Host: x\r\nX-Request-Id: %d\r\n" % 7**i) for i in range(20)]

    assert [first, *[asked_again(connection, other) for other in others]] == [200] * 24


def test_a_request_of_known_headers_may_be_cut_anywhere(connection: socket.socket, stream: str) -> None:
    text = step(stream)
    for place in range(1, len(text)):
        asked_again(connection, text)
        connection.sendall(text[:place])
        last = answer(connection, text[place:])

    found = json.loads(last.partition(b"\r\n\r\n")[2])
    steps = 2 * (len(text) - 1)
    assert (found["step"], found["outputs"]["y"]) == (steps, [fold_reference([5] * steps)[-1]])


def test_an_expired_token_is_rejected(shared_redis: Server, folder: Path) -> None:
    class Tokens:
        """Accepts one token until it expires."""

        over = False

        def caller(self, _token: str) -> Caller:
            if self.over:
                raise unauthenticated("The token has expired.")
            return Caller("default", frozenset({"step"}))

    tokens = Tokens()
    with running_service(shared_redis.url, folder, lane=True) as service, connected(service) as sock:
        service.app.state.context.api_keys = ApiKeys(None, tokens.caller)
        before = [asked_again(sock), asked_again(sock)]
        tokens.over = True

        assert [*before, asked_again(sock)] == [200, 200, 401]


def test_a_replaced_model_serves_no_new_stream(shared_redis: Server, folder: Path) -> None:
    with running_service(shared_redis.url, folder, lane=True) as service, connected(service) as sock:
        before = [asked_again(sock), asked_again(sock)]
        (folder / "m.onnx").unlink()
        write_model(folder, "other", stateless)
        service.http.post("/v1/models/reload")

        assert [*before, asked_again(sock)] == [200, 200, 404]


def test_a_model_check_without_changes_keeps_the_cache(
    shared_redis: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`watch_models` checks every second; requests must not be resolved again after each check."""
    resolved = 0

    def noted(*args: Any) -> Any:
        nonlocal resolved
        resolved += 1
        return make_handler(*args)

    monkeypatch.setattr("stepwell.addons.fast_path.hot_requests.make_handler", noted)
    with running_service(shared_redis.url, folder, lane=True) as service, connected(service) as sock:
        asked_again(sock)
        asked_again(sock)
        first = resolved
        for _ in range(3):
            service.http.post("/v1/models/reload")
            asked_again(sock)
        unchanged = resolved
        write_model(folder, "m", lambda: fold(7))
        service.http.post("/v1/models/reload")
        asked_again(sock)

    assert (unchanged - first, resolved - first) == (0, 1)


def test_a_request_line_that_begins_as_the_last_one_is_not_taken_for_it(connection: socket.socket) -> None:
    """This ends the connection, so it is the last test."""
    assert [asked_again(connection), asked_again(connection)] == [200, 200]
    assert asked_again(connection, STEP.replace(b"HTTP/1.1", b"HTTP/1.10", 1)) == 400
