"""`Backfill`: sends recorded data to a running service, chunks of many streams in one request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

import numpy as np

from stepwell.addons.backfill.history import Past
from stepwell.addons.backfill.predictions import PredictionSlots
from stepwell.addons.recorded import Block, Group, RecordedData, gathered
from stepwell.addons.recorded.blocks import CHUNK
from stepwell_client import Client, ClientError
from stepwell_client.protocol.bulk_chunks import BulkChunks, ChunksResult
from stepwell_client.wire.texts import counted

_AT_ONCE: Final = 3
"""Requests that are open at a time: one is computed while others are packed and sent."""

_MOST_BYTES: Final = 2 << 20  # of one request
_FIRST_CHUNK: Final = 16
_SLOW_S, _FAST_S = 2.0, 0.5


class Backfill:
    """Feeds recorded data into streams, each timestep once, however often it is run.

    Attributes:
        applied: Timesteps that this run applied.
        skipped: Timesteps that were applied before.
        failures: The error of each stream that was not stepped to its end, by its id; not those that were reset.
    """

    def __init__(
        self,
        client: Client,
        protocol: BulkChunks,
        data: RecordedData,
        predictions: PredictionSlots | None,
        past: Past,
        *,
        width: int,
        row_bytes: int,
        most_bytes: int = _MOST_BYTES,
        most_chunk: int = CHUNK,
        advance: Callable[[int], None],
    ) -> None:
        """Create it; nothing is sent yet.

        Args:
            client: Sends the requests.
            protocol: The exchanges of the model.
            data: The timesteps, which were read once before.
            predictions: Where predictions are written; None: none are requested.
            past: What the streams have of the data; nothing is sent for those that were reset.
            width: Streams in one request.
            row_bytes: Bytes of one timestep's inputs and outputs.
            most_bytes: Bytes of one request's inputs and outputs at most.
            most_chunk: Timesteps of a stream in one request at most.
            advance: Called with the number of timesteps that are done since the last call.
        """
        self.applied = 0
        self.skipped = 0
        self.failures: dict[str, ClientError] = {}
        self._client, self._protocol = client, protocol
        self._data, self._predictions = data, predictions
        self._past = past
        self._streams = list(data.streams)
        self._failed = {data.streams[stream] for stream in past.reset}
        self._advance = advance
        self._lock = threading.Lock()
        most_bytes = min(_MOST_BYTES, most_bytes)
        self._width = max(1, min(width, most_bytes // row_bytes))
        self._most_chunk = _power_of_two(min(CHUNK, most_chunk, most_bytes // (row_bytes * self._width)))
        self._chunk = min(_FIRST_CHUNK, self._most_chunk)

    def run(self) -> None:
        """Send everything.

        Raises:
            ClientError: The service does not respond, or rejected a whole request.
            RecordedDataError: The data cannot be read.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for rows in gathered(self._data.read()):
                passed = rows.positions < self._past.passed[rows.codes]
                pending = ~passed
                if self._predictions is not None:
                    self._predictions.leave_out(rows.positions[passed])
                    pending &= self._predictions.pending(rows.positions)
                n_done = len(rows) - int(pending.sum())
                self._advance(n_done)
                self.skipped += n_done
                if pending.any():
                    _run_all(threads, self._send, rows.where(pending).groups(self._width))
                if self._predictions is not None:
                    self._predictions.release_memory()

    def _send(self, group: Group) -> None:
        """Send the blocks of a group of streams, one after the other."""
        for block in group.blocks(lambda: self._chunk, self._failed):
            started = time.monotonic()
            result = self._client.run(
                self._protocol.step_chunks(
                    [self._streams[code] for code in block.codes],
                    block.inputs,
                    [self._past.sources[code] for code in block.codes],
                    block.positions,
                    returns="none" if self._predictions is None else "all",
                )
            )
            self._adapt(time.monotonic() - started)
            with self._lock:
                self._add(block, result)

    def _add(self, block: Block, result: ChunksResult) -> None:
        """Count and keep what the service responded to a block."""
        failed = [i for i, error in result.errors.items() if error.code != "source_passed"]
        kept = np.setdiff1d(np.arange(len(block.codes)), failed)
        for i in failed:
            self._failed.add(int(block.codes[i]))
            self.failures[self._streams[block.codes[i]]] = result.errors[i]
        length = block.positions.shape[1]
        n_skipped = int(result.skipped[kept].sum())
        self.skipped += n_skipped
        self.applied += length * len(kept) - n_skipped
        if self._predictions is not None and len(kept):
            outputs = {name: array[kept] for name, array in result.outputs.items()}
            self._predictions.write(
                block.positions[kept], block.codes[kept], result.steps[kept], result.unknown[kept], outputs
            )
        self._advance(block.size)

    def _adapt(self, seconds: float) -> None:
        """Send shorter chunks if a request takes long, so that a slow model's requests do not time out."""
        if seconds > _SLOW_S:
            self._chunk = max(1, self._chunk // 2)
        elif seconds < _FAST_S:
            self._chunk = min(self._most_chunk, self._chunk * 2)


def failures_in_words(failures: dict[str, ClientError], most: int) -> str:
    """Return how many streams failed with which code, and the first of them with its reason."""
    codes = Counter(error.code for error in failures.values())
    by_code = ", ".join(f"{code}: {n}" for code, n in codes.items())
    stream, error = next(iter(failures.items()))
    named = ", ".join(list(failures)[:most]) + (" .." if len(failures) > most else "")
    return f"{counted(len(failures), 'stream')} failed ({by_code}): {named}. Stream {stream!r}: {error.problem}"


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


def _power_of_two(most: int) -> int:
    return 1 << (max(1, most).bit_length() - 1)
