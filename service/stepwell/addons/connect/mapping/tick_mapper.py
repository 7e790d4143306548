"""`TickMapper`: messages as parts of ticks. One may have only some of the inputs, and a null is no value."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwell.addons.connect.mapping.decoding import TextValue
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.paths import MISSING
from stepwell.addons.connect.mapping.poll_mapper import refused_letter
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, MessageColumns, OutMessage
from stepwell.addons.event_time.tick_values import Values
from stepwell.addons.text_values import is_missing
from stepwell_export.runtime.manifest import Array

TickPart = tuple[int, str, int, Values]
"""The index of a message, its stream's id, its time in us, and its values."""


class TickMapper:
    """Maps messages one by one."""

    def __init__(self, mapper: MessageMapper) -> None:
        """Create it; `mapper` says where everything is."""
        self._mapper = mapper

    def map(self, messages: MessageColumns) -> tuple[list[TickPart], list[OutMessage]]:
        """Return what the messages of a poll are, and the dead letters; raises as `PollMapper.map` does."""
        parts, letters = list[TickPart](), list[OutMessage]()
        for row in range(len(messages)):
            message = messages[row]
            try:
                parts.append((row, *self.part_of(message)))
            except BadMessageError as exc:
                letters.append(refused_letter(message, exc, self._mapper))
        if self._mapper.time is not None:
            self._mapper.time.check_clock()
        return parts, letters

    def part_of(self, message: BrokerMessage) -> tuple[str, int, Values]:
        """Return the stream, the time and the values of a message.

        Raises:
            BadMessageError: It cannot be used.
        """
        mapper = self._mapper
        assert mapper.time is not None
        document = mapper.decode(message)
        stream = None
        try:
            stream = mapper.place.stream_of(message, document)
            time = mapper.time.of(mapper.time.path.read(document))
            values = {name: _values_of(column, document) for name, column in mapper.columns.items()}
            if all(one is None for one in values.values()):
                column = next(iter(mapper.columns.values()))
                missing = column.paths[0].missing_in(document) if column.paths else "the message is empty"
                raise BadMessageError("bad_input", missing)
        except BadMessageError as exc:
            mapper.describe(exc, stream, document)
            raise
        return stream, time, values


def _values_of(column: InputColumn, document: Any) -> Array | None:
    """Return the values of one input, floating-point numbers in float64; None: the message has none of it."""
    if type(document) is not bytes and all(_is_absent(path.read(document)) for path in column.paths):
        return None
    value = column.values_of(document)
    stacked, errors = column.stack([value])
    if errors:
        raise errors[0]
    if column.dtype.kind == "f":
        stacked = np.array([value], np.float64).reshape(stacked.shape)  # what is taken of several is rounded once
    found: Array = stacked[0]
    return found


def _is_absent(field: Any) -> bool:
    return field is MISSING or field is None or (type(field) is TextValue and is_missing(field))
