"""Load by clients as people use them: the Python client, bulk requests, and the Open Inference Protocol.

Each is a process of its own, so that its CPU time is not the service's: `python -m benchmarks.client_load KIND ...`. It
prints "measuring", and after some seconds its counts as JSON, as `load.c` does. Every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workload import CLASSES, FEATURES, ROWS
from stepwell_client import AsyncClient, Client
from stepwell_export.runtime.manifest import Array

KINDS = (
    "sync", "async", "feed", "bulk", "bulk-unusual", "oip-json", "oip-binary",
    "grpc", "grpc-stream", "grpc-wire", "grpc-stream-wire",
)  # fmt: skip
_MODEL = "bench"


class Counter:
    """Counts the answers of all streams; those before the measurement begins are checked and not counted."""

    def __init__(self, rows: Array, expected: Array, *, is_checked: bool) -> None:
        self.rows = rows
        self._is_checked = is_checked
        self._expected = expected
        self._lock = threading.Lock()
        self.steps = self.errors = self.wrong = 0
        self.counting = self.stopped = False
        self.latencies: list[float] = []

    def row(self, stream: int, step: int) -> Array:
        """Return the inputs of a timestep, counted from 0."""
        row: Array = self.rows[(31 * (stream % CLASSES) + 17 * step) % ROWS]
        return row

    def add(self, stream: int, step: int, y: float, seconds: float) -> None:
        """Check and count an answer; NaN is that of a timestep which was to be refused."""
        expected = float(self._expected[stream % CLASSES, step])
        with self._lock:
            self.wrong += self._is_checked and abs(y - expected) > 1e-5 + 1e-4 * abs(expected)
            if self.counting:
                self.steps += 1
                self.latencies.append(seconds)


def sync(counter: Counter, url: str, streams: int) -> list[threading.Thread]:
    """Step each stream in a thread of its own; all threads share one client."""
    client = Client(url)

    def step_one(stream: int) -> None:
        handle = client.model(_MODEL).stream(f"sync-{stream}")
        for step in range(1 << 30):
            if counter.stopped:
                return
            started = time.perf_counter()
            result = handle.step(counter.row(stream, step))
            counter.add(stream, step, float(result.output[0]), time.perf_counter() - started)

    return [threading.Thread(target=step_one, args=(stream,), daemon=True) for stream in range(streams)]


async def async_(counter: Counter, url: str, streams: int) -> None:
    """Step each stream in a task of its own."""
    async with AsyncClient(url) as client:
        model = client.model(_MODEL)

        async def step(stream: int, row: Array) -> float:
            return float((await model.stream(f"async-{stream}").step(row)).output[0])

        await _all(counter, streams, step)


async def feed(counter: Counter, url: str, streams: int) -> None:
    """Step all streams over one WebSocket."""
    async with AsyncClient(url) as client, client.model(_MODEL).feed() as one:

        async def step(stream: int, row: Array) -> float:
            return float((await one.step(f"feed-{stream}", row)).output[0])

        await _all(counter, streams, step)


async def bulk(counter: Counter, port: int, streams: int, *, unusual: bool) -> None:
    """Step all streams by one request in JSON after another, each with one timestep of every stream.

    Args:
        counter: Checks the answers.
        port: The service's.
        streams: How many.
        unusual: In each request but the first, the timesteps of a tenth of the streams are of new streams, repeated, or
            refused for their position, a third each.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, tenth = [0] * streams, streams // 10 if unusual else 0
    for number in range(1 << 30):
        if counter.stopped:
            return
        names, steps, seqs = [f"bulk-{stream}" for stream in range(streams)], [*sent], [step + 1 for step in sent]
        refused = set()
        first = number * tenth % streams
        chosen = {(first + k) % streams: k % 3 for k in range(tenth)} if number else {}
        for stream in range(streams):
            kind = chosen.get(stream)
            if kind == 0:
                names[stream], steps[stream], seqs[stream] = f"new-{number}-{stream}", 0, 1
            elif kind == 1:
                steps[stream], seqs[stream] = sent[stream] - 1, sent[stream]
            elif kind == 2:
                seqs[stream] += 5
                refused.add(stream)
            else:
                sent[stream] += 1
        rows = [counter.row(stream, step).tolist() for stream, step in enumerate(steps)]
        body = json.dumps({"streams": names, "inputs": {"x": rows}, "seq": seqs}).encode()
        head = f"POST /v1/models/{_MODEL}/step HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        started = time.perf_counter()
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        answer = json.loads((await _response(reader))[1])
        seconds = time.perf_counter() - started
        counter.errors += {*map(int, answer.get("errors", {}))} != refused
        for stream, (step, y) in enumerate(zip(steps, answer["outputs"]["y"], strict=True)):
            counter.add(stream, step, math.nan if stream in refused else float(y[0]), seconds)


async def _response(reader: asyncio.StreamReader) -> tuple[dict[bytes, bytes], bytes]:
    """Return the header fields of a response, by names in lower case, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    return fields, await reader.readexactly(int(fields[b"content-length"]))


async def oip(counter: Counter, port: int, streams: int, *, binary: bool) -> None:
    """Send infer requests of Triton's clients, one connection a stream."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(streams)]
    sent = [0] * streams

    async def step(stream: int, row: Array) -> float:
        reader, writer = connections[stream]
        first, sent[stream] = sent[stream] == 0, 1
        writer.write(_infer_request(stream, row, start=first, binary=binary))
        fields, body = await _response(reader)
        if binary:
            return float(np.frombuffer(body, "<f4", offset=int(fields[b"inference-header-content-length"]))[0])
        return float(json.loads(body)["outputs"][0]["data"][0])

    await _all(counter, streams, step)


def _infer_request(stream: int, row: Array, *, start: bool, binary: bool) -> bytes:
    kind = "b" if binary else "j"
    parameters: dict[str, Any] = {"sequence_id": f"{kind}-{stream}", "sequence_start": start}
    tensor: dict[str, Any] = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32"}
    if binary:
        raw = row.astype("<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        parameters["binary_data_output"] = True
    else:
        raw = b""
        tensor["data"] = row.tolist()
    document = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    fields = ["Host: x", f"Content-Length: {len(document) + len(raw)}"]
    if binary:
        fields.append(f"Inference-Header-Content-Length: {len(document)}")
    head = "\r\n".join([f"POST /v2/models/{_MODEL}/infer HTTP/1.1", *fields, "", ""])
    return head.encode() + document + raw


async def _all(counter: Counter, streams: int, step_one: Callable[[int, Array], Awaitable[float]]) -> None:
    async def run(stream: int) -> None:
        step = 0
        while not counter.stopped:
            started = time.perf_counter()
            y = await step_one(stream, counter.row(stream, step))
            counter.add(stream, step, y, time.perf_counter() - started)
            step += 1

    async with asyncio.TaskGroup() as tasks:
        for stream in range(streams):
            tasks.create_task(run(stream))


def main() -> None:
    """Run one kind of client until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warmup", type=float, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--check", type=int, default=1)
    options = parser.parse_args()
    rows = np.fromfile(options.rows, np.float32).reshape(ROWS, FEATURES)
    counter = Counter(
        rows, np.fromfile(options.expected, np.float32).reshape(CLASSES, -1), is_checked=bool(options.check)
    )
    timing = threading.Thread(target=_time, args=(counter, options.warmup, options.seconds))
    timing.start()
    url = f"http://127.0.0.1:{options.port}"
    if options.kind == "sync":
        threads = sync(counter, url, options.streams)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif options.kind in {"async", "feed"}:
        asyncio.run((async_ if options.kind == "async" else feed)(counter, url, options.streams))
    elif options.kind.startswith("grpc"):
        from benchmarks import grpc_load, grpc_wire  # need grpcio, which the other kinds do not

        module = grpc_wire if options.kind.endswith("wire") else grpc_load
        run = module.streaming if "stream" in options.kind else module.unary
        asyncio.run(run(options.port, options.streams, lambda step: _all(counter, options.streams, step)))
    elif options.kind.startswith("bulk"):
        asyncio.run(bulk(counter, options.port, options.streams, unusual=options.kind == "bulk-unusual"))
    else:
        asyncio.run(oip(counter, options.port, options.streams, binary=options.kind == "oip-binary"))
    timing.join()


def _time(counter: Counter, warmup: float, seconds: float) -> None:
    never = threading.Event()
    never.wait(warmup)
    counter.counting, started = True, time.perf_counter()
    print("measuring", flush=True)
    never.wait(seconds)
    counter.counting, elapsed = False, time.perf_counter() - started
    p50, p90, p99 = 1e6 * np.percentile(counter.latencies or [0.0], [50, 90, 99])
    document = {
        "steps": counter.steps, "seconds": elapsed, "p50_us": p50, "p90_us": p90, "p99_us": p99,
        "errors": counter.errors, "wrong": int(counter.wrong), "worst": 0.0, "first_error": "",
    }  # fmt: skip
    print(json.dumps(document), flush=True)
    counter.stopped = True


if __name__ == "__main__":
    main()
