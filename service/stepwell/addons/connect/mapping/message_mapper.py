"""`MessageMapper`: what a message means: its stream, its position, and the values of the model's inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepwell.addons.connect.config import FromSection
from stepwell.addons.connect.formats.bodies import SchemaBodies, check_number
from stepwell.addons.connect.mapping.decoding import TextValue, decoder_of
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.paths import MISSING, FieldPath
from stepwell.addons.connect.mapping.stream_places import StreamPlace
from stepwell.addons.connect.mapping.time_field import TimeField
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, ConnectUsageError
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.text_values import number_of, preview
from stepwell_client.wire.ids import POSITION_LIMIT, SEQ_LIMIT


@dataclass(slots=True)
class MappedTimestep:
    """One message as a timestep.

    Attributes:
        stream: The stream's id.
        source: The id of the log.
        at: The position in it; None: it has none.
        seq: The step that the message gives; None: it gives none.
        values: By input, the values that its column accepts.
        time: Its time in us since 1970; None: times are not read.
    """

    stream: str
    source: str
    at: int | None
    seq: int | None
    values: dict[str, Any]
    time: int | None = None


class MessageMapper:
    """Maps messages to timesteps.

    Attributes:
        columns: The model's inputs.
        max_body_bytes: Larger messages are rejected without decoding them.
        bodies: Decodes messages with a schema; None: the format has none.
        place: Where the stream's id is.
        position: The field with the position; None: there is none.
        seq: The field with the step; None: there is none.
        time: Reads the times; None: they are not read.
    """

    def __init__(
        self,
        section: FromSection,
        columns: dict[str, InputColumn],
        *,
        max_body_bytes: int,
        segment: re.Pattern[str] | None = None,
        bodies: SchemaBodies | None = None,
    ) -> None:
        """Create a mapper.

        Args:
            section: The `[from]` table.
            columns: The model's inputs.
            max_body_bytes: Larger messages are rejected without decoding them.
            segment: Matches a topic; its only group is the stream's id. None: the whole topic is.
            bodies: Decodes messages with a schema; None: the format has none.

        Raises:
            ConnectUsageError: A path is no path.
        """
        self.columns = columns
        self.max_body_bytes = max_body_bytes
        self.place = StreamPlace(section.stream, segment)
        self.position = None if section.position is None else FieldPath(section.position)
        self.seq = None if section.seq is None else FieldPath(section.seq)
        self.time = None if section.time is None else TimeField(section.time, section)
        self._decode: Callable[[BrokerMessage], Any] = decoder_of(section.format, bodies)
        self.bodies = bodies

    def decode(self, message: BrokerMessage) -> Any:
        """Return the content of a message.

        Raises:
            BadMessageError: It is too large, or not of the format.
        """
        if message.size > self.max_body_bytes:
            raise BadMessageError(
                "too_large", f"the message has {message.size} bytes; the service accepts {self.max_body_bytes}"
            )
        return self._decode(message)

    def _check_numbers(self, document: Any) -> None:
        for column in self.columns.values():
            for path in column.paths:
                check_number(path.text, path.read(document))

    def describe(self, error: BadMessageError, stream: str | None, document: Any) -> None:
        """Note in an error what could be read of its message: the stream's id and the time."""
        error.stream = stream
        if error.time is None and self.time is not None:
            error.time = self.time.readable(document)

    def map(self, message: BrokerMessage) -> MappedTimestep:
        """Return the timestep of a message.

        Raises:
            BadMessageError: It is not one.
        """
        document = self.decode(message)
        stream = None
        try:
            stream = self.place.stream_of(message, document)
            source, at = message.source, message.at
            if self.position is not None:
                source, at = source_of_field(message.log, self.position), _integer(self.position, document)
                if at >= POSITION_LIMIT:
                    raise BadMessageError("bad_request", f"the position is {at}; expected less than 2^63")
            elif message.unplaced:
                raise BadMessageError("bad_request", message.unplaced)
            seq = None
            if self.seq is not None:
                seq = _integer(self.seq, document)
                if not 1 <= seq < SEQ_LIMIT:
                    raise BadMessageError("bad_request", f"the seq is {seq}; expected an integer from 1 to 2^53")
                if at is None:  # the broker has no positions; this one grows, too
                    source, at = source_of_field(message.log, self.seq), seq
            time = None if self.time is None else self.time.of(self.time.path.read(document))
            if self.bodies is not None:
                self._check_numbers(document)
            values = {name: column.values_of(document) for name, column in self.columns.items()}
        except BadMessageError as exc:
            self.describe(exc, stream, document)
            raise
        return MappedTimestep(stream, source, at, seq, values, time)


def check_segment(section: FromSection, segment: re.Pattern[str] | None, url: BrokerUrl) -> None:
    """Check that topics have a segment for the stream's id, if it is there.

    Raises:
        ConnectUsageError: `stream` is `topic`, and the filter of the URL has no `{stream}`.
    """
    if section.stream in ("topic", "{topic}") and segment is None and url.broker.has_segments:
        raise ConnectUsageError(
            f"The stream is a segment of the topic, and {url.text!r} has no {{stream}}.",
            fix="Put {stream} in place of that segment, for example mqtt://HOST/plant/+/pump/{stream}.",
        )


def source_of_field(log: str, path: FieldPath) -> str:
    """Return the id of a source whose positions are a field of the messages of a log."""
    return f"{log}#{path.text}"


def _integer(path: FieldPath, document: Any) -> int:
    value = path.read(document)
    if type(value) is TextValue:
        number = number_of(value)
        value = number if type(number) is int else value
    if type(value) is not int or value < 0:
        shown = "missing" if value is MISSING else preview(value)
        raise BadMessageError("bad_request", f"the field {path.text!r} is {shown}; expected an integer from 0")
    return value
