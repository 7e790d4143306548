"""The store's address appears in the log only, not in responses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.api.running import running_service
from tests.graphs import fold, write_models
from tests.servers import Server

ASKED: tuple[tuple[str, str, dict[str, list[int]] | None], ...] = (
    ("POST", "/v1/models/fold/streams/s/step", {"inputs": [1]}),
    ("POST", "/v1/models/fold/streams/s/reset", {}),
    ("GET", "/v1/models/fold/streams/s", None),
    ("GET", "/v1/models/fold/streams", None),
    ("GET", "/readyz", None),
)


def test_the_error_of_an_unavailable_store_does_not_contain_its_address(
    redis_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is frozen, and then killed."""
    address = str(redis_server.socket)
    with running_service(redis_server.url, write_models(tmp_path, fold), request_timeout_s=1) as one:
        for disturb, heal in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
            redis_server.send(disturb)
            answers = [one.http.request(method, path, json=body) for method, path, body in ASKED]
            if heal is not None:
                redis_server.send(heal)

            assert [answer.status_code for answer in answers] == [503] * len(ASKED)
            assert [answer.text for answer in answers if address in answer.text] == []

    assert address in caplog.text
