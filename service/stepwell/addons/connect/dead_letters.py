"""Dead letters: messages that cannot be used, with the reason."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from stepwell.addons.connect.messages import BrokerMessage, OutMessage
from stepwell.addons.event_time.times import iso

if TYPE_CHECKING:
    from stepwell.addons.connect.timeline import TimedMessage

_MAX_BYTES: Final = 128 << 10
"""Bytes of a message that are kept; a larger dead letter would be rejected by most brokers."""

_utf8 = codecs.getincrementaldecoder("utf-8")


def dead_letter(
    message: BrokerMessage, code: str, reason: str, stream: str | None, *, time: int | None = None
) -> OutMessage:
    """Return the dead letter of a message.

    Args:
        message: The message as it was read.
        code: Why, for programs.
        reason: Why, for people.
        stream: The stream's id, if it could be read.
        time: Its time in us; None: it has none.
    """
    document: dict[str, Any] = {
        "reason": reason,
        "code": code,
        "stream": stream,
        "source": {"id": message.source, "at": message.at},
        "message": _shown(message),
    }
    if time is not None:
        document["time"] = iso(time)
    if message.size > _MAX_BYTES:
        document["size"] = message.size  # what is shown is its beginning
    return OutMessage(stream or "", message.source, None, document)


def letter_of_tick(items: Sequence[TimedMessage], code: str, reason: str, stream: str) -> OutMessage:
    """Return the dead letter of a tick; its message is the list of its messages, its time that of the last one."""
    messages = [one.message for one in items]
    letter = dead_letter(messages[-1], code, reason, stream, time=items[-1].time)
    letter.document["message"] = [_shown(one) for one in messages]
    return letter


def undelivered_letter(prediction: OutMessage, reason: str) -> OutMessage:
    """Return the dead letter of a prediction that cannot be handed over; its message is the prediction.

    Args:
        prediction: The prediction as it should have been written.
        reason: Why it could not be, for people.
    """
    source = prediction.document["source"]
    message = msgspec.json.encode(prediction.document)
    document: dict[str, Any] = {
        "reason": reason,
        "code": "undeliverable",
        "stream": prediction.key,
        "source": source,
        "message": _text(message),
    }
    if "time" in prediction.document:
        document["time"] = prediction.document["time"]
    if len(message) > _MAX_BYTES:
        document["size"] = len(message)
    return OutMessage(prediction.key, prediction.source, None, document)


def _shown(message: BrokerMessage) -> str:
    fields = message.fields
    if fields is None:
        return _text(message.body)
    if len(fields) == 1:
        return _text(next(iter(fields.values())))
    return msgspec.json.encode({_text(name): _text(value) for name, value in fields.items()}).decode()


def _text(data: bytes) -> str:
    try:
        return _utf8().decode(data[:_MAX_BYTES])  # a character that is cut at the end is left out
    except UnicodeDecodeError:
        return base64.b64encode(data[:_MAX_BYTES]).decode()
