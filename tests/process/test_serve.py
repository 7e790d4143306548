"""`stepwell serve` as a separate process: how it starts, what it refuses, and how it and its child processes end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from stepwell.addons.embedded_store.server import find_server
from tests.graphs import count, fold, fold_reference, write_model
from tests.processes import LAUNCH, ServiceProcess, is_running, service_process
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("real_programs")
STEP = "/v1/models/fold/streams/a/step"
QUICK = ("--drain-s", "0")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "fold", fold)
    return tmp_path / "models"


@pytest.fixture
def external_store(shared_redis: Server) -> tuple[str, ...]:
    """Flags that select an external store."""
    return ("--redis", shared_redis.url, *QUICK)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parse each line of a log."""
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_is_json_from_the_first_to_the_last(models: Path, tmp_path: Path) -> None:
    flags = ("--log-format", "json", "--workers", "2", *QUICK)
    with service_process(models, tmp_path / "service", *flags) as one:
        assert wait_until(lambda: "Serving" in one.log.read_text())
        one.stop()
        lines = json_lines(one.log.read_text())
    [serving] = [line for line in lines if line["message"].startswith("Serving")]

    assert all({"time", "level", "logger", "process", "message"} <= line.keys() for line in lines)
    assert serving["message"] == "Serving fold (v1)"
    assert serving["url"] == one.url
    assert serving["workers"] == 2
    assert serving["durability"] == "memory"
    assert serving["store"].startswith("embedded store ")


@pytest.mark.parametrize(
    ("env", "flags", "code", "exit_code"),
    [
        ({"STEPWELL_LOG_FORMAT": "json"}, ["--host", "0.0.0.0"], "cannot_start", 3),
        ({}, ["--log-format", "json", "--queue-limit", "0"], "bad_setting", 2),
    ],
)
def test_a_refusal_to_start_is_one_line_of_json(
    models: Path, tmp_path: Path, env: dict[str, str], flags: list[str], code: str, exit_code: int
) -> None:
    command = [*LAUNCH, "--models", str(models), "--data-dir", str(tmp_path / "data"), "--port", "0", *flags]
    found = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False)
    [line] = json_lines(found.stderr)

    assert (found.returncode, line["code"], line["level"]) == (exit_code, code, "error")
    assert line["message"]
    assert line["fix"]
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("flags", "warnings"),
    [
        (("--host", "0.0.0.0", "--insecure", "--workers", "2"), 1),
        (("--host", "0.0.0.0", "--insecure", "--published", "127.0.0.1:80"), 0),
    ],
)
def test_an_api_that_is_open_without_keys_is_reported_once_in_the_log_and_on_the_page(
    models: Path, tmp_path: Path, external_store: tuple[str, ...], flags: tuple[str, ...], warnings: int
) -> None:
    with service_process(models, tmp_path / "service", *external_store, *flags) as one:
        page = httpx2.get(one.url, trust_env=False, timeout=30).text
        lines = [line for line in one.log.read_text().splitlines() if "open without keys" in line]
    [warning] = re.findall(r'<p id="open-warning"[^>]*>', page)

    assert len(lines) == warnings
    assert all(" WARNING " in line for line in lines)
    assert ("hidden" in warning) == (warnings == 0)


def wait_until(fact: Callable[[], bool], within: float = 30) -> bool:
    """Wait until a condition of another process holds."""
    deadline = time.monotonic() + within
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)  # noqa: TID251 - no event reports the state of another process
    return True


def call(one: ServiceProcess, method: str, path: str, body: Any = None) -> httpx2.Response:
    """Send one request on a new connection."""
    return httpx2.request(method, one.url + path, json=body, timeout=20, trust_env=False)


def step(one: ServiceProcess, x: int, **more: Any) -> dict[str, Any]:
    answer = call(one, "POST", STEP, {"inputs": [x], **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def is_answering(one: ServiceProcess) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return call(one, "GET", "/readyz").status_code == 200
    return False


def log(one: ServiceProcess) -> str:
    return one.log.read_text()


def children(pid: int) -> list[int]:
    """Return the worker processes of a service."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = entry.read_text()
            words = entry.with_name("cmdline").read_bytes()
            if int(text.rpartition(")")[2].split()[1]) == pid and b"spawn_main" in words:
                found.append(int(entry.parent.name))
    return found


def store_pid(one: ServiceProcess) -> int:
    return int((one.folder / "data" / "store.pid").read_text())


def startup_error(*words: str, cwd: Path) -> str:
    """Run a `serve` that does not start, and return its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    done = subprocess.run([*LAUNCH, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    return done.stderr


# -------------------------------------------------------------------- start


def test_a_port_in_use_is_refused_in_two_lines(models: Path, shared_redis: Server, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        words = startup_error("--port", port, "--models", str(models), "--redis", shared_redis.url, cwd=tmp_path)

    assert len(words.splitlines()) == 2
    assert port in words


def test_listening_on_other_addresses_than_loopback_requires_keys(tmp_path: Path) -> None:
    assert "--api-keys-file" in startup_error("--host", "::", cwd=tmp_path)


def test_production_requires_keys_on_loopback_too(tmp_path: Path) -> None:
    assert "--api-keys-file" in startup_error("--production", cwd=tmp_path)
    assert "--insecure" in startup_error("--production", "--insecure", cwd=tmp_path)


def test_it_prints_its_url_and_its_models_and_refuses_a_second_service_on_its_data(
    models: Path, short_path: Path
) -> None:
    with service_process(models, short_path, *QUICK) as one:
        [line] = [line for line in log(one).splitlines() if one.url in line]
        words = startup_error("--port", "0", "--data-dir", str(short_path / "data"), cwd=short_path)

        assert str(one.process.pid) in words
        assert is_answering(one)
    for shown in ("fold (v1)", "embedded store", "durability memory", f"{one.url}/docs"):
        assert shown in line


def test_a_store_that_cannot_keep_a_promise_is_refused_at_start(shared_redis: Server, tmp_path: Path) -> None:
    flags = ("--port", "0", "--redis", shared_redis.url, "--durability", "fsync")

    assert "Durability is" in startup_error(*flags, cwd=tmp_path)


def test_an_invalid_keys_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")

    assert "keys.json" in startup_error("--port", "0", "--api-keys-file", "keys.json", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_with_an_external_store_it_writes_nothing_to_its_folder(
    models: Path, external_store: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a read-only root and a temporary folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with service_process(models, tmp_path / "one", *external_store, "--workers", "2"):
        pass

    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".log"]
    assert list(temporary.iterdir()) == []


# -------------------------------------------------------------------- stop


@linux
@pytest.mark.parametrize(("how", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_it_stops_cleanly_and_its_store_with_it(
    models: Path, short_path: Path, how: signal.Signals, workers: str
) -> None:
    with service_process(models, short_path, "--workers", workers, *QUICK) as one:
        parts = [store_pid(one), *children(one.process.pid)]
        one.process.send_signal(how)
        code = one.process.wait(30)

    assert code == 0
    assert len(parts) == (1 if workers == "1" else 3)
    assert [pid for pid in parts if is_running(pid)] == []
    assert "Traceback" not in log(one)


@linux
def test_ctrl_c_while_a_model_is_tried_is_not_blamed_on_the_model(models: Path, short_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group."""
    one = ServiceProcess(models, short_path, env={"STEPWELL_MODEL_PROBE_S": "30"}, launch=["setsid", *LAUNCH])
    one.launch()
    while not (probes := probes_of(models)) and one.process.poll() is None:
        time.sleep(0.005)  # noqa: TID251 - nothing reports that another process has started one
    os.killpg(one.process.pid, signal.SIGINT)
    code = one.process.wait(60)

    assert probes
    assert code == 0
    assert "crashed" not in log(one)
    assert "Stepwell serves" not in log(one)


def probes_of(models: Path) -> list[bytes]:
    """Return the command lines of the processes that try a model of a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            if b"stepwell.addons.vetting.probe" in words and os.fsencode(models) in words:
                found.append(words)
    return found


IMPORTED_UNDER_A_SIGNAL = """
import os, signal, sys
try:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass  # what handles the signal runs here
except BaseException as exc:
    raise ImportError("initialization failed") from exc  # as a native module does
sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules[__name__]
__import__(__name__)
"""


def test_a_signal_while_a_native_module_is_imported_ends_it_cleanly(models: Path, short_path: Path) -> None:
    """Such a module turns whatever is raised while it is imported into an error of its own."""
    (short_path / "first" / "onnxruntime").mkdir(parents=True)
    (short_path / "first" / "onnxruntime" / "__init__.py").write_text(IMPORTED_UNDER_A_SIGNAL)
    one = ServiceProcess(models, short_path, *QUICK, env={"PYTHONPATH": str(short_path / "first")})
    one.launch()

    assert one.process.wait(60) == 0
    assert "Traceback" not in log(one)


def test_a_signal_during_the_start_stops_it_cleanly(models: Path, short_path: Path) -> None:
    one = ServiceProcess(models, short_path, *QUICK)
    one.launch()
    assert wait_until((short_path / "data" / "store.pid").exists)
    pid = store_pid(one)

    assert one.stop() == 0
    assert not is_running(pid)
    assert "Traceback" not in log(one)


@linux
@pytest.mark.parametrize(("by", "workers"), [("SIGTERM", "1"), ("Ctrl-C", "2")])
async def test_accepted_requests_are_answered_and_later_ones_are_sent_elsewhere(
    models: Path, redis_server: Server, tmp_path: Path, workers: str, by: str
) -> None:
    flags = ("--redis", redis_server.url, "--max-wait-ms", "2000", "--workers", workers)
    async with contextlib.AsyncExitStack() as stack:
        one = stack.enter_context(service_process(models, tmp_path / "one", *flags))
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=one.url, timeout=20, trust_env=False))
        other = await stack.enter_async_context(httpx2.AsyncClient(base_url=one.url, timeout=20, trust_env=False))
        await other.get("/healthz")
        accepted = asyncio.create_task(http.post(STEP, json={"inputs": [7]}))
        while 'queue_rows{model="fold"} 1' not in (await other.get("/metrics")).text:  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.02)
        for pid in [one.process.pid, *(children(one.process.pid) if by == "Ctrl-C" else [one.process.pid])]:
            os.kill(pid, signal.SIGINT if by == "Ctrl-C" else signal.SIGTERM)  # `timeout` sends SIGTERM twice
        # The signal may come while this is asked, and to one worker before the other.
        while (ready := await other.get("/readyz")).status_code == 200 or "connection" not in ready.headers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        late = await other.post("/v1/models/fold/streams/b/step", json={"inputs": [1]})  # maybe to the other worker
        answer = await accepted
        code = await asyncio.to_thread(one.process.wait, 30)

    assert ready.json()["ready"] is False
    assert ready.headers["connection"] == "close"
    assert late.status_code == 200
    assert workers != "1" or late.headers["connection"] == "close"
    assert (answer.status_code, answer.json()["outputs"]["y"]) == (200, fold_reference([7]))
    assert code == 0


async def test_a_feed_is_closed_with_the_code_of_a_restart(
    models: Path, external_store: tuple[str, ...], tmp_path: Path
) -> None:
    with service_process(models, tmp_path / "one", *external_store) as one:
        async with connect(one.url.replace("http", "ws") + "/v1/models/fold/streams/c/feed", proxy=None) as feed:
            await feed.send('{"inputs": [1]}')
            await feed.recv()
            one.process.terminate()
            with pytest.raises(ConnectionClosed):
                await feed.recv()
        code = await asyncio.to_thread(one.process.wait, 30)

    assert feed.close_code == 1012
    assert code == 0


# -------------------------------------------------------------------- child processes that die


@linux
def test_workers_that_repeatedly_die_at_once_stop_the_service(
    models: Path, external_store: tuple[str, ...], tmp_path: Path
) -> None:
    with service_process(models, tmp_path / "one", *external_store, "--workers", "2") as one:
        while one.process.poll() is None:
            for pid in children(one.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    assert one.process.returncode == 3
    assert "Workers ended 3 times" in log(one)


@pytest.mark.slow
@linux
def test_workers_and_store_stop_when_the_service_is_killed(models: Path, short_path: Path) -> None:
    with service_process(models, short_path, "--workers", "2", *QUICK) as one:
        parts = [store_pid(one), *children(one.process.pid)]
        one.kill()

        assert wait_until(lambda: not any(is_running(pid) for pid in parts))
        one.start()
        assert step(one, 1)["step"] == 1


@linux
def test_a_store_that_cannot_be_started_again_is_tried_until_it_can(models: Path, short_path: Path) -> None:
    """As without memory to fork. The store that is then started ends with a killed service, as the first one would."""
    binary = short_path / "redis-server"
    binary.symlink_to(find_server())
    one = ServiceProcess(models, short_path / "s", *QUICK, env={"STEPWELL_REDIS_SERVER": str(binary)}).start()
    try:
        first = step(one, 1)
        binary.unlink()
        binary.write_text("no program: the kernel refuses to run it")
        binary.chmod(0o755)
        os.kill(store_pid(one), signal.SIGKILL)
        assert wait_until(lambda: "Exec format error" in log(one))
        binary.unlink()
        binary.symlink_to(find_server())
        assert wait_until(lambda: is_answering(one))
        second = step(one, 2, seq=2, after=first["state_id"])
        pid = store_pid(one)
        one.kill()

        assert wait_until(lambda: not is_running(pid))
    finally:
        one.stop()

    assert second["outputs"]["y"] == fold_reference([1, 2])[1:]
    assert "Traceback" not in log(one)


# -------------------------------------------------------------------- several workers


@pytest.fixture(scope="module")
def two_workers(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("two")
    write_model(folder / "models", "fold", fold)
    flags = ("--redis", shared_redis.url, "--workers", "2", *QUICK)
    with service_process(folder / "models", folder / "one", *flags) as one:
        yield one


def test_a_reload_is_answered_when_every_worker_has_reloaded(two_workers: ServiceProcess) -> None:
    write_model(two_workers.folder.parent / "models", "later", count)
    report = call(two_workers, "POST", "/v1/models/reload").json()

    assert report == {"loaded": ["later/1"], "failed": []}
    assert {call(two_workers, "GET", "/v1/models/later").status_code for _ in range(30)} == {200}


def test_any_worker_serves_the_metrics_of_all(two_workers: ServiceProcess) -> None:
    for x in range(20):
        step(two_workers, x)

    def counts() -> set[str]:
        pages = [call(two_workers, "GET", "/metrics").text for _ in range(10)]
        return {
            re.findall(r'^stepwell_steps_total\{door="http",model="fold"\} (\S+)$', page, re.M)[0] for page in pages
        }

    deadline = time.monotonic() + 30  # workers share their counts once a second
    while (found := counts()) != {"20.0"} and time.monotonic() < deadline:
        assert max(map(float, found)) <= 20
    assert found == {"20.0"}


@linux
def test_a_dead_worker_is_replaced(two_workers: ServiceProcess) -> None:
    victim, *_ = before = children(two_workers.process.pid)
    os.kill(victim, signal.SIGKILL)

    assert wait_until(lambda: len(set(children(two_workers.process.pid)) - {victim}) == len(before) == 2)
    assert wait_until(lambda: is_answering(two_workers))
    assert f"Worker {victim} ended" in log(two_workers)
