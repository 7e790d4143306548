"""`CommitEvent`: one commit as watchers receive it, its encoding, and the events that a watcher missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Self

import msgspec
import numpy as np

from stepwell.engine.publisher import CandidateOutputs
from stepwell.types import StreamKey, Timestep
from stepwell_export.runtime.manifest import Array, TensorSpec

_SIZE_BYTES: Final = 4  # length prefix of each event, so that one message can have several


class PackedTensor(msgspec.Struct, array_like=True, frozen=True):
    """An encoded tensor: NumPy dtype name, shape, bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> Self:
        """Encode an array."""
        return cls(array.dtype.name, array.shape, array.tobytes())

    def array(self) -> Array:
        """Decode it to an array, read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class CommitEvent(msgspec.Struct, array_like=True, frozen=True):
    """The event of a committed step or chunk.

    Attributes:
        tenant: The tenant of the stream.
        model: The model's name.
        stream: The stream's id.
        step: The last timestep that was applied.
        length: Timesteps that were applied.
        state_id: State id after it, 16 bytes.
        outputs: The requested predictions: of a step `(*row)`, of a chunk `(T', *row)`, or none.
        inputs: Of a step `(*row)`, of a chunk `(T, *row)`.
        version: The model version that responded; 0: not known.
        candidate: If a release is tried on the stream, the candidate's version and predictions, like `outputs`.
        at_us: When it was sent to the store, microseconds since 1970 by the clock of its worker.
    """

    tenant: str
    model: str
    stream: str
    step: int
    length: int
    state_id: bytes
    outputs: dict[str, PackedTensor]
    inputs: dict[str, PackedTensor]
    version: int = 0
    candidate: tuple[int, dict[str, PackedTensor]] | None = None
    at_us: int = 0

    @classmethod
    def of(  # noqa: PLR0917 - the parts of an event
        cls,
        timestep: Timestep,
        inputs: Sequence[TensorSpec],
        outputs: Mapping[str, Array],
        step: int,
        state_id: bytes,
        version: int,
        candidate: CandidateOutputs | None = None,
        at_us: int = 0,
    ) -> Self:
        """Return the event of one commit.

        Args:
            timestep: The request.
            inputs: The model's inputs, in the order of `timestep.inputs`.
            outputs: The returned predictions, `(T', *row)` per output.
            step: The stream's step after it.
            state_id: The stream's state id after it.
            version: The model version that responded.
            candidate: What the candidate of a release computed, if one is tried on the stream.
            at_us: When it is sent to the store, microseconds since 1970.
        """
        tenant, model, stream = timestep.key
        single = timestep.length == 1
        time = () if single else (timestep.length,)
        return cls(
            *(tenant, model, stream, step, timestep.length, state_id),
            {name: PackedTensor.of(array[0] if single else array) for name, array in outputs.items()},
            {
                spec.name: PackedTensor(spec.dtype, (*time, *spec.row_shape), data)
                for spec, data in zip(inputs, timestep.inputs, strict=True)
            },
            version,
            None
            if candidate is None
            else (
                candidate.version,
                {name: PackedTensor.of(array[0] if single else array) for name, array in candidate.outputs.items()},
            ),
            at_us,
        )

    @property
    def key(self) -> StreamKey:
        """The stream's key."""
        return StreamKey(self.tenant, self.model, self.stream)

    @property
    def step_before(self) -> int:
        """The stream's step before it."""
        return self.step - self.length

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(len(packed.data) for tensors in (self.outputs, self.inputs) for packed in tensors.values())

    def encode(self) -> bytes:
        """Encode it with its length prefix; the concatenation of several events is one message."""
        body = _ENCODE(self)
        return len(body).to_bytes(_SIZE_BYTES, "little") + body


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(CommitEvent).decode


def decode_events(message: bytes) -> list[CommitEvent]:
    """Decode the events of a message.

    Raises:
        ValueError: The message is not valid; `msgspec.DecodeError` is a ValueError.
    """
    events, start, view = [], 0, memoryview(message)
    while start < len(message):
        end = start + _SIZE_BYTES + int.from_bytes(view[start : start + _SIZE_BYTES], "little")
        if end > len(message):
            raise ValueError("the message is cut short")
        events.append(_DECODE(view[start + _SIZE_BYTES : end]))
        start = end
    return events


def merge_log_and_live(logged: Sequence[CommitEvent], live: Sequence[CommitEvent]) -> list[CommitEvent]:
    """Merge a stream's event log with the live events that were received before it was read.

    Args:
        logged: The events of the log. Another worker may be configured without a log, so some may be missing.
        live: All events from some point in time on.
    """
    positions = {_position(event) for event in live}
    return [*(event for event in logged if _position(event) not in positions), *live]


def events_since(events: Sequence[CommitEvent], since: int, step: int) -> tuple[int, list[CommitEvent]]:
    """Return the events that a watcher has missed since a step.

    Steps restart with a reset, so several events may have the same step: `since` is the newest one of them.

    Args:
        events: The known events of one stream up to now, in order.
        since: Step of the last event that the watcher received.
        step: The stream's step now; 0 if it does not exist.

    Returns:
        The number of missed timesteps without an event, at least 1 if that is unknown; and the events to deliver.
    """
    runs = _ascending_runs(events)
    seen_in = max((i for i, run in enumerate(runs) if run[-1].step >= since), default=None)
    if seen_in is None:
        if not runs and step >= since:
            return step - since, []
        missed = runs[-1] if runs else []
        return 1 + _missing_timesteps(missed, step), missed
    missed = [event for event in runs[seen_in] if event.step > since]
    missed += [event for run in runs[seen_in + 1 :] for event in run]
    if not missed:
        return max(step - since, 0), []
    return max(missed[0].step_before - since, 0) + _missing_timesteps(missed, step), missed


def _ascending_runs(events: Sequence[CommitEvent]) -> list[list[CommitEvent]]:
    """Group the events into runs of ascending steps; each run after the first starts with a reset or a restore."""
    runs = [[events[0]]] if events else []
    for before, event in pairwise(events):
        if event.step_before < before.step:
            runs.append([])
        runs[-1].append(event)
    return runs


def _missing_timesteps(events: Sequence[CommitEvent], step: int) -> int:
    """Count the timesteps that are missing between the events, and after them up to a step."""
    missing = sum(max(event.step_before - before.step, 0) for before, event in pairwise(events))
    return missing + max(step - events[-1].step, 0) if events else missing


def _position(event: CommitEvent) -> tuple[int, bytes]:
    return event.step, event.state_id
