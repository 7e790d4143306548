"""The stack of docker-compose.yml, running: `./stepwell test -m compose` on a machine with Docker.

The tests share one stack and run from top to bottom; each uses its own streams and leaves the stack healthy.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect

from tests.deploy.stack import REPOSITORY, Stack, docker
from tests.processes import free_port

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(600)]

TINY = """
import keras
def model():
    return keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    one = Stack(project=f"stepwell-test-{os.getpid()}", port=free_port())
    try:
        one.up("--build")
        yield one
    finally:
        one.down()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx2.Client]:
    with stack.client() as one:
        yield one


@pytest.fixture(scope="module")
def row(stack: Stack) -> list[Any]:
    """One timestep of the demo's model."""
    with stack.client() as client:
        [spec] = client.get("/v1/models/activity").json()["inputs"]
    row: Any = 0.5
    for length in reversed(spec["shape"]):
        row = [row] * length
    assert isinstance(row, list)
    return row


def send(client: httpx2.Client, stream: str, row: list[Any], **more: Any) -> httpx2.Response:
    return client.post(f"/v1/models/activity/streams/{stream}/step", json={"inputs": row, **more})


def run_script(name: str, stack: Stack, file: Path, *, succeeds: bool = True) -> str:
    """Run a script of docker/ on the stack, and return what it reports."""
    environment = {"COMPOSE_PROJECT_NAME": stack.project, "PUBLISH": stack.address, "REPLICAS": "2"}
    command = [REPOSITORY / name, file]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd="/")
    assert (done.returncode == 0) is succeeds, done.stderr
    return done.stderr


def test_a_fresh_clone_serves_the_model_of_the_demo_behind_the_proxy(client: httpx2.Client) -> None:
    assert client.get("/readyz").status_code == 200
    assert "activity" in [model["name"] for model in client.get("/v1/models").json()["models"]]


def test_requests_are_spread_over_the_replicas(stack: Stack, client: httpx2.Client, row: list[Any]) -> None:
    before = {replica: stack.steps_taken(replica) for replica in stack.containers()}
    for seq in range(1, 41):
        assert send(client, "turns", row, seq=seq).status_code == 200

    taken = {replica: stack.steps_taken(replica) - count for replica, count in before.items()}

    assert len(taken) == 2
    assert min(taken.values()) >= 5


def test_a_stream_continues_when_a_replica_is_killed(stack: Stack, client: httpx2.Client, row: list[Any]) -> None:
    steps = [send(client, "survivor", row, seq=seq).json()["step"] for seq in range(1, 11)]
    docker("kill", stack.containers()[0])
    answers = [send(client, "survivor", row, seq=seq) for seq in range(11, 31)]
    stack.up()

    assert [answer.status_code for answer in answers] == [200] * 20
    assert steps + [answer.json()["step"] for answer in answers] == list(range(1, 31))


def test_a_feed_passes_the_proxy_and_continues_a_stream_of_http(
    stack: Stack, client: httpx2.Client, row: list[Any]
) -> None:
    send(client, "both", row, seq=1)
    with connect(f"ws://{stack.address}/v1/models/activity/streams/both/feed") as feed:
        for seq in range(2, 21):
            feed.send(json.dumps({"inputs": row, "seq": seq}))
        steps = [json.loads(feed.recv(timeout=20))["step"] for _ in range(2, 21)]

    assert steps == list(range(2, 21))


def test_streams_outlive_a_killed_redis(stack: Stack, client: httpx2.Client, row: list[Any]) -> None:
    send(client, "kept", row, seq=1)
    docker("kill", *stack.containers("redis"))
    stack.up()

    assert send(client, "kept", row, seq=2).json()["step"] == 2


def test_an_oversized_body_gets_the_problem_of_the_service(client: httpx2.Client) -> None:
    answer = client.post("/v1/models/activity/streams/large/step", content=b" " * (8 * 2**20 + 1))

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["applied"]) == ("too_large", "no")


def test_without_a_replica_the_answer_reports_that_nothing_was_applied(
    stack: Stack, client: httpx2.Client, row: list[Any]
) -> None:
    send(client, "alone", row, seq=1)
    docker("kill", *stack.containers())
    answer = send(client, "alone", row, seq=2)
    stack.up()

    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1")
    assert (answer.json()["applied"], answer.json()["retry"]) == ("no", "same")
    assert send(client, "alone", row, seq=2).json()["step"] == 2


def test_no_container_runs_as_root_or_has_a_capability(stack: Stack) -> None:
    for name in ("proxy", "service", "redis"):
        [one, *_] = stack.containers(name)
        assert docker("exec", one, "id", "-u") != "0", name
        assert "CapEff:\t0000000000000000" in docker("exec", one, "cat", "/proc/1/status").splitlines(), name


def test_the_image_has_no_training_framework_and_no_caches(stack: Stack) -> None:
    [replica, *_] = stack.containers()
    code = "import importlib.util as u; print([m for m in ('keras', 'torch', 'onnx', 'jax', 'pip') if u.find_spec(m)])"
    left = "find /root/.cache /var/lib/apt/lists /build /tmp -type f 2>/dev/null || true"

    assert docker("exec", replica, "/opt/stepwell/bin/python", "-c", code) == "[]"
    assert docker("exec", "--user", "0", replica, "sh", "-c", left) == ""


def test_the_exporter_runs_on_mounted_folders(stack: Stack, tmp_path: Path) -> None:
    """The trained model is read from one folder, and the step graph is written to another with the caller's owner."""
    source, models = tmp_path / "trained", tmp_path / "models"
    source.mkdir()
    models.mkdir()
    (source / "trained.py").write_text(TINY)
    person = f"{os.getuid()}:{os.getgid()}"

    docker(
        *("compose", "--project-name", stack.project, "run", "--rm", "--build", "--user", person),
        *("export", "trained:model", "-o", "/models/tiny.onnx"),
        SOURCE_DIR=str(source),
        MODELS_DIR=str(models),
    )

    assert [(path.name, path.stat().st_uid) for path in models.iterdir()] == [("tiny.onnx", os.getuid())]


def test_a_backup_under_load_is_restored(stack: Stack, client: httpx2.Client, row: list[Any], tmp_path: Path) -> None:
    """Streams go back to the step that they had then; the client reads from the response where to continue."""
    finished = threading.Event()
    n_stepped = 0

    def keep_stepping() -> None:
        nonlocal n_stepped
        while not finished.is_set():
            n_stepped += 1
            assert send(client, "restored", row, seq=n_stepped).status_code == 200

    stepping = threading.Thread(target=keep_stepping)
    stepping.start()
    try:
        run_script("docker/backup", stack, tmp_path / "backup.rdb")
    finally:
        finished.set()
        stepping.join()
    newest = send(client, "restored", row, seq=n_stepped).json()
    run_script("docker/restore", stack, tmp_path / "backup.rdb")
    gap = send(client, "restored", row, seq=n_stepped + 1).json()
    replay = send(client, "restored", row, seq=gap["expected"] - 1).json()
    answers = [send(client, "restored", row, seq=seq).json() for seq in range(gap["expected"], n_stepped + 1)]

    assert (gap["code"], gap["applied"]) == ("seq_gap", "no")
    assert replay["replayed"] is True
    assert [newest[key] for key in ("outputs", "state_id")] == [answers[-1][key] for key in ("outputs", "state_id")]


def test_a_damaged_backup_changes_nothing(stack: Stack, client: httpx2.Client, row: list[Any], tmp_path: Path) -> None:
    run_script("docker/backup", stack, tmp_path / "backup.rdb")
    data = (tmp_path / "backup.rdb").read_bytes()
    (tmp_path / "damaged.rdb").write_bytes(data[: len(data) // 2])
    before = stack.containers()

    refused = run_script("docker/restore", stack, tmp_path / "damaged.rdb", succeeds=False)

    assert "nothing was changed" in refused
    assert stack.containers() == before
    assert send(client, "whole", row, seq=1).status_code == 200


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.down()

    assert stack.remaining() == {"containers": [], "networks": [], "volumes": []}
