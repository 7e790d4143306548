"""What the lane remembers of a head never outlives what it was made of: keys, tokens, models."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.api.auth import Caller, Keys, unauthenticated
from tests.api.running import running
from tests.api.test_auth import key, write
from tests.graphs import fold, stateless, write_model
from tests.lane.ways import connected, request
from tests.servers import Server

STEP = request(b'{"inputs": [5]}', "/v1/models/m/streams/s/step", "Authorization: Bearer a.b.c")


def asked_again(sock: socket.socket) -> int:
    """Send the very same request once more and return the status of its answer."""
    sock.sendall(STEP)
    return int(sock.recv(65536).split(b" ", 2)[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models", "m", fold)
    return tmp_path / "models"


def test_a_key_that_is_taken_away_steps_no_more(redis_server: Server, folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "keys.json", key("a.b.c"))
    with running(redis_server.url, folder, lane=True, api_keys_file=file) as service, connected(service) as sock:
        before = [asked_again(sock), asked_again(sock)]
        write(file, key("another"))

        assert [*before, asked_again(sock)] == [200, 200, 401]


def test_a_token_whose_time_is_over_steps_no_more(redis_server: Server, folder: Path) -> None:
    class Tokens:
        """One token, good until it is over."""

        over = False

        def caller(self, _token: str) -> Caller:
            if self.over:
                raise unauthenticated("The token has expired.")
            return Caller("default", frozenset({"step"}))

    tokens = Tokens()
    with running(redis_server.url, folder, lane=True) as service, connected(service) as sock:
        service.app.state.context.keys = Keys(None, tokens)
        before = [asked_again(sock), asked_again(sock)]
        tokens.over = True

        assert [*before, asked_again(sock)] == [200, 200, 401]


def test_a_model_that_is_replaced_steps_no_new_stream(redis_server: Server, folder: Path) -> None:
    with running(redis_server.url, folder, lane=True) as service, connected(service) as sock:
        before = [asked_again(sock), asked_again(sock)]
        (folder / "m.onnx").unlink()
        write_model(folder, "other", stateless)
        service.http.post("/v1/models/reload")

        assert [*before, asked_again(sock)] == [200, 200, 404]
