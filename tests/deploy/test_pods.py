"""The pods of the production overlay and of its Redis run for real, in Docker: `./stepwell test -m compose`.

The image has the demo's model in /models, as an image with models of one's own would. The tests share the pods and run
from top to bottom.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import httpx2
import pytest

from tests.deploy.manifests import needs_kubectl, of_overlay
from tests.deploy.pods import Pod, Secrets
from tests.deploy.stack import docker
from tests.faults.balancer import Balancer

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(600), needs_kubectl]

KEY = "a-key-for-tests"
KEYS = {"keys": [{"id": "all", "sha256": sha256(KEY.encode()).hexdigest(), "tenant": "t", "scopes": ["step", "read"]}]}
SECRETS: Secrets = {
    "stepwell-store": {"url": "redis://stepwell-redis:6379/0"},
    "stepwell-keys": {"keys.json": json.dumps(KEYS)},
}
WITH_MODELS = """
FROM {image}
COPY --from={image} /opt/stepwell/demo-models /models
"""
LATE_REQUESTS = 20  # to a pod that is being deleted, before every load balancer has removed it


@dataclass
class Cluster:
    """Pods, and the load balancer that stands for the Service."""

    make: Callable[[], Pod]
    balancer: Balancer
    pods: list[Pod] = field(default_factory=list)

    def add(self) -> Pod:
        """Start one more pod, and route to it once it is ready."""
        pod = self.make()
        self.pods.append(pod)
        pod.wait_ready()
        self.route()
        return pod

    def delete(self, pod: Pod) -> int:
        """Delete a pod; while its hook runs, it still gets requests. Returns its exit code."""
        self.pods.remove(pod)
        goal = self.balancer.assigned[pod.port] + LATE_REQUESTS

        def receive_late_requests() -> None:
            while self.balancer.assigned[pod.port] < goal:
                threading.Event().wait(0.02)
            self.route()

        return pod.delete(receive_late_requests)

    def route(self) -> None:
        self.balancer.route_to([pod.port for pod in self.pods])


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """An image of this source with a model in /models."""
    plain = f"stepwell-pods-{os.getpid()}"
    docker("build", "--file", "docker/Dockerfile", "--target", "service", "--tag", plain, ".")
    command = ["docker", "build", "--tag", f"{plain}-models", "-"]
    done = subprocess.run(command, input=WITH_MODELS.format(image=plain), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield f"{plain}-models"
    docker("image", "rm", "--force", plain, f"{plain}-models")


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    name = f"stepwell-pods-{os.getpid()}"
    docker("network", "create", name)
    yield name
    docker("network", "rm", name)


@pytest.fixture(scope="module")
def redis(network: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The Redis of the development overlay."""
    spec = of_overlay("dev")["StatefulSet", "stepwell-redis"]["spec"]["template"]["spec"]
    image = spec["containers"][0]["image"]
    pod = Pod(
        spec,
        name=f"stepwell-redis-{os.getpid()}",
        service="stepwell-redis",
        network=network,
        image=image,
        folder=tmp_path_factory.mktemp("redis"),
    )
    try:
        pod.wait_ready()
        yield pod
    finally:
        pod.remove()


@pytest.fixture(scope="module")
def cluster(redis: Pod, image: str, network: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods of the production overlay."""
    spec = of_overlay("prod")["Deployment", "stepwell"]["spec"]["template"]["spec"]
    folder = tmp_path_factory.mktemp("pods")
    folder.chmod(0o755)
    names = (f"stepwell-pod-{os.getpid()}-{n}" for n in range(1, 100))

    def make() -> Pod:
        return Pod(spec, name=next(names), network=network, image=image, folder=folder, secrets=SECRETS)

    with Balancer([0], is_blind=True) as balancer:
        one = Cluster(make, balancer)
        try:
            one.add()
            one.add()
            yield one
        finally:
            for pod in one.pods:
                pod.remove()


@pytest.fixture(scope="module")
def row(cluster: Cluster) -> list[Any]:
    """One timestep of the demo's model."""
    with httpx2.Client(base_url=cluster.balancer.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
        [spec] = client.get("/v1/models/activity").json()["inputs"]
    row: Any = 0.5
    for length in reversed(spec["shape"]):
        row = [row] * length
    assert isinstance(row, list)
    return row


class Sender(threading.Thread):
    """Sends the timesteps of one stream one after the other, and never repeats a request."""

    def __init__(self, url: str, stream: str, row: list[Any], *, keep_alive: bool) -> None:
        super().__init__(daemon=True)
        self.steps: list[int] = []
        self.failed: list[str] = []
        self.finished = threading.Event()
        headers = {"Authorization": f"Bearer {KEY}"} | ({} if keep_alive else {"Connection": "close"})
        self._client = httpx2.Client(base_url=url, timeout=20, trust_env=False, headers=headers)
        self._path, self._row = f"/v1/models/activity/streams/{stream}/step", row

    def run(self) -> None:
        with self._client as client:
            while not self.finished.is_set():
                try:
                    reply = client.post(self._path, json={"inputs": self._row, "seq": len(self.steps) + 1})
                    reply.raise_for_status()
                    self.steps.append(reply.json()["step"])
                except httpx2.HTTPError as exc:
                    self.failed.append(repr(exc))


def test_a_pod_runs_as_the_user_of_the_manifest_without_capabilities_and_cannot_write_to_its_image(
    cluster: Cluster,
) -> None:
    pod = cluster.pods[0]
    status = pod.exec("cat", "/proc/1/status").stdout.splitlines()

    assert pod.exec("id", "-u").stdout.strip() == "10001"
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in pod.exec("touch", "/models/x", "/opt/x").stderr


def test_a_pod_needs_the_keys_of_its_secret(cluster: Cluster, row: list[Any]) -> None:
    reply = httpx2.post(f"{cluster.balancer.url}/v1/models/activity/streams/s/step", json={"inputs": row}, timeout=30)

    assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated")


def test_a_rolling_restart_under_load_fails_no_request(cluster: Cluster, row: list[Any]) -> None:
    """New pods are ready before old ones are deleted, and these get late requests while their hook runs."""
    url = cluster.balancer.url
    senders = [Sender(url, f"stream-{n}", row, keep_alive=n % 2 == 0) for n in range(6)]
    for sender in senders:
        sender.start()
    codes = []
    for old in tuple(cluster.pods):
        cluster.add()
        codes.append(cluster.delete(old))
    for sender in senders:
        sender.finished.set()
    for sender in senders:
        sender.join(30)

    assert [sender.failed for sender in senders] == [[]] * 6
    assert [sender.steps for sender in senders] == [list(range(1, len(sender.steps) + 1)) for sender in senders]
    assert min(len(sender.steps) for sender in senders) > 50
    assert codes == [0, 0]


def test_a_pod_is_not_ready_while_its_store_is_away(cluster: Cluster, redis: Pod) -> None:
    """And it is not restarted: it is alive."""
    [probe] = {pod.port for pod in cluster.pods[:1]}
    docker("pause", redis.name)
    try:
        wait_until(lambda: httpx2.get(f"http://127.0.0.1:{probe}/readyz", timeout=30).status_code == 503)
        alive = httpx2.get(f"http://127.0.0.1:{probe}/healthz", timeout=30).status_code
    finally:
        docker("unpause", redis.name)

    assert alive == 200
    wait_until(lambda: httpx2.get(f"http://127.0.0.1:{probe}/readyz", timeout=30).status_code == 200)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true; the test's own limit ends it."""
    while not condition():
        threading.Event().wait(0.1)
