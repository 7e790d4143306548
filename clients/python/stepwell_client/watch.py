"""`WatchCursor`: what a watch of committed predictions sends and receives, over however many connections."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from stepwell_client.http_transport import FeedAddress
from stepwell_client.protocol import decoding
from stepwell_client.protocol.inputs import encode_body
from stepwell_client.results import Event, Gap
from stepwell_client.websockets import rejected_handshake
from stepwell_client.wire.backoff import Backoff

_PROTOCOL: Final = [Subprotocol("stepwell.msgpack")]
_BACKOFF: Final = Backoff(0.2, 5.0, jitter=0.5)
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 1.0


class WatchCursor:
    """One watch's subscription, its position in the stream, and its pauses between connection attempts."""

    def __init__(
        self, address: FeedAddress, model: str, stream: str | None, prefix: str, since: int | None, *, inputs: bool
    ) -> None:
        """Use `Model.watch`."""
        self.address = address
        self._filter: dict[str, Any] = {"model": model} | ({"prefix": prefix} if prefix else {})
        self._stream = stream
        self._since = since
        self._inputs = inputs
        self._failures = 0

    @property
    def options(self) -> dict[str, Any]:
        """Options of `websockets.connect`."""
        return {
            "subprotocols": _PROTOCOL,
            "additional_headers": dict(self.address.headers),
            "compression": None,
            "max_size": None,
            "open_timeout": _OPEN_S,
            "close_timeout": _CLOSE_S,
        }

    def subscribe_message(self) -> bytes:
        """Return the first message of a connection: the subscription and the step to continue after."""
        subscription = dict(self._filter)
        if self._stream is not None:
            subscription["stream"] = self._stream
            if self._since is not None:
                subscription["since"] = self._since
        return encode_body({"watch": [subscription], "inputs": self._inputs})

    def on_message(self, message: bytes | str) -> Event | Gap | None:
        """Return a message's event or gap; None for the confirmation of the subscription.

        Raises:
            ClientError: The service rejected the watch.
        """
        self._failures = 0
        raw = message if isinstance(message, bytes) else message.encode()
        decoded = msgspec.msgpack.decode(raw, type=decoding.WatchMessage)
        if decoded.error is not None:
            raise decoded.error.error()
        if not decoded.stream and not decoded.gap:
            return None
        event = decoded.event()
        if isinstance(event, Event) and self._stream is not None:
            self._since = event.step
        return event

    def pause(self, error: Exception | None = None) -> float:
        """Return the seconds to wait before the next connection attempt.

        Raises:
            ClientError: The service rejected the handshake.
        """
        if isinstance(error, InvalidStatus):
            rejection = decoding.error_in(rejected_handshake(error), mutates=False)
            if rejection is not None and rejection.retry != "same":
                raise rejection
        self._failures += 1
        return _BACKOFF.after(self._failures)

    def gap(self) -> Gap | None:
        """Return the gap to report after a reconnection that may have missed events; None if none was missed."""
        return None if self._stream is not None and self._since is not None else Gap(1)
