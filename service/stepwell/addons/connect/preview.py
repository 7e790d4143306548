"""`--check`: what a connector would send for the oldest messages, without changing anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from stepwell.addons.connect.brokers.protocol import MessageReader
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.unseen_fields import UnseenFields
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, ConnectError

_MESSAGES: Final = 10
_WAIT_S: Final = 10.0


async def preview(
    reader: MessageReader,
    mapper: MessageMapper,
    columns: dict[str, InputColumn],
    *,
    wait_s: float = _WAIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[dict[str, Any]], ConnectError | None]:
    """Return what would be sent for the first ten messages, each as a document, and the error about missing fields.

    Args:
        reader: A reader that was made with `preview`.
        mapper: Maps messages to timesteps.
        columns: The model's inputs.
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
    return [await asyncio.to_thread(_row, message, mapper, columns) for message in messages], unseen.error()


def _row(message: BrokerMessage, mapper: MessageMapper, columns: dict[str, InputColumn]) -> dict[str, Any]:
    row: dict[str, Any] = {"source": {"id": message.source, "at": message.at}}
    try:
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
    return row if timestep.seq is None else {**row, "seq": timestep.seq}
