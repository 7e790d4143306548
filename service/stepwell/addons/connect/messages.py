"""Messages that a connector reads and writes, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, overload

import msgspec

from stepwell_export.runtime.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.addons.recorded.csv_header import CsvHeader


class ConnectError(StepwellError):
    """A connector cannot continue."""

    code = "connect_failed"


class ConnectUsageError(ConnectError):
    """The configuration or the command line is wrong."""

    code = "bad_setting"


class BrokerUnavailableError(ConnectError):
    """A broker does not respond now; what was not confirmed is read or written again later."""

    code = "broker_unavailable"


class LoginRefusedError(ConnectError):
    """A broker rejects the login; once it has accepted one, this is waited for, because secrets are replaced."""

    code = "login_refused"


class AccessRefusedError(ConnectError):
    """A broker accepts the login, which may not read or write the topic, queue or stream."""

    code = "access_refused"


class BadMessageError(Exception):
    """A message that is not a timestep.

    Attributes:
        code: The service's code for such an error where it has one; else `bad_message`.
        reason: What was found and what was expected.
        stream: The stream's id, if it could be read.
        time: Its time in us, if it could be read.
        is_ahead: Whether its time is too far ahead of this clock.
    """

    def __init__(self, code: str, reason: str, stream: str | None = None) -> None:
        super().__init__(reason)
        self.time: int | None = None
        self.is_ahead = False
        self.code = code
        self.reason = reason
        self.stream = stream


@dataclass(slots=True)
class BrokerMessage:
    """One message as a reader returns it.

    Attributes:
        body: The bytes of the message; for an entry with `fields` empty.
        source: The id of the log that it is in.
        at: Its position in that log; None: the broker has no positions.
        log: The id of all logs that a stream's messages may be in, such as a topic without its partition.
        key: Its key, if it has one.
        topic: The topic, subject, routing key or stream that it came from.
        headers: Its headers.
        fields: The fields of an entry of a Redis stream; None for all others.
        header: The first line of the CSV file that it is a line of; None: its fields have numbers only.
        unplaced: Why it has no position although its log has positions; empty: it has one, or its log has none.
        handle: What the reader needs to acknowledge it.
    """

    body: bytes
    source: str
    at: int | None
    log: str
    key: bytes | None = None
    topic: str = ""
    headers: Mapping[str, bytes] = field(default_factory=dict)
    fields: Mapping[bytes, bytes] | None = None
    header: CsvHeader | None = None
    unplaced: str = ""
    handle: Any = None

    @property
    def size(self) -> int:
        """Bytes of the body or of all fields."""
        return len(self.body) if self.fields is None else sum(map(len, self.fields.values()))


class MessageColumns(Sequence[BrokerMessage]):
    """The messages of one poll in columns. A `BrokerMessage` is made only of those that are indexed.

    Attributes:
        bodies: The bytes of each message; None: an entry of a Redis stream with other fields than `data`.
        at: The position of each message in its log; None: the broker has no positions.
        sources: The id of each message's log.
        logs: The id of all logs that a stream's messages may be in, for each message.
        keys: The key of each message; None: it has none.
        topics: The topic of each message.
    """

    def __init__(
        self,
        make: Callable[[int], BrokerMessage],
        *,
        bodies: list[bytes | None],
        at: Sequence[int | None],
        sources: list[str],
        logs: list[str],
        keys: Sequence[bytes | None],
        topics: Sequence[str],
    ) -> None:
        """Create the columns, which have equal lengths; `make` returns the message with an index from 0."""
        self._make = make
        self.bodies = bodies
        self.at = at
        self.sources = sources
        self.logs = logs
        self.keys = keys
        self.topics = topics

    @classmethod
    def of(cls, messages: Sequence[BrokerMessage]) -> Self:
        """Return the columns of single messages."""
        return cls(
            messages.__getitem__,
            bodies=[message.body if message.fields is None else None for message in messages],
            at=[message.at for message in messages],
            sources=[message.source for message in messages],
            logs=[message.log for message in messages],
            keys=[message.key for message in messages],
            topics=[message.topic for message in messages],
        )

    @property
    def size(self) -> int:
        """Bytes of all bodies or fields."""
        if None in self.bodies:
            return sum(len(body) if body is not None else self[row].size for row, body in enumerate(self.bodies))
        return sum(map(len, self.bodies))  # type: ignore[arg-type]  # none is None

    def __len__(self) -> int:
        return len(self.bodies)

    @overload
    def __getitem__(self, index: int) -> BrokerMessage: ...
    @overload
    def __getitem__(self, index: slice) -> list[BrokerMessage]: ...
    def __getitem__(self, index: int | slice) -> BrokerMessage | list[BrokerMessage]:
        if isinstance(index, slice):
            return [self._make(row) for row in range(len(self))[index]]
        return self._make(range(len(self))[index])


@dataclass(frozen=True, slots=True)
class OutMessage:
    """One message to write: a prediction or a dead letter.

    Attributes:
        key: The stream's id; empty if it is not known.
        source: The id of the log that its timestep came from.
        at: The position of the timestep in that log; None: it has none.
        document: The content, of plain values.
        body: The same in bytes; None: the writer encodes it.
    """

    key: str
    source: str
    at: int | None
    document: dict[str, Any]
    body: bytes | None = None


class Undeliverable(NamedTuple):
    """A message that its writer cannot write now or later, such as one to an illegal topic; others are not concerned.

    Attributes:
        message: The message.
        reason: What was found and what was expected.
    """

    message: OutMessage
    reason: str


def encoder_of(body_format: str) -> Callable[[OutMessage], bytes]:
    """Return the function that encodes messages of a format; those that have their bytes keep them."""
    encode = _ENCODERS.get(body_format, msgspec.json.encode)
    return lambda message: encode(message.document) if message.body is None else message.body


_ENCODERS: Final[Mapping[str, Callable[[Any], bytes]]] = {
    "json": msgspec.json.encode,
    "msgpack": msgspec.msgpack.encode,
}
