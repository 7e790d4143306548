"""Replicas are restarted one after the other, under load: nobody is refused, nothing is lost, doubled or wrong."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.client import Client
from tests.faults.balancer import Balancer
from tests.graphs import fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process
from tests.servers import Server


@pytest.fixture
def replicas(redis_server: Server, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Two services over one store."""
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
    """Sends one stream's timesteps, one after the other, until it is told to stop."""

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
            except Exception as exc:  # noqa: BLE001 - that is what is counted
                self.failures.append(repr(exc))

    def check(self) -> None:
        """Whatever was answered is what one replica alone would have answered."""
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
            self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)
        answer = self.http.post(f"/v1/models/fold/streams/{self.stream}/step", json={"inputs": [x], "seq": x})
        answer.raise_for_status()
        return answer.json()["step"], answer.json()["outputs"]["y"][0]


def test_a_rolling_restart_refuses_nobody(replicas: list[ServiceProcess]) -> None:
    """Not even those who never send anything again."""
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
