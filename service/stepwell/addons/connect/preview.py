"""`--check`: what a connector would send for the oldest messages, without changing anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from stepwell.addons.connect.brokers.interface import MessageReader
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.tick_mapper import TickMapper
from stepwell.addons.connect.mapping.unseen_fields import UnseenFields
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, ConnectError
from stepwell.addons.connect.time_rules import TimeRules
from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.order import Decided, Order
from stepwell.addons.event_time.times import iso

_MESSAGES: Final = 10
_WAIT_S: Final = 10.0


async def preview(
    reader: MessageReader,
    mapper: MessageMapper,
    columns: dict[str, InputColumn],
    *,
    rules: TimeRules | None = None,
    wait_s: float = _WAIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[dict[str, Any]], ConnectError | None]:
    """Return what would be sent for the first ten messages, each as a document, and the error about missing fields.

    Args:
        reader: A reader that was made with `preview`.
        mapper: Maps messages to timesteps.
        columns: The model's inputs.
        rules: The rules of order and ticks, if there are any.
        wait_s: Seconds to wait for messages.
        clock: Returns the time in seconds.
    """
    messages: list[BrokerMessage] = []
    deadline = clock() + wait_s
    try:
        await reader.open()
        while len(messages) < _MESSAGES and not reader.is_done and clock() < deadline:
            messages += await reader.poll(_MESSAGES - len(messages))
    finally:
        await reader.close()
    unseen = UnseenFields(mapper)
    unseen.look_in(messages)
    ticks = None if rules is None or not rules.every else TickMapper(mapper)
    rows = [await asyncio.to_thread(_row, message, mapper, columns, ticks) for message in messages]
    return _with_rules(rows, rules), unseen.error()


def when_applied(messages: Sequence[tuple[str, str, int]], rules: TimeRules) -> list[str]:
    """Return when each of some messages would be applied, in words.

    Args:
        messages: Partition, stream and time of each, in us, in the order in which they were read.
        rules: The rules.
    """
    words = [""] * len(messages)
    order, clock = Order[int](rules.wait), Clock[int](rules.every or 1, rules.wait, gap=rules.gap)
    for row, (partition, stream, at) in enumerate(messages):
        decided = (clock if rules.every else order).add(partition, stream, at, row)
        for one in decided:
            for item in one.items if isinstance(one, Tick) else (one.item,):
                is_late = isinstance(one, Late) or (isinstance(one, Decided) and one.late)
                words[item] = "never: it is late" if is_late else f"after message {row + 1}"
    for row, (_, _, at) in enumerate(messages):
        if not words[row] and rules.every:
            words[row] = f"once the newest time is later than {iso(clock.tick_of(at) * rules.every + rules.wait)}"
        elif not words[row]:
            words[row] = f"once the newest time is {iso(at + rules.wait)}"
        if rules.every:
            words[row] = f"in the tick of {iso(clock.tick_of(at) * rules.every)}, {words[row]}"
    return words


def _with_rules(rows: list[dict[str, Any]], rules: TimeRules | None) -> list[dict[str, Any]]:
    """Return rows with when they would be applied; those that are dead letters stay as they are."""
    good = [row for row in rows if "reason" not in row and "time" in row]
    if rules is not None:
        places = [(row["source"]["id"], row["stream"], row["time"]) for row in good]
        for row, words in zip(good, when_applied(places, rules), strict=True):
            row["applied"] = words
    for row in good:
        row["time"] = iso(row["time"])
    return rows


def _row(
    message: BrokerMessage, mapper: MessageMapper, columns: dict[str, InputColumn], ticks: TickMapper | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"source": {"id": message.source, "at": message.at}}
    try:
        if ticks is not None:
            stream, at, values = ticks.part_of(message)
            parts = {name: None if array is None else array.tolist() for name, array in values.items()}
            return {**row, "stream": stream, "inputs": parts, "time": at}
        timestep = mapper.map(message)
        inputs = {}
        for name, column in columns.items():
            array, errors = column.stack([timestep.values[name]])
            if errors:
                errors[0].stream = timestep.stream
                raise errors[0]
            inputs[name] = array[0].tolist()
    except BadMessageError as exc:
        return {**row, "stream": exc.stream, "code": exc.code, "reason": exc.reason}
    row = {"source": {"id": timestep.source, "at": timestep.at}, "stream": timestep.stream, "inputs": inputs}
    if timestep.time is not None:
        row["time"] = timestep.time
    return row if timestep.seq is None else {**row, "seq": timestep.seq}
