"""`SubscriberConnection`: one connection to the store that is subscribed to topics."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis

from stepwell.store.transport.connection import CommandError


class SubscriberConnection(asyncio.Protocol):
    """Calls a function with each message, in order, until the connection is closed.

    Attributes:
        abort_reason: Why it was closed; None while it is open.
        closed: Set once it is closed.
    """

    def __init__(self, writer: asyncio.StreamWriter, on_message: Callable[[str, bytes], None]) -> None:
        """Use an open connection.

        Args:
            writer: The writer of an authenticated connection on which no command is pending.
            on_message: Called with the topic and the bytes of each message.
        """
        self.abort_reason: str | None = None
        self.closed = asyncio.Event()
        self._writer = writer  # stored, since a writer closes its connection when it is garbage-collected
        self._transport = cast("asyncio.Transport", writer.transport)
        self._on_message = on_message
        self._reader = hiredis.Reader(replyError=CommandError)
        self._confirmations: deque[asyncio.Future[None]] = deque()
        self._received_any = False
        self._transport.set_protocol(self)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to topics; returns once the store has confirmed it, or the connection is closed."""
        loop = asyncio.get_running_loop()
        names = list(topics)
        if not names or self.closed.is_set():
            return
        confirmations = [loop.create_future() for _ in names]
        self._confirmations.extend(confirmations)
        self._send("SUBSCRIBE", *names)
        await asyncio.wait(confirmations)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Unsubscribe from topics."""
        if (names := list(topics)) and not self.closed.is_set():
            self._send("UNSUBSCRIBE", *names)

    async def wait_closed(self, idle_timeout: float) -> None:
        """Return once the connection is closed; close it if nothing arrives for `idle_timeout` seconds after a PING."""
        while not self.closed.is_set():
            self._received_any = False
            self._send("PING")
            try:
                async with asyncio.timeout(idle_timeout):
                    await self.closed.wait()
            except TimeoutError:
                if not self._received_any:
                    self.abort("the store did not reply to PING in time")

    def abort(self, reason: str) -> None:
        """Close the connection at once."""
        if self.abort_reason is None:
            self.abort_reason = reason
            self._transport.abort()
            self.closed.set()
            for confirmation in self._confirmations:
                if not confirmation.done():
                    confirmation.set_result(None)

    # ---------------------------------------------------------------- called by asyncio's transport

    def data_received(self, data: bytes) -> None:
        """Decode the bytes of messages and confirmations."""
        self._received_any = True
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._handle_push(reply)
        except (hiredis.ProtocolError, UnicodeDecodeError) as exc:
            self.abort(f"the store violated the protocol: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Record the loss of the connection."""
        self.abort(str(exc or "") or "the connection was lost")

    # ---------------------------------------------------------------- helpers

    def _handle_push(self, reply: Any) -> None:
        if isinstance(reply, CommandError):
            if reply.code != "MISCONF":  # of PING, while the store's disk is full: messages are delivered
                self.abort(str(reply))
        elif reply[0] == b"message":
            self._on_message(reply[1].decode(), reply[2])
        elif reply[0] == b"subscribe" and self._confirmations:
            confirmation = self._confirmations.popleft()
            if not confirmation.done():  # its caller may have been cancelled
                confirmation.set_result(None)

    def _send(self, *command: str) -> None:
        self._transport.write(hiredis.pack_command(cast("Any", command)))
