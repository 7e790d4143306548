"""The stack of docker-compose.yml is scaled, configured and upgraded while a client sends 20 requests a second.

The client is a plain one: it never repeats a request. Run by `./stepwell test -m compose` on a machine with Docker.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploy.stack import REPOSITORY, Stack, docker
from tests.processes import free_port

PER_S = 20

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Outcome:
    """What a client observed: its requests, those that failed, and the longest duration in seconds."""

    sent: int = 0
    failed: list[str] = field(default_factory=list)
    longest_s: float = 0.0


class Deployment:
    """A stack whose files the test may change, as its operator would."""

    def __init__(self, folder: Path) -> None:
        self.settings = folder / "stepwell.env"
        self.settings.write_text("")
        self._override = folder / "override.yml"
        self.use_build("first")
        name = f"stepwell-rollout-{os.getpid()}"
        self.stack = Stack(project=name, port=free_port())
        self.image = name
        self.replicas = 2

    def use_build(self, revision: str) -> None:
        """Make the next build another image, as changed sources would."""
        service = {"env_file": [str(self.settings)], "build": {"labels": {"revision": revision}}}
        self._override.write_text(json.dumps({"services": {"service": service}}))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.stack.project,
            "COMPOSE_FILE": f"{REPOSITORY / 'docker-compose.yml'}:{self._override}",
            "PUBLISH": self.stack.address,
            "SERVICE_IMAGE": self.image,
            "REPLICAS": str(self.replicas),
        }

    def up(self, *more: str) -> None:
        docker("compose", "up", "--detach", "--wait", *more, **self.environment)

    def rollout(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [REPOSITORY / "docker/rollout", *arguments],
            env={**os.environ, **self.environment},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def down(self) -> None:
        docker("compose", "--profile", "*", "down", "--volumes", "--remove-orphans", **self.environment)
        docker("image", "rm", "--force", self.image)

    def containers(self) -> set[str]:
        return set(self.stack.containers())

    def values(self, form: str) -> list[str]:
        """Return a value of each replica, in the format of `docker inspect`."""
        return [docker("inspect", "--format", form, replica) for replica in self.stack.containers()]

    @contextlib.contextmanager
    def under_load(self) -> Iterator[Outcome]:
        """Send requests at a fixed rate until the block ends, each to a stream of its own."""
        outcome, finished = Outcome(), threading.Event()
        body = self._body()

        def send(i: int) -> None:
            started = time.monotonic()
            try:
                reply = client.post(f"/v1/models/activity/streams/{time.time_ns()}/step", json=body)
                if reply.status_code != 200:
                    outcome.failed.append(f"{i}: {reply.status_code} {reply.text[:200]}")
            except httpx2.HTTPError as exc:
                outcome.failed.append(f"{i}: {exc!r}")
            outcome.longest_s = max(outcome.longest_s, time.monotonic() - started)

        def keep_sending() -> None:
            while not finished.wait(1 / PER_S):
                senders.submit(send, outcome.sent)
                outcome.sent += 1

        with (
            httpx2.Client(base_url=f"http://{self.stack.address}", timeout=20) as client,
            ThreadPoolExecutor(16) as senders,
        ):
            sending = threading.Thread(target=keep_sending)
            sending.start()
            try:
                yield outcome
            finally:
                finished.set()
                sending.join()

    def _body(self) -> dict[str, Any]:
        """Return a request with one timestep of the demo's model."""
        with self.stack.client() as client:
            [spec] = client.get("/v1/models/activity").json()["inputs"]
        row: Any = 0.5
        for length in reversed(spec["shape"]):
            row = [row] * length
        return {"inputs": row}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    one = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        one.up("--build")
        yield one
    finally:
        one.down()


def check(outcome: Outcome, seconds: float) -> None:
    assert outcome.failed == []
    assert outcome.sent > 0.1 * PER_S * seconds  # on a busy machine the client, too, has little of the processor
    assert outcome.longest_s < 10  # after which the proxy tries no other replica


def timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def test_scaling_up_and_down_fails_no_request_and_new_replicas_get_some(deployment: Deployment) -> None:
    before = deployment.containers()
    with deployment.under_load() as outcome:
        deployment.replicas = 4
        seconds = timed(lambda: deployment.up("--no-recreate"))
        four = deployment.containers()
        for replica in four - before:
            while not deployment.stack.steps_taken(replica):  # the test's own limit ends it
                threading.Event().wait(0.2)
        deployment.replicas = 2
        seconds += timed(lambda: deployment.up("--no-recreate"))

    check(outcome, seconds)
    assert (len(before), len(four)) == (2, 4)
    assert before < four
    assert len(deployment.containers()) == 2


def test_one_more_replica_replaces_none(deployment: Deployment) -> None:
    """Also without `--no-recreate`: the number of replicas is in no container's configuration."""
    before = deployment.containers()
    deployment.replicas = 3
    deployment.up()
    three = deployment.containers()
    deployment.replicas = 2
    deployment.up()

    assert before < three


def test_an_upgrade_with_a_changed_setting_fails_no_request(deployment: Deployment) -> None:
    before, images = deployment.containers(), set(deployment.values("{{.Image}}"))
    deployment.settings.write_text("STEPWELL_LOG_FORMAT=json\n")
    deployment.use_build("second")
    deployment.replicas = 3
    with deployment.under_load() as outcome:
        seconds = timed(lambda: succeeds(deployment.rollout("--build")))
    deployment.replicas = 2
    deployment.up("--no-recreate")

    check(outcome, seconds)
    after = deployment.containers()
    assert len(after) == 2
    assert not before & after
    assert not images & set(deployment.values("{{.Image}}"))
    assert all("STEPWELL_LOG_FORMAT=json" in value for value in deployment.values("{{.Config.Env}}"))


def test_a_replica_that_does_not_get_ready_leaves_the_others_serving(deployment: Deployment) -> None:
    before = deployment.containers()
    deployment.settings.write_text("STEPWELL_DURABILITY=nonsense\n")
    with deployment.under_load() as outcome:
        started = time.monotonic()
        done = deployment.rollout()
        seconds = time.monotonic() - started
    deployment.settings.write_text("")

    check(outcome, seconds)
    assert done.returncode == 1
    assert "nonsense" in done.stderr
    assert deployment.containers() == before


def test_prometheus_scrapes_each_replica(deployment: Deployment) -> None:
    ports = {name: str(free_port()) for name in ("PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")}
    docker(
        *("compose", "--profile", "observability", "up", "--detach", "--wait", "--no-recreate"),
        **deployment.environment | ports,
    )

    def up() -> list[str]:
        url = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query"
        reply = httpx2.get(url, params={"query": 'up{job="stepwell"}'}, trust_env=False, timeout=30).json()
        return [sample["value"][1] for sample in reply["data"]["result"]]

    deadline = time.monotonic() + 60
    while up() != ["1", "1"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)  # noqa: TID251 - Prometheus reports nothing by itself
    grafana = httpx2.get(f"http://127.0.0.1:{ports['GRAFANA_PORT']}/api/health", trust_env=False, timeout=30)
    alertmanager = httpx2.get(f"http://127.0.0.1:{ports['ALERTMANAGER_PORT']}/-/ready", trust_env=False, timeout=30)
    assert (grafana.status_code, alertmanager.status_code) == (200, 200)


def succeeds(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
