"""The load generator: compiles `load.c` with the machine's C compiler, and runs it against a server."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.workload import CLASSES, FEATURES, Workload

_SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True, slots=True)
class Load:
    """The requests to send to a server.

    Attributes:
        template: Head and body of an HTTP request, or the text of a WebSocket message; with placeholders
            `{stream}`, `{seq}`, `{start}` and `{x}`.
        find: The text right before the prediction in an answer; None: predictions are not checked.
        connections: Sockets, each with one request in flight.
        streams: Number of streams.
        websocket: Path of the feed, or None for HTTP.
        window: Messages in flight on one WebSocket.
        rate: Requests per second, sent on schedule whatever the server does; 0: each after the answer to the last.
        shuffle: Whether each request of a stream goes over another connection.
        frame: A msgpack bulk frame, as streams per frame and timesteps per stream; replaces the template.
        client: A kind of `client_load.py`, which then sends the load instead of `load.c`: each stream's next timestep
            follows the answer to the last.
        is_checked: Whether such a client checks the predictions.
    """

    template: str = ""
    find: str | None = None
    connections: int = 256
    streams: int = 256
    websocket: str | None = None
    window: int = 1
    rate: float = 0.0
    shuffle: bool = False
    frame: tuple[int, int] | None = None
    client: str | None = None
    is_checked: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a load.

    Attributes:
        steps: Correctly answered timesteps.
        seconds: Duration.
        p50_us: Median latency of a request, microseconds.
        p99_us: 99th percentile of the latency.
        errors: Answers that are no predictions.
        wrong: Predictions that differ from the offline ones by more than 1e-5 + 1e-4 |y|.
        cpu_us: CPU microseconds per step of all server processes, including the store.
        store_us: The store's part of it.
        store_bytes: Growth of an external store's memory, per stream.
    """

    steps: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    errors: int
    wrong: int
    worst: float
    first_error: str = ""
    cpu_us: float = 0.0
    store_us: float = 0.0
    store_bytes: float = 0.0

    @property
    def rate(self) -> float:
        """Timesteps per second."""
        return self.steps / self.seconds


def build(folder: Path) -> Path:
    """Compile the generator.

    Raises:
        SystemExit: There is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("The load generator is C, and there is no cc, gcc or clang; install one (apt install gcc).")
    program = folder / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(program), str(_SOURCE), "-lm"], check=True)
    return program


def run(
    program: Path,
    workload: Workload,
    load: Load,
    *,
    port: int,
    seconds: float,
    warmup: float,
    cpu: Callable[[], tuple[float, float]],
    started: Callable[[int], None] | None = None,
) -> Result:
    """Send a load to a server.

    Args:
        program: The compiled generator.
        workload: Inputs and expected answers.
        load: The requests.
        port: Port of the server on 127.0.0.1.
        seconds: Duration of the measurement.
        warmup: Seconds before the measurement.
        cpu: Returns the CPU seconds so far, of the server without its store and of the store.
        started: Called with the process id of the generator before the measurement.

    Raises:
        SystemExit: The generator failed; with its error message.
    """
    command = [str(program)] if load.client is None else [sys.executable, "-m", "benchmarks.client_load", load.client]
    flags = [part for name, value in _options(workload, load).items() for part in (f"--{name}", str(value))]
    times = ["--port", str(port), "--seconds", str(seconds), "--warmup", str(warmup)]
    command += [*times, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if started is not None:
            started(process.pid)
        process.stdout.readline()  # "measuring"
        before = cpu()
        output = process.stdout.readline()
        after = cpu()
        trouble = process.stderr.read()
    if process.returncode != 0 or not output:
        raise SystemExit(f"The load generator failed: {trouble.strip() or f'exit {process.returncode}'}")
    document = json.loads(output)
    steps = max(document.pop("steps"), 1)
    service, store = (1e6 * (b - a) / steps for a, b in zip(before, after, strict=True))
    keys = ("seconds", "p50_us", "p90_us", "p99_us", "errors", "wrong", "worst", "first_error")
    return Result(steps, **{key: document[key] for key in keys}, cpu_us=service + store, store_us=store)


def _options(workload: Workload, load: Load) -> dict[str, Any]:
    """Return the generator's options, and write the files that they name."""
    options: dict[str, Any] = {"streams": load.streams, "expected": workload.expected}
    if load.client is not None:
        return options | {"rows": workload.row_values, "check": int(load.is_checked)}
    options |= {
        "connections": load.connections, "classes": CLASSES, "steps": workload.steps,
        "rate": load.rate, "window": load.window, "shuffle": int(load.shuffle),
        "rows": workload.rows, "row-values": workload.row_values,
    }  # fmt: skip
    if load.find is not None:
        options["find"] = load.find
    if load.websocket is not None:
        options["websocket"] = load.websocket
    if load.frame is not None:
        options |= {"subprotocol": "stepwell.msgpack", "frame": workload.folder / "frame.bin"}
        options["frame"].write_bytes(frame_file(*load.frame))
    else:
        options["template"] = workload.folder / "template.txt"
        options["template"].write_text(load.template, newline="")
    return options


def frame_file(streams: int, length: int) -> bytes:
    """Return a msgpack bulk frame for `load.c`: counts and offsets, then the bytes.

    Each `seq` is a 5-byte integer, and the inputs are one block of float32, so that both can be updated in place.
    """
    names = [f"c0000-{i:06d}" for i in range(streams)]
    shape = [streams, length, FEATURES] if length > 1 else [streams, FEATURES]
    mark = 0xF0F1F2F3
    body: dict[str, Any] = {"streams": names, "seq": [mark] * streams}
    if length > 1:
        body["chunk"] = True
    body["inputs"] = {"x": {"d": "float32", "s": shape, "b": bytes(4 * streams * length * FEATURES)}}
    raw = msgspec.msgpack.encode(body)
    offsets = _offsets(raw, b"\xce" + struct.pack(">I", mark))
    assert len(offsets) == streams
    x_at = len(raw) - 4 * streams * length * FEATURES
    head = struct.pack(f"=4I{streams}I", streams, length, FEATURES, x_at, *(at + 1 for at in offsets))
    return head + raw


def _offsets(raw: bytes, mark: bytes) -> Sequence[int]:
    offsets = []
    at = raw.find(mark)
    while at >= 0:
        offsets.append(at)
        at = raw.find(mark, at + len(mark))
    return offsets
