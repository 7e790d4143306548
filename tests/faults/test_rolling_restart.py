"""A rolling restart under load: no request is rejected, and no step is lost, applied twice or wrong."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from stepwell_client import Client
from tests.faults.balancer import Balancer
from tests.graphs import fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process
from tests.servers import Server


@pytest.fixture
def replicas(redis_server: Server, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Two replicas with one store."""
    folder = write_model(tmp_path / "models", "fold", fold).parent
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(service_process(folder, tmp_path / name, "--redis", redis_server.url))
            for name in ("first", "second")
        ]


def restart_each(replicas: list[ServiceProcess]) -> None:
    for replica in replicas:
        assert replica.stop() == 0
        replica.start()


class Writer(threading.Thread):
    """Sends the timesteps of one stream one after the other, until it is stopped."""

    def __init__(self, url: str, stream: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.stream = stream
        self.answers: list[tuple[int, int]] = []  # step and prediction
        self.failures: list[str] = []
        self.stopped = threading.Event()

    def send(self, x: int) -> tuple[int, int]:
        raise NotImplementedError

    def run(self) -> None:
        x = 0
        while not self.stopped.is_set():
            x += 1
            try:
                self.answers.append(self.send(x))
            except Exception as exc:  # noqa: BLE001 - every error is counted
                self.failures.append(repr(exc))

    def check(self) -> None:
        """Check that the responses are those of a single replica."""
        assert self.failures == []
        assert [step for step, _ in self.answers] == list(range(1, len(self.answers) + 1))
        assert self.answers[-1][1] == fold_reference(list(range(1, len(self.answers) + 1)))[-1]


class ThroughTheClient(Writer):
    def send(self, x: int) -> tuple[int, int]:
        if not hasattr(self, "of"):
            self.of = Client(self.url).model("fold").stream(self.stream)
        answer = self.of.step([x])
        return answer.step, int(answer.output[0])


class WithoutRetries(Writer):
    def send(self, x: int) -> tuple[int, int]:
        if not hasattr(self, "http"):
            self.http = httpx2.Client(base_url=self.url, timeout=20, trust_env=False)
        answer = self.http.post(f"/v1/models/fold/streams/{self.stream}/step", json={"inputs": [x], "seq": x})
        answer.raise_for_status()
        return answer.json()["step"], answer.json()["outputs"]["y"][0]


def test_a_rolling_restart_rejects_no_request(replicas: list[ServiceProcess]) -> None:
    """This includes clients that do not retry."""
    kinds = (ThroughTheClient, WithoutRetries) * 2
    with Balancer([one.port for one in replicas]) as balancer:
        writers = [kind(balancer.url, f"s{n}") for n, kind in enumerate(kinds)]
        for writer in writers:
            writer.start()
        restart_each(replicas)
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.join(30)

    for writer in writers:
        writer.check()
