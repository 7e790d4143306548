"""Savepoints of 100,000 live streams: how many streams a second are saved and loaded, and that they continue bit-equal.

    python -m benchmarks.savepoint

Two services with a store each. A client steps the streams of the first one all the time, in columns, while
`stepwell save` writes them to a file and `stepwell load` reads it into the second one. Then each loaded stream gets its
next timestep there, and the response is compared, bit by bit, with the first service's response to the same timestep.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.processes import processes_of
from tests.graphs import lstm, write_model
from tests.processes import ServiceProcess, service_process

ROWS = 1000
PAUSE_S = 0.25  # between two batches of the live streams, so that they take a part of one processor
FEATURES = 4

Outputs = dict[int, list[float]]


def main() -> None:
    """Print streams per second, CPU, and whether all streams continue bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=32, help="of the LSTM; its state has 8 bytes for each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        folder = Path(name)
        write_model(folder / "models", "lstm", lambda: lstm(FEATURES, options.units))
        with (
            service_process(folder / "models", folder / "one") as one,
            service_process(folder / "models", folder / "two") as two,
        ):
            live = LiveStreams(one.url, options.streams)
            live.create()
            live.start()
            file = folder / "streams.savepoint"
            saved = run(one, "save", str(file), "--model", "lstm")
            _show("save, while the streams are stepped", saved, saved["streams"])
            loaded = run(two, "load", str(file))
            _show("load", loaded, loaded["loaded"])
            again = run(two, "load", str(file))
            _show("load once more, which changes nothing", again, again["loaded"])
            live.stop()
            saved = run(one, "save", str(folder / "quiet.savepoint"), "--model", "lstm")
            _show("save, without load", saved, saved["streams"])
            print(f"{check(live, two):,} streams continue bit-equal")


class LiveStreams:
    """Streams that are stepped in a thread; every response is kept.

    Attributes:
        steps: The step of each stream.
    """

    def __init__(self, url: str, n: int) -> None:
        self.steps = [0] * n
        self._outputs: dict[int, Outputs] = defaultdict(dict)
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def create(self) -> None:
        """Step every stream once."""
        for start in range(0, len(self.steps), ROWS):
            self._step(range(start, min(start + ROWS, len(self.steps))))

    def start(self) -> None:
        """Step parts of the streams until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop stepping."""
        self._stopped.set()
        self._thread.join()

    def outputs_at(self, steps: Mapping[int, int]) -> list[list[float]]:
        """Return the response to a timestep of each stream, by its step; those not applied before are applied now."""
        while behind := [stream for stream, step in steps.items() if self.steps[stream] < step]:
            self._step(behind)
        return [self._outputs[stream][step] for stream, step in steps.items()]

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        while not self._stopped.wait(PAUSE_S):
            self._step(rng.choice(len(self.steps), size=ROWS, replace=False).tolist())

    def _step(self, streams: Sequence[int]) -> None:
        steps = {stream: self.steps[stream] + 1 for stream in streams}
        for stream, output in zip(streams, step_all(self._url, steps), strict=True):
            self.steps[stream] += 1
            self._outputs[stream][self.steps[stream]] = output


def check(live: LiveStreams, loaded: ServiceProcess) -> int:
    """Step every loaded stream, and compare the responses; returns how many are equal.

    Raises:
        RuntimeError: Some differ.
    """
    n, equal, found = len(live.steps), 0, dict[str, int]()
    with httpx2.Client(base_url=loaded.url, timeout=60) as http:
        cursor: str | None = ""
        while cursor is not None:
            page = http.get("/v1/models/lstm/streams", params={"limit": 1000} | ({"cursor": cursor} if cursor else {}))
            found |= {one["stream"]: one["step"] for one in page.json()["streams"]}
            cursor = page.json()["cursor"]
        for start in range(0, n, ROWS):
            streams = range(start, min(start + ROWS, n))
            steps = {i: found[f"s{i}"] + 1 for i in streams}
            equal += sum(a == b for a, b in zip(step_all(loaded.url, steps), live.outputs_at(steps), strict=True))
    if equal != n:
        raise RuntimeError(f"{n - equal} of {n} streams continue differently")
    return equal


def step_all(url: str, steps: Mapping[int, int]) -> list[list[float]]:
    """Apply a timestep to each stream, by its step, and return the responses; float32 in JSON is exact."""
    xs = np.sin(np.arange(FEATURES) + 0.1 * np.array(list(steps))[:, None] + np.array(list(steps.values()))[:, None])
    body = {
        "streams": [f"s{stream}" for stream in steps],
        "inputs": {"x": xs.astype(np.float32).tolist()},
        "seq": list(steps.values()),
    }
    answer = httpx2.post(f"{url}/v1/models/lstm/step", json=body, timeout=60).json()
    if answer.get("errors"):
        raise RuntimeError(f"streams could not be stepped: {list(answer['errors'].items())[:1]}")
    outputs: list[list[float]] = answer["outputs"]["y"]
    return outputs


def run(service: ServiceProcess, *words: str) -> dict[str, Any]:
    """Run a command of stepwell, and return its report, with the CPU seconds of the service and of its store."""
    before, client = processes_of(service.process.pid).cpu(), _children_cpu()
    command = [sys.executable, "-m", "stepwell", *words, "--url", service.url, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    used = processes_of(service.process.pid).cpu()
    return report | {
        "service": used[0] - before[0], "store": used[1] - before[1], "command": _children_cpu() - client
    }  # fmt: skip


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _show(what: str, report: Mapping[str, Any], n: int) -> None:
    service, store, command = (1e6 * report[name] / n for name in ("service", "store", "command"))
    print(
        f"{what}: {n:,} streams in {report['seconds']:.2f} s, {n / report['seconds']:,.0f} a second;"
        f" CPU of a stream: service {service:.1f} us, store {store:.1f} us, command {command:.1f} us",
        flush=True,
    )


if __name__ == "__main__":
    main()
