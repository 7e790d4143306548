"""`stepwell connect` as a separate process, and what a test compares with the offline fold."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

from tests.graphs import fold_reference
from tests.processes import ServiceProcess, service_process
from tests.programs.start import Program, start_program
from tests.servers import AOF, server

WAIT_S = 120.0


class ConnectorProcess:
    """A `stepwell connect` process; a test may kill and start it repeatedly."""

    command = "connect"

    def __init__(self, folder: Path, *words: object, env: dict[str, str] | None = None) -> None:
        self.log = folder / f"{self.command}-{random.randrange(1 << 30)}.log"
        self._words = [self.command, *map(str, words)]
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_")} | (env or {})
        self.launch: Sequence[str] | None = None  # what runs instead of `stepwell` and the command
        self._process: Program | None = None

    @property
    def process(self) -> Program:
        assert self._process is not None
        return self._process

    def start(self) -> ConnectorProcess:
        with self.log.open("ab") as out:
            self._process = start_program(self._words, env=self._env, out=out, launch=self.launch)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    def text(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def connector(folder: Path, *words: object) -> Iterator[ConnectorProcess]:
    """Run a connector until the block ends."""
    one = ConnectorProcess(folder, *words).start()
    try:
        yield one
    finally:
        one.stop()


def ended(folder: Path, *words: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a connector to its end with an exit code, and return what it has written."""
    one = ConnectorProcess(folder, *words, env=env).start()
    assert one.process.wait(100) == code, one.text()
    return one.text()


def run_once(folder: Path, *words: object, code: int | None = 0) -> dict[str, Any]:
    """Run a connector with `--once` to its end, and return its last counts; `code` is its exit code, None: 0 or 1."""
    one = ConnectorProcess(folder, *words, "--once", "--json").start()
    assert one.process.wait(100) in (range(2) if code is None else [code]), one.text()
    counts: dict[str, Any] = json.loads([line for line in one.text().splitlines() if line.startswith("{")][-1])
    return counts


def write_lines(path: Path, documents: Iterable[Any]) -> str:
    """Write a line of JSON for each document, or the text that it is, and return the URL of the file."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in documents]
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"file://{path}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the documents of the whole lines of a file that may not be there yet."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def n_lines(path: Path) -> int:
    """Return the number of whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Readings:
    """Random inputs of many streams, with their timesteps interleaved."""

    def __init__(self, seed: int, *, streams: int, steps: int) -> None:
        rng = random.Random(seed)
        self.xs = {f"r{seed}.{i}": [rng.randrange(-(2**62), 2**62) for _ in range(steps)] for i in range(streams)}
        order = [name for name in self.xs for _ in range(steps)]
        rng.shuffle(order)
        at: dict[str, int] = defaultdict(int)
        self.order: list[tuple[str, int, int]] = []
        for name in order:
            self.order.append((name, at[name] + 1, self.xs[name][at[name]]))
            at[name] += 1

    def documents(self) -> list[dict[str, Any]]:
        return [{"stream": name, "n": n, "x": [x]} for name, n, x in self.order]

    def __len__(self) -> int:
        return len(self.order)

    def expected(self) -> dict[str, list[tuple[int, int]]]:
        return {name: list(enumerate(fold_reference(xs), 1)) for name, xs in self.xs.items()}


def written(messages: Iterable[dict[str, Any]], *, doubles: bool = False) -> dict[str, list[tuple[int, int]]]:
    """Return (step, y) of each stream in the order in which they were written.

    Args:
        messages: The messages out.
        doubles: A message may be there again if an equal one was there before; it is left out.
    """
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for message in messages:
        one = (message["step"], message["outputs"]["y"][0])
        own = found[message["stream"]]
        if doubles and own and one[0] <= own[-1][0]:
            assert one in own, (message, own[-1])
            continue
        own.append(one)
    return dict(found)


def streams_equal_the_fold(url: str, readings: Readings) -> bool:
    """Whether every stream has all of its timesteps, and in one more step gives the prediction of the fold."""
    names = list(readings.xs)
    body = {"streams": names, "inputs": {"x": [[7]] * len(names)}}
    answer = httpx2.post(f"{url}/v1/models/fold/step", json=body, timeout=30).json()
    return bool(answer["outputs"]["y"] == [[fold_reference([*readings.xs[name], 7])[-1]] for name in names])


def wait_for(condition: Callable[[], bool], *, what: Callable[[], object] = lambda: "") -> None:
    """Wait for a fact of another process."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)  # noqa: TID251 - another process gives no event


def kill_in_turn(
    folder: Path,
    models: Path,
    words: Callable[[ServiceProcess], Sequence[object]],
    readings: Readings,
    *,
    add: Callable[[Sequence[ConnectorProcess]], None],
    n_written: Callable[[], int],
    is_settled: Callable[[], bool] = lambda: True,
    victims: Sequence[int | None],
) -> None:
    """Kill connectors and their service, each time that a part of the predictions was written, until all were.

    In the end every stream of the service is the fold.

    Args:
        folder: For the service and the logs.
        models: The folder of the models.
        words: Of each connector, by the service.
        readings: All inputs.
        add: Adds the inputs, once the connectors were started.
        n_written: Returns the number of timesteps whose predictions were written.
        is_settled: Whether nothing is read again; waited for, as the last victim may not have acknowledged what it has
            written.
        victims: In their order: the number of a connector, or None for the service.
    """
    with (
        server(folder / "store", *AOF) as store,
        service_process(models, folder / "one", "--redis", store.url, "--drain-s", "0") as service,
    ):
        with contextlib.ExitStack() as stack:
            running = 1 + max(one for one in victims if one is not None)
            connectors = [stack.enter_context(connector(folder, *words(service))) for _ in range(running)]
            add(connectors)

            def wait(parts: int) -> None:
                enough = len(readings) * parts // (len(victims) + 1)
                wait_for(lambda: n_written() >= enough, what=lambda: [one.text() for one in connectors])

            for part, number in enumerate(victims, 1):
                wait(part)
                victim = service if number is None else connectors[number]
                victim.kill()
                victim.start()
            wait(len(victims) + 1)
            wait_for(is_settled, what=lambda: [one.text() for one in connectors])
        assert streams_equal_the_fold(service.url, readings)
