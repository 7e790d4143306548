"""`stepwell save` and `stepwell load`: all streams of a model of a running service, to a file and back."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import Result

from service.commands.live import savepoint
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
        assert not httpx.post(f"{service.url}/v1/models/fold/step", json=body).json().get("errors")


def step(service: ServiceProcess, stream: str, x: int) -> int:
    body = {"inputs": [x], "create": "never"}
    answer = httpx.post(f"{service.url}/v1/models/fold/streams/{stream}/step", json=body).json()
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
    assert "1 streams were refused (stream_exists: 1): live.1" in str(refused.exception)
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
    monkeypatch.setattr(savepoint, "_PAUSE_S", 0.0)
    make_streams(running, "cut.", 5000)
    file = tmp_path / "streams.savepoint"
    way = CutConnection(int(running.url.rpartition(":")[2]), cuts=2, after_bytes=400_000)

    saved = report(run(way.url, "save", file, "--model", "fold", "--prefix", "cut.", "--json"))
    names = [name for _, streams, _ in savepoint._pages(file) for name, _ in streams]

    assert saved["streams"] == len(names)
    assert set(names) == {f"cut.{i}" for i in range(5000)}


def test_a_save_that_failed_goes_on_when_it_is_run_again(
    running: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savepoint, "_PAUSE_S", 0.0)
    make_streams(running, "again.", 3000)
    file = tmp_path / "streams.savepoint"
    words = ("save", file, "--model", "fold", "--prefix", "again.")
    way = CutConnection(int(running.url.rpartition(":")[2]), cuts=1, after_bytes=300_000)
    monkeypatch.setattr(savepoint, "_ATTEMPTS", 1)

    failed = run(way.url, *words)
    partial = file.with_name(f"{file.name}.partial").read_bytes()
    other_prefix = run(running.url, *words[:-1], "different.")
    saved = run(running.url, *words)

    assert (failed.exit_code, saved.exit_code) == (1, 0)
    assert len(partial) > 0
    assert file.read_bytes().startswith(partial)
    assert "is an interrupted save of fold, prefix 'again.'" in str(other_prefix.exception)


@pytest.mark.parametrize(("data", "message"), [(b"", "ends after 0 bytes"), (b"PK\3\4 a zip file", "does not begin")])
def test_a_file_that_is_no_savepoint_is_named(
    running: ServiceProcess, tmp_path: Path, data: bytes, message: str
) -> None:
    file = tmp_path / "other"
    file.write_bytes(data)

    result = run(running.url, "load", file)

    assert result.exit_code == 1
    assert message in str(result.exception)


def test_a_missing_file_and_a_missing_model_are_named(running: ServiceProcess, tmp_path: Path) -> None:
    assert "cannot be read" in str(run(running.url, "load", tmp_path / "none").exception)
    assert "404 model_not_found" in str(run(running.url, "save", tmp_path / "new", "--model", "none").exception)
    assert list(tmp_path.iterdir()) == []
