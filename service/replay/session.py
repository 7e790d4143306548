"""`ReplaySession`: sends the rows of a recording, at their pace or as fast as possible, and collects predictions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from model_export.manifest import Array
from service.client import ClientError, Model, Stream
from service.replay.csv_table import ReplayError, TableRow

_CHUNK: Final = 256
_BUFFERED: Final = 65_536
"""Rows of all streams that wait for their chunks to be full."""
_KEPT_STEPS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for some rows of one stream.

    Attributes:
        rows: The numbers of the rows.
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
    """The newest predictions of a stream, for a picture."""

    stream: str
    step: int = 0
    outputs: deque[dict[str, Array]] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))


class ReplaySession:
    """Replays rows through the streams of a model.

    Attributes:
        records: The newest predictions by stream, in the order of their first rows.
        n_rows: The number of rows that were sent.
    """

    def __init__(self, model: Model, stream: str, *, reset: bool, append: bool) -> None:
        """Create a session.

        Args:
            model: The model.
            stream: The stream of rows that have none of their own.
            reset: Reset streams that exist.
            append: Continue streams that exist.
        """
        self.records: dict[str, StreamRecord] = {}
        self.n_rows = 0
        self._model = model
        self._stream = stream
        self._reset = reset
        self._append = append

    def in_chunks(self, rows: Iterable[TableRow]) -> Iterator[Predictions]:
        """Send rows as fast as possible, in chunks of one stream each.

        Raises:
            ClientError: A chunk was rejected, or no response arrived in time.
            ReplayError: A stream exists.
        """
        waiting: dict[str, list[TableRow]] = {}
        n_waiting = 0
        for row in rows:
            stream = row.stream or self._stream
            chunk = waiting.setdefault(stream, [])
            chunk.append(row)
            n_waiting += 1
            if len(chunk) == _CHUNK:
                yield self._send(stream, waiting.pop(stream))
                n_waiting -= _CHUNK
            elif n_waiting >= _BUFFERED:
                for name in list(waiting):
                    yield self._send(name, waiting.pop(name))
                n_waiting = 0
        for name in list(waiting):
            yield self._send(name, waiting.pop(name))

    def at_times(self, rows: Iterable[TableRow], due: Callable[[TableRow], float]) -> Iterator[Predictions]:
        """Send each row when it is due; a row that is late is sent at once.

        Args:
            rows: The rows.
            due: Returns the seconds after the first row at which a row is sent.

        Raises:
            ClientError: A step was rejected, or no response arrived in time.
            ReplayError: A stream exists.
        """
        never = threading.Event()
        started = time.monotonic()
        for row in rows:
            never.wait(max(0.0, started + due(row) - time.monotonic()))
            yield self._send(row.stream or self._stream, [row])

    def _send(self, name: str, rows: Sequence[TableRow]) -> Predictions:
        stream = self._opened(name)
        chunk = {each: np.stack([row.inputs[each] for row in rows]) for each in rows[0].inputs}
        try:
            result = stream.steps(chunk)
        except ClientError as exc:
            where = f"row {rows[0].number}" if len(rows) == 1 else f"rows {rows[0].number} to {rows[-1].number}"
            raise ReplayError(f"{exc.problem} This was in {where} of stream {name!r}.", fix=exc.fix) from exc
        record = self.records[name]
        record.step = result.step
        record.outputs.extend({each: part[n] for each, part in result.outputs.items()} for n in range(len(rows)))
        self.n_rows += len(rows)
        numbers = [row.number for row in rows]
        return Predictions(numbers, name, result.step - len(rows) + 1, result.outputs)

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
        self.records[name] = StreamRecord(name)
        return stream


def header_of(outputs: Sequence[Any]) -> list[str]:
    """Return the names of the columns of predictions: `OUTPUT`, or `OUTPUT[LABEL]` for each number of a row."""
    names = []
    for output in outputs:
        size = int(np.prod(output.shape, dtype=int))
        labels = output.labels or [str(n) for n in range(size)]
        names += [f"{output.name}[{label}]" for label in labels] if output.shape else [output.name]
    return names
