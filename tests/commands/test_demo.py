"""`stepwell demo` runs the service and the replay, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STEPWELL = [sys.executable, "-P", "-m", "service", "demo"]


@pytest.fixture
def temporary(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo puts its store, and nothing else."""
    monkeypatch.setenv("TMPDIR", str(short_path))
    return short_path


@contextmanager
def demo(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that runs; its address is its first line on standard error."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*STEPWELL, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


def first_line(one: subprocess.Popen[str]) -> str:
    assert one.stderr is not None
    return one.stderr.readline()


def left_behind(folder: Path) -> list[str]:
    """Processes that name a folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_once_replays_checks_and_ends(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_REDIS", "redis://127.0.0.1:1")  # the caller's own, which the demo leaves alone
    done = subprocess.run([*STEPWELL, "--once", "--seconds", "1", "--json"], capture_output=True, text=True, timeout=90)
    report = json.loads(done.stdout)

    assert (done.returncode, report["ok"], report["beyond_tolerance"]) == (0, True, 0)
    assert report["steps"] > 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGHUP, 1)])
def test_a_signal_ends_it_and_everything_it_started(temporary: Path, how: signal.Signals, code: int) -> None:
    with demo() as one:
        line = first_line(one)
        one.send_signal(how)
        out, err = one.communicate(timeout=60)

    assert "http://127.0.0.1:" in line
    assert one.returncode == code
    assert "Traceback" not in out + err
    assert left_behind(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the service of the demo's end on Linux only")
def test_a_killed_demo_leaves_no_service_behind(temporary: Path) -> None:
    with demo() as one:
        first_line(one)
        assert left_behind(temporary) != []
        one.kill()
        deadline = time.monotonic() + 30
        while left_behind(temporary) and time.monotonic() < deadline:
            time.sleep(0.05)  # noqa: TID251 - nothing tells of another process

    assert left_behind(temporary) == []
