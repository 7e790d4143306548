"""What commands report when a service does not respond."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from stepwell.commands.service_calls import HttpApi, ServiceUnavailableError


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that reads each request and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)

        thread = threading.Thread(target=serve)
        thread.start()
        yield "http://{}:{}".format(*listening.getsockname())
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_change_that_was_sent_and_not_answered_may_have_been_applied(silent: str) -> None:
    with HttpApi(silent, None) as api, pytest.raises(ServiceUnavailableError) as caught:
        api.call("POST", "/v1/models/m/release/promote")

    assert "It may have been applied." in caught.value.problem
    assert "Start it" not in caught.value.fix


def test_a_question_that_was_not_answered_changed_nothing(silent: str) -> None:
    with HttpApi(silent, None) as api, pytest.raises(ServiceUnavailableError) as caught:
        api.get("/v1/models/m/release")

    assert "No Stepwell service responds" in caught.value.problem
