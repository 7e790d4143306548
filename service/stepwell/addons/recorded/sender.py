"""`RowSender`: sends recorded timesteps to the streams of a model, as fast as possible or each when it is due."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from stepwell.addons.recorded.blocks import CHUNK, Block, Group, Rows
from stepwell_client import Client, ClientError
from stepwell_client.protocol.bulk_chunks import BulkChunks, ChunksResult
from stepwell_client.protocol.decoding import TensorInfo
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array, TensorSpec

CALL_S: Final = 120.0
"""Seconds that one request may take, with its retries."""

_AT_ONCE: Final = 3
"""Requests that are open at a time: one is computed while others are packed and sent."""

_MOST_BYTES: Final = 2 << 20  # of one request
_FIRST_CHUNK: Final = 16
_SLOW_S, _FAST_S = 2.0, 0.5


class PredictionSink(Protocol):
    """Where predictions go."""

    def write(
        self, positions: Array, codes: Array, last_steps: Array, unknown: Array, outputs: Mapping[str, Array]
    ) -> None:
        """Write the predictions of a chunk of each of some streams; no two calls are made at a time.

        Args:
            positions: The row of each timestep, `(N, T)`.
            codes: The streams, `(N,)`.
            last_steps: The step of each stream's last timestep, `(N,)`; 0: it is not known.
            unknown: The first timesteps of each stream whose outputs are not known, `(N,)`.
            outputs: `(N, T, *row)` by output.
        """


@dataclass(frozen=True, slots=True)
class RequestSizes:
    """How much is sent in one request.

    Attributes:
        width: Streams.
        chunk: Timesteps of each, a power of two.
    """

    width: int
    chunk: int

    @classmethod
    def of(cls, specs: Iterable[TensorSpec | TensorInfo], limits: Mapping[str, int]) -> RequestSizes:
        """Return them for the inputs and outputs of a model, and for the limits of its service, if it has any."""
        row_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs) or 1
        most_bytes = min(_MOST_BYTES, limits.get("max_body_bytes", 2 * _MOST_BYTES) // 2)
        width = max(1, min(limits.get("max_batch_size", 256), most_bytes // row_bytes))
        chunk = min(CHUNK, limits.get("max_chunk_steps", CHUNK), most_bytes // (row_bytes * width))
        return cls(width, 1 << (max(1, chunk).bit_length() - 1))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stream was not stepped to its end.

    Attributes:
        error: The service's message.
        first: The first row of the request, from 1.
        last: Its last row.
    """

    error: ClientError
    first: int
    last: int

    def __str__(self) -> str:
        """Return the problem with its rows."""
        rows = f"row {self.first}" if self.first == self.last else f"rows {self.first} to {self.last}"
        return f"{self.error.problem} This was in {rows}"


class RowSender:
    """Sends timesteps, each of which is applied once, also where a request has to be sent again.

    Attributes:
        applied: Timesteps that were applied.
        skipped: Timesteps that had been applied before, by their positions.
        failures: The streams that were not stepped to their end, by their ids.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        streams: Sequence[str],
        sink: PredictionSink | None,
        *,
        sources: Sequence[str] | None = None,
        steps: Array | None = None,
        left_out: Iterable[int] = (),
        sizes: RequestSizes,
        advance: Callable[[int], None],
    ) -> None:
        """Create it; nothing is sent yet.

        Args:
            client: Sends the requests.
            model: The model's name.
            streams: The streams' ids, by their codes.
            sink: Where predictions go; None: none are requested.
            sources: The source of each stream's rows, by which the service skips those that it has; None: by `steps`.
            steps: Without sources, the step that each stream has, `(streams,)` int64.
            left_out: Codes of streams to which nothing is sent.
            sizes: How much is sent in one request.
            advance: Called with the number of timesteps that are done since the last call.
        """
        self.applied = 0
        self.skipped = 0
        self.failures: dict[str, Failure] = {}
        self._client, self._protocol = client, BulkChunks(model, CALL_S)
        self._streams, self._sink = streams, sink
        self._sources = sources
        self._steps = np.zeros(len(streams), np.int64) if steps is None else steps
        self._failed = set(left_out)
        self._sizes, self._chunk = sizes, min(_FIRST_CHUNK, sizes.chunk)
        self._advance = advance
        self._lock = threading.Lock()

    def run(self, parts: Iterable[Rows]) -> None:
        """Send rows as fast as possible, chunks of many streams in one request.

        Raises:
            ClientError: The service does not respond, or rejected a whole request.
            RecordedDataError: The data cannot be read.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for rows in parts:
                if len(rows):
                    _run_all(threads, self._send_group, rows.groups(self._sizes.width))

    def run_at(self, parts: Iterable[Rows], due: Callable[[int, float], float]) -> None:
        """Send each row when it is due; a row that is late is sent at once. Raises as `run` does.

        Args:
            parts: The rows.
            due: Returns the seconds after the first row at which a row is sent, from the row's position and its time
                in seconds; the time is 0 if the recording has none.
        """
        never, started = threading.Event(), time.monotonic()
        for rows in parts:
            times = np.zeros(len(rows)) if rows.times is None else rows.times
            for n, position in enumerate(rows.positions.tolist()):
                if rows.codes[n] in self._failed:
                    continue
                never.wait(max(0.0, started + due(position, float(times[n])) - time.monotonic()))
                inputs = {name: array[None, n : n + 1] for name, array in rows.inputs.items()}
                self._send(Block(rows.codes[n : n + 1], rows.positions[None, n : n + 1], inputs))

    def _send_group(self, group: Group) -> None:
        """Send the blocks of a group of streams, one after the other."""
        for block in group.blocks(lambda: self._chunk, self._failed):
            started = time.monotonic()
            self._send(block)
            self._adapt(time.monotonic() - started)

    def _send(self, block: Block) -> None:
        result = self._client.run(
            self._protocol.step_chunks(
                [self._streams[code] for code in block.codes],
                block.inputs,
                None if self._sources is None else [self._sources[code] for code in block.codes],
                block.positions if self._sources is not None else self._steps[block.codes] + 1,
                returns="none" if self._sink is None else "all",
            )
        )
        with self._lock:
            self._add(block, result)

    def _add(self, block: Block, result: ChunksResult) -> None:
        """Count and keep what the service responded to a block."""
        failed = [i for i, error in result.errors.items() if error.code != "source_passed"]
        kept = np.setdiff1d(np.arange(len(block.codes)), failed)
        for i in failed:
            self._failed.add(int(block.codes[i]))
            rows = block.positions[i] + 1
            self.failures[self._streams[block.codes[i]]] = Failure(result.errors[i], int(rows[0]), int(rows[-1]))
        length = block.positions.shape[1]
        self._steps[block.codes[kept]] += length
        n_skipped = int(result.skipped[kept].sum())
        self.skipped += n_skipped
        self.applied += length * len(kept) - n_skipped
        if self._sink is not None and len(kept):
            outputs = {name: array[kept] for name, array in result.outputs.items()}
            self._sink.write(
                block.positions[kept], block.codes[kept], result.steps[kept], result.unknown[kept], outputs
            )
        self._advance(block.size)

    def _adapt(self, seconds: float) -> None:
        """Send shorter chunks if a request takes long, so that a slow model's requests do not time out."""
        if seconds > _SLOW_S:
            self._chunk = max(1, self._chunk // 2)
        elif seconds < _FAST_S:
            self._chunk = min(self._sizes.chunk, self._chunk * 2)


def failures_in_words(failures: Mapping[str, Failure], most: int) -> str:
    """Return how many streams failed with which code, and the first of them with its reason."""
    codes = Counter(one.error.code for one in failures.values())
    by_code = ", ".join(f"{code}: {n}" for code, n in codes.items())
    stream, first = next(iter(failures.items()))
    named = ", ".join(list(failures)[:most]) + (" .." if len(failures) > most else "")
    return f"{counted(len(failures), 'stream')} failed ({by_code}): {named}. Stream {stream!r}: {first}."


def _run_all(threads: ThreadPoolExecutor, work: Callable[[Group], None], groups: Iterable[Group]) -> None:
    """Run the work on each group; after the first error no other is begun."""
    open_futures: set[Future[None]] = set()
    try:
        for group in groups:
            if len(open_futures) == _AT_ONCE:
                done, open_futures = wait(open_futures, return_when=FIRST_COMPLETED)
                _raise_first(done)
            open_futures.add(threads.submit(work, group))
        _raise_first(wait(open_futures).done)
    finally:
        wait(open_futures)


def _raise_first(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        future.result()
