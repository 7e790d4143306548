"""Starts the servers that are compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import trees
from benchmarks.load import Load
from benchmarks.peers import Peers
from benchmarks.processes import Processes, processes_of
from benchmarks.workload import Workload
from stepwell.addons.embedded_store.server import find_server

_TARGETS = Path(__file__).parent / "targets"
_REDIS_CONF = Path(__file__).parents[1] / "docker" / "redis.conf"
_TIMEOUT_S = 60.0
_SETTINGS = b"\4"  # kind of the frame that a server of HTTP/2, such as that of gRPC, sends first

_HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\r\n"
MESSAGE = '{"stream":"r-{stream}","inputs":{"x":{x}},"seq":{seq}}'
STEP = _HEAD.replace("{path}", "/v1/models/bench/streams/r-{stream}/step") + '{"inputs":{"x":{x}},"seq":{seq}}'
_KEY = "swk_for-the-benchmark-alone"
GUARDED = STEP.replace("Content-Type", f"Authorization: Bearer {_KEY}\r\nContent-Type", 1)
MOSEC = _HEAD.replace("{path}", "/inference") + '{"stream":"r-{stream}","inputs":{"x":{x}},"seq":{seq}}'
TRITON = _HEAD.replace("{path}", "/v2/models/bench/infer") + (
    '{"parameters":{"sequence_id":1{stream},"sequence_start":{start},"sequence_end":false},'
    '"inputs":[{"name":"x","datatype":"FP32","shape":[1,8],"data":{x}}],"outputs":[{"name":"y"}]}'
)


@dataclass(frozen=True, slots=True)
class Running:
    """A running server.

    Attributes:
        port: Port on 127.0.0.1.
        processes: Returns its current processes.
        store: The unix socket of an external store, if there is one.
        pid: Process id of the server.
    """

    port: int
    processes: Callable[[], Processes]
    store: Path | None = None
    pid: int = 0

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds so far: of the service without its store, and of the store."""
        return self.processes().cpu()


Start = Callable[[Path], contextlib.AbstractContextManager[Running]]
"""Starts a server; given an empty folder for what it writes."""


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table.

    Attributes:
        name: Name in the table.
        start: Starts the server.
        load: The requests to send.
        part_of: Another target and a fraction; the rate of the load is that fraction of its steps/s in the same round.
        apart: Whether the service has a processor for itself, and its store and the load use the others.
    """

    name: str
    start: Start
    load: Load
    part_of: tuple[str, float] | None = None
    apart: bool = False


def http_targets(workload: Workload, peers: Peers, *, connections: int) -> list[Target]:
    """Return every target of the HTTP benchmark; ratios refer to the first."""
    y = '"y":['
    unchecked = Load(STEP, None, connections, connections)
    checked = Load(STEP, y, connections, connections)
    model, keras_model = str(workload.step_graph), str(workload.keras_model)
    targets = [
        Target("FastAPI, empty endpoint", _python("empty.py"), unchecked),
        Target("uvicorn, raw echo", _python("echo.py"), unchecked),
        Target("FastAPI + GET, run, SET", _with_store(lambda s: _python("naive.py", model, str(s))), checked),
        Target("FastAPI + Keras model", _python("seed.py", keras_model, env={"KERAS_BACKEND": "jax"}), checked),
    ]
    if peers.mosec is not None:
        targets.append(
            Target("mosec (in memory)", _mosec(workload, peers.mosec), Load(MOSEC, y, connections, connections))
        )
    if peers.triton is not None:
        targets.append(
            Target(
                "Triton (in memory)",
                _triton(workload, peers.triton),
                Load(TRITON, '"data":[', connections, connections),
            )
        )
    return [
        *targets,
        Target("Stepwell, declared route", stepwell(workload, env={"STEPWELL_FAST_LANE": "off"}), checked),
        Target("Stepwell, embedded store", stepwell(workload), checked),
        Target("Stepwell, outside Redis", stepwell_outside(workload), checked),
        Target("the same, keys and limits", _guarded(workload), replace(checked, template=GUARDED)),
        Target("the same, 2 workers", stepwell_outside(workload, "--workers", "2"), checked),
    ]


def websocket_targets(workload: Workload) -> list[Target]:
    """Return the WebSocket targets, after FastAPI's empty endpoint over HTTP."""
    feed, start = "/v1/models/bench/feed", stepwell(workload)
    y, columns = '"y":[', Load(connections=4, streams=4, websocket=feed)
    return [
        Target("FastAPI, empty endpoint", _python("empty.py"), Load(STEP)),
        Target("JSON, 1 step a message", start, Load(MESSAGE, y, 64, 64, feed)),
        Target("JSON, 16 messages on their way", start, Load(MESSAGE, y, 32, 512, feed, window=16)),
        Target("msgpack, 256 streams a frame", start, replace(columns, frame=(256, 1))),
        Target("the same, 8 steps a stream", start, replace(columns, frame=(256, 8))),
    ]


def worker_targets(workload: Workload) -> list[Target]:
    """Return a target with one worker, and two with two workers and fixed or random routing."""
    y, two = '"y":[', stepwell(workload, "--workers", "2")
    return [
        Target("1 worker", stepwell(workload), Load(STEP, y, 256, 1024)),
        Target("2 workers, a stream on one connection", two, Load(STEP, y, 256, 1024)),
        Target("2 workers, a stream on any connection", two, Load(STEP, y, 256, 1024, shuffle=True)),
    ]


def client_targets(workload: Workload) -> list[Target]:
    """Return pairs: clients as people use them, and the load generator at the rate that each has reached."""
    start, feed = stepwell(workload), "/v1/models/bench/feed"
    json_step, json_message = Load(STEP, '"y":[', 64, 64), Load(MESSAGE, '"y":[', 64, 64, feed)
    pairs: list[tuple[str, str, Load]] = [
        ("Python client, 64 threads", "sync", json_step),
        ("Python client, asyncio", "async", json_step),
        ("Python client, feed", "feed", json_message),
        ("OIP, JSON", "oip-json", json_step),
        ("OIP, raw bytes", "oip-binary", json_step),
    ]
    targets = []
    for name, client, same_rate in pairs:
        targets.append(Target(name, start, Load(streams=64, client=client)))
        targets.append(Target(f"load.c at the rate of: {name}", start, same_rate, part_of=(name, 1.0)))
    return targets


def grpc_targets(workload: Workload) -> list[Target]:
    """Return pairs: the Open Inference Protocol over gRPC, and over HTTP at the rate that it has reached.

    The client of gRPC takes more CPU than the server. At the same rate batches are of the same size, so that the lines
    differ by what the transports cost.
    """
    over_http = Load(TRITON, '"data":[', 64, 64)
    targets = []
    for name, client in (("ModelInfer", "grpc"), ("ModelStreamInfer, 4 calls", "grpc-stream")):
        targets.append(Target(name, _on_grpc(workload), Load(streams=64, client=client)))
        targets.append(Target(f"HTTP at the rate of {name}", stepwell(workload), over_http, part_of=(name, 1.0)))
    return targets


def full_grpc_targets(workload: Workload, *, streams: int) -> list[Target]:
    """Return the Open Inference Protocol over HTTP with raw bytes, and over gRPC, each at its full rate.

    The clients take little CPU, so that it is the server which limits the rate. Beside the service there are grpcio's
    server with empty methods, and the service that submits each request as it comes (see
    `stepwell.addons.grpc_api.request_collector`).
    """
    one_by_one = {"PYTHONPATH": str(_TARGETS / "one_by_one")}
    targets = [Target("HTTP, raw bytes", stepwell(workload), Load(streams=streams, client="oip-binary"))]
    for name, client in (("ModelInfer", "grpc-wire"), ("ModelStreamInfer, 4 calls", "grpc-stream-wire")):
        over_grpc = Load(streams=streams, client=client)
        targets += [
            Target(f"empty {name}", _python("grpc_empty.py"), replace(over_grpc, is_checked=False)),
            Target(name, _on_grpc(workload), over_grpc),
            Target(f"{name}, one by one", _on_grpc(workload, env=one_by_one), over_grpc),
        ]
    return targets


def compared_targets(workload: Workload, before: Path) -> list[tuple[Target, Target]]:
    """Return pairs: each kind of request to the service of another checkout, and to that of this one."""
    y, feed = '"y":[', "/v1/models/bench/feed"
    columns = Load(connections=4, streams=4, websocket=feed)
    kinds: list[tuple[str, Callable[..., Start], Load]] = [
        ("HTTP, 64 connections", stepwell, Load(STEP, y, 64, 64)),
        ("HTTP, 1,000 steps/s", stepwell, Load(STEP, y, 64, 1000, rate=1000.0)),
        ("feed, 64 messages on their way", stepwell, Load(MESSAGE, y, 64, 64, feed)),
        ("columns, 256 streams", stepwell, replace(columns, frame=(256, 1))),
        ("columns, 8 steps a stream", stepwell, replace(columns, frame=(256, 8))),
        ("bulk, 64 streams in JSON", stepwell, Load(streams=64, client="bulk")),
        ("bulk, 256 streams in JSON", stepwell, Load(streams=256, client="bulk")),
        ("the same, a tenth unusual", stepwell, Load(streams=256, client="bulk-unusual")),
        ("OIP, JSON", stepwell, Load(streams=64, client="oip-json")),
        ("OIP, raw bytes", stepwell, Load(streams=64, client="oip-binary")),
        ("gRPC, ModelInfer", _on_grpc, Load(streams=64, client="grpc-wire")),
        ("Python client, feed", stepwell, Load(streams=64, client="feed")),
    ]
    return [
        (Target(f"{name}: before", make(workload, tree=before), load), Target(name, make(workload), load))
        for name, make, load in kinds
    ]


def _on_grpc(workload: Workload, *, env: Mapping[str, str] | None = None, tree: Path = trees.HERE) -> Start:
    """Return a start of `stepwell serve` whose port is that of gRPC."""

    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        with stepwell(workload, "--grpc-port", str(port), env=env, tree=tree)(folder) as running:
            yield replace(running, port=port)

    return start


def proxy_targets(workload: Workload) -> list[Target]:
    """Return the service behind nginx: with the same headers in every request, and with different ones."""
    start, requests = stepwell(workload), Load(STEP, '"y":[', streams=10_000)
    return [
        Target("the same headers", _behind_nginx(start, "198.51.abc.d", "0" * 32), requests),
        Target("65,536 clients, an id for each request", _behind_nginx(start, "$address", "$request_id"), requests),
    ]


def _behind_nginx(start: Start, address: str, request_id: str) -> Start:
    """Return a start of a service and of nginx, which forwards requests to it with these headers."""

    @contextlib.contextmanager
    def start_both(folder: Path) -> Iterator[Running]:
        nginx = shutil.which("nginx")
        if nginx is None:
            raise SystemExit("nginx is not installed (apt install nginx-light).")
        with start(folder) as running:
            port = free_port()
            values = {"folder": folder, "service": running.port, "port": port, "address": address, "id": request_id}
            text = (_TARGETS / "nginx.conf").read_text()
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", str(value))
            (folder / "nginx.conf").write_text(text)
            with _process([nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)], folder, port, env=os.environ):
                yield Running(port, running.processes, running.store, running.pid)

    return start_both


def stepwell_outside(workload: Workload, *flags: str, env: Mapping[str, str] | None = None) -> Start:
    """Return a start of `stepwell serve` with an external server of the Redis protocol."""
    return _with_store(lambda address: stepwell(workload, "--redis", f"unix://{address}", *flags, env=env))


def _guarded(workload: Workload) -> Start:
    """Return a start with API keys, and with tenant limits above the load."""
    digest = hashlib.sha256(_KEY.encode()).hexdigest()
    key = {"id": "bench", "sha256": digest, "tenant": "bench", "scopes": ["step"]}
    file = workload.folder / "keys.json"
    file.write_text(json.dumps({"keys": [key]}))
    limits = {"STEPWELL_TENANT_RATE": "10000000", "STEPWELL_TENANT_MAX_STREAMS": "100000"}
    return stepwell_outside(workload, env={"STEPWELL_API_KEYS_FILE": str(file), **limits})


def stepwell(workload: Workload, *flags: str, env: Mapping[str, str] | None = None, tree: Path = trees.HERE) -> Start:
    """Return a start of `stepwell serve` with these flags, from this checkout or from another one."""

    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        command, clean = trees.service_of(tree)
        command += ["serve", "--models", str(workload.models), "--port", str(port)]
        command += ["--data-dir", str(folder / "data"), *flags]
        with _process(command, folder, port, env=clean | dict(env or {})) as running:
            yield running

    return start


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _python(program: str, *arguments: str, env: Mapping[str, str] | None = None) -> Start:
    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        command = [sys.executable, str(_TARGETS / program), str(port), *arguments]
        with _process(command, folder, port, env={**os.environ, **(env or {})}) as running:
            yield running

    return start


def _mosec(workload: Workload, python: Path) -> Start:
    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        command = [str(python), str(_TARGETS / "mosec_lstm.py"), "--port", str(port), "--address", "127.0.0.1"]
        env = {**os.environ, "BENCH_MODEL": str(workload.step_graph)}
        with _process(command, folder, port, env=env) as running:
            yield running

    return start


def _triton(workload: Workload, python: Path) -> Start:
    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        home = next((python.parent.parent / "lib").glob("python3*/site-packages"))
        bundle = home / "pytriton" / "tritonserver"
        version = home.parent.name.removeprefix("python")
        backends = folder / "backends"
        shutil.copytree(bundle / "backends", backends)
        shutil.copy(bundle / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        repository = folder / "models" / "bench"
        (repository / "1").mkdir(parents=True)
        shutil.copy(_TARGETS / "triton" / "model.py", repository / "1")
        shutil.copy(_TARGETS / "triton" / "config.pbtxt", repository)
        command = [str(bundle / "bin" / "tritonserver"), "--model-repository", str(repository.parent)]
        command += ["--backend-directory", str(backends), "--http-port", str(port), "--http-address", "127.0.0.1"]
        command += [
            "--http-thread-count",
            "4",
            "--allow-grpc",
            "false",
            "--allow-metrics",
            "false",
            "--log-error",
            "true",
        ]
        libraries = [str(home / "nvidia_pytriton.libs"), _libpython(python)]
        env = {
            **os.environ,
            "BENCH_MODEL": str(workload.step_graph),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": str(home),
        }
        with _process(command, folder, port, env=env) as running:
            yield running

    return start


def _libpython(python: Path) -> str:
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _with_store(make: Callable[[Path], Start]) -> Start:
    """Start a server of the Redis protocol, configured as in the compose file, and the server that uses it."""

    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        address = folder / "s"
        conf = folder / "redis.conf"
        conf.write_text(_REDIS_CONF.read_text().replace("dir /data", f"dir {folder}"))
        command = [str(find_server()), str(conf), "--port", "0", "--unixsocket", str(address)]
        with terminated(subprocess.Popen(command, stdout=subprocess.DEVNULL)) as store:
            _wait(address.exists, store, folder / "log")
            with make(address)(folder) as running:

                def processes() -> Processes:
                    without_store = running.processes()
                    return replace(without_store, stores=(*without_store.stores, store.pid))

                yield Running(running.port, processes, address, running.pid)

    return start


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path, port: int, *, env: Mapping[str, str]) -> Iterator[Running]:
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=folder, start_new_session=True)
    with terminated(process):
        _wait(lambda: _listens(port), process, log)
        yield Running(port, lambda: processes_of(process.pid), pid=process.pid)


@contextlib.contextmanager
def terminated(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Terminate a process at the end of the block; kill it if it does not end."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _TIMEOUT_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            output = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise SystemExit(f"{' '.join(map(str, process.args))} did not start:\n{output}")  # type: ignore[arg-type]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


def _listens(port: int) -> bool:
    """Return whether the server accepts and answers requests: some accept connections long before they are ready."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
        probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        reply = probe.recv(12)
        return reply.startswith(b"HTTP/1.1 ") or reply[3:4] == _SETTINGS
    return False
