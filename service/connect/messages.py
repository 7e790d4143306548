"""Messages that a connector reads and writes, and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model_export.errors import StepwellError


class ConnectError(StepwellError):
    """A connector cannot continue."""

    code = "connect_failed"


class ConnectUsageError(ConnectError):
    """The configuration or the command line is wrong."""

    code = "bad_setting"


class BrokerUnavailableError(ConnectError):
    """A broker does not respond now; what was not confirmed is read or written again later."""

    code = "broker_unavailable"


class BadMessageError(Exception):
    """A message that is not a timestep.

    Attributes:
        code: The service's code for such an error where it has one; else `bad_message`.
        reason: What was found and what was expected.
        stream: The stream's id, if it could be read.
    """

    def __init__(self, code: str, reason: str, stream: str | None = None) -> None:
        super().__init__(reason)
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
    handle: Any = None

    @property
    def size(self) -> int:
        """Bytes of the body or of all fields."""
        return len(self.body) if self.fields is None else sum(map(len, self.fields.values()))


@dataclass(frozen=True, slots=True)
class OutMessage:
    """One message to write: a prediction or a dead letter.

    Attributes:
        key: The stream's id; empty if it is not known.
        source: The id of the log that its timestep came from.
        at: The position of the timestep in that log; None: it has none.
        document: The content, of plain values.
    """

    key: str
    source: str
    at: int | None
    document: dict[str, Any]
