"""`stepwell save` and `stepwell load`: all streams of a model of a running service, to a file and back."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
from typer.testing import Result

from stepwell.addons.savepoints import command as savepoint
from stepwell.addons.savepoints.file import SavepointReader
from stepwell.store.record import decode
from stepwell_client.wire.backoff import Backoff
from tests.addons.releases.fleet import wait_until
from tests.commands.program import invoke
from tests.graphs import count, fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process

app = typer.Typer()
app.command()(savepoint.save)
app.command()(savepoint.load)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with models and a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "fold", fold)
        write_model(Path(name) / "models", "count", count)
        yield Path(name)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServiceProcess]:
    with service_process(folder / "models", folder / "one", "--drain-s", "0") as one:
        yield one


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[ServiceProcess]:
    with service_process(folder / "models", folder / "two", "--drain-s", "0") as one:
        yield one


def run(url: str, *words: object) -> Result:
    return invoke(app, [str(word) for word in words], STEPWELL_URL=url)


def report(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def make_streams(service: ServiceProcess, prefix: str, n: int) -> None:
    streams = [f"{prefix}{i}" for i in range(n)]
    for x in (3, 4):
        body = {"streams": streams, "inputs": {"x": [[x + i] for i in range(n)]}}
        assert not httpx2.post(f"{service.url}/v1/models/fold/step", json=body, timeout=30).json().get("errors")


def step(service: ServiceProcess, stream: str, x: int) -> int:
    body = {"inputs": [x], "create": "never"}
    answer = httpx2.post(f"{service.url}/v1/models/fold/streams/{stream}/step", json=body, timeout=30).json()
    return int(answer["outputs"]["y"][0])


def test_saved_streams_continue_in_another_service(
    running: ServiceProcess, other: ServiceProcess, tmp_path: Path
) -> None:
    make_streams(running, "moved.", 2500)
    file = tmp_path / "streams.savepoint"

    saved = report(run(running.url, "save", file, "--model", "fold", "--prefix", "moved.", "--verify", "--json"))
    loaded = report(run(other.url, "load", file, "--verify", "--json"))

    assert (saved["streams"], saved["bytes"], saved["unreadable"]) == (2500, file.stat().st_size, [])
    assert (loaded["loaded"], loaded["refused"]) == (2500, [])
    assert [step(other, f"moved.{i}", 9) for i in (0, 2499)] == [
        fold_reference([3, 4, 9])[-1], fold_reference([2502, 2503, 9])[-1]
    ]  # fmt: skip


def test_live_streams_are_refused_by_name_unless_they_may_be_replaced(running: ServiceProcess, tmp_path: Path) -> None:
    make_streams(running, "live.", 3)
    file = tmp_path / "streams.savepoint"
    run(running.url, "save", file, "--model", "fold", "--prefix", "live.")
    step(running, "live.1", 9)

    refused = run(running.url, "load", file)
    replaced = run(running.url, "load", file, "--overwrite", "--json")

    assert refused.exit_code == 1
    assert "1 stream refused (stream_exists: 1): live.1" in str(refused.exception)
    assert report(replaced)["loaded"] == 3
    assert step(running, "live.1", 5) == fold_reference([4, 5, 5])[-1]


def test_an_existing_file_is_not_replaced(running: ServiceProcess, tmp_path: Path) -> None:
    file = tmp_path / "streams.savepoint"
    file.write_bytes(b"precious")

    result = run(running.url, "save", file, "--model", "fold")

    assert (result.exit_code, file.read_bytes()) == (1, b"precious")
    assert "exists" in str(result.exception)


class CutConnection:
    """Forwards connections to a service; each of the first ones is cut off after some bytes of the response."""

    def __init__(self, port: int, cuts: int, after_bytes: int) -> None:
        self._port, self._cuts, self._after = port, cuts, after_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            client, _ = self._listening.accept()
            limit, self._cuts = (self._after if self._cuts > 0 else 1 << 40), self._cuts - 1
            threading.Thread(target=self._forward, args=(client, limit), daemon=True).start()

    def _forward(self, client: socket.socket, limit: int) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as service:
            service.sendall(client.recv(1 << 16))
            sent = 0
            while sent < limit and (data := service.recv(min(1 << 14, limit - sent))):
                client.sendall(data)
                sent += len(data)


def test_an_interrupted_save_goes_on_behind_its_last_whole_page(
    running: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savepoint, "_BACKOFF", Backoff(0, 0))
    make_streams(running, "cut.", 5000)
    file = tmp_path / "streams.savepoint"
    way = CutConnection(int(running.url.rpartition(":")[2]), cuts=2, after_bytes=400_000)

    saved = report(run(way.url, "save", file, "--model", "fold", "--prefix", "cut.", "--json"))
    names = [name for _, streams, _ in savepoint._pages(file) for name, _ in streams]

    assert saved["streams"] == len(names)
    assert set(names) == {f"cut.{i}" for i in range(5000)}


class HeldConnections:
    """Forwards connections to a service, and holds back everything after some bytes in one direction.

    Attributes:
        holds: Set once it holds something back.
        url: Its address.
    """

    def __init__(self, port: int, *, sent: int = 1 << 40, received: int = 1 << 40) -> None:
        self.holds = threading.Event()
        self._port = port
        self._limits = {"sent": sent, "received": received}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            client, _ = self._listening.accept()
            service = socket.create_connection(("127.0.0.1", self._port))
            for source, target, way in ((client, service, "sent"), (service, client, "received")):
                threading.Thread(target=self._forward, args=(source, target, way), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if (left := self._limits[way]) < len(data):
                    target.sendall(data[:left])
                    self._limits[way] = 0
                    self.holds.set()
                    return
                self._limits[way] -= len(data)
                target.sendall(data)


def has_a_page(file: Path) -> bool:
    """Whether a file that is being written has a whole page."""
    return file.exists() and next(SavepointReader().feed(file.read_bytes()), None) is not None


def kill_while_held(proxy: HeldConnections, *words: object, once: Callable[[], bool] = lambda: True) -> None:
    """Run the program through a proxy, and kill it once the proxy holds something back and a condition is true."""
    command = [sys.executable, "-m", "stepwell", *map(str, words), "--url", proxy.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        held = proxy.holds.wait(60)
        wait_until(once)
        process.kill()
    assert held


def port_of(service: ServiceProcess) -> int:
    return int(service.url.rpartition(":")[2])


def test_a_killed_save_goes_on_when_it_is_run_again(running: ServiceProcess, tmp_path: Path) -> None:
    make_streams(running, "killed.", 3000)
    file = tmp_path / "streams.savepoint"
    words = ("save", file, "--model", "fold", "--prefix", "killed.")
    written = file.with_name(f"{file.name}.partial")
    kill_while_held(HeldConnections(port_of(running), received=400_000), *words, once=lambda: has_a_page(written))
    partial = written.read_bytes()

    other_prefix = run(running.url, *words[:-1], "different.")
    saved = report(run(running.url, *words, "--json"))
    [*pages] = savepoint._pages(file)

    assert not file.with_name(f"{file.name}.partial").exists()
    assert len(partial) > 0
    assert saved["streams"] == sum(len(streams) for _, streams, _ in pages)
    assert {name for _, streams, _ in pages for name, _ in streams} == {f"killed.{i}" for i in range(3000)}
    assert partial.startswith(file.read_bytes()[: pages[0][2]])
    assert "is an interrupted save of fold, prefix 'killed.'" in str(other_prefix.exception)


def test_a_killed_load_is_run_again(running: ServiceProcess, other: ServiceProcess, tmp_path: Path) -> None:
    make_streams(running, "halfway.", 3000)
    file = tmp_path / "streams.savepoint"
    run(running.url, "save", file, "--model", "fold", "--prefix", "halfway.")
    kill_while_held(HeldConnections(port_of(other), sent=file.stat().st_size // 2), "load", file)

    loaded, again = (report(run(other.url, "load", file, "--json")) for _ in range(2))

    assert (loaded["loaded"], loaded["refused"]) == (again["loaded"], again["refused"]) == (3000, [])
    assert [step(other, f"halfway.{i}", 9) for i in (0, 2999)] == [
        fold_reference([3, 4, 9])[-1], fold_reference([3002, 3003, 9])[-1]
    ]  # fmt: skip


def test_streams_that_are_stepped_while_they_are_saved_continue_alike(
    running: ServiceProcess, other: ServiceProcess, tmp_path: Path
) -> None:
    """Stream i gets i + n as its timestep n, so its history is known from its step alone."""
    n, saved = 1500, threading.Event()
    file = tmp_path / "streams.savepoint"

    def step_all(service: ServiceProcess, steps: Sequence[int]) -> list[int]:
        body = {"streams": [f"busy.{i}" for i in range(n)], "seq": [at + 1 for at in steps]}
        body |= {"inputs": {"x": [[i + at + 1] for i, at in enumerate(steps)]}}
        answer = httpx2.post(f"{service.url}/v1/models/fold/step", json=body, timeout=60).json()
        assert not answer.get("errors")
        return [int(row[0]) for row in answer["outputs"]["y"]]

    step_all(running, [0] * n)

    def keep_stepping() -> int:
        done = 1
        while not saved.is_set():
            step_all(running, [done] * n)
            done += 1
        return done

    with ThreadPoolExecutor() as threads:
        stepping = threads.submit(keep_stepping)
        try:
            run(running.url, "save", file, "--model", "fold", "--prefix", "busy.")
        finally:
            saved.set()
        assert stepping.result() > 1
    run(other.url, "load", file)
    records = {name: decode(record) for _, streams, _ in savepoint._pages(file) for name, record in streams}
    steps = [records[f"busy.{i}"].step for i in range(n)]

    expected = [fold_reference([i + at for at in range(1, steps[i] + 2)])[-1] for i in range(n)]
    assert step_all(other, steps) == expected


@pytest.mark.parametrize("flags", [(), ("--verify",)])
def test_a_flipped_byte_is_found_by_load(
    running: ServiceProcess, other: ServiceProcess, tmp_path: Path, flags: Sequence[str]
) -> None:
    make_streams(running, "flipped.", 50)
    file = tmp_path / "streams.savepoint"
    run(running.url, "save", file, "--model", "fold", "--prefix", "flipped.")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    result = run(other.url, "load", file, *flags)

    assert result.exit_code == 1
    assert "is not a whole savepoint" in str(result.exception)
    assert "stepwell save" in str(result.exception)
    assert (
        httpx2.get(f"{other.url}/v1/models/fold/streams", params={"prefix": "flipped."}, timeout=30).json()["streams"]
        == []
    )


@pytest.mark.parametrize(("data", "message"), [(b"", "ends after 0 bytes"), (b"PK\3\4 a zip file", "does not begin")])
def test_a_file_that_is_no_savepoint_is_named(
    running: ServiceProcess, tmp_path: Path, data: bytes, message: str
) -> None:
    file = tmp_path / "other"
    file.write_bytes(data)

    result = run(running.url, "load", file)

    assert result.exit_code == 1
    assert message in str(result.exception)


def test_a_prefix_that_no_stream_has_is_an_error(running: ServiceProcess, tmp_path: Path) -> None:
    result = run(running.url, "save", tmp_path / "a.savepoint", "--model", "fold", "--prefix", "nobody.")

    assert result.exit_code == 1
    assert "No stream of fold begins with 'nobody.'" in str(result.exception)


def test_a_missing_file_and_a_missing_model_are_named(running: ServiceProcess, tmp_path: Path) -> None:
    assert "cannot be read" in str(run(running.url, "load", tmp_path / "none").exception)
    assert "404 model_not_found" in str(run(running.url, "save", tmp_path / "new", "--model", "none").exception)
    assert list(tmp_path.iterdir()) == []
