"""`PipelinedConnection`: one connection to the store that pipelines commands; replies are matched by their order.

redis-py's own connection costs several times as much per command: a task switch, two timeouts and a stream reader.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast, overload

import hiredis
from msgspec import Struct

_LATE_REPLY = "no reply in time"
_OLD_SCRIPT_REFUSAL = re.compile(r"ERR Error running script .*?: -([A-Z]+) ")
_CLOCK_RESOLUTION_S = 0.01  # a timer may fire this much early

Argument = str | bytes | int


class PackedCommand(Sequence[Argument]):
    """A command that is already encoded. Its arguments are created only if it has to be sent in another form.

    Attributes:
        packed: The encoded command.
    """

    __slots__ = ("_arguments", "packed")

    def __init__(self, packed: bytes, arguments: Callable[[], Sequence[Argument]]) -> None:
        self.packed = packed
        self._arguments = arguments

    def __len__(self) -> int:
        return len(self._arguments())

    @overload
    def __getitem__(self, index: int) -> Argument: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Argument]: ...

    def __getitem__(self, index: int | slice) -> Argument | Sequence[Argument]:
        return self._arguments()[index]


class NotSentError(Exception):
    """The command was not sent, so it was certainly not executed.

    Attributes:
        is_permanent: An immediate retry cannot succeed.
        public_reason: The reason without the server's address, for responses to clients.
    """

    def __init__(self, reason: str, *, is_permanent: bool = False, public_reason: str = "") -> None:
        super().__init__(reason)
        self.is_permanent = is_permanent
        self.public_reason = public_reason or reason


class NoReplyError(Exception):
    """The command was sent and no reply arrived: it may have been executed."""


class CommandError(Exception):
    """An error that the server returned for one command; an element of the replies, not raised in this package.

    Attributes:
        code: Its first word, such as `NOSCRIPT`. In errors inside scripts, Redis 6.2 puts it after other words.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        in_script = _OLD_SCRIPT_REFUSAL.match(message)
        self.code = in_script[1] if in_script else message.partition(" ")[0]


class PipelinedConnection(asyncio.Protocol):
    """Sends commands and returns their replies, in order.

    Each caller has its own timeout: a reply that arrives after it is dropped. A connection on which a reply is overdue,
    or whose server is a replica now, is closed, and all callers that wait on it get `NoReplyError`.
    """

    def __init__(
        self, writer: asyncio.StreamWriter, reply_timeout: float, *, on_overdue: Callable[[], None] | None = None
    ) -> None:
        """Use an open connection.

        Args:
            writer: The writer of an authenticated connection on which no command is pending.
            reply_timeout: Seconds after which a reply is overdue.
            on_overdue: Called once, if the connection is closed for that reason.
        """
        self._loop = asyncio.get_running_loop()  # stored: before Python 3.12 each call costs a system call
        self._reply_timeout = reply_timeout
        self._on_overdue = on_overdue
        self._writer = writer  # stored, since a writer closes its connection when it is garbage-collected
        self._transport = writer.transport
        self._reader = hiredis.Reader(replyError=CommandError)
        self._pending: deque[_Exchange] = deque()
        self._abort_reason = ""
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return not self._abort_reason and not self._transport.is_closing()

    async def call(self, commands: Sequence[Sequence[Argument]], timeout: float) -> list[Any]:
        """Send commands in one write and return their replies; an error reply is a `CommandError` object.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them.

        Raises:
            NotSentError: The connection was already closed.
            NoReplyError: A reply is missing.
        """
        if not self.is_open:
            raise NotSentError(self._abort_reason or "the connection was lost")
        loop = self._loop
        packed = [
            command.packed if type(command) is PackedCommand else hiredis.pack_command(cast("Any", command))
            for command in commands
        ]
        exchange = _Exchange(len(commands), loop.create_future(), loop.time(), [])
        self._pending.append(exchange)
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        timer = loop.call_later(timeout, self._on_timeout, exchange)
        try:
            await exchange.done
        finally:
            timer.cancel()
        return exchange.replies

    def abort(self, reason: str) -> None:
        """Close the connection at once; all callers that wait on it get `NoReplyError`."""
        self._abort_reason = self._abort_reason or reason
        self._transport.abort()
        while self._pending:
            done = self._pending.popleft().done
            if not done.done():
                done.set_exception(NoReplyError(self._abort_reason))

    def _on_timeout(self, exchange: _Exchange) -> None:
        """End the wait of one caller, or close the connection if its oldest reply is overdue."""
        now = self._loop.time()
        if self._pending and now - self._pending[0].sent_at > self._reply_timeout - _CLOCK_RESOLUTION_S:
            self.abort(_LATE_REPLY)
            if self._on_overdue is not None:
                self._on_overdue()
        elif not exchange.done.done():
            exchange.done.set_exception(NoReplyError(_LATE_REPLY))

    # ---------------------------------------------------------------- called by asyncio's transport

    def data_received(self, data: bytes) -> None:
        """Decode the bytes of replies."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                exchange = self._pending[0]
                exchange.replies.append(reply)
                if type(reply) is CommandError and reply.code == "READONLY":
                    self._abort_reason = "the server is a replica now"  # the next connection is to the new primary
                if len(exchange.replies) == exchange.expected_replies:
                    self._pending.popleft()
                    if not exchange.done.done():  # its caller may have been cancelled
                        exchange.done.set_result(None)
            if self._abort_reason and not self._pending:  # what was sent before has its replies
                self.abort(self._abort_reason)
        except (hiredis.ProtocolError, IndexError) as exc:  # not a reply of the protocol, or one without a command
            self.abort(f"the store violated the protocol: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all callers that wait."""
        self.abort(str(exc or "") or "the connection was lost")


class _Exchange(Struct, frozen=True):
    """The commands of one write, and the replies so far."""

    expected_replies: int
    done: asyncio.Future[None]
    sent_at: float
    replies: list[Any]
