"""`python -m benchmarks.source`: what `source` adds to the CPU of a service that steps streams over a feed.

Blocks of messages with `source`, with `seq`, and with neither alternate; printed are the medians of the ratios of the
blocks of one turn. The CPU is that of the service's process and of its embedded store. The fair comparison is the one
with `seq`: a timestep with either of the two that is sent again is applied once, one with neither is applied twice.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from websockets.sync.client import ClientConnection, connect

from benchmarks.processes import Processes, processes_of
from stepwell_client.protocol.inputs import packed
from stepwell_client.wire.formats import JSON, MSGPACK, Format, encode
from tests.graphs import lstm, write_model
from tests.processes import service_process

STREAMS: Final = 256
Kind = Literal["source", "seq", "neither"]
KINDS: Final[tuple[Kind, ...]] = ("source", "seq", "neither")
Messages = Callable[[Format, Kind, int], list[dict[str, Any]]]
"""Returns the messages of one timestep of each stream."""
_DECODE: Final[dict[Format, Callable[[bytes], Any]]] = {JSON: msgspec.json.decode, MSGPACK: msgspec.msgpack.decode}


def main() -> None:
    """Measure and print one line for each form of the timesteps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help="Blocks of each kind.")
    parser.add_argument("--rounds", type=int, default=40, help="Timesteps of each stream in a block.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        write_model(folder / "models", "lstm", lstm)
        with service_process(folder / "models", folder / "one") as service:
            process = processes_of(service.process.pid)
            url = f"ws://127.0.0.1:{service.port}/v1/models/lstm/feed"
            with connect(url, subprotocols=["stepwell.msgpack"], max_size=None) as socket:  # type: ignore[list-item]
                report("columns of 256 streams", measure(process, Feed(socket, MSGPACK), columns, given))
                report("a timestep a message, msgpack", measure(process, Feed(socket, MSGPACK), singles, given))
            with connect(url, max_size=None) as socket:
                report("a timestep a message, JSON", measure(process, Feed(socket, JSON), singles, given))


def report(title: str, spent: dict[Kind, list[float]]) -> None:
    """Print the CPU of timesteps with `source`, and its ratios to the others."""
    print(f"{title}: {statistics.median(spent['source']):.2f} us per timestep with source")
    for other in ("seq", "neither"):
        ratios = [a / b for a, b in zip(spent["source"], spent[other], strict=True)]
        low, median, high = (100 * (one - 1) for one in statistics.quantiles(ratios, n=4))
        print(f"  {median:+.1f} % against {other} (quartiles {low:+.1f} to {high:+.1f} %)", flush=True)


class Feed:
    """A feed for many streams."""

    def __init__(self, socket: ClientConnection, message_format: Format) -> None:
        self.message_format = message_format
        self._socket = socket

    def exchange(self, messages: Sequence[dict[str, Any]]) -> None:
        """Send messages, then read their replies.

        Raises:
            RuntimeError: A timestep was rejected.
        """
        is_text = self.message_format is JSON
        for message in messages:
            self._socket.send(encode(message, self.message_format), text=is_text)
        for _ in messages:
            reply = _DECODE[self.message_format](self._socket.recv(decode=False))
            if "outputs" not in reply or reply.get("errors") or reply.get("skipped"):
                raise RuntimeError(str(reply))


def singles(form: Format, kind: Kind, number: int) -> list[dict[str, Any]]:
    """Return a message for each stream, with the timestep of this number, from 1."""
    x = [0.25] * 4 if form is JSON else packed({"x": np.full(4, 0.25, np.float32)})
    more: dict[str, Any] = {"source": {"source": {"id": "log/1", "at": number}}, "seq": {"seq": number}, "neither": {}}
    return [{"id": i, "stream": f"{form.name}-{kind}-{i}", "inputs": x, **more[kind]} for i in range(STREAMS)]


def columns(form: Format, kind: Kind, number: int) -> list[dict[str, Any]]:
    """Return one message for all streams."""
    x = packed({"x": np.full((STREAMS, 4), 0.25, np.float32)})
    at = packed({"at": np.full(STREAMS, number, np.int64)})
    more: dict[str, Any] = {
        "source": {"source": {"id": "log/1", **at}},
        "seq": {"seq": [number] * STREAMS},
        "neither": {},
    }
    return [{"id": 1, "streams": [f"columns-{kind}-{i}" for i in range(STREAMS)], "inputs": x, **more[kind]}]


def measure(process: Processes, feed: Feed, messages: Messages, given: argparse.Namespace) -> dict[Kind, list[float]]:
    """Return the CPU per timestep of each block, in microseconds."""
    spent: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(given.blocks + 1):
        for kind in KINDS if turn % 2 else reversed(KINDS):
            before = sum(process.cpu())
            for i in range(given.rounds):
                feed.exchange(messages(feed.message_format, kind, turn * given.rounds + i + 1))
            if turn:  # the first one warms up
                spent[kind].append((sum(process.cpu()) - before) / (given.rounds * STREAMS) * 1e6)
    return spent


if __name__ == "__main__":
    main()
