"""`ReplaySession`: sends the rows of a recording, at their pace or as fast as possible, and collects predictions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from stepwell.addons.recorded import RecordedData
from stepwell_client import ClientError, Model, Stream
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array

CHUNK: Final = 256
"""Timesteps in one request, unless the service takes fewer."""

_KEPT_STEPS: Final = 100_000


class ReplayError(StepwellError):
    """A stream cannot be continued with a recording, or a row of it was rejected."""

    code = "replay_failed"


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for some rows of one stream.

    Attributes:
        rows: The numbers of the rows, from 1.
        stream: The stream's id.
        first_step: The step of the first row.
        outputs: An array per output, `(T, *row)`.
    """

    rows: list[int]
    stream: str
    first_step: int
    outputs: dict[str, Array]


@dataclass(slots=True)
class StreamRecord:
    """A stream's step, and its newest predictions if they are kept."""

    stream: str
    is_kept: bool
    step: int = 0
    outputs: deque[dict[str, Array]] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))


class ReplaySession:
    """Replays rows through the streams of a model.

    Attributes:
        records: What is known of each stream, in the order of their first rows.
        n_rows: The number of rows that were sent.
    """

    def __init__(
        self,
        model: Model,
        recorded: RecordedData,
        stream: str | None,
        *,
        reset: bool,
        append: bool,
        chunk: int = CHUNK,
        kept_streams: int = 0,
    ) -> None:
        """Create a session.

        Args:
            model: The model.
            recorded: The recording.
            stream: The stream of all rows; None: each row has its own.
            reset: Reset streams that exist.
            append: Continue streams that exist.
            chunk: Timesteps in one request at most.
            kept_streams: The predictions of so many streams are kept, for a picture.
        """
        self.records: dict[str, StreamRecord] = {}
        self.n_rows = 0
        self._model = model
        self._recorded = recorded
        self._stream = stream
        self._reset = reset
        self._append = append
        self._chunk = chunk
        self._kept_streams = kept_streams

    def in_chunks(self) -> Iterator[Predictions]:
        """Send rows as fast as possible, in chunks of one stream each.

        Raises:
            ClientError: No response arrived in time.
            RecordedDataError: The recording cannot be read.
            ReplayError: A stream exists, or a chunk was rejected.
        """
        for rows in self._recorded.read():
            names = self._names()
            codes, first_rows = np.unique(rows.codes, return_index=True)
            for code in codes[np.argsort(first_rows)]:
                of_stream = np.flatnonzero(rows.codes == code)
                for start in range(0, len(of_stream), self._chunk):
                    chunk = of_stream[start : start + self._chunk]
                    inputs = {name: array[chunk] for name, array in rows.inputs.items()}
                    yield self._send(names[code], rows.positions[chunk], inputs)

    def at_times(self, due: Callable[[int, float], float]) -> Iterator[Predictions]:
        """Send each row when it is due; a row that is late is sent at once.

        Args:
            due: Returns the seconds after the first row at which a row is sent, from the row's position and its time
                in seconds; the time is 0 if the recording has none.

        Raises:
            ClientError: No response arrived in time.
            RecordedDataError: The recording cannot be read.
            ReplayError: A stream exists, or a step was rejected.
        """
        never = threading.Event()
        started = time.monotonic()
        for rows in self._recorded.read():
            names = self._names()
            times = np.zeros(len(rows)) if rows.times is None else rows.times
            for n, position in enumerate(rows.positions.tolist()):
                never.wait(max(0.0, started + due(position, float(times[n])) - time.monotonic()))
                inputs = {name: array[n : n + 1] for name, array in rows.inputs.items()}
                yield self._send(names[rows.codes[n]], rows.positions[n : n + 1], inputs)

    def _names(self) -> list[str]:
        """Return the stream ids of the codes that were read so far."""
        return [self._stream or name for name in self._recorded.streams]

    def _send(self, name: str, positions: Array, inputs: dict[str, Array]) -> Predictions:
        """Send consecutive timesteps of a stream.

        Args:
            name: The stream's id.
            positions: The number of each timestep's row, from 0, `(T,)`.
            inputs: `(T, *row)` by input.
        """
        stream = self._opened(name)
        numbers = (positions + 1).tolist()
        try:
            result = stream.steps(inputs)
        except ClientError as exc:
            where = f"row {numbers[0]}" if len(numbers) == 1 else f"rows {numbers[0]} to {numbers[-1]}"
            raise ReplayError(f"{exc.problem} This was in {where} of stream {name!r}.", fix=exc.fix) from exc
        record = self.records[name]
        record.step = result.step
        if record.is_kept:
            record.outputs.extend({each: part[n] for each, part in result.outputs.items()} for n in range(len(numbers)))
        self.n_rows += len(numbers)
        return Predictions(numbers, name, result.step - len(numbers) + 1, result.outputs)

    def _opened(self, name: str) -> Stream:
        """Return a stream's handle; before the first row, check that the stream may take it."""
        stream = self._model.stream(name)
        if name in self.records:
            return stream
        if not self._append and (step := stream.resume()):
            if not self._reset:
                raise ReplayError(
                    f"Stream {name!r} is at step {step}; its state would mix with that of the recording.",
                    fix="Reset it with --reset, continue it with --append, or give another --stream.",
                )
            stream.reset()
        self.records[name] = StreamRecord(name, is_kept=len(self.records) < self._kept_streams)
        return stream
