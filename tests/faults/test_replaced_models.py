"""Model files are overwritten and deleted under load, and all replicas restarted: no stream is refused or changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.balancer import Balancer
from tests.graphs import Build, fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process
from tests.servers import Server

N_STREAMS = int(os.environ.get("STEPWELL_REPLACED", "200"))
OLD, NEW = 3, 5


def factor(n: int) -> Build:
    return lambda: fold(factor=n)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@contextlib.contextmanager
def two_replicas(server: Server, folder: Path) -> Iterator[list[ServiceProcess]]:
    """Two replicas with one store, one of them with two workers."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                service_process(folder, folder.parent / name, "--redis", server.url, "--workers", workers)
            )
            for name, workers in (("first", "1"), ("second", "2"))
        ]


class Steps(threading.Thread):
    """Steps streams in columns, and one of them alone, until it is stopped; sends nothing twice."""

    def __init__(self, url: str, streams: list[str]) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.streams = streams
        self.sent = 0
        self.predictions: dict[str, int] = {}
        self.problems: list[Any] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=20, trust_env=False) as http:
            while not self.stopped.is_set() and not self.problems:
                self.sent += 1
                names, alone = self.streams[1:], self.streams[0]
                body = {"streams": names, "inputs": {"x": [[self.sent]] * len(names)}, "seq": [self.sent] * len(names)}
                try:
                    bulk = http.post("/v1/models/m/step", json=body).raise_for_status().json()
                    one = {"inputs": [self.sent], "seq": self.sent}
                    single = http.post(f"/v1/models/m/streams/{alone}/step", json=one).raise_for_status().json()
                except httpx2.HTTPError as exc:
                    self.problems.append(repr(exc))
                    return
                self.problems += bulk.get("errors", {}).values()
                self.predictions = dict(zip(names, [y for [y] in bulk["outputs"]["y"]], strict=True))
                self.predictions[alone] = single["outputs"]["y"][0]

    def expected(self, factor: int) -> dict[str, int]:
        return dict.fromkeys(self.streams, fold_reference(range(1, self.sent + 1), factor=factor)[-1])


def wait_for_more(steps: Steps, n: int = 5) -> None:
    """Wait until all streams have been stepped some more times."""
    goal = steps.sent + n
    while steps.sent < goal and steps.is_alive():
        steps.join(0.01)


def run_while_replaced(server: Server, folder: Path, replace: Any) -> tuple[Steps, Steps]:
    """Return the steps of streams of the old model and of streams that begin after it was replaced."""
    with two_replicas(server, folder) as replicas, Balancer([one.port for one in replicas]) as balancer:
        old = Steps(balancer.url, [f"old-{n}" for n in range(N_STREAMS)])
        old.start()
        wait_for_more(old)
        replace()
        wait_for_more(old)
        for replica in replicas:
            assert replica.stop() == 0
            replica.start()
            wait_for_more(old)
        new = Steps(balancer.url, [f"new-{n}" for n in range(20)])
        new.start()
        wait_for_more(new)
        for steps in (old, new):
            steps.stopped.set()
            steps.join(30)
    return old, new


def test_a_file_that_is_overwritten_in_place_stops_no_stream(redis_server: Server, folder: Path) -> None:
    write_model(folder, "m", factor(OLD))

    old, new = run_while_replaced(redis_server, folder, lambda: write_model(folder, "m", factor(NEW)))

    assert old.problems == new.problems == []
    assert old.predictions == old.expected(OLD)
    assert new.predictions == new.expected(NEW)


def test_a_deleted_version_stops_no_stream(redis_server: Server, folder: Path) -> None:
    write_model(folder, "m", factor(OLD), version=1)

    def replace() -> None:
        write_model(folder, "m", factor(NEW), version=2)
        shutil.rmtree(folder / "m" / "1")

    old, new = run_while_replaced(redis_server, folder, replace)

    assert old.problems == new.problems == []
    assert old.predictions == old.expected(OLD)
    assert new.predictions == new.expected(NEW)
