"""The profile `connect` of docker-compose.yml, as a new user starts it: the three commands of docs/connecting.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Iterator
from queue import Empty, Queue
from threading import Thread

import pytest

from tests.deploy.stack import REPOSITORY, Stack
from tests.processes import free_port

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(900)]

_LOCAL = "127.0.0.1"
TEXT = (REPOSITORY / "docs" / "connecting.md").read_text()


def commands() -> list[str]:
    """The lines of the block that follows "in three commands"."""
    found = re.search(r"in three commands:\n\n```sh\n(.*?)```", TEXT, re.S)
    assert found is not None
    return found[1].splitlines()


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What keeps this stack apart from others on the machine; nothing else is set."""
    stack = Stack(project=f"stepwell-connect-{os.getpid()}", port=free_port())
    names = {"COMPOSE_PROJECT_NAME": stack.project, "PUBLISH": stack.address, "PUBLISH_MQTT": f"{_LOCAL}:{free_port()}"}
    try:
        yield os.environ | names
    finally:
        stack.down()


def run(command: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        shlex.split(command), cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_predictions_arrive_on_a_topic_after_three_commands(environment: dict[str, str]) -> None:
    start, subscribe, publish = commands()
    run(start, environment)
    lines: Queue[str] = Queue()
    with subprocess.Popen(
        shlex.split(subscribe.removesuffix("&")),
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as subscriber:
        output = subscriber.stdout
        assert output is not None
        Thread(target=_put_all, args=(output, lines), daemon=True).start()
        try:
            # The subscriber may come later than the first timestep
            for n in range(1, 30):
                run(publish.replace('"n": 1', f'"n": {n}'), environment)
                line = _next(lines)
                if line is not None:
                    break
        finally:
            os.killpg(subscriber.pid, signal.SIGTERM)

    assert line is not None
    topic, _, text = line.partition(" ")
    prediction = json.loads(text)
    assert topic == "predictions/phone-1"
    assert (prediction["stream"], prediction["model"]) == ("phone-1", "activity")
    assert prediction["step"] <= n
    assert prediction["source"]["at"] == prediction["step"]
    assert sum(prediction["outputs"]["activity"]) == pytest.approx(1, abs=1e-3)


def _put_all(output: Iterable[str], lines: Queue[str]) -> None:
    for line in output:
        lines.put(line)


def _next(lines: Queue[str]) -> str | None:
    """Return the next line, if there is one within a few seconds."""
    try:
        return lines.get(timeout=10)
    except Empty:
        return None
