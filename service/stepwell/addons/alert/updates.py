"""Commits as rules are evaluated on them, from event logs and from messages of a watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepwell.addons.alert.stream_state import StreamUpdate
from stepwell.addons.watch.commit_events import CommitEvent, PackedTensor, decode_events
from stepwell_client.results import Event
from stepwell_client.wire.ids import decode_state_id
from stepwell_export.runtime.manifest import Array


def newest_event(encoded: bytes | None) -> CommitEvent | None:
    """Return the event at the end of an event log; None: there is none, or it cannot be decoded."""
    if encoded is None:
        return None
    try:
        return decode_events(encoded)[-1]
    except (ValueError, IndexError):
        return None


def update_of(event: CommitEvent) -> StreamUpdate:
    """Return the commit of an event."""
    single = event.length == 1
    return StreamUpdate(
        event.step,
        event.length,
        event.state_id,
        _rows(event.outputs, single=single),
        _rows(event.inputs, single=single),
        event.at_us,
    )


def update_of_message(event: Event, row_ranks: Mapping[str, int]) -> StreamUpdate:
    """Return the commit of a message of a watch that includes the inputs.

    Args:
        event: The message.
        row_ranks: By input, the number of axes of one timestep; a chunk has one more.
    """
    name, array = next(iter(event.inputs.items()))
    single = array.ndim == row_ranks.get(name, array.ndim)
    outputs, inputs = (
        {key: one[None] if single else one for key, one in tensors.items()} for tensors in (event.outputs, event.inputs)
    )
    return StreamUpdate(event.step, 1 if single else len(array), decode_state_id(event.state_id), outputs, inputs)


def updates_after(log: Sequence[bytes], position: tuple[int, bytes] | None) -> tuple[int, list[StreamUpdate]]:
    """Return the commits of an event log after a position.

    Args:
        log: The encoded events, the oldest first.
        position: The step and state id of the last one that was evaluated; None: none was.

    Returns:
        The number of timesteps that the log does not have any more, at least; and the commits.
    """
    events = [event for event in map(newest_event, log) if event is not None]
    found = next((i for i in reversed(range(len(events))) if (events[i].step, events[i].state_id) == position), None)
    new = events if found is None else events[found + 1 :]
    if found is not None or position is None or not new:
        return 0, [update_of(event) for event in new]
    first = new[0].step_before  # a stream that was reset or created again begins at step 0
    return (first - position[0] if first >= position[0] else first), [update_of(event) for event in new]


def commit_times(log: Sequence[bytes], position: tuple[int, bytes]) -> list[int]:
    """Return `at_us` of the commits of an event log up to a position, the oldest first; see `updates_after`."""
    times = []
    for event in filter(None, map(newest_event, log)):
        times.append(event.at_us)
        if (event.step, event.state_id) == position:
            break
    return times


def _rows(tensors: Mapping[str, PackedTensor], *, single: bool) -> dict[str, Array]:
    arrays = {name: tensor.array() for name, tensor in tensors.items()}
    return {name: array[None] for name, array in arrays.items()} if single else arrays
