"""`CommitEvent`: a commit as watchers are told of it; how it travels, and which events follow on a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Self

import msgspec
import numpy as np

from model_export.manifest import Array, TensorSpec
from service.types import StreamKey, Timestep

_SIZE_BYTES: Final = 4  # in front of each event, so that several make one message


class PackedTensor(msgspec.Struct, array_like=True, frozen=True):
    """A tensor as it travels: NumPy name, shape, bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> Self:
        """Pack an array."""
        return cls(array.dtype.name, array.shape, array.tobytes())

    def array(self) -> Array:
        """Return it as an array, read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class CommitEvent(msgspec.Struct, array_like=True, frozen=True):
    """A commit of a step or of a chunk of them.

    Attributes:
        tenant: Whose stream it is.
        model: The model's name.
        stream: The stream's id.
        step: The last timestep that was applied.
        length: Timesteps that were applied.
        state_id: 16 bytes.
        outputs: The predictions that were asked for: of a step `(*row)`, of a chunk `(T', *row)` or none at all.
        inputs: Of a step `(*row)`, of a chunk `(T, *row)`.
    """

    tenant: str
    model: str
    stream: str
    step: int
    length: int
    state_id: bytes
    outputs: dict[str, PackedTensor]
    inputs: dict[str, PackedTensor]

    @classmethod
    def of(
        cls,
        timestep: Timestep,
        inputs: Sequence[TensorSpec],
        outputs: Mapping[str, Array],
        step: int,
        state_id: bytes,
    ) -> Self:
        """Return the event of one commit.

        Args:
            timestep: What was asked.
            inputs: The model's inputs, in the order in which a timestep brings them.
            outputs: The kept predictions, `(T', *row)` per output.
            step: The stream's step after it.
            state_id: The stream's state id after it.
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
        )

    @property
    def key(self) -> StreamKey:
        """The stream."""
        return StreamKey(self.tenant, self.model, self.stream)

    @property
    def step_before(self) -> int:
        """The stream's step before it."""
        return self.step - self.length

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(len(packed.data) for tensors in (self.outputs, self.inputs) for packed in tensors.values())

    def encode(self) -> bytes:
        """Return it as it travels; several, one behind the other, are one message."""
        body = _ENCODE(self)
        return len(body).to_bytes(_SIZE_BYTES, "little") + body


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(CommitEvent).decode


def decode_events(message: bytes) -> list[CommitEvent]:
    """Return the events in a message.

    Raises:
        ValueError: It is none of ours; a `msgspec.DecodeError` is one.
    """
    events, at, view = [], 0, memoryview(message)
    while at < len(message):
        end = at + _SIZE_BYTES + int.from_bytes(view[at : at + _SIZE_BYTES], "little")
        if end > len(message):
            raise ValueError("the message is cut short")
        events.append(_DECODE(view[at + _SIZE_BYTES : end]))
        at = end
    return events


def merge_log_and_live(kept: Sequence[CommitEvent], heard: Sequence[CommitEvent]) -> list[CommitEvent]:
    """Return a stream's history, as it was read, and what had been heard of the stream by then, as one.

    Args:
        kept: The history; other workers may keep none, so it need not be whole.
        heard: Every event since some moment.
    """
    places = {_position(event) for event in heard}
    return [*(event for event in kept if _position(event) not in places), *heard]


def events_since(events: Sequence[CommitEvent], since: int, step: int) -> tuple[int, list[CommitEvent]]:
    """Return what a watcher has missed since it saw a step.

    Steps begin anew with a reset, so a number may stand for several places: it is taken for the newest of them.

    Args:
        events: Events of one stream in their order up to now, as far as they are known.
        since: The last step that was seen.
        step: The stream's step now; 0 where there is none.

    Returns:
        How many timesteps are not among the events, at least 1 where that cannot be known; and the events to be told.
    """
    lives = _incarnations(events)
    seen_in = max((at for at, life in enumerate(lives) if life[-1].step >= since), default=None)
    if seen_in is None:
        if not lives and step >= since:
            return step - since, []
        told = lives[-1] if lives else []
        return 1 + _holes(told, step), told
    told = [event for event in lives[seen_in] if event.step > since]
    told += [event for life in lives[seen_in + 1 :] for event in life]
    if not told:
        return max(step - since, 0), []
    return max(told[0].step_before - since, 0) + _holes(told, step), told


def _incarnations(events: Sequence[CommitEvent]) -> list[list[CommitEvent]]:
    """Return the events in groups whose steps go up; each begins with a reset, or a return to a snapshot."""
    lives = [[events[0]]] if events else []
    for before, event in pairwise(events):
        if event.step_before < before.step:
            lives.append([])
        lives[-1].append(event)
    return lives


def _holes(events: Sequence[CommitEvent], step: int) -> int:
    """Return how many timesteps are missing between events, and behind them up to a step."""
    holes = sum(max(event.step_before - before.step, 0) for before, event in pairwise(events))
    return holes + max(step - events[-1].step, 0) if events else holes


def _position(event: CommitEvent) -> tuple[int, bytes]:
    return event.step, event.state_id
