"""A campaign that is ended leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.connect.connectors import wait_for
from tests.processes import is_running

MARK = "CAMPAIGN_OF_A_TEST"
PARTS = ("-server", " serve ", " connect ")


def marked(mark: str) -> set[int]:
    """Return the processes that have inherited a mark in their environment; servers of Redis overwrite theirs."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def children(pid: int) -> dict[int, str]:
    """Return the command lines of the running children of a process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@contextlib.contextmanager
def campaign(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a campaign; yield its process, and the mark of all processes that it starts."""
    mark = secrets.token_hex(8)
    in_background = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")  # a shell's background job ignores SIGINT
    command = [*in_background, sys.executable, "-m", "campaign", *words]
    with (folder / "campaign.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {MARK: mark}
        )
    try:
        yield process, mark
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux: /proc lists the processes")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_that_a_campaign_has_started(tmp_path: Path, how: signal.Signals) -> None:
    words = ("roads", "--road", "redis", "--streams", "20", "--steps", "20000", "--seed", "1")
    with campaign(tmp_path, *words) as (process, mark):
        wait_for(
            lambda: all(any(part in command for command in children(process.pid).values()) for part in PARTS),
            what=(tmp_path / "campaign.log").read_text,
        )
        started = [*children(process.pid)]
        process.send_signal(how)

        assert process.wait(120) == 130
        assert [pid for pid in {*started, *marked(mark)} if is_running(pid)] == []


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux: /proc lists the processes")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_exporters_campaign_with_what_was_judged_so_far(tmp_path: Path, how: signal.Signals) -> None:
    saved = tmp_path / "result.json"
    words = ("exporter", "--front-end", "onnx", "--processes", "2", "--seed", "1", "--save", str(saved))
    with campaign(tmp_path, *words) as (process, mark):
        wait_for(saved.exists, what=(tmp_path / "campaign.log").read_text)
        process.send_signal(how)

        assert process.wait(60) == 130
        assert [pid for pid in marked(mark) if is_running(pid)] == []
    models = len(json.loads(saved.read_text())["models"])
    assert f"{models:,} generated models" in (tmp_path / "campaign.log").read_text()
