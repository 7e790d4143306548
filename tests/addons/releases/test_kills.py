"""A replica is killed in the middle of the step that moves a stream: R1 and R7 of the releases' failure table."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from stepwell.store.commits import COMMIT
from tests.addons.releases.fleet import MODEL, NEW_FACTOR, OLD_FACTOR, folded, wait_until
from tests.faults.proxy import Proxy
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess
from tests.servers import Server

PATH = f"/v1/models/{MODEL}"
RAMP = {"candidate": 2, "mode": "ramp", "percent": 100}


class Replica:
    """A process that a test kills, and the proxy between it and the store."""

    def __init__(self, process: ServiceProcess, proxy: Proxy) -> None:
        self.process = process
        self.proxy = proxy
        self.http = httpx2.Client(base_url=process.url, timeout=30, trust_env=False)

    def step(self, stream: str, x: int, *, by_feed: bool = False, **more: Any) -> dict[str, Any]:
        """Step a stream by POST, or over its feed."""
        if not by_feed:
            response = self.http.post(f"{PATH}/streams/{stream}/step", json={"inputs": [x], **more})
            return response.raise_for_status().json()  # type: ignore[no-any-return]
        url = f"ws://127.0.0.1:{self.process.port}{PATH}/streams/{stream}/feed"
        with connect(url, compression=None, proxy=None) as feed:
            feed.send(json.dumps({"inputs": [x], **more}))
            return json.loads(feed.recv(30))  # type: ignore[no-any-return]

    def begins_on(self, version: int, stream: str) -> bool:
        """Whether a new stream begins on a version here."""
        answer = self.http.post(f"{PATH}/streams/{stream}/steps", json={"inputs": [[1], [1]]}).json()
        found: bool = answer["outputs"]["y"] == [[y] for y in folded([1, 1], factor=FACTORS[version])]
        return found


FACTORS = {1: OLD_FACTOR, 2: NEW_FACTOR}


@pytest.fixture
def replicas(redis_server: Server, tmp_path: Path) -> Iterator[list[Replica]]:
    """Two replicas, of which each reaches the store through a proxy of its own; version 1 is current."""
    for version, factor in FACTORS.items():
        write_model(tmp_path / "models", MODEL, partial(fold, factor), version=version)
    with contextlib.ExitStack() as stack:
        running = []
        for name in ("first", "second"):
            proxy = stack.enter_context(Proxy(redis_server.socket))
            process = ServiceProcess(tmp_path / "models", tmp_path / name, "--redis", proxy.url)
            process.launch()
            stack.callback(process.kill)
            running.append(Replica(process, proxy))
        for replica in running:
            replica.process.wait_ready()
        change(running, "PUT", {"current": 1}, version=1)
        yield running


def change(replicas: list[Replica], method: str, body: dict[str, Any], *, version: int, what: str = "") -> None:
    """Change the release, and wait until new streams are answered by a version in every replica."""
    replicas[-1].http.request(method, f"{PATH}/release{what}", json=body).raise_for_status()
    for number, replica in enumerate(replicas):
        names = (f"probe-{what.strip('/')}{version}-{number}-{n}" for n in range(10**6))
        wait_until(lambda replica=replica, names=names: replica.begins_on(version, next(names)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("is_committed", "by_feed"),
    [(False, False), (False, True), (True, True)],
    ids=["before the commit", "before the commit over a feed", "after the commit"],
)
def test_a_replica_that_is_killed_while_it_takes_a_stream_over_leaves_both_halves_or_neither(
    replicas: list[Replica], *, is_committed: bool, by_feed: bool
) -> None:
    """R1: its record is written once, so that there is no moment between the two halves."""
    killed, other = replicas
    before = [killed.step("s", x, by_feed=by_feed, seq=x) for x in (1, 2)]
    change(replicas, "PUT", RAMP, version=2)

    def step_until_killed() -> None:
        with contextlib.suppress(httpx2.TransportError, WebSocketException):
            killed.step("s", 3, by_feed=by_feed, seq=3)

    if is_committed:
        killed.proxy.lose_reply(to=COMMIT.sha.encode())  # other scripts run, too: counts, for example
        killed.proxy.refuse = True  # the replica cannot find out that it was applied
    else:
        killed.proxy.hold_requests = True
    stepping = threading.Thread(target=step_until_killed)
    stepping.start()
    wait_until(lambda: bool(killed.proxy.lost if is_committed else killed.proxy.held))
    killed.process.kill()
    stepping.join(30)
    killed.proxy.heal()
    again = [other.step("s", 3, by_feed=by_feed, seq=3) for _ in range(2)]
    killed.process.start()
    after = [replica.step("s", x, by_feed=by_feed, seq=x) for x, replica in ((4, killed), (5, other))]
    change(replicas, "POST", {}, version=1, what="/abort")
    last = killed.step("s", 6, by_feed=by_feed, seq=6)

    old, new = folded(range(1, 7)), folded(range(3, 6), start=folded([1, 2])[-1], factor=NEW_FACTOR)
    assert [answer["outputs"]["y"][0] for answer in [*before, *again, *after, last]] == [
        *old[:2], new[0], new[0], *new[1:], old[5],
    ]  # fmt: skip
    assert [answer.get("version") for answer in [*again, *after, last]] == [2, 2, None, None, 1]
    assert again[1]["replayed"]
    if is_committed:
        assert again[0]["replayed"]


def test_a_replica_that_is_killed_while_it_settles_a_pair_loses_nothing(replicas: list[Replica]) -> None:
    killed, other = replicas
    killed.step("s", 1, seq=1)
    change(replicas, "PUT", RAMP, version=2)
    killed.step("s", 2, seq=2)
    change(replicas, "POST", {}, version=1, what="/abort")

    def step_until_killed() -> None:
        with contextlib.suppress(httpx2.TransportError, WebSocketException):
            killed.step("s", 3, seq=3)

    killed.proxy.lose_reply(to=COMMIT.sha.encode())  # other scripts run, too: counts, for example
    killed.proxy.refuse = True
    stepping = threading.Thread(target=step_until_killed)
    stepping.start()
    wait_until(lambda: killed.proxy.lost == 1)
    killed.process.kill()
    stepping.join(30)
    answers = [other.step("s", x, seq=x) for x in (3, 4)]

    assert [answer["outputs"]["y"][0] for answer in answers] == folded([1, 2, 3, 4])[2:]
    assert [answer.get("version") for answer in answers] == [1, None]
    assert answers[0]["replayed"]


def test_after_a_store_without_its_file_restarts_new_streams_begin_on_the_highest_version(
    replicas: list[Replica], redis_server: Server
) -> None:
    """R7: documents and artifacts are gone with the streams."""
    replicas[0].step("s", 1)
    change(replicas, "PUT", {**RAMP, "mode": "shadow"}, version=1)
    redis_server.kill()
    redis_server.start()
    for number, replica in enumerate(replicas):
        wait_until(lambda replica=replica: replica.http.get("/readyz").status_code == 200)  # type: ignore[misc]
        names = (f"after-{number}-{n}" for n in range(10**6))
        wait_until(lambda replica=replica, names=names: replica.begins_on(2, next(names)))  # type: ignore[misc]
    answers = [replica.step("s", x) for x, replica in enumerate(replicas, 1)]
    document = replicas[0].http.get(f"{PATH}/release").json()

    assert [answer["outputs"]["y"][0] for answer in answers] == folded([1, 2], factor=NEW_FACTOR)
    assert (document["revision"], document["current"]) == (0, 2)
    for replica in replicas:
        assert "The store has no release of model fold any more" in replica.process.log.read_text()
