"""`PollMapper`: the messages of a poll as columns of timesteps, and a dead letter for each message that is none."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np

from stepwell.addons.connect.dead_letters import dead_letter
from stepwell.addons.connect.mapping.message_mapper import MappedTimestep, MessageMapper, source_of_field
from stepwell.addons.connect.mapping.paths import FieldPath
from stepwell.addons.connect.mapping.typed_decoding import Getter, TypedDecoder
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, MessageColumns, OutMessage
from stepwell_export.runtime.manifest import Array


@dataclass(slots=True)
class MappedPoll:
    """The timesteps of a poll, in the order of their messages.

    Attributes:
        messages: The messages of the poll, of which some are no timesteps.
        rows: The index of each timestep's message.
        streams: The id of its stream.
        sources: The id of its log.
        at: Its position in that log; None: it has none, and `PollMapper.map` numbers it.
        seq: The step that its message gives; None: it gives none.
        positions: The same as `at`, `(timesteps,) int64`.
        inputs: By input, the values, `(timesteps, *row)`.
        times: The time of each in us since 1970; None: times are not read.
        gaps: The ticks that were left out before a timestep, by its index.
    """

    messages: MessageColumns
    rows: list[int] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    at: list[int | None] = field(default_factory=list)
    seq: list[int | None] = field(default_factory=list)
    positions: Array = field(default_factory=lambda: np.empty(0, np.int64))
    inputs: dict[str, Array] = field(default_factory=dict)
    times: list[int | None] | None = None
    gaps: dict[int, int] = field(default_factory=dict)

    def select(self, which: Sequence[int]) -> None:
        """Keep these timesteps, in this order; arrays stay as they are."""
        for name in ("rows", "streams", "sources", "at", "seq"):
            column = getattr(self, name)
            setattr(self, name, [column[i] for i in which])
        if self.times is not None:
            self.times = [self.times[i] for i in which]


class PollMapper:
    """Maps polls: messages of the expected form together, the others one by one.

    Attributes:
        own_source: The source of messages without a position. They are numbered here, so that a repeated request
            applies them once.
    """

    def __init__(self, mapper: MessageMapper, decoder: TypedDecoder | None) -> None:
        """Create a mapper.

        Args:
            mapper: Maps single messages.
            decoder: Decodes those of the expected form; None: all are mapped one by one.
        """
        self.own_source = f"connect:{secrets.token_hex(8)}"
        self._own_position = 0
        self._mapper = mapper
        self._decoder = decoder

    def map(self, messages: MessageColumns) -> tuple[MappedPoll, list[OutMessage]]:
        """Return the timesteps of a poll, and the dead letters.

        Raises:
            ConnectError: The times of all messages so far are ahead of this clock.
        """
        poll, letters = MappedPoll(messages), list[OutMessage]()
        poll.times = None if self._mapper.time is None else []
        values: dict[str, list[Any]] = {name: [] for name in self._mapper.columns}
        if self._decoder is not None:
            values = self._add_typed(self._decoder, poll)
        if len(poll.rows) < len(messages):
            self._add_single(poll, values, letters)
        self._number(poll)
        self._stack(poll, values, letters)
        poll.positions = np.array(poll.at, np.int64)
        if self._mapper.time is not None:
            self._mapper.time.check_clock()
        return poll, letters

    def _add_typed(self, decoder: TypedDecoder, poll: MappedPoll) -> dict[str, list[Any]]:
        """Add the timesteps of the messages that have the expected form, and return their values."""
        messages = poll.messages
        documents = decoder.decode(messages.bodies, self._mapper.max_body_bytes)
        places = self._mapper.place.values_in(messages)
        if places is None and decoder.stream is None:
            return {name: [] for name in self._mapper.columns}  # the place is a header
        has_others = None in documents
        if decoder.stream is not None and not has_others:
            places = list(map(decoder.stream, documents))
        elif decoder.stream is not None:
            places = [None if one is None else decoder.stream(one) for one in documents]
        streams = self._mapper.place.streams(places or ())
        times = None if decoder.time is None else [self._time_or_none(decoder.time, one) for one in documents]
        if has_others or None in streams or (times is not None and None in times):
            good = [one is not None and stream is not None for one, stream in zip(documents, streams, strict=True)]
            if times is not None:
                good = [is_good and time is not None for is_good, time in zip(good, times, strict=True)]
                times = list(compress(times, good))
            poll.rows = list(compress(range(len(good)), good))
            documents, streams = list(compress(documents, good)), list(compress(streams, good))
        else:
            poll.rows = list(range(len(documents)))
        poll.times = times
        poll.streams = streams  # type: ignore[assignment]  # no None is left
        poll.seq = [None] * len(documents) if decoder.seq is None else list(map(decoder.seq, documents))
        poll.sources, poll.at = self._positions(decoder, poll, documents)
        return decoder.values(documents)

    def _time_or_none(self, getter: Getter, document: Any) -> int | None:
        """Return the time of a decoded message; None: it has none, which is reported when it is mapped alone."""
        try:
            assert self._mapper.time is not None
            return None if document is None else self._mapper.time.of(getter(document))
        except BadMessageError:
            return None

    def _positions(
        self, decoder: TypedDecoder, poll: MappedPoll, documents: Sequence[Any]
    ) -> tuple[list[str], list[int | None]]:
        messages, mapper = poll.messages, self._mapper
        all_rows = len(poll.rows) == len(messages)
        logs = messages.logs if all_rows else [messages.logs[row] for row in poll.rows]
        if decoder.position is not None:
            return _sources_of_field(logs, mapper.position), list(map(decoder.position, documents))
        at = list(messages.at) if all_rows else [messages.at[row] for row in poll.rows]
        if decoder.seq is not None and None in at:
            return _sources_of_field(logs, mapper.seq), list(poll.seq)
        return messages.sources if all_rows else [messages.sources[row] for row in poll.rows], at

    def _add_single(self, poll: MappedPoll, values: dict[str, list[Any]], letters: list[OutMessage]) -> None:
        """Map the other messages one by one, and bring all timesteps into the order of their messages."""
        done = set(poll.rows)
        for row in range(len(poll.messages)):
            if row in done:
                continue
            message = poll.messages[row]
            try:
                timestep = self._mapper.map(message)
            except BadMessageError as exc:
                letters.append(refused_letter(message, exc, self._mapper))
                continue
            _append(poll, values, row, timestep)
        order = sorted(range(len(poll.rows)), key=poll.rows.__getitem__)
        poll.select(order)
        for name, column in values.items():
            values[name] = [column[i] for i in order]

    def _number(self, poll: MappedPoll) -> None:
        if None not in poll.at:
            return
        poll.sources = list(poll.sources)
        for i, at in enumerate(poll.at):
            if at is None:
                self._own_position += 1
                poll.sources[i], poll.at[i] = self.own_source, self._own_position

    def _stack(self, poll: MappedPoll, values: dict[str, list[Any]], letters: list[OutMessage]) -> None:
        """Make arrays of the values, and remove the timesteps whose values do not fit the model."""
        errors: dict[int, BadMessageError] = {}
        for name, column in self._mapper.columns.items() if poll.rows else ():
            poll.inputs[name], found = column.stack(values[name])
            errors = found | errors
        if not errors:
            return
        for i in sorted(errors):
            message, at = poll.messages[poll.rows[i]], None if poll.times is None else poll.times[i]
            letters.append(dead_letter(message, errors[i].code, errors[i].reason, poll.streams[i], time=at))
        good = [i for i in range(len(poll.rows)) if i not in errors]
        poll.select(good)
        poll.inputs = {name: array[np.array(good, np.intp)] for name, array in poll.inputs.items()}


def refused_letter(message: BrokerMessage, error: BadMessageError, mapper: MessageMapper) -> OutMessage:
    """Return the dead letter of a message that `mapper` refuses."""
    if error.is_ahead and error.time is not None and mapper.time is not None:
        mapper.time.count_ahead(error.time)
    return dead_letter(message, error.code, error.reason, error.stream, time=error.time)


def _append(poll: MappedPoll, values: dict[str, list[Any]], row: int, timestep: MappedTimestep) -> None:
    if poll.sources is poll.messages.sources:
        poll.sources = list(poll.sources)
    poll.rows.append(row)
    poll.streams.append(timestep.stream)
    poll.sources.append(timestep.source)
    poll.at.append(timestep.at)
    poll.seq.append(timestep.seq)
    if poll.times is not None:
        poll.times.append(timestep.time)
    for name, one in timestep.values.items():
        values[name].append(one)


def _sources_of_field(logs: Iterable[str], path: FieldPath | None) -> list[str]:
    assert path is not None
    known: dict[str, str] = {}
    return [known.get(log) or known.setdefault(log, source_of_field(log, path)) for log in logs]
