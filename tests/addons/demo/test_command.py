"""`stepwell demo` runs the service and the replay, and cleans up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.addons.releases.fleet import wait_until

STEPWELL = [sys.executable, "-P", "-m", "stepwell", "demo"]


@pytest.fixture
def demo_folder(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the demo's store, with nothing else in it."""
    monkeypatch.setenv("TMPDIR", str(short_path))
    return short_path


@contextmanager
def running_demo(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a demo; the first line on its standard error is the address."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*STEPWELL, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


def first_line(one: subprocess.Popen[str]) -> str:
    assert one.stderr is not None
    return one.stderr.readline()


def processes_of(folder: Path) -> list[str]:
    """Return the processes that have a folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_once_replays_checks_and_exits_without_the_callers_store_or_proxy(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWELL_REDIS", "redis://127.0.0.1:1")  # nothing listens there
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "example.org")
    done = subprocess.run([*STEPWELL, "--once", "--seconds", "1", "--json"], capture_output=True, text=True, timeout=90)
    report = json.loads(done.stdout)

    assert (done.returncode, report["ok"], report["beyond_tolerance"]) == (0, True, 0)
    assert report["steps"] > 0
    assert list(demo_folder.iterdir()) == []


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 0), (signal.SIGHUP, 1)])
def test_a_signal_stops_the_demo_and_every_process_it_started(
    demo_folder: Path, how: signal.Signals, code: int
) -> None:
    with running_demo() as one:
        line = first_line(one)
        one.send_signal(how)
        out, err = one.communicate(timeout=60)

    assert "http://127.0.0.1:" in line
    assert one.returncode == code
    assert "Traceback" not in out + err
    assert processes_of(demo_folder) == []
    assert list(demo_folder.iterdir()) == []


def test_a_signal_during_the_replay_prints_nothing(demo_folder: Path) -> None:
    with running_demo() as one:
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", first_line(one))[:1]
        wait_until(lambda: len(httpx2.get(f"{url}/v1/models/activity/streams").json()["streams"]) > 10, within_s=60.0)
        one.terminate()
        out, err = one.communicate(timeout=60)

    assert (one.returncode, out, err.removeprefix("Ctrl-C stops the demo.\n")) == (1, "", "")
    assert processes_of(demo_folder) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie the life of the service to that of the demo")
def test_a_killed_demo_leaves_no_service_running(demo_folder: Path) -> None:
    with running_demo() as one:
        first_line(one)
        assert processes_of(demo_folder) != []
        one.kill()
        deadline = time.monotonic() + 30
        while processes_of(demo_folder) and time.monotonic() < deadline:
            time.sleep(0.05)  # noqa: TID251 - no event reports the end of another process

    assert processes_of(demo_folder) == []
