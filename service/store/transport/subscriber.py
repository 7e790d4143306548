"""`SubscriberConnection`: one connection to the store that is subscribed to topics."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis

from service.store.transport.connection import CommandError


class SubscriberConnection(asyncio.Protocol):
    """Hands out messages as they come, in order, until it is cut.

    Attributes:
        cut_by: Why it hears no more; None while it does.
        is_cut: Set then.
    """

    def __init__(self, writer: asyncio.StreamWriter, hear: Callable[[str, bytes], None]) -> None:
        """Take a connection over.

        Args:
            writer: Of a connection on which the greeting is done and nothing is under way.
            hear: Takes the topic and the bytes of each message.
        """
        self.abort_reason: str | None = None
        self.closed = asyncio.Event()
        self._writer = writer  # kept, since it closes the connection when it is collected
        self._transport = cast("asyncio.Transport", writer.transport)
        self._on_message = hear
        self._reader = hiredis.Reader(replyError=CommandError)
        self._confirmations: deque[asyncio.Future[None]] = deque()
        self._received_any = False
        self._transport.set_protocol(self)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Hear topics; returns when the store has confirmed it, or the ear is cut."""
        loop = asyncio.get_running_loop()
        names = list(topics)
        if not names or self.closed.is_set():
            return
        confirmations = [loop.create_future() for _ in names]
        self._confirmations.extend(confirmations)
        self._send("SUBSCRIBE", *names)
        await asyncio.wait(confirmations)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Hear topics no more."""
        if (names := list(topics)) and not self.closed.is_set():
            self._send("UNSUBSCRIBE", *names)

    async def wait_closed(self, patience: float) -> None:
        """Return when the ear is cut; it is cut when the store says nothing for so many seconds, though asked to."""
        while not self.closed.is_set():
            self._received_any = False
            self._send("PING")
            try:
                async with asyncio.timeout(patience):
                    await self.closed.wait()
            except TimeoutError:
                if not self._received_any:
                    self.abort("the store was silent")

    def abort(self, why: str) -> None:
        """Close the connection at once."""
        if self.abort_reason is None:
            self.abort_reason = why
            self._transport.abort()
            self.closed.set()
            for confirmation in self._confirmations:
                if not confirmation.done():
                    confirmation.set_result(None)

    # ---------------------------------------------------------------- what the transport calls

    def data_received(self, data: bytes) -> None:
        """Take bytes of messages and confirmations."""
        self._received_any = True
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._handle_push(reply)
        except (hiredis.ProtocolError, UnicodeDecodeError) as exc:
            self.abort(f"the store sent what it should not: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.abort(str(exc or "") or "the connection was lost")

    # ---------------------------------------------------------------- helpers

    def _handle_push(self, reply: Any) -> None:
        if isinstance(reply, CommandError):
            self.abort(str(reply))
        elif reply[0] == b"message":
            self._on_message(reply[1].decode(), reply[2])
        elif reply[0] == b"subscribe" and self._confirmations:
            confirmation = self._confirmations.popleft()
            if not confirmation.done():  # its caller may have been cancelled
                confirmation.set_result(None)

    def _send(self, *command: str) -> None:
        self._transport.write(hiredis.pack_command(cast("Any", command)))
