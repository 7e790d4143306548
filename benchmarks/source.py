"""`python -m benchmarks.source`: what `source` adds to the CPU of a service that steps streams over a feed.

Blocks of messages with and without it alternate; printed is the median of the ratios of neighbouring blocks. The CPU is
that of the service's process and of its embedded store.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from websockets.sync.client import ClientConnection, connect

from benchmarks.processes import Processes, processes_of
from service.client.protocol.inputs import packed
from tests.graphs import lstm, write_model
from tests.processes import service_process

STREAMS = 256


def main() -> None:
    """Measure and print one line for each form of the timesteps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help="Pairs of blocks.")
    parser.add_argument("--rounds", type=int, default=40, help="Timesteps of each stream in a block.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        write_model(folder / "models", "lstm", lstm)
        with service_process(folder / "models", folder / "one") as service:
            process = processes_of(service.process.pid)
            url = f"ws://127.0.0.1:{service.port}/v1/models/lstm/feed"
            with connect(url, subprotocols=["stepwell.msgpack"], max_size=None) as socket:  # type: ignore[list-item]
                for title, messages in (("a timestep a message", singles), ("columns of 256 streams", columns)):
                    ratios, with_source = measure(process, socket, messages, given.blocks, given.rounds)
                    spread = statistics.quantiles(ratios, n=4)
                    print(
                        f"{title}: {with_source:.2f} us per timestep with source, "
                        f"{100 * (statistics.median(ratios) - 1):+.1f} % "
                        f"(quartiles {100 * (spread[0] - 1):+.1f} to {100 * (spread[2] - 1):+.1f} %)"
                    )


def singles(prefix: str, at: int | None) -> Iterator[dict[str, Any]]:
    """Yield a message for each stream."""
    x = packed({"x": np.full(4, 0.25, np.float32)})
    for i in range(STREAMS):
        source = {} if at is None else {"source": {"id": "log/1", "at": at}}
        yield {"stream": f"{prefix}{i}", "inputs": x, **source}


def columns(prefix: str, at: int | None) -> Iterator[dict[str, Any]]:
    """Yield one message for all streams."""
    source = {} if at is None else {"source": {"id": "log/1", **packed({"at": np.full(STREAMS, at, np.int64)})}}
    streams = [f"{prefix}c{i}" for i in range(STREAMS)]
    yield {"streams": streams, "inputs": packed({"x": np.full((STREAMS, 4), 0.25, np.float32)}), **source}


def measure(
    process: Processes, socket: ClientConnection, messages: Any, blocks: int, rounds: int
) -> tuple[list[float], float]:
    """Return the ratio of each pair of blocks, and the CPU per timestep with `source` in microseconds."""
    position = itertools.count(1)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(blocks + 1):
        for has_source in (True, False) if pair % 2 else (False, True):
            before = sum(process.cpu())
            for _ in range(rounds):
                at = next(position) if has_source else None
                sent = list(messages("s" if has_source else "p", at))
                for number, one in enumerate(sent, 1):
                    socket.send(msgspec.msgpack.encode({"id": number, **one}))
                for _ in sent:
                    reply = msgspec.msgpack.decode(socket.recv(decode=False))
                    if "outputs" not in reply or reply.get("errors"):
                        raise RuntimeError(str(reply))
            if pair:  # the first one warms up
                spent[has_source].append(sum(process.cpu()) - before)
    ratios = [a / b for a, b in zip(spent[True], spent[False], strict=True)]
    return ratios, statistics.median(spent[True]) / (rounds * STREAMS) * 1e6


if __name__ == "__main__":
    main()
