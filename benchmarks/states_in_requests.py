"""Timesteps with the state in the request beside those of streams, and the first event of a streamed rollout.

    python -m benchmarks.states_in_requests

Columns of an LSTM(64), sent one after the other over one connection: `POST .../step` of streams in the store, and
`POST .../run` with the packed states of as many rows. Both are measured in turn for several rounds. Then rollouts of a
model whose runs take long: how many runs pass until the first event is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np

from benchmarks.processes import Processes, processes_of
from tests.graphs import lstm, slow, write_model
from tests.processes import service_process

FEATURES, UNITS = 8, 64
RUN_TURNS = 400_000  # of the loop in a run of the model for rollouts: tens of milliseconds


def main() -> None:
    """Print rows per second of both, their ratio, and the runs until the first event."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="in each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        folder = Path(name)
        write_model(folder / "models", "lstm", lambda: lstm(FEATURES, UNITS))
        write_model(folder / "models", "slow", slow)
        with (
            service_process(folder / "models", folder / "data") as service,
            httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as http,
        ):
            for media in ("application/json", "application/msgpack"):
                _show_columns(http, processes_of(service.process.pid), media, options)
            _show_first_event(http, options.rounds)


def _show_columns(http: httpx2.Client, processes: Processes, media: str, options: argparse.Namespace) -> None:
    step, run = columns(http, media, options.rows)
    measured = [
        (
            *_rates(step, options.seconds, options.rows, processes),
            *_rates(run, options.seconds, options.rows, processes),
        )
        for _ in range(options.rounds)
    ]
    stepped, stepped_cpu, ran, ran_cpu = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"{media}, {options.rows} rows:")
    print(f"  rows a second: step {stepped:,.0f}, run {ran:,.0f}, ratio {ran / stepped:.2f}")
    print(
        f"  rows a second of CPU of the service and its store: step {stepped_cpu:,.0f}, run {ran_cpu:,.0f}, "
        f"ratio {ran_cpu / stepped_cpu:.2f}"
    )


def columns(http: httpx2.Client, media: str, rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a call that steps streams once, and one that runs as many states once; both check that no row failed."""
    library = msgspec.json if media == "application/json" else msgspec.msgpack
    encode, decode = library.encode, library.decode
    values = np.random.default_rng(0).normal(size=(rows, FEATURES)).astype(np.float32)
    packed: Any = {"d": "float32", "s": [rows, FEATURES], "b": values.tobytes()}
    inputs = {"x": values.tolist() if media == "application/json" else packed}

    def call(action: str, **body: Any) -> dict[str, Any]:
        content = encode({"inputs": inputs, **body})
        answer = http.post(f"/v1/models/lstm/{action}", content=content, headers={"content-type": media})
        document: dict[str, Any] = decode(answer.raise_for_status().content)
        assert not document["errors"]
        return document

    streams = [f"{media[-4:]}-{row}" for row in range(rows)]
    states = call("run", state=[None] * rows)["state"]
    bodies = {
        "step": encode({"inputs": inputs, "streams": streams}),
        "run": encode({"inputs": inputs, "state": states}),
    }

    def once(action: str) -> None:
        answer = http.post(f"/v1/models/lstm/{action}", content=bodies[action], headers={"content-type": media})
        assert b'"errors":{}' in answer.content or not decode(answer.content)["errors"]

    return lambda: once("step"), lambda: once("run")


def _rates(act: Callable[[], None], seconds: float, rows: int, processes: Processes) -> tuple[float, float]:
    """Return rows per second, and rows per second of CPU."""
    for _ in range(5):
        act()
    count, began, used = 0, time.perf_counter(), sum(processes.cpu())
    while (passed := time.perf_counter() - began) < seconds:
        act()
        count += 1
    return count * rows / passed, count * rows / (sum(processes.cpu()) - used)


def _show_first_event(http: httpx2.Client, rounds: int) -> None:
    one, first, two = [], [], []
    for n in range(rounds):
        one.append(_seconds(lambda n=n: _rollout(http, f"one-{n}", 1)))  # type: ignore[misc]  # mypy infers no defaults
        first.append(_first_event(http, f"first-{n}"))
        two.append(_seconds(lambda n=n: _rollout(http, f"two-{n}", 2)))  # type: ignore[misc]  # as above
    run, event, both = (statistics.median(times) for times in (one, first, two))
    print(
        f"first event of a rollout of 3 timesteps: {1000 * event:.1f} ms, {event / run:.2f} of one run "
        f"({1000 * run:.1f} ms); two runs: {1000 * both:.1f} ms"
    )


def _rollout(http: httpx2.Client, stream: str, horizon: int) -> None:
    http.post(f"/v1/models/slow/streams/{stream}/rollout", content=_body(horizon)).raise_for_status()


def _first_event(http: httpx2.Client, stream: str) -> float:
    headers = {"accept": "text/event-stream"}
    began = time.perf_counter()
    path = f"/v1/models/slow/streams/{stream}/rollout"
    with http.stream("POST", path, content=_body(3), headers=headers) as answer:
        assert next(answer.iter_lines()) == "event: timestep"
        return time.perf_counter() - began


def _body(horizon: int) -> bytes:
    return json.dumps({"horizon": horizon, "inputs": [RUN_TURNS], "feedback": {"x": "y"}}).encode()


def _seconds(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
