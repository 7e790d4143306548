"""`MessageMapper`: what a message means: its stream, its position, and the values of the model's inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from service.connect.config import FromSection
from service.connect.decoding import decoder_of
from service.connect.input_columns import InputColumn
from service.connect.messages import BadMessageError, BrokerMessage, ConnectUsageError
from service.connect.paths import MISSING, FieldPath
from service.ids import POSITION_LIMIT, SEQ_LIMIT, bad_stream_id, is_stream_id

_PREVIEW: Final = 60


@dataclass(slots=True)
class MappedTimestep:
    """One message as a timestep.

    Attributes:
        message: The message.
        stream: The stream's id.
        source: The id of the log.
        at: The position in it; None: it has none.
        seq: The step that the message says it is; None: it says nothing.
        values: By input, the values that its column accepts.
        row: Index of the timestep in the arrays of the poll.
    """

    message: BrokerMessage
    stream: str
    source: str
    at: int | None
    seq: int | None
    values: dict[str, Any]
    row: int = field(default=-1)


class MessageMapper:
    """Maps messages to timesteps."""

    def __init__(
        self,
        section: FromSection,
        columns: dict[str, InputColumn],
        *,
        max_body_bytes: int,
        segment: re.Pattern[str] | None = None,
    ) -> None:
        """Create a mapper.

        Args:
            section: The `[from]` table.
            columns: The model's inputs.
            max_body_bytes: Larger messages are rejected without decoding them.
            segment: Matches a topic; its only group is the stream's id. None: the whole topic is.

        Raises:
            ConnectUsageError: `stream` has the form of no place.
        """
        self._decode = decoder_of(section.format)
        self._columns = columns
        self._max_body_bytes = max_body_bytes
        self._segment = segment
        self._stream_of = self._stream_getter(section.stream)
        self._position = None if section.position is None else FieldPath(section.position)
        self._seq = None if section.seq is None else FieldPath(section.seq)
        self._checked_streams: dict[str, None] = {}

    def map(self, message: BrokerMessage) -> MappedTimestep:
        """Return the timestep of a message.

        Raises:
            BadMessageError: It is not one.
        """
        if message.size > self._max_body_bytes:
            raise BadMessageError(
                "too_large", f"the message has {message.size} bytes; the service accepts {self._max_body_bytes}"
            )
        document = self._decode(message)
        stream = self._stream_of(message, document)
        try:
            source, at = message.source, message.at
            if self._position is not None:
                source, at = _source_of_field(message, self._position), self._integer(self._position, document)
                if at >= POSITION_LIMIT:
                    raise BadMessageError("bad_request", f"the position is {at}; expected less than 2^63")
            seq = None
            if self._seq is not None:
                seq = self._integer(self._seq, document)
                if not 1 <= seq < SEQ_LIMIT:
                    raise BadMessageError("bad_request", f"the seq is {seq}; expected an integer from 1 to 2^53")
                if at is None:  # the broker has no positions; this one grows, too
                    source, at = _source_of_field(message, self._seq), seq
            values = {name: column.values_of(document) for name, column in self._columns.items()}
        except BadMessageError as exc:
            exc.stream = stream
            raise
        return MappedTimestep(message, stream, source, at, seq, values)

    def _stream_getter(self, place: str) -> Callable[[BrokerMessage, Any], str]:
        if place == "key":
            return lambda message, _: self._checked(_text(message.key, "the message has no key"))
        if place == "topic":
            return lambda message, _: self._checked(self._segment_of(message.topic))
        if place.startswith("header:"):
            name = place.removeprefix("header:")
            missing = f"the message has no header {name!r}"
            return lambda message, _: self._checked(_text(message.headers.get(name), missing))
        path = FieldPath(place)
        return lambda _, document: self._checked(_stream_in(document, path))

    def _checked(self, stream: str) -> str:
        if stream in self._checked_streams:
            return stream
        if not is_stream_id(stream):
            raise BadMessageError("bad_request", bad_stream_id(stream).problem)
        if len(self._checked_streams) > 1_000_000:
            self._checked_streams.clear()
        self._checked_streams[stream] = None
        return stream

    def _segment_of(self, topic: str) -> str:
        if self._segment is None:
            return topic
        found = self._segment.fullmatch(topic)
        if found is None:
            raise BadMessageError("bad_request", f"the topic is {topic!r}, which does not fit the filter")
        return found[1]

    def _integer(self, path: FieldPath, document: Any) -> int:
        value = path.read(document)
        if type(value) is not int or value < 0:
            shown = "missing" if value is MISSING else repr(value)[:_PREVIEW]
            raise BadMessageError("bad_request", f"the field {path.text!r} is {shown}; expected an integer from 0")
        return value


def check_segment(section: FromSection, segment: re.Pattern[str] | None, scheme: str) -> None:
    """Check that topics have a segment for the stream's id, if it is there.

    Raises:
        ConnectUsageError: `stream` is `topic`, and the filter of the URL has no `{stream}`.
    """
    if section.stream == "topic" and segment is None and scheme in ("mqtt", "mqtts", "nats"):
        raise ConnectUsageError(
            f"The stream is a segment of the topic, and {section.url!r} has no {{stream}}.",
            fix="Put {stream} in place of that segment, for example mqtt://HOST/plant/+/pump/{stream}.",
        )


def _source_of_field(message: BrokerMessage, path: FieldPath) -> str:
    """Return the id of a source whose positions are a field of the messages."""
    return f"{message.log}#{path.text}"


def _stream_in(document: Any, path: FieldPath) -> str:
    value = path.read(document)
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        return value
    shown = "missing" if value is MISSING else repr(value)[:_PREVIEW]
    raise BadMessageError("bad_request", f"the field {path.text!r} is {shown}; expected a stream id")


def _text(value: bytes | None, missing: str) -> str:
    if value is None:
        raise BadMessageError("bad_request", missing)
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise BadMessageError("bad_request", f"the stream id {value[:_PREVIEW]!r} is not UTF-8") from exc
