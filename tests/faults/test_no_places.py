"""The store's address appears in the log only, not in responses."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold, write_model
from tests.processes import service_process
from tests.servers import Server

ASKED: tuple[tuple[str, str, dict[str, list[int]] | None], ...] = (
    ("POST", "/v1/models/fold/streams/s/step", {"inputs": [1]}),
    ("POST", "/v1/models/fold/streams/s/reset", {}),
    ("GET", "/v1/models/fold/streams/s", None),
    ("GET", "/v1/models/fold/streams", None),
    ("GET", "/readyz", None),
)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_error_of_an_unavailable_store_does_not_contain_its_address(
    redis_server: Server, tmp_path: Path, how: str
) -> None:
    folder = write_model(tmp_path / "models", "fold", fold).parent
    flags = ("--redis", redis_server.url, "--request-timeout-s", "1", "--drain-s", "0")
    with service_process(folder, tmp_path / "one", *flags) as one:
        redis_server.kill() if how == "killed" else redis_server.send(signal.SIGSTOP)
        answers = [httpx2.request(method, one.url + path, json=body, timeout=20) for method, path, body in ASKED]
        if how == "frozen":
            redis_server.send(signal.SIGCONT)
        log = one.log.read_text()

    assert [answer.status_code for answer in answers] == [503] * len(ASKED)
    assert [answer.text for answer in answers if str(redis_server.socket) in answer.text] == []
    assert how == "frozen" or str(redis_server.socket) in log
