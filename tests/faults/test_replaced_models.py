"""Model files are overwritten and deleted under load, and all replicas restarted: no stream is refused or changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.faults.balancer import Balancer
from tests.graphs import Build, fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process
from tests.servers import Server, server

N_STREAMS = int(os.environ.get("STEPWELL_REPLACED", "200"))
OLD, NEW = 3, 5
MODELS = ("overwritten", "deleted")


def factor(n: int) -> Build:
    return lambda: fold(factor=n)


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
    """Steps streams of a model in columns, and one of them alone, until it is stopped; sends nothing twice."""

    def __init__(self, url: str, model: str, streams: list[str]) -> None:
        super().__init__(daemon=True)
        self.url = f"{url}/v1/models/{model}"
        self.streams = streams
        self.sent = 0
        self.predictions: dict[str, int] = {}
        self.problems: list[Any] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        with httpx2.Client(timeout=20, trust_env=False) as http:
            while not self.stopped.is_set() and not self.problems:
                self.sent += 1
                names, alone = self.streams[1:], self.streams[0]
                body = {"streams": names, "inputs": {"x": [[self.sent]] * len(names)}, "seq": [self.sent] * len(names)}
                try:
                    bulk = http.post(f"{self.url}/step", json=body).raise_for_status().json()
                    one = {"inputs": [self.sent], "seq": self.sent}
                    single = http.post(f"{self.url}/streams/{alone}/step", json=one).raise_for_status().json()
                except httpx2.HTTPError as exc:
                    self.problems.append(repr(exc))
                    return
                self.problems += bulk.get("errors", {}).values()
                self.predictions = dict(zip(names, [y for [y] in bulk["outputs"]["y"]], strict=True))
                self.predictions[alone] = single["outputs"]["y"][0]

    def expected(self, factor: int) -> dict[str, int]:
        return dict.fromkeys(self.streams, fold_reference(range(1, self.sent + 1), factor=factor)[-1])


def wait_for_more(running: Sequence[Steps], n: int = 5) -> None:
    """Wait until all streams have been stepped some more times."""
    for steps, goal in [(steps, steps.sent + n) for steps in running]:
        while steps.sent < goal and steps.is_alive():
            steps.join(0.01)


def run_until_more(new: Sequence[Steps]) -> None:
    """Start steps, and wait until all their streams have been stepped some times."""
    for steps in new:
        steps.start()
    wait_for_more(new)


class Replaced(NamedTuple):
    """The steps of a model's streams while its file was replaced and all replicas restarted.

    Attributes:
        old: Of streams of the first file.
        new: Of streams that begin after the restarts.
    """

    old: Steps
    new: Steps


@pytest.fixture(scope="module")
def replaced() -> Iterator[dict[str, Replaced]]:
    """Two models at once: the file of `overwritten` was overwritten, the version of `deleted` deleted for another."""
    with tempfile.TemporaryDirectory(prefix="sw") as name, server(Path(name) / "redis") as store:
        folder = Path(name) / "models"
        write_model(folder, "overwritten", factor(OLD))
        write_model(folder, "deleted", factor(OLD), version=1)
        with two_replicas(store, folder) as replicas, Balancer([one.port for one in replicas]) as balancer:
            old = [Steps(balancer.url, model, [f"old-{n}" for n in range(N_STREAMS)]) for model in MODELS]
            run_until_more(old)
            write_model(folder, "overwritten", factor(NEW))
            write_model(folder, "deleted", factor(NEW), version=2)
            shutil.rmtree(folder / "deleted" / "1")
            wait_for_more(old)
            for replica in replicas:
                assert replica.stop() == 0
                replica.start()
                wait_for_more(old)
            new = [Steps(balancer.url, model, [f"new-{n}" for n in range(20)]) for model in MODELS]
            run_until_more(new)
            for steps in (*old, *new):
                steps.stopped.set()
                steps.join(30)
        yield dict(zip(MODELS, map(Replaced, old, new), strict=True))


@pytest.mark.slow
def test_a_file_that_is_overwritten_in_place_stops_no_stream(replaced: dict[str, Replaced]) -> None:
    assert_all_is_as_expected(replaced["overwritten"])


def test_a_deleted_version_stops_no_stream(replaced: dict[str, Replaced]) -> None:
    assert_all_is_as_expected(replaced["deleted"])


def assert_all_is_as_expected(found: Replaced) -> None:
    assert found.old.problems == found.new.problems == []
    assert found.old.predictions == found.old.expected(OLD)
    assert found.new.predictions == found.new.expected(NEW)
